"""A candidate of the search: the final run itself, at one point, taken as far as the search needs to judge it.

It is judged by a branch that cools down: a copy whose rate falls to zero within a few per cent of the run, which gives the
figure of a finished run where an unfinished one's says little. The candidate itself goes on as if it had not been judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from thalweg import schedule as shapes
from thalweg.descent.loop import descend
from thalweg.descent.problem import Problem
from thalweg.descent.recorder import Recorder
from thalweg.descent.state import Descent
from thalweg.descent.suspended import Suspended, TapedHistory
from thalweg.descent.their_objects import as_found
from thalweg.errors import DivergedError, Interrupted
from thalweg.records.diagnosis import Diagnosis
from thalweg.records.plan import Plan
from thalweg.schedule import Schedule
from thalweg.tuning.race import COOL, FEWEST, Point, step_at


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

    @property
    def rate_was_lowered(self) -> bool:
        """Whether the watch had to lower its rate on the way, which is then too high for this run."""
        return self.suspended is not None and self.suspended.cures["rate_factor"] < 1

    def advance(self, step: int) -> dict[str, float]:
        """Go on to a step, and give the figures of the last validation on the way; none where it diverged."""
        if self.failed:
            return {}
        begun, before = self.suspended, self.step
        if begun is not None and (begun.is_over or step <= before):
            return self._figures()
        with as_found(self.problem.task):
            if begun is None:
                history, diagnoses = TapedHistory(), list[Diagnosis]()
                descent = Descent(self.problem, self.plan)
            else:
                history, diagnoses = begun.history, begun.diagnoses
                descent = begun.resumed(self.problem)
            recorder = Recorder(history=history, diagnoses=diagnoses)
            try:
                _descend(descent, recorder, until=step)
            except DivergedError:
                self.failed, self.suspended = True, None
                self.steps_paid += descent.step - before
                return {}
            self.suspended = Suspended(descent, recorder, history)
        self.steps_paid += self.step - before
        return self._figures()

    def cooled(self, length: int) -> dict[str, float]:
        """Give the figures of a copy whose rate falls from the present one to zero in `length` steps; none where it diverges."""
        if self.suspended is None or self.suspended.is_over:
            return {} if self.failed else self._figures()
        at, length = self.step, min(max(FEWEST, length), self.steps - self.step)
        plan = self.plan.replace(
            steps=at + length,
            schedule=cooled_schedule(self.suspended.schedule_factor, at, length),
            validate_every=at + length,
            snapshot_every=0,
            digest_every=0,
            patience=None,
        )
        with as_found(self.problem.task):
            descent = self.suspended.branch(self.problem, plan)
            try:
                _descend(descent, Recorder())
            except DivergedError:
                return {}
            finally:
                self.steps_paid += descent.step - at
            return dict(descent.last_validation)

    @property
    def steps(self) -> int:
        """The steps of the whole run."""
        assert self.plan.steps is not None
        return self.plan.steps

    def _figures(self) -> dict[str, float]:
        assert self.suspended is not None
        best = self.suspended.best
        return dict(best.figures) if best is not None else self.suspended.last_validation


class Scored(NamedTuple):
    """A candidate's score after some steps, without those of its cool-down; less is better, infinite where it has none."""

    point: Point
    steps: int
    score: float


class Candidates:
    """The candidates of a race, run in this process, one after the other."""

    def __init__(self, problem: Problem, plan_for: Callable[[Point], Plan], say: Callable[[str], None]) -> None:
        self._problem, self._plan_for, self._say = problem, plan_for, say
        self.running = dict[Point, Candidate]()
        self.scores = list[Scored]()
        self.steps_paid = 0

    def score(self, point: Point, share: float) -> float:
        """Take a candidate on to a share of the run, and give the criterion of a cool-down there; less is better."""
        if point not in self.running:
            self.running[point] = Candidate(self._problem, self._plan_for(point))
        candidate, task = self.running[point], self._problem.task
        paid = candidate.steps_paid
        at = step_at(share, candidate.steps)
        candidate.advance(at)
        figures = {} if candidate.rate_was_lowered else candidate.cooled(round(COOL * candidate.steps))
        self.steps_paid += candidate.steps_paid - paid
        value = figures.get(task.select, math.nan)
        score = math.inf if not math.isfinite(value) else value if task.mode == "min" else -value
        self.scores.append(Scored(point, at, score))
        shown = f"{task.select} {value:.4g}" if figures else "diverged"
        if candidate.rate_was_lowered:
            shown = "too high, the watch had to lower it"
        how = (
            f"trained all {at:,} steps"
            if at == candidate.steps
            else f"cooled down after {at:,} of {candidate.steps:,} steps"
        )
        self._say(f"learning rate {point.rate:.3g} by {candidate.plan.rule}, {how}: {shown}")
        return score

    def stop(self, point: Point) -> None:
        """Let go of a candidate."""
        self.running.pop(point, None)


def _descend(descent: Descent, recorder: Recorder, until: int | None = None) -> None:
    """Take steps; also where Ctrl-C or SIGTERM came with the last of them, after which a run would just be at its end."""
    descend(descent, recorder, until)
    if recorder.stop_request.received:
        raise Interrupted("Interrupted in the search.", signal=recorder.stop_request.signal)


def cooled_schedule(factor: float, at: int, length: int) -> Schedule:
    """Fall from a factor to zero in a straight line of `length` steps, from step `at` on; steps before it are never taken."""
    if math.isclose(factor, 0.0):
        return shapes.linear(total=at)
    return shapes.sequence(shapes.constant(total=at), shapes.linear(total=length).scaled(factor))
