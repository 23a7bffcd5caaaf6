"""Timing a plan with a knob changed against the plan without, and what was found of the knob."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
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
BLOCK_SECONDS = 0.01  # that these few take at least: a pause of the machine is as long as many small steps

Say = Callable[[str], None]


@dataclass(frozen=True)
class Trial:
    """A plan, how long its steps take, and how long search and training together, all in seconds; `say` tells what is tried.

    `fixed`: names of knobs that are decided, which no other may bring along.
    """

    problem: Problem
    plan: Plan
    per_step: float
    total: float
    say: Say
    fixed: Collection[str] = ()

    @property
    def patience(self) -> float:
        """Seconds that measuring one knob may take."""
        return min(SHARE * self.total, MOST_SECONDS)


@dataclass(frozen=True)
class Finding:
    """What was found of a knob: the value to take, why, and what was measured.

    `beside`: what other knobs, by name, are to be with it, as it pays only so.
    """

    value: object
    reason: str
    figures: Mapping[str, Any] = field(default_factory=dict[str, Any])
    beside: Mapping[str, Finding] = field(default_factory=dict[str, "Finding"])


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
        return compared([[time_steps(problem, plan, patience=trial.patience / 2).seconds for plan in plans]])
    with closing(TimedDescent(problem, plans[0])) as one, closing(TimedDescent(problem, plans[1])) as other:
        started, rounds = time.perf_counter(), list[list[float]]()
        blocks = [(timed, block(timed.take(WARM_UP))) for timed in (one, other)]
        while len(rounds) < ROUNDS and (not rounds or time.perf_counter() - started < trial.patience):
            rounds.append([statistics.median(timed.take(steps)) for timed, steps in blocks])
    return compared(rounds)


def block(seconds: Sequence[float]) -> int:
    """Give how many steps are timed at a time, where first ones took these seconds.

    >>> block([1.2, 0.8]), block([0.003, 0.0005])
    (3, 20)
    """
    return max(BLOCK, math.ceil(BLOCK_SECONDS / min(seconds)))


def compared(rounds: Sequence[Sequence[float]]) -> Compared:
    """Compare the seconds per step without and with a change, given of every round.

    >>> compared([(2.0, 1.0), (8.0, 4.0), (4.0, 4.0)])
    Compared(without=4.0, changed=4.0, ratio=0.5)
    """
    without, changed = (statistics.median(seconds) for seconds in zip(*rounds, strict=True))
    return Compared(without, changed, statistics.median(b / a for a, b in rounds))


def evaluated(descent: Descent) -> float:
    """Give the loss of the batch drawn last, in evaluation mode; the same random numbers are drawn each time."""
    problem, draw = descent.problem, descent.last_draw
    assert draw is not None
    with preserve_process_state(descent.plan.threads), rng_lock, evaluating(descent.model, problem.objective):
        seed_all(0)
        loss, *_ = problem.objective.evaluate(descent.model, to_device(draw.parts[0], problem.device))
        return float(loss.detach())
