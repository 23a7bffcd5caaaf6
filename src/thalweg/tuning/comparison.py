"""Timing a plan with a knob changed against the plan without, and what was found of the knob."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from thalweg.descent.problem import Problem
from thalweg.descent.process_state import preserve_process_state, rng_lock
from thalweg.descent.state import Descent
from thalweg.descent.timing import WARM_UP, TimedDescent, time_steps
from thalweg.descent.validation import evaluating
from thalweg.records.plan import Plan
from thalweg.sampling import StreamSource
from thalweg.sampling.sources import seed_all, to_device

SHARE, MOST_SECONDS = 0.05, 120.0  # of search and training together, and at most, that measuring one knob may take
PAYS = 0.95  # of a step's time without, that a knob must bring it below
ROUNDS, BLOCK = 4, 3  # steps are timed in turn, a few at a time, so that a machine with other work is as slow for both

Say = Callable[[str], None]


@dataclass(frozen=True)
class Trial:
    """A plan, how long its steps take, and how long search and training together, all in seconds; `say` tells what is tried."""

    problem: Problem
    plan: Plan
    per_step: float
    total: float
    say: Say

    @property
    def patience(self) -> float:
        """Seconds that measuring one knob may take."""
        return min(SHARE * self.total, MOST_SECONDS)


@dataclass(frozen=True)
class Finding:
    """What was found of a knob: the value to take, why, and what was measured."""

    value: object
    reason: str
    figures: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Compared(NamedTuple):
    """Seconds per step without and with a change, medians; `ratio` is the median of the ratios round by round."""

    without: float
    changed: float
    ratio: float

    def figures(self, knob: str, values: Sequence[object]) -> dict[str, Any]:
        """Give what was measured at both values of a knob, as evidence has it."""
        seconds = [float(f"{s:.3g}") for s in (self.without, self.changed)]
        return {knob: [*values], "seconds_per_step": seconds}


def compare(trial: Trial, changed: Plan) -> Compared:
    """Time steps of the trial's plan and of a changed one in turn, as long as the trial's patience lasts.

    Those of a stream are timed one plan after the other: it is read for one of them at a time.
    """
    problem, plans = trial.problem, (trial.plan, changed)
    if isinstance(problem.train, StreamSource):
        without, with_it = (time_steps(problem, plan, patience=trial.patience / 2).seconds for plan in plans)
        return Compared(without, with_it, with_it / without)
    with closing(TimedDescent(problem, plans[0])) as one, closing(TimedDescent(problem, plans[1])) as other:
        started, blocks = time.perf_counter(), list[tuple[float, float]]()
        one.take(WARM_UP)
        other.take(WARM_UP)
        while len(blocks) < ROUNDS and (not blocks or time.perf_counter() - started < trial.patience):
            blocks.append((statistics.median(one.take(BLOCK)), statistics.median(other.take(BLOCK))))
    without, with_it = (statistics.median(medians) for medians in zip(*blocks, strict=True))
    return Compared(without, with_it, statistics.median(b / a for a, b in blocks))


def evaluated(descent: Descent) -> float:
    """Give the loss of the batch drawn last, in evaluation mode; the same random numbers are drawn each time."""
    problem, draw = descent.problem, descent.last_draw
    assert draw is not None
    with preserve_process_state(descent.plan.threads), rng_lock, evaluating(descent.model, problem.objective):
        seed_all(0)
        loss, *_ = problem.objective.evaluate(descent.model, to_device(draw.parts[0], problem.device))
        return float(loss.detach())
