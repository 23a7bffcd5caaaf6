"""The survey as a section of the report: the kind of place, its figures, the losses over planes and along lines."""

from __future__ import annotations

import math
from html import escape

import numpy as np

from thalweg.errors import RunError
from thalweg.formatting import format_number, printable
from thalweg.records.run import Run
from thalweg.records.run_folder import RunFolder
from thalweg.records.survey import Slice, Survey
from thalweg.see.charts import Series, chart
from thalweg.see.report_sections import figures_table, safe, section

LEVELS = 14  # shades of a plane
COLOURS = ["validation", "limit", "ema", "t3", "t4", "t6"]  # of paths, as the style sheet names them


def survey(run: Run) -> str:
    """Where the descent ended; nothing where no survey was made."""
    if run.folder is None:
        return ""
    try:
        found = RunFolder(run.folder).read_survey()
    except RunError as error:
        return section("Where it ended", f'<p class="note">{safe(str(error))}</p>')
    return "" if found is None else section("Where it ended", _inside(found))


def _inside(found: Survey) -> str:
    kind = found.kind or "the survey was stopped before the kind of place was known"
    parts = [f'<p class="lead"><b>{safe(kind)}</b>. {safe(found.reason)}</p>']
    parts.append(f'<div class="pair">{figures_table(_figures(found))}{_layers(found)}</div>')
    drawn = [_plane(each) for each in found.slices if len(each.y)]
    drawn.append(_lines([each for each in found.slices if not len(each.y)]))
    drawn.append(_density(found))
    drawn += _course(found)
    parts.append(f'<div class="pair">{"".join(each for each in drawn if each)}</div>')
    parts += [f'<p class="note">{safe(note)}</p>' for note in found.notes]
    return "".join(parts)


def _figures(found: Survey) -> dict[str, object]:
    of = "" if found.total is None or found.total == found.examples else f" of {found.total:,}"
    figures: dict[str, object] = {
        "after step": found.step,
        "training loss": found.loss,
        "norm of the gradient": found.gradient_norm,
        "its sampling error": found.gradient_error or "none: all examples",
        "examples": f"{found.examples:,}{of}",
        "directions downwards": _index(found),
    }
    if found.eigenvalues:
        figures["largest eigenvalues"] = ", ".join(f"{value:.3g}" for value in found.eigenvalues[: found.largest])
        figures["smallest eigenvalues"] = ", ".join(f"{value:.3g}" for value in found.eigenvalues[found.largest :])
    if math.isfinite(found.trace):
        figures["sum of all eigenvalues"] = f"{found.trace:.3g} ± {found.trace_error:.1g}"
    if "gradient" in found.along:
        figures["curvature along the gradient"] = found.along["gradient"]
    if "preconditioned" in found.along:
        figures["largest curvature in the rule's own measure"] = found.along["preconditioned"]
    if math.isfinite(found.edge):
        figures["the rule becomes unstable at"] = found.edge
    if "scale" in found.noise:
        figures["gradient noise scale, in examples"] = found.noise["scale"]
    elif found.noise.get("low", 0) > 0:
        figures["gradient noise scale, in examples"] = f"larger than {found.noise['low']:.3g}"
    return figures


def _index(found: Survey) -> str:
    if found.index is None:
        return "not counted: it is no critical point"
    return f"{'' if found.index_is_exact else 'at least '}{found.index}"


def _layers(found: Survey) -> str:
    if not found.layers:
        return ""
    top = max(max(found.layers.values()), 1e-300)
    rows = "".join(
        f"<tr><th>{safe(printable(name))}</th><td>{format_number(value)}</td>"
        f'<td><div class="bar" style="width:{max(0.0, 100 * value / top):.0f}%"></div></td></tr>'
        for name, value in sorted(found.layers.items(), key=lambda item: -item[1])
    )
    return f'<div><table class="figures"><caption>Largest curvature within each layer</caption>{rows}</table></div>'


