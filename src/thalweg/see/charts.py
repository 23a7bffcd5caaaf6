"""Line charts as inline SVG under HTML labels: they stretch to any width, and need no JavaScript but for the read-out.

Coordinates are integers from 0 to 10,000 and relative, which keeps 800 columns within a few kilobytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from thalweg.formatting import format_number, percent, printable
from thalweg.see.axes import LARGEST, Axis, Values, choose
from thalweg.see.downsampling import Columns, reduce, smooth

FULL = 10_000  # coordinates of the plot's far corner
MOST_DOTS = 40  # points of a line that are drawn as dots too
MOST_MARKS = 60
REACH = 100.0  # times the highest value: further up nothing that stands aside is given room
MARKS = {  # kind of event -> its sign and what it says in the legend
    "best": ("★", "kept weights"),
    "rollback": ("↩", "went back"),
    "left_out": ("✕", "batch left out"),
    "diverged": ("▲", "given up"),
    "resume": ("▸", "went on after a stop"),
    "interrupt": ("‖", "interrupted"),
    "out_of_memory": ("◆", "memory ran out"),
    "early_stop": ("■", "stopped early"),
    "chosen": ("◆", "chosen"),
}


def mark_sign(kind: str) -> tuple[str, str]:
    """Give the sign and the legend of a kind of event; that of a diagnosis is the name of its cause.

    >>> mark_sign("rollback"), mark_sign("learning-rate-too-high")
    (('↩', 'went back'), ('▲', 'learning rate too high'))
    """
    return MARKS.get(kind, ("▲", escape(printable(kind.replace("-", " ").replace("_", " ")))))


def color_class(kind: str) -> str:
    """Give the style sheet's class of a kind of event: all diagnoses share one."""
    return kind if kind in MARKS else "diagnosis"


class Series(NamedTuple):
    """One line.

    `colour` is a class of the style sheet. `smooth`: the values stand faintly behind their running mean. `dots`: points only.
    `aside`: drawn, but the axis makes room only for what is within a hundredfold of the others.
    Without a name it is in neither legend nor read-out.
    """

    name: str
    x: Values
    y: Values
    colour: str = "train"
    smooth: bool = False
    dots: bool = False
    dashed: bool = False
    aside: bool = False


class Mark(NamedTuple):
    """Something that happened at a place: a sign with a vertical line."""

    x: float
    kind: str
    text: str


class Stretch(NamedTuple):
    """A shaded range along x, such as steps that were walked anew."""

    start: float
    end: float
    text: str


class Drawn(NamedTuple):
    """A series in its columns; `lost` are the places of values that are not finite."""

    series: Series
    columns: Columns
    lost: Values


def chart(
    title: str,
    series: Sequence[Series],
    *,
    note: str = "",
    marks: Sequence[Mark] = (),
    stretches: Sequence[Stretch] = (),
    x_name: str = "step",
    y_name: str = "",
    log_x: bool = False,
    log_y: bool | None = None,
    zero: bool = False,
    share: bool = False,
    lost: str = "not finite",
) -> str:
    """Draw a chart as an HTML figure; empty text where no value is finite.

    `note` is a sentence below the title. `y_name` says what the y axis measures; default: the title. That axis is logarithmic
    where the data ask for it and `log_y` does not decide; `zero` begins a linear one at zero, `share` labels it in percent.
    `lost` says what a value that is not finite means.
    """
    drawn = [d for d in (_prepare(s) for s in series) if len(d.columns.x) or len(d.lost)]
    if not any(len(d.columns.x) for d in drawn):
        return ""
    across = _across([np.concatenate([d.columns.x, d.lost]) for d in drawn], log_x)
    up = choose(_heights(drawn), log=log_y, zero=zero)
    kept = _spread([m for m in marks if across.low <= m.x <= across.high], across)
    shapes = "".join(_shapes(d, across, up) for d in drawn)
    labels = _labels(across, up, _axis_name(x_name, across), share)
    svg = (
        f'<svg viewBox="0 0 {FULL} {FULL}" preserveAspectRatio="none" role="img" aria-label="{_spoken(title, drawn)}">'
        f"{_grid(across, up)}{''.join(_stretch(s, across) for s in stretches)}{shapes}</svg>"
    )
    inside = f"{svg}{labels}{''.join(_mark(m, across) for m in kept)}{_lost(drawn, across, lost)}"
    caption = f"<b>{escape(title)}</b>{_legend(drawn, kept, stretches, lost)}"
    notes = " ".join(text for text in (note, _cut(drawn, up)) if text)
    told = f'<p class="note">{escape(notes)}</p>' if notes else ""
    measured = escape(_axis_name(y_name or f"{title[:1].lower()}{title[1:]}", up))
    return (
        f'<figure class="chart"><figcaption>{caption}</figcaption>{told}<p class="y-name">{measured}</p>'
        f'<div class="plot">{inside}</div>'
        f'<p class="readout" aria-hidden="true"></p>{_data(drawn, across, x_name)}</figure>'
    )


