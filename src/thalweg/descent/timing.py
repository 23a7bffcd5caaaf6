"""Timing: the seconds that a step takes, from a few steps of a descent that is then thrown away."""

from __future__ import annotations

import math
import statistics
import time
from typing import NamedTuple

from thalweg.descent.gradient import compute_gradient
from thalweg.descent.problem import Problem
from thalweg.descent.process_state import preserve_process_state
from thalweg.descent.recorder import Recorder
from thalweg.descent.state import Descent
from thalweg.records.plan import Plan

WARM_UP = 2  # first steps, whose time is not counted
PLACEHOLDER_STEPS = 1000  # budget of a plan that has none yet: only a few of them are taken


class StepTime(NamedTuple):
    """Seconds per step, and whether a step's examples fitted into memory at once (else they were cut into parts)."""

    seconds: float
    fits: bool


class TimedDescent:
    """A descent that is thrown away, whose steps are timed: `times` are the seconds of each so far."""

    def __init__(self, problem: Problem, plan: Plan) -> None:
        self.plan = plan
        self.descent = Descent(problem, plan if plan.steps else plan.replace(steps=PLACEHOLDER_STEPS))
        self.times = list[float]()
        self._recorder = Recorder()

    def take(self, count: int, patience: float = math.inf, threads: int | None = None) -> list[float]:
        """Take steps, fewer once all so far took `patience` seconds; gives the seconds of each of them.

        `threads`: how many compute them; None: the plan's.

        Raises TaskError where memory runs out with a single example.
        """
        descent, before = self.descent, len(self.times)
        with preserve_process_state(threads or self.plan.threads):
            while len(self.times) < before + count and sum(self.times) <= patience:
                started = time.perf_counter()
                descent.set_rate(descent.rate())
                compute_gradient(descent, self._recorder)
                descent.optimizer.step()
                self.times.append(time.perf_counter() - started)
        return self.times[before:]

    def close(self) -> None:
        """End loader workers."""
        self.descent.batches.close()


def time_steps(problem: Problem, plan: Plan, count: int = 12, patience: float = math.inf) -> StepTime:
    """Time steps of a throw-away descent: the median of `count` after two for warm-up; fewer once they took `patience` seconds.

    Raises TaskError where memory runs out with a single example.
    """
    timed = TimedDescent(problem, plan)
    try:
        times = timed.take(WARM_UP + count, patience)
    finally:
        timed.close()
    return StepTime(statistics.median(times[WARM_UP:] or times), timed.descent.accumulate == plan.accumulate)
