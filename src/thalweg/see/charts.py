"""Line charts as inline SVG under HTML labels: they stretch to any width; only the read-out under the pointer needs JavaScript.

Coordinates are integers from 0 to 10,000 and relative, which keeps 800 columns within a few kilobytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from thalweg.formatting import format_number, format_share, printable
from thalweg.see.axes import LARGEST, Axis, Values, choose_axis
from thalweg.see.downsampling import Columns, downsample, smooth

SIZE = 10_000  # width and height of the plot in its own coordinates
MAX_DOTS = 40  # points of a line that are drawn as dots too
MAX_MARKS = 60
MAX_SECONDARY = (
    100.0  # the y axis makes room for a secondary series up to this many times the highest value of the others
)
MARKS = {  # kind of event -> its sign and what it says in the legend
    "best": ("★", "kept weights"),
    "rollback": ("↩", "rolled back"),
    "left_out": ("✕", "batch left out"),
    "diverged": ("▲", "given up"),
    "resume": ("▸", "resumed"),
    "interrupt": ("‖", "interrupted"),
    "out_of_memory": ("◆", "memory ran out"),
    "early_stop": ("■", "stopped early"),
    "chosen": ("◆", "chosen"),
}


def mark_sign(kind: str) -> tuple[str, str]:
    """Give the sign and the legend of a kind of event; that of a diagnosis is the name of its cause.

    >>> mark_sign("rollback"), mark_sign("learning-rate-too-high")
    (('↩', 'rolled back'), ('▲', 'learning rate too high'))
    """
    return MARKS.get(kind, ("▲", escape(printable(kind.replace("-", " ").replace("_", " ")))))


def color_class(kind: str) -> str:
    """Give the style sheet's class of a kind of event: all diagnoses share one."""
    return kind if kind in MARKS else "diagnosis"


class Series(NamedTuple):
    """One line.

    `colour` is a class of the style sheet. `smooth`: the values are drawn faintly behind their running mean. `dots`: points only.
    `secondary`: the y axis makes room for its values only up to `MAX_SECONDARY` times those of the others.
    Without a name it is in neither legend nor read-out.
    """

    name: str
    x: Values
    y: Values
    colour: str = "train"
    smooth: bool = False
    dots: bool = False
    dashed: bool = False
    secondary: bool = False


class Mark(NamedTuple):
    """An event at one x: a sign with a vertical line."""

    x: float
    kind: str
    text: str


class Stretch(NamedTuple):
    """A shaded range along x, such as steps that were repeated after a rollback."""

    start: float
    end: float
    text: str


class Prepared(NamedTuple):
    """A series ready to be drawn: downsampled to columns, with the x of each value that is not finite."""

    series: Series
    columns: Columns
    nonfinite: Values


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
    enlarge: bool = False,
    steps_per_epoch: int | None = None,
    nonfinite: str = "not finite",
) -> str:
    """Draw a chart as an HTML figure; empty text where no value is finite.

    `note` is a sentence below the title. `y_name` says what the y axis measures; default: the title. That axis is logarithmic
    where the data ask for it and `log_y` does not decide; `zero` begins a linear one at zero, `share` labels it in percent.
    `enlarge`: the last series has half of the axis for itself where its values lie close together. `steps_per_epoch`: x has a
    second row of labels, in epochs. `nonfinite` says what a value that is not finite means.
    """
    prepared = [p for p in (_prepare(s) for s in series) if len(p.columns.x) or len(p.nonfinite)]
    if not any(len(p.columns.x) for p in prepared):
        return ""
    x_axis = _x_axis([np.concatenate([p.columns.x, p.nonfinite]) for p in prepared], log_x)
    y_axis = choose_axis(_y_values(prepared), log=log_y, zero=zero)
    if enlarge and len(prepared[-1].columns.mean) > 1:
        y_axis = y_axis.enlarging(prepared[-1].columns.mean, np.concatenate(_y_values(prepared)))
    shown = _merge_marks([m for m in marks if x_axis.low <= m.x <= x_axis.high], x_axis)
    shapes = "".join(_shapes(p, x_axis, y_axis) for p in prepared)
    labels = _y_labels(y_axis, share) + _x_labels(x_axis, x_name, steps_per_epoch)
    svg = (
        f'<svg viewBox="0 0 {SIZE} {SIZE}" preserveAspectRatio="none" role="img" aria-label="{_description(title, prepared)}">'
        f"{_grid(x_axis, y_axis)}{''.join(_stretch(s, x_axis) for s in stretches)}{shapes}</svg>"
    )
    inside = f"{svg}{labels}{''.join(_mark(m, x_axis) for m in shown)}{_nonfinite_signs(prepared, x_axis, nonfinite)}"
    caption = f"<b>{escape(title)}</b>{_legend(prepared, shown, stretches, nonfinite)}"
    notes = " ".join(text for text in (note, _beyond_axis(prepared, y_axis), _where_broken(prepared, y_axis)) if text)
    note_html = f'<p class="note">{escape(notes)}</p>' if notes else ""
    y_label = escape(_axis_name(y_name or f"{title[:1].lower()}{title[1:]}", y_axis))
    rows = "" if x_name == "step" and not _has_epochs(steps_per_epoch) else " two-rows"
    return (
        f'<figure class="chart"><figcaption>{caption}</figcaption>{note_html}'
        f'<div class="over"><span class="y-name">{y_label}</span><span class="readout" aria-hidden="true"></span></div>'
        f'<div class="plot{rows}">{inside}</div>{_read_out(prepared, x_axis, x_name, steps_per_epoch)}</figure>'
    )


