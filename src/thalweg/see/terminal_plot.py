"""Plots in the terminal: braille dots, or plain ASCII, as one string without control characters.

Every column shows its lowest and its highest value, however many the points: a spike of one step never vanishes. NaN leaves
a gap; an infinite value too, and the legend counts it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from thalweg.errors import ThalwegError
from thalweg.schedule import Schedule

Values = npt.NDArray[np.float64]
Dots = npt.NDArray[np.bool_]

MIN_COLUMNS, MIN_ROWS = 12, 2
BRAILLE = 0x2800
# The bit of each dot of a braille cell, by its row and column.
BRAILLE_BITS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
LETTERS = "ox+#@%&"
DEFAULT_STEPS = 1000
LARGEST = sys.float_info.max


class _Frame(NamedTuple):
    """The area that is drawn in: its range of values, how many entries it spans, and its size in characters."""

    low: float
    high: float
    entries: int
    columns: int
    rows: int


def plot(
    series: Mapping[str, Any] | Any,
    *,
    width: int = 72,
    height: int = 12,
    title: str = "",
    ends: tuple[float, float] | None = None,
    unicode: bool | None = None,
) -> str:
    """Draw one or several series over their index.

    The first is drawn as a line of dots, the others with a letter each, so that no colours are needed.

    Arguments:
        series: one 1-D array (anything that becomes float64), or name -> array; NaN where a series has no value.
        width: characters of a line, labels included; at least 12 columns are drawn.
        height: lines of the plot without axis, title and legend; at least 2.
        title: a line above.
        ends: x of the first and the last entry, for the labels; default: 0 and the number of entries less one.
        unicode: braille; None: where the standard output can show it.

    Raises ThalwegError for a series that is not one row of numbers.

    >>> print(plot([0, 1, 2, 3], width=24, height=4, unicode=False))
    3 |                 ****
      |           ******
      |    *******
    0 |****
      +---------------------
       0                   3
    """
    named = series if isinstance(series, Mapping) else {"": series}
    rows = {str(name): _row(values, str(name)) for name, values in named.items()}
    frame = _frame(list(rows.values()), width, max(height, MIN_ROWS))
    if frame is None:
        return "\n".join([*([title] if title else []), "(no finite value to draw)"])
    braille = _can_show_braille() if unicode is None else unicode
    labels = _labels(frame)
    margin = max(map(len, labels)) + 2
    frame = frame._replace(columns=max(width - margin, MIN_COLUMNS))
    lines_drawn = _plot_lines(list(rows.values()), frame, braille)
    lines = [title] if title else []
    lines += [
        f"{label:>{margin - 2}} {'│' if braille else '|'}{line}".rstrip()
        for label, line in zip(labels, lines_drawn, strict=True)
    ]
    lines.append(" " * (margin - 1) + ("└" + "─" * frame.columns if braille else "+" + "-" * frame.columns))
    lines.append(" " * margin + _axis(ends or (0, frame.entries - 1), frame.columns))
    return "\n".join([*lines, *_legend(rows, margin, braille)])


def plot_schedule(
    schedule: Schedule,
    *,
    peak: float = 1.0,
    total_steps: int | None = None,
    steps_per_epoch: int | None = None,
    width: int = 72,
    height: int = 12,
    unicode: bool | None = None,
) -> str:
    """Draw a schedule's rates, `peak` times its factors, under the sentence that describes it.

    `total_steps` and `steps_per_epoch` settle open lengths; what then stays open is drawn for 1000 steps.
    """
    resolved = schedule.resolve(total_steps, steps_per_epoch)
    total = resolved.total if isinstance(resolved.total, int) else DEFAULT_STEPS
    steps = np.unique(np.linspace(0, total - 1, min(total, 20_000)).astype(np.int64)).tolist()
    state = resolved.initial_state()
    rates = [peak * resolved.factor(step, state) for step in steps]
    return plot(rates, width=width, height=height, title=resolved.describe(), ends=(0, total - 1), unicode=unicode)


def _row(values: Any, name: str) -> Values:
    if isinstance(values, torch.Tensor):
        values = values.detach().to("cpu", torch.float64).numpy()
    try:
        row = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ThalwegError(f"The series '{name}' cannot be drawn, it is not numbers: {error}.") from error
    if row.ndim != 1:
        raise ThalwegError(f"The series '{name}' has the shape {row.shape}, but one row of numbers can be drawn.")
    return row


def _can_show_braille() -> bool:
    try:
        "⣿│└─".encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _frame(rows: Sequence[Values], width: int, height: int) -> _Frame | None:
    finite = [row[np.isfinite(row)] for row in rows]
    if not any(len(row) for row in finite):
        return None
    low, high = min(float(row.min()) for row in finite if len(row)), max(float(row.max()) for row in finite if len(row))
    if low == high:
        margin = abs(low) / 20 or 0.5
        low, high = max(low - margin, -LARGEST), min(high + margin, LARGEST)
    return _Frame(low, high, max(map(len, rows)), width, height)


def _plot_lines(rows: Sequence[Values], frame: _Frame, braille: bool) -> list[str]:
    """Draw the first series, and the others over it."""
    first = _dot_grid(rows[0], frame, (2, 4) if braille else (1, 1))
    cells = _braille(first) if braille else np.where(first, "*", " ")
    for row, mark in zip(rows[1:], LETTERS * len(rows), strict=False):
        cells[_dot_grid(row, frame, (1, 1))] = mark
    return ["".join(line) for line in cells]


def _braille(dots: Dots) -> npt.NDArray[np.str_]:
    height, width = dots.shape
    codes = (dots.reshape(height // 4, 4, width // 2, 2) * BRAILLE_BITS[:, None, :]).sum((1, 3))
    return np.vectorize(lambda code: chr(BRAILLE + code) if code else " ", otypes=["U1"])(codes)


def _dot_grid(row: Values, frame: _Frame, cell: tuple[int, int]) -> Dots:
    """Set a column's dots from its lowest to its highest value, and join neighbouring entries."""
    width, height = frame.columns * cell[0], frame.rows * cell[1]
    dots = np.zeros((height, width), np.bool_)
    if not len(row):
        return dots
    # Divided by the largest value, so that neither 1e308 - (-1e308) overflows nor a range of 5e-324 underflows.
    unit = max(abs(frame.low), abs(frame.high))
    low, high = frame.low / unit, frame.high / unit
    share = (np.where(np.isfinite(row), row, np.nan) / unit - low) / (high - low)
    heights = np.rint((1 - share) * (height - 1))  # row of dots from the top
    columns = np.rint(np.arange(len(row)) * ((width - 1) / max(frame.entries - 1, 1))).astype(np.int64)
    starts = np.flatnonzero(np.diff(columns, prepend=-1))
    tops, bottoms = np.fmin.reduceat(heights, starts), np.fmax.reduceat(heights, starts)
    for column, top, bottom in zip(columns[starts], tops, bottoms, strict=True):
        if top == top:  # not NaN
            dots[int(top) : int(bottom) + 1, column] = True
    for start in starts[1:]:
        before, after = heights[start - 1], heights[start]
        if before == before and after == after:  # neither is NaN
            _join(dots, (int(columns[start - 1]), int(before)), (int(columns[start]), int(after)))
    return dots


