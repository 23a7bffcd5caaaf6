"""A candidate of the search: the final run itself, at one learning rate, taken as far as the search needs to judge it.

It is judged by a branch that cools down: a copy whose rate falls to zero within a few per cent of the run, which gives the
figure of a finished run where an unfinished one's says little. The candidate itself goes on as if it had not been judged.
"""

from __future__ import annotations

import math

from thalweg import schedule as shapes
from thalweg.descent.loop import descend
from thalweg.descent.memory_history import MemoryHistory
from thalweg.descent.problem import Problem
from thalweg.descent.recorder import Recorder
from thalweg.descent.state import Descent
from thalweg.descent.suspended import Suspended
from thalweg.descent.their_objects import as_found
from thalweg.errors import DivergedError
from thalweg.records.plan import Plan
from thalweg.schedule import Schedule

FEWEST = 2  # steps of a cool-down


class Candidate:
    """The run of a settled plan, taken on in parts. `steps_paid` counts all its steps, those of its branches too."""

    def __init__(self, problem: Problem, plan: Plan) -> None:
        self.problem, self.plan = problem, plan
        self.suspended: Suspended | None = None
        self.failed = False
        self.steps_paid = 0

    @property
    def step(self) -> int:
        """The step that it has come to."""
        return 0 if self.suspended is None else self.suspended.step

    def advance(self, step: int) -> dict[str, float]:
        """Go on to a step, and give the figures of the last validation on the way; none where it diverged."""
        if self.failed or (self.suspended is not None and (self.suspended.is_over or step <= self.step)):
            return {} if self.failed else self._figures()
        before = self.step
        with as_found(self.problem.task):
            history = MemoryHistory() if self.suspended is None else self.suspended.history
            diagnoses = [] if self.suspended is None else self.suspended.diagnoses
            descent = (
                Descent(self.problem, self.plan) if self.suspended is None else self.suspended.resumed(self.problem)
            )
            recorder = Recorder(history=history, diagnoses=diagnoses)
            try:
                descend(descent, recorder, until=step)
            except DivergedError:
                self.failed, self.suspended = True, None
                self.steps_paid += descent.step - before
                return {}
            self.suspended = Suspended(descent, recorder, history)
        self.steps_paid += self.step - before
        return self._figures()

    def cooled(self, length: int) -> dict[str, float]:
        """Give the figures of a copy whose rate falls from the present one to zero within `length` steps; {} where it diverges."""
        if self.suspended is None or self.suspended.is_over:
            return {} if self.failed else self._figures()
        at, length = self.step, min(max(FEWEST, length), self._steps - self.step)
        plan = self.plan.replace(
            steps=at + length,
            schedule=cooled_schedule(self.plan.schedule, self._steps, at, length),
            validate_every=at + length,
            snapshot_every=0,
            digest_every=0,
            patience=None,
        )
        with as_found(self.problem.task):
            descent = self.suspended.branch(self.problem, plan)
            try:
                descend(descent, Recorder())
            except DivergedError:
                return {}
            finally:
                self.steps_paid += descent.step - at
            return dict(descent.last_validation)

    @property
    def _steps(self) -> int:
        assert self.plan.steps is not None
        return self.plan.steps

    def _figures(self) -> dict[str, float]:
        assert self.suspended is not None
        best = self.suspended.best
        return dict(best.figures) if best is not None else self.suspended.last_validation


def cooled_schedule(schedule: Schedule, full: int, at: int, length: int) -> Schedule:
    """Follow the schedule of a run of `full` steps as far as `at`; from there fall to zero in a straight line of `length` steps.

    Only the steps from `at` on are ever taken by it.
    """
    resolved = schedule.resolve(full, None)
    factor = resolved.factor(at, resolved.initial_state() or None)
    if math.isclose(factor, 0.0):
        return shapes.constant().scaled(0.0)
    return shapes.sequence(shapes.constant(total=at), shapes.linear(total=length).scaled(factor))