def _prepare(series: Series) -> Prepared:
    finite = np.isfinite(series.y)
    y = series.y[finite].clip(-LARGEST, LARGEST)
    return Prepared(series, downsample(series.x[finite], y), series.x[~finite])


def _x_axis(values: list[Values], log: bool) -> Axis:
    if log:
        return choose_axis(values, log=True)
    low, high = min(float(v.min()) for v in values if len(v)), max(float(v.max()) for v in values if len(v))
    return Axis(low, high, whole=True) if high > low else Axis(low - 1, high + 1, whole=True)


def _y_values(prepared: Sequence[Prepared]) -> list[Values]:
    """The values that the y axis makes room for."""
    main = [v for p in prepared if not p.series.secondary for v in (p.columns.low, p.columns.high)]
    highest = max((float(v.max()) for v in main if len(v)), default=math.inf)
    limit = highest + MAX_SECONDARY * abs(highest)
    return main + [v.clip(max=limit) for p in prepared if p.series.secondary for v in (p.columns.low, p.columns.high)]


def _axis_name(name: str, axis: Axis) -> str:
    return f"{name}, logarithmic" if axis.log else name


def _beyond_axis(prepared: Sequence[Prepared], y_axis: Axis) -> str:
    """Say whether there are values beyond the axis, which are drawn on its edge."""
    shown = [p.columns for p in prepared if len(p.columns.x)]
    sentences: list[str] = []
    if lowest := [c.low.min() for c in shown if c.low.min() < y_axis.low]:
        zero = min(lowest) == 0 and all((c.low[c.low < y_axis.low] == 0).all() for c in shown)
        which = "Values of exactly zero" if zero else f"Values below {format_number(y_axis.low)}"
        sentences.append(f"{which} are drawn on the lower edge.")
    if any(c.high.max() > y_axis.high for c in shown):
        sentences.append(f"Values above {format_number(y_axis.high)} are drawn on the upper edge.")
    return " ".join(sentences)


def _where_broken(prepared: Sequence[Prepared], y_axis: Axis) -> str:
    """Say what a broken axis shows enlarged."""
    if y_axis.knee is None:
        return ""
    side = "Below" if prepared[-1].columns.mean[0] < y_axis.knee else "Above"
    return f"{side} {format_number(y_axis.knee)} the axis is enlarged."


def _shapes(prepared: Prepared, x_axis: Axis, y_axis: Axis) -> str:
    series, columns = prepared.series, prepared.columns
    x = x_axis.position(columns.x)
    if not len(x):
        return ""
    line, parts = y_axis.position(columns.mean), list[str]()
    few = len(x) <= MAX_DOTS
    if series.smooth and len(x) > 2:
        parts.append(_unsmoothed(columns, x, y_axis))
        line = y_axis.position(smooth(columns.mean))
    elif columns.high is not columns.low:
        parts.append(_unsmoothed(columns, x, y_axis))
    if not series.dots and len(x) > 1:
        kind = "line dashed" if series.dashed else "line"
        parts.append(f'<path class="{kind}" d="{path(x, line)}"/>')
    if series.dots or len(x) == 1 or (few and not series.smooth and not series.dashed):
        parts.append(f'<path class="dots" d="{_dots(x, line)}"/>')
    return f'<g class="{series.colour}">{"".join(parts)}</g>'


