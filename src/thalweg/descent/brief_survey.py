"""A brief survey at the end of a training, in a small share of its time: the kind of place, and the largest curvature.

It is of few examples, whose number follows from how many gradients the training took, so that it is the same each time. The clock
only ends it: where the time is over before anything is known, there is none.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from thalweg.descent.course import edge_at, rate_at
from thalweg.descent.problem import Problem
from thalweg.descent.run_surface import (
    EXAMPLES,
    LARGEST_PART,
    is_noisy,
    looked_at,
    noise_of,
    sample,
    scale_of,
    seeded,
    step_of,
)
from thalweg.landscape.lanczos import Eigenpairs, eigenpairs
from thalweg.landscape.model_surface import ModelSurface
from thalweg.landscape.place import Place, find_place
from thalweg.records.run import Run
from thalweg.records.survey import Survey
from thalweg.watch.temperature import batch_size

SHARE = 0.06  # of the training's time
COST = 80  # gradients that an example costs which is looked at
FEWEST_EXAMPLES, PARTS = 64, 2
LEAST_SECONDS = 0.05  # of a survey: in less nothing is found
TOP, BOTTOM, TOLERANCE = 2, 1, 0.1
MOST_PRODUCTS, FEWEST_PRODUCTS = 24, 6
BASIS_BYTES = 256 << 20
OF_EIGENVALUES = 0.6  # of the time, after which no further product is made
TIMED = 3  # products, of which the last ones say how long one takes: the first makes the graphs


class _OutOfTimeError(Exception):
    """The time is over."""


class _TimedSurface(ModelSurface):
    """Raises `_OutOfTimeError` at the first batch after a moment."""

    until = math.inf

    def _loss_of(self, number: int, part: Any) -> Tensor:
        if time.perf_counter() > self.until:
            raise _OutOfTimeError
        return super()._loss_of(number, part)


def brief_survey(run: Run, problem: Problem) -> Survey | None:
    """Survey the end of a run that this process has trained, in 6 % of the time that it took, all in all.

    Gives None where that is too little to find anything. Raises as `survey_run` does.
    """
    taken = float(run.summary.get("seconds") or 0.0)
    allowed = SHARE * taken
    if allowed < LEAST_SECONDS or not math.isfinite(allowed):
        return None
    began, model, problem = time.perf_counter(), run.model, problem.with_own_loss()
    with looked_at(model, problem, run.plan.threads):
        parts, shown, total = sample(problem, run, _examples(run), 0, parts=PARTS, largest=_largest_part(run))
        share = 1.0 if total is None else min(1.0, shown / total)
        surface = _TimedSurface(model, problem.objective, parts, share_of_data=share, seed_for=seeded(0))
        surface.until = began + allowed
        try:
            with surface.put_back():
                found = _measured(surface, run, began, allowed)
        except _OutOfTimeError:
            return None
    seconds = time.perf_counter() - began
    return Survey(
        **found,
        step=step_of(run),
        noise=noise_of(run),
        parameters=surface.size,
        examples=shown,
        total=total,
        gradients=surface.gradients,
        products=surface.products,
        evaluations=surface.evaluations,
        seconds=seconds,
        notes=(
            f"This is a brief survey at the end of the training, in {max(seconds / taken, 0.001):.1%} of its time.",
        ),
        complete=False,
    )


def _measured(surface: _TimedSurface, run: Run, began: float, allowed: float) -> dict[str, Any]:
    """Give what was found, as the survey's attributes. Raises `_OutOfTimeError` where that is nothing."""
    surface.check_repeats()
    point = surface.point
    slope = surface.slope(point)
    if not math.isfinite(slope.loss) or not bool(torch.isfinite(slope.gradient).all()):
        raise _OutOfTimeError  # the run's diagnoses say so
    times = [time.perf_counter()]

    def enough(products: int) -> bool:
        times.append(time.perf_counter())
        if products == TIMED:
            each = (times[-1] - times[1]) / (TIMED - 1)
            if times[-1] + (FEWEST_PRODUCTS - TIMED) * each > began + allowed:
                raise _OutOfTimeError
        return products >= FEWEST_PRODUCTS and times[-1] > began + OF_EIGENVALUES * allowed

    bytes_of_one = surface.size * surface.dtype.itemsize
    pairs = eigenpairs(
        surface.hessian(point), point, top=TOP, bottom=BOTTOM, tolerance=TOLERANCE, most=MOST_PRODUCTS,
        vectors=max(TOP + BOTTOM + 3, min(MOST_PRODUCTS, BASIS_BYTES // bytes_of_one)), enough=enough,
    )  # fmt: skip
    edge = edge_at(run, rate_at(run, step_of(run)))
    own = edge is not None and bool(edge.scales)
    found: dict[str, Any] = {
        "loss": slope.loss,
        "gradient_norm": float(slope.gradient.double().norm()),
        "gradient_error": math.sqrt(slope.squared_error),
        "eigenvalues": (*pairs.top, *reversed(pairs.bottom)),
        "residuals": (*pairs.top_residuals, *reversed(pairs.bottom_residuals)),
        "largest": len(pairs.top),
        # In the measure of a rule that divides gradients the curvature is not known here.
        "edge": math.nan if edge is None or edge.curvature is None or own else edge.curvature,
    }
    place = _place(surface, run, point, slope, pairs, found["edge"])
    if place is None:
        return {**found, "reason": "There was no time to tell the kind of place."}
    names = ("kind", "reason", "index", "index_is_exact", "figures", "thresholds")
    return {**found, **{name: getattr(place, name) for name in names}}


def _place(surface: _TimedSurface, run: Run, point: Tensor, slope: Any, pairs: Eigenpairs, edge: float) -> Place | None:
    own = None if math.isnan(edge) or is_noisy(run) else (pairs.largest, edge)
    try:
        return find_place(surface, point, slope, pairs, scale=scale_of(run, slope.loss), edge=own)
    except _OutOfTimeError:
        return None


def _examples(run: Run) -> int:
    """Give how many examples are looked at."""
    gradients = int(run.summary.get("steps") or 0) * (batch_size(run) or FEWEST_EXAMPLES)
    return min(EXAMPLES, max(FEWEST_EXAMPLES, int(SHARE * gradients / COST)))


def _largest_part(run: Run) -> int:
    """Give the examples of a batch at most: no more than training took into memory at once."""
    size = batch_size(run)
    return LARGEST_PART if size is None else max(1, min(LARGEST_PART, math.ceil(size / run.plan.accumulate)))
