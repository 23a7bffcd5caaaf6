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
LARGEST = 1e300  # values are clipped to it, so that margins and spans do not overflow


class Axis(NamedTuple):
    """A range, linear or logarithmic; `whole` where only whole numbers mean something, such as steps."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def position(self, values: Values | float) -> Values:
        """Give the position of values on the axis: 0 at the low end, 1 at the high end, values outside at the nearer end.

        >>> Axis(0.01, 100, log=True).position(np.array([0.0, 0.1, 1.0, 1e9])).tolist()
        [0.0, 0.25, 0.5, 1.0]
        """
        inside = np.clip(np.asarray(values, np.float64), self.low, self.high)
        if not self.log:
            return (inside - self.low) / (self.high - self.low)
        low, high = math.log10(self.low), math.log10(self.high)
        return np.clip(
            (np.log10(inside) - low) / (high - low), 0.0, 1.0
        )  # the logarithms are rounded, so the ends may come out just outside

    def value(self, positions: Values) -> Values:
        """Give the values at positions: the inverse of `position` within the range."""
        if not self.log:
            return self.low + positions * (self.high - self.low)
        low, high = math.log10(self.low), math.log10(self.high)
        return 10.0 ** (low + positions * (high - low))

    def ticks(self, count: int = 5) -> list[float]:
        """Give round numbers within the range, about `count`.

        >>> Axis(0, 900).ticks(), Axis(0.003, 2.5, log=True).ticks(), Axis(0.9, 7, log=True).ticks()
        ([0.0, 200.0, 400.0, 600.0, 800.0], [0.01, 0.1, 1.0], [1.0, 2.0, 5.0])
        """
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
