"""The loss over a plane of weights as inline SVG: the bluer, the lower; paths and ways upon it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from html import escape

import numpy as np

from thalweg.formatting import printable
from thalweg.records.survey import Slice, Walk
from thalweg.see.report_sections import safe

LEVELS = 14  # shades
COLOURS = ["validation", "limit", "ema", "t3", "t4", "t6"]  # of paths, as the style sheet names them


def plane(each: Slice, *, title: str = "", told: str | None = None, colours: Sequence[str] = COLOURS) -> str:
    """Draw the loss over a plane with the paths on it; empty text where no loss is a number.

    One path ends at a cross. Of several each has a ring where it begins and a disc where it ends. `told` says what the paths
    are; default: from which step to which each goes. `colours` are those of the paths.
    """
    finite = each.losses[np.isfinite(each.losses)]
    if not len(finite):
        return ""
    low, high = float(finite.min()), float(finite.max())
    shades = _shades(each.losses, low, high)
    width, height = len(each.x), len(each.y)
    rects = "".join(_row(row, height - 1 - number) for number, row in enumerate(shades))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - each.x[0]) / (each.x[-1] - each.x[0]) * (width - 1) + 0.5
        return across, height - 0.5 - (y - each.y[0]) / (each.y[-1] - each.y[0]) * (height - 1)

    coloured = list(zip(each.walks, itertools.cycle(colours), strict=False))
    several = len(each.walks) > 1
    walks = "".join(
        _walk([place(x, y) for x, y in walk.points.tolist()], colour, marked=several) for walk, colour in coloured
    )
    x, y = place(0.0, 0.0)
    cross = "" if several else f'<path d="M{x - 1:.2f} {y:.2f}h2M{x:.2f} {y - 1:.2f}v2"/>'
    predicted = (
        f", {each.measured:,} of {each.losses.size:,} losses measured" if each.measured < each.losses.size else ""
    )
    note = (
        f"Loss from {low:.3g} (blue) to {high:.3g}{predicted}. {_told(each.walks) if told is None else told}".rstrip()
    )
    title = title or f"Loss over the plane of {each.name}"
    label = f"{title}. {note}"
    legend = "".join(f'<span class="key {colour}">{safe(printable(walk.name))}</span>' for walk, colour in coloured)
    legend = f'<span class="legend">{legend}</span>' if several else ""
    return (
        f'<figure class="plane"><figcaption><b>{safe(title)}</b>{legend}</figcaption><p class="note">{safe(note)}</p>'
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{safe(label)}"><g class="shades">{rects}</g>'
        f'<g class="walk">{walks}</g><g class="end">{cross}</g></svg>'
        f'<p class="note">→ {escape(each.axes[0])}, {each.x[0]:.3g} to {each.x[-1]:.3g};'
        f" ↑ {escape(each.axes[-1])}, {each.y[0]:.3g} to {each.y[-1]:.3g}</p></figure>"
    )


def _told(walks: tuple[Walk, ...]) -> str:
    several = len(walks) > 1
    marks = "A ring is where a run began, a disc where it ended." if several else "The cross is where the run ended."
    steps = "".join(
        f" The path{f' of {walk.name}' if several else ''} goes from step {walk.steps[0]:,} to {walk.steps[-1]:,}."
        for walk in walks
        if walk.steps and not several
    )
    return marks + steps


def _walk(points: list[tuple[float, float]], colour: str, *, marked: bool) -> str:
    """Draw a path, with a light edge by which it is seen on any shade."""
    joined = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
    dots = "".join(f'<circle cx="{x:.2f}" cy="{y:.2f}" r=".35"/>' for x, y in points)
    ends = ""
    if marked and points:
        (x0, y0), (x1, y1) = points[0], points[-1]
        ends = (
            f'<circle class="began" cx="{x0:.2f}" cy="{y0:.2f}" r=".9"/>'
            f'<circle class="ended" cx="{x1:.2f}" cy="{y1:.2f}" r=".9"/>'
        )
    return (
        f'<g class="{colour}"><polyline class="edge" points="{joined}"/><polyline points="{joined}"/>{dots}{ends}</g>'
    )


def _shades(losses: np.ndarray[tuple[int, ...], np.dtype[np.float64]], low: float, high: float) -> list[list[int]]:
    """Give the shade of each loss, evenly spaced in the logarithm of its height above the lowest: 0 is the lowest."""
    if not high > low:
        return [[0] * losses.shape[1] for _ in range(losses.shape[0])]
    height = np.clip((np.where(np.isfinite(losses), losses, high) - low) / (high - low), 1e-4, 1.0)
    return np.minimum(LEVELS - 1, ((np.log10(height) / 4 + 1) * LEVELS).astype(int)).tolist()


def _row(shades: list[int], y: int) -> str:
    """Draw a row, neighbours of one shade together."""
    drawn, start = list[str](), 0
    for x in range(1, len(shades) + 1):
        if x == len(shades) or shades[x] != shades[start]:
            opacity = 0.95 * (1 - shades[start] / (LEVELS - 1)) + 0.02
            drawn.append(f'<rect x="{start}" y="{y}" width="{x - start}" height="1" opacity="{opacity:.2f}"/>')
            start = x
    return "".join(drawn)
