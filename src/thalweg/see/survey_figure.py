"""The slices of a survey as a matplotlib figure, for papers: nothing else here needs matplotlib."""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np

from thalweg.errors import RunError
from thalweg.records.comparison import CURVED, MATCHED, STRAIGHT, Comparison
from thalweg.records.paths import as_path
from thalweg.records.survey import Course, Slice, Survey

COLOURS = ["tab:red", "tab:orange", "tab:pink", "tab:cyan", "white", "tab:brown"]  # of paths
WAYS = {STRAIGHT: "tab:gray", MATCHED: "tab:blue", CURVED: "tab:green"}
LEVELS = 24  # contours of a plane


def draw(survey: Survey, path: str | os.PathLike[str] | None = None) -> Any:
    """Draw the slices of a survey; see `Survey.figure`."""
    figure_class = _figure_class()
    if not survey.slices:
        raise RunError("This survey has no slices to draw. Make it with slices=True (without --no-slices).")
    planes, lines = [s for s in survey.slices if len(s.y)], [s for s in survey.slices if not len(s.y)]
    panels = len(planes) + bool(lines) + (len(survey.course) > 1)
    figure = figure_class(figsize=(5.2 * panels, 4.4), layout="constrained")
    axes: Any = figure.subplots(1, panels, squeeze=False)[0]
    for axis, each in zip(axes, planes, strict=False):
        _draw_plane(figure, axis, each)
    if lines:
        axis = axes[len(planes)]
        for each in lines:
            axis.plot(each.x, np.where(np.isfinite(each.losses), each.losses, np.nan), label=each.name)
        axis.axvline(0, color="0.7", lw=0.8, zorder=0)
        axis.set(xlabel=_x_name(lines), ylabel="training loss")
        axis.legend(fontsize="small", framealpha=0.7)
    if len(survey.course) > 1:
        _draw_course(axes[-1], survey.course)
    figure.suptitle(f"After step {survey.step:,}: {survey.kind}", x=0.01, ha="left")
    figure._repr_png_ = lambda: _png(figure)  # pyright: ignore[reportAttributeAccessIssue] # by which a notebook shows it
    if path is not None:
        _write(figure, path)
    return figure


