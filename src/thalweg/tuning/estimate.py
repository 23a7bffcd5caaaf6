"""What a fit will cost, said before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from thalweg.descent.budget import seconds_per_step, settle
from thalweg.descent.problem import Problem
from thalweg.tuning.tune import check_fixed, price, start_plan, with_batch_size, with_threads


class Cost(NamedTuple):
    """Steps of one training, the price in trainings, and about how many seconds all of it takes."""

    steps: int
    batch_size: int | None
    trainings: float
    seconds: float


def cost(
    problem: Problem,
    *,
    epochs: float | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    effort: str | float = "standard",
    seed: int = 0,
    fixed: Mapping[str, Any] | None = None,
) -> Cost:
    """Estimate a fit by timing a few steps. Raises PlanError as `tune` does."""
    paid, decided = price(effort), check_fixed(fixed or {})
    plan = with_threads(problem, start_plan(problem, decided, seed), decided)
    plan = with_batch_size(problem, plan, decided, epochs, lambda _: None)
    if seconds is not None:
        plan = settle(problem, plan, seconds=seconds / paid)
        return Cost(plan.steps or 0, plan.batch_size, paid, seconds)
    plan = settle(problem, plan, epochs=epochs, steps=steps)
    total = plan.steps or 0
    return Cost(total, plan.batch_size, paid, total * paid * seconds_per_step(problem, plan))


def describe_cost(found: Cost) -> str:
    """Say it in a sentence."""
    return (
        f"{found.steps:,} steps of {found.batch_size or 'all'} examples; with the search {found.trainings:g} trainings' worth:"
        f" about {human_seconds(found.seconds)}, validation not counted"
    )


def human_seconds(seconds: float) -> str:
    """Say a length of time.

    >>> human_seconds(4.2), human_seconds(200), human_seconds(9000)
    ('4 s', '3 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
