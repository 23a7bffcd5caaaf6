"""Line charts as inline SVG. However many the points, each pixel column shows its lowest and highest: no spike vanishes."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from thalweg.see.wording import number

Values = npt.NDArray[np.float64]
WIDTH, HEIGHT = 720, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 14, 34
COLUMNS = 360
SMOOTHING = 30  # columns: the smoothed line averages over a twelfth of the chart


class Series(NamedTuple):
    """One line: name, positions, values; `dots` draws the points too, `smooth` a band with a smoothed line through it."""

    name: str
    x: Values
    y: Values
    dots: bool = False
    smooth: bool = False


class Mark(NamedTuple):
    """A vertical line at a position, with a word for it."""

    x: float
    label: str


class Axis(NamedTuple):
    """A range, linear or logarithmic."""

    low: float
    high: float
    log: bool

    def at(self, value: float | Values) -> Values:
        """Give the place of a value between 0 and 1."""
        if self.log:
            top, bottom = math.log10(self.high), math.log10(self.low)
            return (np.log10(np.maximum(value, self.low)) - bottom) / (top - bottom)
        return (np.asarray(value) - self.low) / (self.high - self.low)

    def ticks(self, count: int = 5) -> list[float]:
        """Give round numbers on the axis."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            decades = [10.0**k for k in range(first, last + 1)]
            if len(decades) >= 3:
                return decades[:: max(1, len(decades) // count)]
            return [
                t
                for k in range(first - 1, last + 1)
                for t in (10.0**k, 2 * 10.0**k, 5 * 10.0**k)
                if self.low <= t <= self.high
            ]
        span = self.high - self.low
        unit = 10 ** math.floor(math.log10(span / count))
        step = next(unit * k for k in (1, 2, 5, 10) if span / (unit * k) <= count)
        return [k * step for k in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def axis(values: Sequence[Values], *, log: bool | None = None) -> Axis:
    """Choose a range: logarithmic where all is above zero and spans more than a factor of 30."""
    seen = np.concatenate([v[np.isfinite(v)] for v in values]) if values else np.zeros(0)
    if not len(seen):
        return Axis(0.0, 1.0, False)
    low, high = float(seen.min()), float(seen.max())
    if log is None:
        log = low > 0 and high / low > 30
    if log and low > 0:
        return Axis(low / 1.15, high * 1.15, True) if high > low else Axis(low / 2, high * 2, True)
    margin = 0.06 * (high - low) or max(1e-9, 0.05 * abs(high)) or 0.5
    return Axis(low - margin, high + margin, False)


def chart(
    title: str,
    series: Sequence[Series],
    *,
    marks: Sequence[Mark] = (),
    x_label: str = "step",
    log_x: bool = False,
    log_y: bool | None = None,
) -> str:
    """Draw a chart as an SVG element with its legend; empty text where no value is finite."""
    kept = [s for s in series if np.isfinite(s.y).any()]
    if not kept:
        return ""
    across, up = axis([s.x for s in kept], log=log_x), axis([s.y for s in kept], log=log_y)
    if not log_x:
        low, high = min(float(s.x.min()) for s in kept), max(float(s.x.max()) for s in kept)
        across = Axis(low, high if high > low else low + 1, False)
    parts = [_grid(across, up, x_label), *(_mark(m, across) for m in marks)]
    parts += [_line(s, k, across, up) for k, s in enumerate(kept)]
    legend = "".join(f'<span class="key c{k}">{html.escape(s.name)}</span>' for k, s in enumerate(kept))
    picture = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">{"".join(parts)}</svg>'
    return (
        f'<figure><figcaption>{html.escape(title)} <span class="legend">{legend}</span></figcaption>{picture}</figure>'
    )


def _x(place: Values | float) -> Values:
    return LEFT + np.clip(place, 0, 1) * (WIDTH - LEFT - RIGHT)


def _y(place: Values | float) -> Values:
    return HEIGHT - BOTTOM - np.clip(place, 0, 1) * (HEIGHT - TOP - BOTTOM)


def _grid(across: Axis, up: Axis, x_label: str) -> str:
    parts: list[str] = []
    for tick in up.ticks():
        y = float(_y(up.at(tick)))
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(float(f"{tick:.6g}"))}</text>')
    for tick in across.ticks(6):
        x = float(_x(across.at(tick)))
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{number(float(f"{tick:.6g}"))}</text>'
        )
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">{html.escape(x_label)}</text>')
    return "".join(parts)


def _mark(mark: Mark, across: Axis) -> str:
    x = float(_x(across.at(mark.x)))
    ends = f'x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"'
    return f'<line class="mark" {ends}><title>{html.escape(mark.label)}</title></line>'


def _line(series: Series, colour: int, across: Axis, up: Axis) -> str:
    good = np.isfinite(series.y) & np.isfinite(series.x)
    x, y = series.x[good], series.y[good]
    places = _x(across.at(x))
    if not series.smooth or len(x) <= 2:
        heights = _y(up.at(y))
        there = zip(places, heights, strict=True) if series.dots or len(x) <= 2 else ()
        dots = "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in there)
        return f'<g class="s{colour}">{_path(places, heights, "line")}{dots}</g>'
    centres, low, mean, high = columns(places, y)
    band = [*zip(centres, _y(up.at(high)), strict=True), *zip(centres[::-1], _y(up.at(low))[::-1], strict=True)]
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in band)
    smoothed = _path(centres, _y(up.at(running_mean(mean, max(1, len(mean) // SMOOTHING)))), "line")
    return f'<g class="s{colour}"><polygon class="band" points="{points}"/>{smoothed}</g>'


def columns(places: Values, y: Values, count: int = COLUMNS) -> tuple[Values, Values, Values, Values]:
    """Gather points into columns: centre, lowest, mean, highest of each that has any."""
    width = (WIDTH - LEFT - RIGHT) / count
    which = np.minimum(((places - LEFT) / width).astype(int), count - 1)
    starts = np.flatnonzero(np.r_[True, np.diff(which) != 0])
    sizes = np.diff(np.r_[starts, len(y)])
    mean = np.add.reduceat(y, starts) / sizes
    centres = LEFT + (which[starts] + 0.5) * width
    return centres, np.minimum.reduceat(y, starts), mean, np.maximum.reduceat(y, starts)


def running_mean(values: Values, width: int) -> Values:
    """Average each value with its neighbours, fewer at the ends.

    >>> running_mean(np.array([1.0, 2.0, 6.0]), 3).tolist()
    [1.5, 3.0, 4.0]
    """
    half = width // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _path(x: Values, y: Values, kind: str) -> str:
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return f'<polyline class="{kind}" points="{points}"/>'