def draw_comparison(found: Comparison, path: str | os.PathLike[str] | None = None) -> Any:
    """Draw a comparison: planes, the losses on the ways between each pair of ends, and the sharpness along the runs; see
    `Comparison.figure`."""
    figure_class = _figure_class()
    pairs = sorted({(way.first, way.second) for way in found.ways})
    planes = [each for each in found.slices if len(each.y)]
    courses = [course for course in found.courses if len(course) > 1]
    panels = len(planes) + len(pairs) + bool(courses)
    if not panels:
        raise RunError("This comparison was stopped before there was anything to draw.")
    columns = min(panels, 3)
    rows = -(-panels // columns)
    figure = figure_class(figsize=(5.4 * columns, 4.8 * rows), layout="constrained")
    axes: Any = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, each in zip(axes, planes, strict=False):
        _draw_plane(figure, axis, each)
        axis.set_aspect("equal")
    for axis, pair in zip(axes[len(planes) :], pairs, strict=False):
        _draw_ways(axis, found, *pair)
    if courses:
        _draw_courses(axes[panels - 1], found)
    for axis in axes[panels:]:
        axis.set_axis_off()
    figure.suptitle(f"{len(found.names)} runs on one surface", x=0.01, ha="left")
    figure._repr_png_ = lambda: _png(figure)  # pyright: ignore[reportAttributeAccessIssue] # by which a notebook shows it
    if path is not None:
        _write(figure, path)
    return figure


def _draw_courses(axis: Any, found: Comparison) -> None:
    for name, course in zip(found.names, found.courses, strict=False):
        axis.plot(course.steps, course.sharpness, "-o", ms=3, label=name)
    axis.set(xlabel="step", ylabel="largest curvature", title="sharpness along the runs", yscale="log")
    axis.legend(fontsize="small", framealpha=0.7)


def _draw_ways(axis: Any, found: Comparison, first: int, second: int) -> None:
    for kind, colour in WAYS.items():
        way = found.way(first, second, kind)
        if way is not None:
            finite = np.where(np.isfinite(way.losses), way.losses, np.nan)
            axis.plot(way.shares, finite, "-", color=colour, label=f"{kind}: {way.height:.3g}")
    names = found.names
    axis.set(xlabel="share of the way", ylabel="training loss", title=f"{names[first]} to {names[second]}")
    axis.legend(fontsize="small", framealpha=0.7, title="barrier", title_fontsize="small")


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RunError(
            "figure() needs matplotlib: pip install matplotlib. The report draws the same without it."
        ) from error
    return Figure


def levels(each: Slice, count: int = LEVELS) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Give the losses at which contours are drawn: evenly spaced in the logarithm of the height above the lowest."""
    finite = each.losses[np.isfinite(each.losses)]
    low, high = float(finite.min()), float(finite.max())
    if not high > low:
        return np.array([low])
    return low + (high - low) * np.geomspace(1e-3, 1, count)


def _x_name(lines: list[Slice]) -> str:
    """Give what the lines have in common."""
    names = {each.axes[0] for each in lines}
    return names.pop() if len(names) == 1 else "distance along the direction"


def _draw_plane(figure: Any, axis: Any, each: Slice) -> None:
    finite = each.losses[np.isfinite(each.losses)]
    if len(finite):
        shown = np.where(np.isfinite(each.losses), each.losses, finite.max())
        drawn = axis.contourf(each.x, each.y, shown, levels(each), cmap="viridis", extend="both")
        axis.contour(each.x, each.y, shown, levels(each)[::2], colors="white", linewidths=0.4)
        figure.colorbar(drawn, ax=axis, label="training loss", format="%.3g")
    colours = COLOURS if each.shares else ["tab:cyan", "tab:red"]  # of a straight way and a curve
    for walk, colour in zip(each.walks, colours * len(each.walks), strict=False):
        axis.plot(walk.points[:, 0], walk.points[:, 1], "-o", color=colour, ms=2.5, lw=1, label=walk.name)
        if len(each.walks) > 1:
            axis.plot(*walk.points[0], marker="o", color=colour, mfc="none", ms=8, mew=1.5)
            axis.plot(*walk.points[-1], marker="o", color=colour, mec="black", mew=0.8, ms=7, zorder=3)
    if len(each.walks) > 1:
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": min(3, len(each.walks))}
        axis.legend(fontsize="small", **below)
    else:
        axis.plot(0, 0, marker="+", color="white", ms=10, mew=2)
    axis.set(xlabel=each.axes[0], ylabel=each.axes[-1], title=each.name)


def _draw_course(axis: Any, course: Course) -> None:
    """Draw sharpness over the steps, in the rule's own measure where it has one and that is known."""
    own = course.scaled and any(each is not None for each in course.preconditioned)
    curvatures = np.array(course.preconditioned if own else course.sharpness, np.float64)
    axis.plot(course.steps, curvatures, "-o", ms=3, label="largest curvature")
    if own or not course.scaled:
        edges = np.array(course.edges)
        axis.plot(
            course.steps,
            np.where(np.isfinite(edges), edges, np.nan),
            "--",
            color="tab:red",
            label="unstable from here on",
        )
    axis.set(xlabel="step", ylabel=f"largest curvature{', in the measure of the rule' * own}", yscale="log")
    axis.legend(fontsize="small", framealpha=0.7)


def _write(figure: Any, path: str | os.PathLike[str]) -> None:
    target = as_path(path, "the file of a figure", "slice.svg", RunError)
    try:
        figure.savefig(target)
    except (OSError, ValueError) as error:
        raise RunError(f"{target} cannot be written: {error}. Give a path that ends in .svg, .png or .pdf.") from error


def _png(figure: Any) -> bytes:
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=100)
    return written.getvalue()