def _lines(lines: list[Slice]) -> str:
    if not lines:
        return ""
    colours = ("train", "validation", "ema")
    series = [
        Series(each.name, each.x, np.where(np.isfinite(each.losses), each.losses, np.nan), colour)
        for each, colour in zip(lines, colours, strict=False)
    ]
    note = "; ".join(f"{each.name}: {each.axes[0]}" for each in lines)
    return chart(
        "Loss along directions", series, note=f"The run ended at 0. {note}.", x_name="distance", y_name="training loss"
    )


def _course(found: Survey) -> list[str]:
    """Draw how sharp it was on the way, and from which curvature on the rule diverges."""
    course = found.course
    if len(course) < 2:
        return []
    steps = np.array(course.steps, np.float64)
    sharpness, edges, own = (
        np.array(each, np.float64) for each in (course.sharpness, course.edges, course.preconditioned)
    )
    edge = Series("unstable from here on", steps, edges, "limit", dashed=True, secondary=True)
    charts = [
        chart(
            "Sharpness along the run",
            [Series("largest curvature", steps, sharpness, "train"), *([] if course.scaled else [edge])],
            note="The largest eigenvalue of the Hessian at some points of the run.",
        )
    ]
    if course.scaled and np.isfinite(own).any():
        charts.append(
            chart(
                "Sharpness in the rule's own measure",
                [Series("largest curvature", steps, own, "train"), edge],
                note="The curvature divided by the usual size of each gradient, as the rule divides its steps.",
            )
        )
    return charts


def _density(found: Survey) -> str:
    values, shares = (np.array(each) for each in found.density)
    if len(values) < 2:
        return ""
    below = np.cumsum(shares)
    return chart(
        "Eigenvalues of the Hessian",
        [Series("share below", values, below, "plain")],
        note="From random directions: how large a share of all eigenvalues lies below each value.",
        x_name="eigenvalue",
        y_name="share",
        share=True,
        log_y=False,
        zero=True,
    )


def _plane(each: Slice) -> str:
    """Draw the loss over a plane: the darker, the lower; the path, where it is known, and a cross where the run ended."""
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

    walks = ""
    for walk, colour in zip(each.walks, COLOURS * len(each.walks), strict=False):
        points = [place(x, y) for x, y in walk.points.tolist()]
        joined = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
        dots = "".join(f'<circle cx="{x:.2f}" cy="{y:.2f}" r=".35"/>' for x, y in points)
        walks += f'<g class="{colour}"><polyline points="{joined}"/>{dots}</g>'
    x, y = place(0.0, 0.0)
    cross = f'<path d="M{x - 1:.2f} {y:.2f}h2M{x:.2f} {y - 1:.2f}v2"/>'
    predicted = (
        f", {each.measured:,} of {each.losses.size:,} losses measured" if each.measured < each.losses.size else ""
    )
    several = len(each.walks) > 1
    steps = "".join(
        f" The path{f' of {walk.name}' if several else ''} goes from step {walk.steps[0]:,} to {walk.steps[-1]:,}."
        for walk in each.walks
        if walk.steps
    )
    note = f"Loss from {low:.3g} (dark) to {high:.3g}{predicted}. The cross is where the run ended.{steps}"
    title = f"Loss over the plane of {each.name}"
    label = f"{title}. {note}"
    legend = "".join(
        f'<span class="key {colour}">{safe(printable(walk.name))}</span>'
        for walk, colour in zip(each.walks, COLOURS * len(each.walks), strict=False)
    )
    legend = f'<span class="legend">{legend}</span>' if several else ""
    return (
        f'<figure class="plane"><figcaption><b>{escape(title)}</b>{legend}</figcaption><p class="note">{escape(note)}</p>'
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}"><g class="shades">{rects}</g>'
        f'<g class="walk">{walks}</g><g class="end">{cross}</g></svg>'
        f'<p class="note">→ {escape(each.axes[0])}, {each.x[0]:.3g} to {each.x[-1]:.3g};'
        f" ↑ {escape(each.axes[-1])}, {each.y[0]:.3g} to {each.y[-1]:.3g}</p></figure>"
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
