"""What a fit will cost, said before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from thalweg.descent.budget import seconds_per_step
from thalweg.descent.problem import Problem
from thalweg.records.plan import Plan
from thalweg.tuning.tune import Say, check_fixed, measured_start, trainings


class Cost(NamedTuple):
    """Steps of one training, the price in trainings, about how many seconds all of it takes, and the plan to search from."""

    steps: int
    batch_size: int | None
    trainings: float
    seconds: float
    start: Plan | None = None


def cost(
    problem: Problem,
    *,
    epochs: float | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    effort: str | float = "standard",
    seed: int = 0,
    fixed: Mapping[str, Any] | None = None,
    say: Say = lambda _: None,
) -> Cost:
    """Estimate a fit by timing a few steps. Raises PlanError as `tune` does."""
    paid = trainings(effort, check_fixed(fixed or {}))
    start = measured_start(
        problem, epochs=epochs, steps=steps, seconds=seconds, effort=effort, seed=seed, fixed=fixed, say=say
    )
    total = start.steps or 0
    expected = total * paid * seconds_per_step(problem, start) if seconds is None else seconds
    return Cost(total, start.batch_size, paid, expected, start)