def _join(dots: Dots, begin: tuple[int, int], end: tuple[int, int]) -> None:
    """Draw a straight line without gaps."""
    count = max(end[0] - begin[0], abs(end[1] - begin[1]))
    columns = np.rint(np.linspace(begin[0], end[0], count + 1)).astype(np.int64)
    rows = np.rint(np.linspace(begin[1], end[1], count + 1)).astype(np.int64)
    dots[rows, columns] = True


def _labels(frame: _Frame) -> list[str]:
    """Label the highest, the middle and the lowest line, with as many digits as make the labels differ."""
    values = {0: frame.high, frame.rows - 1: frame.low}
    if frame.rows >= 7 and frame.rows % 2:
        values[frame.rows // 2] = frame.high / 2 + frame.low / 2
    texts = [_number(value, 3) for value in values.values()]
    for digits in range(4, 18):
        if len(set(texts)) == len(texts):
            break
        texts = [_number(value, digits) for value in values.values()]
    labels = dict(zip(values, texts, strict=True))
    return [labels.get(line, "") for line in range(frame.rows)]


def _number(value: float, digits: int) -> str:
    """Give a value as text with this many digits, or all digits of a longer whole part."""
    whole = len(str(int(abs(value)))) if 1000 <= abs(value) < 1e6 else 0
    return f"{value:,.{max(digits, whole)}g}"


def _axis(ends: tuple[float, float], columns: int) -> str:
    first, last = (f"{end:,.10g}" for end in ends)
    return first if first == last else first + last.rjust(columns - len(first))


def _legend(rows: Mapping[str, Values], margin: int, braille: bool) -> list[str]:
    """Name the series, and count their infinite values, which are not drawn."""
    marks = ["⠒" if braille else "*", *LETTERS * len(rows)]
    entries: list[str] = []
    for (name, row), mark in zip(rows.items(), marks, strict=False):
        infinite = int(np.isinf(row).sum())
        parts = [name] if name else []
        parts += [f"({infinite} infinite)"] if infinite else []
        if parts:
            entries.append(" ".join([mark, *parts]))
    return [" " * margin + "   ".join(entries)] if entries else []
