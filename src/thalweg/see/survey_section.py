"""The survey as a section of the report: the kind of place, its figures, the losses over planes and along lines."""

from __future__ import annotations

import math

import numpy as np

from thalweg.errors import RunError
from thalweg.formatting import format_number, printable
from thalweg.records.run import Run
from thalweg.records.run_folder import RunFolder
from thalweg.records.survey import Slice, Survey
from thalweg.see.charts import Series, chart
from thalweg.see.loss_plane import plane
from thalweg.see.report_sections import figures_table, safe, section


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
    drawn = [plane(each) for each in found.slices if len(each.y)]
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
    if found.basin is not None:
        random = found.basin.random
        figures[f"the loss has risen by {found.basin.rise:.3g}, along random directions, at"] = (
            f"{float(np.median(random)):.2g} of the weights' length ({min(random):.2g} to {max(random):.2g})"
        )
        if found.basin.curved:
            figures["and along the most curved one at"] = f"{min(found.basin.curved):.2g} of it"
    for name, (value, low, high) in found.barriers.items():
        figures[f"barrier that a step's noise is worth {name}"] = f"{value:.2g} ({low:.2g} to {high:.2g})"
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
    has_edge = np.isfinite(edges)
    edge = Series("unstable from here on", steps[has_edge], edges[has_edge], "limit", dashed=True, secondary=True)
    charts = [
        chart(
            "Sharpness along the run",
            [Series("largest curvature", steps, sharpness, "train"), *([] if course.scaled else [edge])],
            note="The largest eigenvalue of the Hessian at some points of the run.",
        )
    ]
    known = np.isfinite(own)
    if course.scaled and known.any():
        charts.append(
            chart(
                "Sharpness in the rule's own measure",
                [Series("largest curvature", steps[known], own[known], "train"), edge],
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