def _prepare(series: Series) -> Drawn:
    good = np.isfinite(series.y)
    y = series.y[good].clip(-LARGEST, LARGEST)
    return Drawn(series, reduce(series.x[good], y), series.x[~good])


def _across(places: list[Values], log: bool) -> Axis:
    if log:
        return choose(places, log=True)
    low, high = min(float(p.min()) for p in places if len(p)), max(float(p.max()) for p in places if len(p))
    return Axis(low, high, whole=True) if high > low else Axis(low - 1, high + 1, whole=True)


def _heights(drawn: Sequence[Drawn]) -> list[Values]:
    """The values that the y axis makes room for."""
    main = [v for d in drawn if not d.series.aside for v in (d.columns.low, d.columns.high)]
    most = max((float(v.max()) for v in main if len(v)), default=math.inf)
    room = most + REACH * abs(most)
    return main + [v.clip(max=room) for d in drawn if d.series.aside for v in (d.columns.low, d.columns.high)]


def _axis_name(name: str, axis: Axis) -> str:
    return f"{name}, logarithmic" if axis.log else name


def _cut(drawn: Sequence[Drawn], up: Axis) -> str:
    """Say where values lie beyond the axis, which shows them on its edge."""
    shown = [d.columns for d in drawn if len(d.columns.x)]
    told: list[str] = []
    if lowest := [c.low.min() for c in shown if c.low.min() < up.low]:
        zero = min(lowest) == 0 and all((c.low[c.low < up.low] == 0).all() for c in shown)
        which = "Values of exactly zero" if zero else f"Values below {format_number(up.low)}"
        told.append(f"{which} are drawn on the lower edge.")
    if any(c.high.max() > up.high for c in shown):
        told.append(f"Values above {format_number(up.high)} are drawn on the upper edge.")
    return " ".join(told)


def _shapes(drawn: Drawn, across: Axis, up: Axis) -> str:
    series, columns = drawn.series, drawn.columns
    x = across.at(columns.x)
    if not len(x):
        return ""
    line, parts = up.at(columns.mean), list[str]()
    few = len(x) <= MOST_DOTS
    if series.smooth and len(x) > 2:
        parts.append(_raw(columns, x, up))
        line = up.at(smooth(columns.mean))
    elif columns.high is not columns.low:
        parts.append(_raw(columns, x, up))
    if not series.dots and len(x) > 1:
        kind = "line dashed" if series.dashed else "line"
        parts.append(f'<path class="{kind}" d="{path(x, line)}"/>')
    if series.dots or len(x) == 1 or (few and not series.smooth and not series.dashed):
        parts.append(f'<path class="dots" d="{_dots(x, line)}"/>')
    return f'<g class="{series.colour}">{"".join(parts)}</g>'


def _raw(columns: Columns, x: Values, up: Axis) -> str:
    """The values as they are: a faint line where each has its column, else the band from lowest to highest."""
    if columns.low is columns.high:
        return f'<path class="raw" d="{path(x, up.at(columns.mean))}"/>'
    around, edge = np.r_[x, x[::-1]], np.r_[up.at(columns.high), up.at(columns.low)[::-1]]
    return f'<path class="band" d="{path(around, edge)}z"/>'


def path(x: Values, y: Values) -> str:
    """Give an SVG path through places between 0 and 1, y upwards.

    >>> path(np.array([0.0, 0.5, 1.0]), np.array([0.0, 1.0, 0.5]))
    'M0 10000l5000 -10000 5000 5000'
    """
    across = np.rint(x * FULL).astype(np.int64)
    down = np.rint((1 - y) * FULL).astype(np.int64)
    steps = " ".join(f"{a} {b}" for a, b in zip(np.diff(across).tolist(), np.diff(down).tolist(), strict=True))
    return f"M{across[0]} {down[0]}" + (f"l{steps}" if steps else "")


def _dots(x: Values, y: Values) -> str:
    # A line of no length with round ends is a dot that stays round however the plot is stretched.
    return "".join(path(x[i : i + 1], y[i : i + 1]) + "h0" for i in range(len(x)))


def _grid(across: Axis, up: Axis) -> str:
    rows = "".join(f"M0 {round((1 - place) * FULL)}H{FULL}" for place, _ in up.labels())
    columns = "".join(f"M{round(place * FULL)} 0V{FULL}" for place, _ in across.labels(6))
    return f'<path class="grid" d="{rows}{columns}"/>'