def _unsmoothed(columns: Columns, x: Values, y_axis: Axis) -> str:
    """Draw the unsmoothed values: a faint line where each has a column of its own, else a band from lowest to highest."""
    if columns.low is columns.high:
        return f'<path class="raw" d="{path(x, y_axis.position(columns.mean))}"/>'
    around, edge = np.r_[x, x[::-1]], np.r_[y_axis.position(columns.high), y_axis.position(columns.low)[::-1]]
    return f'<path class="band" d="{path(around, edge)}z"/>'


def path(x: Values, y: Values) -> str:
    """Give an SVG path through points whose coordinates are between 0 and 1, y upwards.

    >>> path(np.array([0.0, 0.5, 1.0]), np.array([0.0, 1.0, 0.5]))
    'M0 10000l5000 -10000 5000 5000'
    """
    right = np.rint(x * SIZE).astype(np.int64)
    down = np.rint((1 - y) * SIZE).astype(np.int64)
    steps = " ".join(f"{a} {b}" for a, b in zip(np.diff(right).tolist(), np.diff(down).tolist(), strict=True))
    return f"M{right[0]} {down[0]}" + (f"l{steps}" if steps else "")


def _dots(x: Values, y: Values) -> str:
    # A line of no length with round ends is a dot that stays round however the plot is stretched.
    return "".join(path(x[i : i + 1], y[i : i + 1]) + "h0" for i in range(len(x)))


def _grid(x_axis: Axis, y_axis: Axis) -> str:
    rows = "".join(f"M0 {round((1 - position) * SIZE)}H{SIZE}" for position, _ in y_axis.labels())
    columns = "".join(f"M{round(position * SIZE)} 0V{SIZE}" for position, _ in x_axis.labels(6))
    broken = "" if y_axis.knee is None else f'<path class="grid broken" d="M0 {SIZE // 2}H{SIZE}"/>'
    return f'<path class="grid" d="{rows}{columns}"/>{broken}'


def _y_labels(axis: Axis, share: bool) -> str:
    heights = [(float(axis.position(t)), format_share(t)) for t in axis.ticks()] if share else axis.labels()
    return "".join(f'<span class="y" style="bottom:{100 * p:.2f}%">{escape(text)}</span>' for p, text in heights)


def _x_labels(axis: Axis, name: str, steps_per_epoch: int | None) -> str:
    """Give the labels of x, and those in epochs below. The names of steps and epochs are short enough to stand beside them."""
    if name != "step":
        return f'{_row(axis, "x")}<span class="x-name below">{escape(_axis_name(name, axis))}</span>'
    steps = f'{_row(axis, "x")}<span class="x-name">step</span>'
    if not _has_epochs(steps_per_epoch):
        return steps
    epochs = Axis(axis.low / (steps_per_epoch or 1), axis.high / (steps_per_epoch or 1))
    return f'{steps}{_row(epochs, "x epoch")}<span class="x-name epoch">epoch</span>'


def _has_epochs(steps_per_epoch: int | None) -> bool:
    """Tell whether epochs say something else than steps."""
    return steps_per_epoch is not None and steps_per_epoch > 1


def _row(axis: Axis, name: str) -> str:
    return "".join(
        f'<span class="{name}{" minor" if i % 2 else ""}" style="left:{100 * p:.2f}%">{escape(text)}</span>'
        for i, (p, text) in enumerate(axis.labels(6))
    )


def _merge_marks(marks: list[Mark], x_axis: Axis) -> list[Mark]:
    """Merge marks of one kind within the same hundredth of the width; at most MAX_MARKS are shown."""
    groups: dict[tuple[str, int], list[Mark]] = {}  # by kind and hundredth of the width
    for mark in marks:
        groups.setdefault((mark.kind, int(100 * float(x_axis.position(mark.x)))), []).append(mark)
    merged = [
        m[0] if len(m) == 1 else m[0]._replace(text=f"{m[0].text} (and {len(m) - 1} more)") for m in groups.values()
    ]
    return merged[:MAX_MARKS]


