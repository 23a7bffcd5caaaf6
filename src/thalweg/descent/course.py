"""What the loss surface was like on the way: how sharp it was at some points of a run's trail, beside the sharpness from which
on its rule diverges.

Each point's largest eigenvalue is looked for afresh: from the eigenvector of the point before one may end at the second one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

from thalweg.descent.second_moments import SecondMoments
from thalweg.errors import RuleError
from thalweg.landscape.lanczos import eigenpairs
from thalweg.landscape.model_surface import ModelSurface
from thalweg.landscape.surface import Product
from thalweg.optim.recalibration import gathers_statistics, recalibrated
from thalweg.records.run import Run
from thalweg.records.survey import Course
from thalweg.theory import Edge, stable_edge
from thalweg.watch.finished import FinishedHistory, Values
from thalweg.watch.temperature import is_without_noise, temperature

MOST_POINTS = 10
TOLERANCE = 0.05  # of the largest eigenvalue
MOST_PRODUCTS = 40  # at each point
VECTORS = 6  # that are kept for it


class CourseMeter:
    """Measures one point after the other, in the order of the steps.

    Arguments:
        surface: the loss. Batch normalisation has statistics that are estimated anew at each point, from the surface's batches.
        run: whose rates, rule and batches say what was stable, and how hot it was.
        moments: of a rule that divides gradients by their usual size: what that was at each point. None: not known.
        seed: of the first direction.

    Attributes:
        course: what is known so far.
    """

    def __init__(
        self,
        surface: ModelSurface,
        run: Run,
        moments: SecondMoments | None = None,
        *,
        seed: int = 0,
    ) -> None:
        self.surface, self.run, self.moments, self.seed = surface, run, moments, seed
        self.course = Course()
        self._heat = temperature(run)
        self._clipped = FinishedHistory.of(run).recorded("clip_scale")

    def pass_by(self, step: int, point: Tensor) -> None:
        """Follow the run to the point where it was after a step, and measure only the usual size of gradients there."""
        if self.moments is not None:
            with self._statistics_of(point):
                self.moments.go_to(step, point, _latest(*self._clipped, step) or 1.0)

    def add(self, step: int, point: Tensor) -> None:
        """Measure the point where the run was after a step; one whose loss is no number is left out."""
        self.pass_by(step, point)
        surface, own = self.surface, None
        with self._statistics_of(point):
            loss = surface.loss(point)
            if not math.isfinite(loss):
                return
            product = surface.hessian(point)
            sharpness, residual = self._largest(product, point)
            divided = None if self.moments is None else self.moments.preconditioner()
            if divided is not None:
                root = divided.sqrt_()
                own = self._largest(lambda v: root * product(root * v), point)[0]
        rate = rate_at(self.run, step)
        edge = edge_at(self.run, rate)
        self.course = self.course.with_point(
            self.course.scaled or bool(edge and edge.scales),
            step,
            loss,
            sharpness,
            residual,
            rate,
            None if edge is None else edge.curvature,
            own,
            self._temperature(step),
        )

    def _largest(self, product: Product, point: Tensor) -> tuple[float, float]:
        found = eigenpairs(
            product, point, top=1, bottom=0, tolerance=TOLERANCE, most=MOST_PRODUCTS, vectors=VECTORS,
            seed=self.seed,
        )  # fmt: skip
        return found.top[0], found.top_residuals[0]

    def _statistics_of(self, point: Tensor) -> AbstractContextManager[Any]:
        surface = self.surface
        surface.move_to(point)
        if not gathers_statistics(surface.model):
            return nullcontext()
        return recalibrated(surface.model, surface.parts, lambda model, part: surface.objective.loss(model, part.batch))

    def _temperature(self, step: int) -> float | None:
        if is_without_noise(self.run):
            return 0.0
        heat = self._heat
        return None if heat is None or heat.gain is None else _latest(heat.steps, heat.values, step)


def chosen(steps: Sequence[int]) -> list[int]:
    """Choose at most ten of the steps of a trail, spread as these are, the first and the last among them.

    >>> chosen([0, 1, 3, 7]), chosen(range(40))
    ([0, 1, 3, 7], [0, 4, 9, 13, 17, 22, 26, 30, 35, 39])
    """
    steps = list(steps)
    if len(steps) <= MOST_POINTS:
        return steps
    return [steps[round(i * (len(steps) - 1) / (MOST_POINTS - 1))] for i in range(MOST_POINTS)]


def rate_at(run: Run, step: int) -> float | None:
    """Give the learning rate of the step that led to where a run was after one, at its start that of the first; None where it
    is not known."""
    return _latest(*FinishedHistory.of(run).recorded("learning_rate"), step)


def edge_at(run: Run, rate: float | None) -> Edge | None:
    """Give the curvature at which a run's rule becomes unstable at a rate; None where there is none."""
    if rate is None or not 0 < rate < math.inf:
        return None
    try:
        edge = stable_edge(run.plan.rule, run.plan.constants, lr=rate)
    except RuleError:
        return None
    return edge if edge.curvature is not None and math.isfinite(edge.curvature) else None


def _latest(steps: Values, values: Values, step: int) -> float | None:
    before = values[steps <= step] if len(steps) and steps[0] <= step else values[:1]
    return float(before[-1]) if len(before) else None