def _labels(across: Axis, up: Axis, x_name: str, share: bool) -> str:
    heights = [(float(up.at(t)), percent(t)) for t in up.ticks()] if share else up.labels()
    rows = "".join(f'<span class="y" style="bottom:{100 * p:.2f}%">{escape(text)}</span>' for p, text in heights)
    columns = "".join(
        f'<span class="x{" minor" if i % 2 else ""}" style="left:{100 * p:.2f}%">{escape(text)}</span>'
        for i, (p, text) in enumerate(across.labels(6))
    )
    return f'{rows}{columns}<span class="x-name">{escape(x_name)}</span>'


def _spread(marks: list[Mark], across: Axis) -> list[Mark]:
    """Join marks of one kind that would lie on top of each other, and leave out what no eye could tell apart."""
    places: dict[tuple[str, int], list[Mark]] = {}
    for mark in marks:
        places.setdefault((mark.kind, int(100 * float(across.at(mark.x)))), []).append(mark)
    joined = [
        m[0] if len(m) == 1 else m[0]._replace(text=f"{m[0].text} (and {len(m) - 1} more)") for m in places.values()
    ]
    return joined[:MOST_MARKS]


def _mark(mark: Mark, across: Axis) -> str:
    sign, _ = mark_sign(mark.kind)
    place, told = 100 * float(across.at(mark.x)), escape(printable(mark.text))
    return f'<span class="mark {color_class(mark.kind)}" style="left:{place:.2f}%" title="{told}"><b>{sign}</b></span>'


def _lost(drawn: Sequence[Drawn], across: Axis, told: str) -> str:
    places = sorted({round(200 * float(across.at(x))) / 2 for d in drawn for x in reduce(d.lost, d.lost, 200).x})
    return "".join(f'<span class="lost" style="left:{p:.1f}%" title="{escape(told)}">×</span>' for p in places)


def _stretch(stretch: Stretch, across: Axis) -> str:
    left, right = (round(float(across.at(x)) * FULL) for x in (stretch.start, stretch.end))
    told = escape(printable(stretch.text))
    return (
        f'<rect class="stretch" x="{left}" width="{max(right - left, 10)}" height="{FULL}"><title>{told}</title></rect>'
    )


def _legend(drawn: Sequence[Drawn], marks: Sequence[Mark], stretches: Sequence[Stretch], told: str) -> str:
    named = {(d.series.name, d.series.colour, d.series.dashed): None for d in drawn if d.series.name}
    keys = [
        f'<span class="key {c}{" dashed" if dashed else ""}">{escape(printable(name))}</span>'
        for name, c, dashed in named
    ]
    keys += [
        f'<span class="sign {color_class(kind)}"><b>{mark_sign(kind)[0]}</b> {mark_sign(kind)[1]}</span>'
        for kind in _kinds(marks)
    ]
    if stretches:
        keys.append('<span class="sign walked"><b>▒</b> walked anew</span>')
    if lost := sum(len(d.lost) for d in drawn):
        keys.append(f'<span class="sign diagnosis"><b>×</b> {lost:,} {escape(told)}</span>')
    return f'<span class="legend">{"".join(keys)}</span>'


def _kinds(marks: Sequence[Mark]) -> list[str]:
    return list(dict.fromkeys(mark.kind for mark in marks))


def _spoken(title: str, drawn: Sequence[Drawn]) -> str:
    """Say the chart for those who do not see it."""
    said = [
        f"{d.series.name} from {format_number(float(d.columns.mean[0]))} to {format_number(float(d.columns.mean[-1]))}"
        for d in drawn
        if len(d.columns.x) and d.series.name
    ]
    return escape(printable(f"{title}: {'; '.join(said)}"))


def _data(drawn: Sequence[Drawn], across: Axis, x_name: str) -> str:
    """Give what the read-out shows, as JSON that cannot end its element."""
    lines = [
        {
            "name": printable(d.series.name),
            "colour": d.series.colour,
            "x": _short(d.columns.x),
            "y": _short(d.columns.mean),
        }
        for d in drawn
        if len(d.columns.x) and d.series.name
    ]
    data = {"x": printable(x_name), "low": across.low, "high": across.high, "log": across.log, "lines": lines}
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return f'<script type="application/json">{text}</script>'


def _short(values: Values) -> list[float | int]:
    rounded = (
        float(f"{v:.4g}") if abs(v) < 1e4 else round(v) if abs(v) < 1e9 else float(f"{v:.4g}") for v in values.tolist()
    )
    return [int(v) if math.isfinite(v) and float(v).is_integer() and abs(v) < 1e15 else v for v in rounded]