def _mark(mark: Mark, x_axis: Axis) -> str:
    sign, _ = mark_sign(mark.kind)
    left, text = 100 * float(x_axis.position(mark.x)), escape(printable(mark.text))
    return f'<span class="mark {color_class(mark.kind)}" style="left:{left:.2f}%" title="{text}"><b>{sign}</b></span>'


def _nonfinite_signs(prepared: Sequence[Prepared], x_axis: Axis, meaning: str) -> str:
    """Draw a cross at the top for each value that is not finite, or one for several that lie close together."""
    positions = sorted(
        {
            round(200 * float(x_axis.position(x))) / 2
            for p in prepared
            for x in downsample(p.nonfinite, p.nonfinite, 200).x
        }
    )
    return "".join(f'<span class="lost" style="left:{p:.1f}%" title="{escape(meaning)}">×</span>' for p in positions)


def _stretch(stretch: Stretch, x_axis: Axis) -> str:
    left, right = (round(float(x_axis.position(x)) * SIZE) for x in (stretch.start, stretch.end))
    text = escape(printable(stretch.text))
    return (
        f'<rect class="stretch" x="{left}" width="{max(right - left, 10)}" height="{SIZE}"><title>{text}</title></rect>'
    )


def _legend(prepared: Sequence[Prepared], marks: Sequence[Mark], stretches: Sequence[Stretch], nonfinite: str) -> str:
    named = {(p.series.name, p.series.colour, p.series.dashed): None for p in prepared if p.series.name}
    keys = [
        f'<span class="key {c}{" dashed" if dashed else ""}">{escape(printable(name))}</span>'
        for name, c, dashed in named
    ]
    for kind in _kinds(marks):
        sign, meaning = mark_sign(kind)
        keys.append(f'<span class="sign {color_class(kind)}"><b>{sign}</b> {meaning}</span>')
    if stretches:
        keys.append('<span class="sign repeated"><b>▒</b> repeated steps</span>')
    if count := sum(len(p.nonfinite) for p in prepared):
        keys.append(f'<span class="sign diagnosis"><b>×</b> {count:,} {escape(nonfinite)}</span>')
    return f'<span class="legend">{"".join(keys)}</span>'


def _kinds(marks: Sequence[Mark]) -> list[str]:
    return list(dict.fromkeys(mark.kind for mark in marks))


def _description(title: str, prepared: Sequence[Prepared]) -> str:
    """Describe the chart in words, for a screen reader."""
    lines = [
        f"{p.series.name} from {format_number(float(p.columns.mean[0]))} to {format_number(float(p.columns.mean[-1]))}"
        for p in prepared
        if len(p.columns.x) and p.series.name
    ]
    return escape(printable(f"{title}: {'; '.join(lines)}"))


def _read_out(prepared: Sequence[Prepared], x_axis: Axis, x_name: str, steps_per_epoch: int | None) -> str:
    """Give the values that the read-out under the pointer shows, as JSON in a script element, escaped so as not to close it."""
    lines = [
        {
            "name": printable(p.series.name),
            "colour": p.series.colour,
            "x": _rounded(p.columns.x),
            "y": _rounded(p.columns.mean),
        }
        for p in prepared
        if len(p.columns.x) and p.series.name
    ]
    data: dict[str, Any] = {
        "x": printable(x_name),
        "low": x_axis.low,
        "high": x_axis.high,
        "log": x_axis.log,
        "lines": lines,
    }
    if _has_epochs(steps_per_epoch):
        data["epoch"] = steps_per_epoch
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return f'<script type="application/json">{text}</script>'


def _rounded(values: Values) -> list[float | int]:
    rounded = (
        float(f"{v:.4g}") if abs(v) < 1e4 else round(v) if abs(v) < 1e9 else float(f"{v:.4g}") for v in values.tolist()
    )
    return [int(v) if math.isfinite(v) and float(v).is_integer() and abs(v) < 1e15 else v for v in rounded]
