"""Axes: a range chosen by the data, linear or logarithmic, with round numbers on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from thalweg.formatting import format_tick

Values = npt.NDArray[np.float64]
LOG_RATIO = 20.0  # of the largest to the smallest value, above which the axis is logarithmic
MAX_DECADES = 15.0  # of a logarithmic axis; smaller values are drawn at its lower end
MIN_SPAN = 1e-9  # relative; values that span less differ by rounding errors only
ENLARGED = 1 / 3  # of the axis: values that take less of it can have a half of a broken one
ROOM = 0.25  # beyond such values, as a share of what they take
NEAR_KNEE = 0.03  # of the axis: a tick that is nearer to where it is broken would touch the next one
LARGEST = 1e300  # values are clipped to it, so that margins and spans do not overflow


class Axis(NamedTuple):
    """A range, linear or logarithmic; `whole` where only whole numbers mean something, such as steps.

    `knee`: a value within the range at which a broken axis has its middle: each half has a scale of its own.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False
    knee: float | None = None

    def position(self, values: Values | float) -> Values:
        """Give the position of values on the axis: 0 at the low end, 1 at the high end, values outside at the nearer end.

        >>> Axis(0.01, 100, log=True).position(np.array([0.0, 0.1, 1.0, 1e9])).tolist()
        [0.0, 0.25, 0.5, 1.0]
        >>> Axis(0, 100, knee=10).position(np.array([5.0, 10.0, 55.0])).tolist()
        [0.25, 0.5, 0.75]
        """
        shares = self._shares(values)
        return shares if self.knee is None else np.interp(shares, self._broken(), (0.0, 0.5, 1.0))

    def _shares(self, values: Values | float) -> Values:
        """Give positions as if the axis were not broken."""
        inside = np.clip(np.asarray(values, np.float64), self.low, self.high)
        if not self.log:
            return (inside - self.low) / (self.high - self.low)
        low, high = math.log10(self.low), math.log10(self.high)
        return np.clip(
            (np.log10(inside) - low) / (high - low), 0.0, 1.0
        )  # the logarithms are rounded, so the ends may come out just outside

    def _broken(self) -> tuple[float, float, float]:
        return 0.0, 0.5 if self.knee is None else float(self._shares(self.knee)), 1.0

    def value(self, positions: Values) -> Values:
        """Give the values at positions: the inverse of `position` within the range."""
        if self.knee is not None:
            positions = np.interp(positions, (0.0, 0.5, 1.0), self._broken())
        if not self.log:
            return self.low + positions * (self.high - self.low)
        low, high = math.log10(self.low), math.log10(self.high)
        return 10.0 ** (low + positions * (high - low))

    def enlarging(self, values: Values, others: Values) -> Axis:
        """Give the axis broken so that these values, which lie close together at one end of all, have one half for themselves.

        >>> Axis(0.0, 100.0).enlarging(np.array([2.0, 4.0]), np.array([95.0]))
        Axis(low=1.5, high=100.0, log=False, whole=False, knee=4.5)
        """
        shares, all_shares = self._shares(values), self._shares(np.r_[values, others])
        room = ROOM * float(np.ptp(shares))
        low, high = float(shares.min()) - room, float(shares.max()) + room
        if room == 0 or high - low >= ENLARGED:
            return self
        if low < 1 - high:
            end = max(0.0, float(all_shares.min()) - room)
            return self._replace(low=self._at(end), knee=self._at(high))
        end = min(1.0, float(all_shares.max()) + room)
        return self._replace(high=self._at(end), knee=self._at(low))

    def _at(self, share: float) -> float:
        return float(self.value(np.array([share]))[0])

    def ticks(self, count: int = 5) -> list[float]:
        """Give round numbers within the range, about `count`; on a broken axis more of them.

        >>> Axis(0, 900).ticks(), Axis(0.003, 2.5, log=True).ticks(), Axis(0.9, 7, log=True).ticks()
        ([0.0, 200.0, 400.0, 600.0, 800.0], [0.01, 0.1, 1.0], [1.0, 2.0, 5.0])
        """
        if self.knee is not None:
            halves = self._replace(high=self.knee, knee=None), self._replace(low=self.knee, knee=None)
            ticks = [tick for half in halves for tick in half.ticks(max(2, count // 2 + 1))]
            far = {tick for tick in ticks if abs(float(self.position(tick)) - 0.5) > NEAR_KNEE}  # both may have one
            return sorted({*far, *ticks[:1]} if len(far) < 2 else far)
        if self.log and self.high / self.low >= 3:
            return _log_ticks(self.low, self.high, count)
        unit = 10.0 ** math.floor(math.log10((self.high - self.low) / count))
        step = next((k * unit for k in (1, 2, 5, 10) if (self.high - self.low) / (k * unit) <= count), 10 * unit)
        step = max(step, 1.0) if self.whole else step
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [float(f"{k * step:.12g}") for k in range(first, last + 1)]

    def labels(self, count: int = 5) -> list[tuple[float, str]]:
        """Give each tick's position and its text."""
        return [(float(self.position(tick)), format_tick(tick)) for tick in self.ticks(count)]


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    if last - first >= 2:
        stride = max(1, math.ceil((last - first + 1) / (count + 1)))
        return [float(f"1e{k}") for k in range(first, last + 1) if k % stride == 0]
    fine = [float(f"{m}e{k}") for k in range(first - 1, last + 1) for m in (1, 2, 5)]
    return [tick for tick in fine if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]


def choose_axis(values: Sequence[Values], *, log: bool | None = None, zero: bool = False) -> Axis:
    """Choose a range for values; those that are not finite are ignored.

    It is logarithmic where no value is negative and the positive ones span more than a factor of 20, unless `log` says so.
    `zero`: begin a linear axis at zero.

    >>> [choose_axis([np.array([2.0, other])]).log for other in (0.001, -1.0, 1.0)]
    [True, False, False]
    """
    finite = np.concatenate([np.zeros(0), *(v[np.isfinite(v)] for v in values)]).clip(-LARGEST, LARGEST)
    positive = finite[finite > 1 / LARGEST]
    if log is None:
        log = len(positive) > 0 and finite.min() >= 0 and bool(positive.max() > LOG_RATIO * positive.min())
    if log and len(positive):
        return _log_axis(float(positive.min()), float(positive.max()))
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    largest = max(abs(low), abs(high))
    margin = 0.05 * (high - low) if high - low > MIN_SPAN * largest else 0.05 * largest or 1.0
    return Axis(low if zero and low == 0 else low - margin, high + margin)


def _log_axis(low: float, high: float) -> Axis:
    low = max(low, high / 10**MAX_DECADES)
    margin = max((high / low) ** 0.05, 1.1)
    return Axis(low / margin, high * margin, log=True)
