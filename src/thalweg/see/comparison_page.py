"""A comparison of several runs as one self-contained HTML page."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from thalweg.formatting import format_number, printable
from thalweg.records.comparison import CURVED, MATCHED, STRAIGHT, Comparison, Way
from thalweg.see.charts import Series, chart
from thalweg.see.loss_plane import COLOURS, plane
from thalweg.see.report import page, write_page
from thalweg.see.report_sections import safe, section

WAYS = {STRAIGHT: "plain", MATCHED: "train", CURVED: "ema"}  # kind -> colour
PATHS_TOLD = "A ring is where a run began, a disc where it ended; both axes have one scale."
CURVE_TOLD = "The ring is the first run's end, the disc the second's; both axes have one scale."


def write(found: Comparison, path: Path) -> Path:
    """Write the page, replacing an old one atomically, and give its path. Raises RunError where that fails."""
    return write_page(path, render(found))


def render(found: Comparison) -> str:
    """Give the page's HTML."""
    names = ", ".join(map(printable, found.names))
    stopped = "" if found.complete else '<span class="state warn">stopped</span>'
    heading = (
        f'<header><div class="top"><h1>{len(found.names)} runs on one surface</h1>{stopped}</div>'
        f'<p class="lead">{safe(_lead(found))}</p><p class="dim">Training loss over {found.examples:,} examples, in evaluation'
        f" mode, without weight decay.</p></header>"
    )
    parts = [heading, _runs(found), _paths(found), _connections(found), _sharpness(found), _notes(found)]
    return page(f"{names}, compared", "\n".join(part for part in parts if part))


def _lead(found: Comparison) -> str:
    """Say in a sentence how the ends are connected."""
    counted = dict[str, int]()
    for one, other in _pairs(found):
        what = found.connection(one, other)
        counted[what] = counted.get(what, 0) + 1
    if len(counted) == 1 and len(found.names) == 2:
        return f"{found.names[0]} and {found.names[1]}: {found.described(0, 1)}."
    told = [f"{count} {'pair' if count == 1 else 'pairs'} {what}" for what, count in counted.items()]
    return f"Ends of runs: {', '.join(told)}." if told else "Stopped before any way was known."


def _runs(found: Comparison) -> str:
    sharp = [value for value in found.sharpness if math.isfinite(value)]
    rows = "".join(
        f'<tr><th scope=row><span class="key {colour}">{safe(printable(name))}</span></th><td>{format_number(loss)}</td>'
        f"<td>{format_number(sharpness) + (' (flattest)' if sharp and sharpness == min(sharp) else '')}</td></tr>"
        for name, loss, sharpness, colour in zip(
            found.names, found.losses, found.sharpness, COLOURS * len(found.names), strict=False
        )
    )
    head = "<tr><th scope=col>run</th><th scope=col>training loss</th><th scope=col>largest curvature</th></tr>"
    return section(
        "Where they ended", f'<table class="figures rows"><thead>{head}</thead><tbody>{rows}</tbody></table>'
    )


def _paths(found: Comparison) -> str:
    drawn = [each for each in found.slices if len(each.walks) == len(found.names) and each.shares]
    inside = "".join(plane(each, title="The paths of all runs", told=PATHS_TOLD) for each in drawn)
    if not inside:
        return ""
    held = sum(drawn[0].shares)
    note = (
        f'<p class="note">The plane holds {held:.0%} of the paths\' variance; the losses are those in the plane. Away from'
        f" the first run's end a path lies off the plane, where the loss is another one.</p>"
    )
    return section("How they got there", f'<div class="alone">{inside}</div>{note}')


def _connections(found: Comparison) -> str:
    pairs = _pairs(found)
    if not pairs:
        return ""
    rows = "".join(
        f"<tr><th scope=row>{safe(printable(_pair(found, *pair)))}</th><td><b>{safe(found.connection(*pair))}</b></td>"
        + "".join(f"<td>{_height(found.way(*pair, kind))}</td>" for kind in WAYS)
        + "</tr>"
        for pair in pairs
    )
    titles = ("ends of", "connected as", "straight way", "after matching", "along a curve")
    head = "".join(f"<th scope=col>{title}</th>" for title in titles)
    table = f'<div class="wide"><table class="figures rows"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    note = (
        '<p class="note">Barriers: how far the loss rises above that of the higher end, and in brackets how'
        " long the way is. Below a twentieth of the higher end's loss a barrier counts for none.</p>"
    )
    drawn = [(_ways(found, *pair), _curve(found, *pair)) for pair in pairs]
    drawn.sort(
        key=lambda pictures: not pictures[1]
    )  # those with two pictures first, so that two stand beside each other
    pictures = "".join(ways + curve for ways, curve in drawn)
    return section("How their ends are connected", f'{table}{note}<div class="pair">{pictures}</div>')


def _height(way: Way | None) -> str:
    if way is None:
        return "–"
    height = f"{way.height:.3g}" if math.isfinite(way.height) else "no number"
    return f"{height} <small>({way.length:.3g})</small>"


def _ways(found: Comparison, first: int, second: int) -> str:
    known = [way for kind in WAYS if (way := found.way(first, second, kind)) is not None]
    series = [
        Series(way.kind, 100 * way.shares, np.where(np.isfinite(way.losses), way.losses, np.nan), WAYS[way.kind])
        for way in known
    ]
    return chart(
        f"Losses from {_pair(found, first, second, ' to ')}",
        series,
        note=f"{found.connection(first, second)}.".capitalize(),
        x_name="% of the way",
        y_name="training loss",
    )


def _curve(found: Comparison, first: int, second: int) -> str:
    name = f"the curve from {found.names[first]} to {found.names[second]}"
    return "".join(
        plane(
            each, title="The plane of both ends and the curve", told=CURVE_TOLD, colours=(WAYS[STRAIGHT], WAYS[CURVED])
        )
        for each in found.slices
        if each.name == name and not each.shares
    )


def _sharpness(found: Comparison) -> str:
    courses = [
        (name, course, colour)
        for name, course, colour in zip(found.names, found.courses, COLOURS * len(found.names), strict=False)
        if len(course) > 1
    ]
    if not courses:
        return ""
    sharpness = chart(
        "Largest curvature",
        [
            Series(printable(name), np.array(course.steps, float), np.array(course.sharpness, float), colour)
            for name, course, colour in courses
        ],
        note="The largest eigenvalue of the Hessian at some points of each run.",
    )
    rates = chart(
        "Learning rate",
        [
            Series(printable(name), np.array(course.steps, float), np.array(course.rates, float), colour)
            for name, course, colour in courses
        ],
        note="At the same points.",
    )
    return section("Sharpness along the runs", f'<div class="pair">{sharpness}{rates}</div>')


def _notes(found: Comparison) -> str:
    return "".join(f'<p class="note">{safe(note)}</p>' for note in found.notes)


def _pairs(found: Comparison) -> list[tuple[int, int]]:
    return [(way.first, way.second) for way in found.ways if way.kind == STRAIGHT]


def _pair(found: Comparison, first: int, second: int, between: str = " and ") -> str:
    return f"{found.names[first]}{between}{found.names[second]}"
