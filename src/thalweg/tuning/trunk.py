"""The run of an open length: a trunk at the stable rate, from which finished runs of several lengths are branched.

A finished run of so many steps leaves the trunk where its schedule's decay begins, and is bit for bit the run of a plan of that
length from its start: warm-up, rate, decay of the weights and all else are as they were for the shortest one. Where the watch had
the trunk begin again or put batches together, which it does by how long a run is, finished runs go from their own start.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import cast

from thalweg.descent.cooling import FEWEST
from thalweg.descent.problem import Problem
from thalweg.descent.process_state import preserve_process_state
from thalweg.descent.state import Descent
from thalweg.descent.their_objects import as_found
from thalweg.descent.train import take_kept_weights
from thalweg.descent.validation import part_losses
from thalweg.errors import PlanError, ScheduleError
from thalweg.records.plan import Plan
from thalweg.schedule import Schedule
from thalweg.tuning.candidate import Candidate, outcome_of
from thalweg.tuning.candidate_files import CandidateFiles
from thalweg.tuning.outcome import Outcome
from thalweg.tuning.race import COOL

SHAPES = ("wsd", "constant")


def check_schedule(plan: Plan) -> None:
    """Refuse a schedule that depends on the length of the run. Raises PlanError."""
    shape = plan.schedule.shape
    if shape not in SHAPES or plan.schedule.total is not None:
        ends = "has a total of its own" if shape in SHAPES else f"'{shape}' depends on where the run ends"
        raise PlanError(
            f"The plan's schedule cannot go on until it no longer pays: it {ends}. Give wsd (warm-up, stable, decay), such as"
            f" thalweg.schedule.wsd(warmup=100, decay=0.2), or constant; or leave it out."
        )


def with_settled_warmup(schedule: Schedule, steps: int, steps_per_epoch: int | None) -> Schedule:
    """Give a schedule whose warm-up is as long in any run as in one of so many steps."""
    return replace(schedule, warmup=schedule.resolve(steps, steps_per_epoch).warmup)


def with_open_decay(plan: Plan) -> Plan:
    """Give a plan whose weight decay has the same schedule in runs of any length: lengths in it are those of the plan's steps.

    Raises PlanError for one that depends on where the run ends.
    """
    schedule = plan.weight_decay_schedule
    if schedule is None:
        return plan
    settled = schedule.resolve(plan.steps, plan.steps_per_epoch)
    try:
        is_open = replace(schedule, warmup=settled.warmup, options=settled.options).resolve(None, plan.steps_per_epoch)
        is_open.factor(0)
    except ScheduleError as error:
        raise PlanError(
            f"The plan's `weight_decay_schedule` cannot go on until it no longer pays: '{schedule.shape}' depends on where the"
            f" run ends. Give inverse_time or constant, a total in steps, or leave it out."
        ) from error
    return plan.replace(weight_decay_schedule=is_open, evidence=plan.evidence)


def trunk_plan(plan: Plan, most: int) -> Plan:
    """Give the plan of the trunk of a plan's runs: its rate never falls."""
    return plan.replace(steps=most, schedule=replace(plan.schedule, shape="constant", options={}))


def branching_step(plan: Plan, steps: int) -> int:
    """Give the step at which the finished run of so many steps leaves the trunk."""
    resolved = plan.schedule.resolve(steps, plan.steps_per_epoch)
    if resolved.shape != "wsd":
        return max(1, steps - FEWEST)
    return min(max(cast("int", resolved.warmup), steps - resolved.options["decay"]), steps - 1)


def fits(plan: Plan) -> bool:
    """Tell whether warm-up and decay of a plan fit into its steps."""
    try:
        for schedule in filter(None, (plan.schedule, plan.weight_decay_schedule)):
            schedule.resolve(plan.steps, plan.steps_per_epoch)
    except ScheduleError:
        return False
    return True


class Trunk(Candidate):
    """A candidate whose length is open. `plan`: of its shortest finished run; `most`: the steps of the longest one.

    Until the length of the shortest run it is judged as any candidate is, by a copy that cools down; from there on by finished
    runs, which are kept (`finished`) until they are dropped.
    """

    def __init__(
        self,
        problem: Problem,
        plan: Plan,
        most: int,
        files: CandidateFiles | None = None,
        alive: Callable[[], None] = lambda: None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__(problem, trunk_plan(plan, most), files, alive, say)
        self.shortest = plan
        self.finished = dict[int, Candidate]()

    def judge(self, step: int) -> Outcome:
        """Go on until the trunk is so far that a run of so many steps is judged, and give what that is worth."""
        assert self.shortest.steps is not None
        if step < self.shortest.steps:
            length = max(FEWEST, round(COOL * self.shortest.steps))
            return self.judged_at(step, min(length, self.shortest.steps - step))
        started, run = time.perf_counter(), self.finished_run(step)
        figures = {} if self.failed else run.advance(step)
        shared = 0 if self._depends_on_length else branching_step(self.shortest, step)
        self.steps_paid += max(0, run.steps_paid - shared)
        self.finished[step] = run
        is_race = step == self.shortest.steps
        outcome = outcome_of(self.problem.task, step, figures, is_race and run.rate_was_lowered)
        best = None if run.suspended is None else run.suspended.best
        return outcome._replace(
            steps_paid=self.steps_paid,
            seconds=time.perf_counter() - started,
            parts=self._parts(run, outcome),
            kept=step if best is None else best.step,
        )

    def finished_run(self, steps: int, *, anew: bool = True) -> Candidate:
        """Give the finished run of so many steps, as far as it is there.

        `anew`: it is taken at least until it leaves the trunk, unless that fails, or the trunk is no part of it.
        """
        if steps in self.finished:
            return self.finished[steps]
        plan = self.shortest.replace(steps=steps, evidence=self.shortest.evidence)
        run = Candidate(self.problem, plan, self._files, self._alive, self._say)
        run.progress = self.progress
        branching = branching_step(self.shortest, steps)
        if run.suspended is None and anew and branching and not self._depends_on_length:
            self.advance(branching)
            if self.suspended is not None and not self._depends_on_length:
                run.suspended = self.suspended.forked(plan)
                run.steps_paid = run.step
        return run

    @property
    def _depends_on_length(self) -> bool:
        """Whether finished runs are trained from their own start, as cures of the trunk would be others there."""
        return self.suspended is not None and self.suspended.depends_on_length

    def drop(self, steps: int) -> None:
        """Let go of a finished run."""
        self.finished.pop(steps, None)
        if self._files is not None:
            self._files.remove(self.shortest.replace(steps=steps))

    def _parts(self, run: Candidate, outcome: Outcome) -> tuple[float, ...]:
        """Give what each part of the validation examples adds to a finished run's loss, where that is the criterion."""
        task, suspended = self.problem.task, run.suspended
        if task.select != "loss" or not math.isfinite(outcome.value) or suspended is None or suspended.best is None:
            return ()
        with as_found(task):
            descent = Descent(self.problem, run.plan)
            descent.best_weights = suspended.best
            take_kept_weights(descent)
            with preserve_process_state(run.plan.threads):
                parts = part_losses(descent.problem, descent.model, run.plan.precision, run.plan.seed)
        total = sum(weight for _, weight in parts)
        return tuple(loss * weight / total for loss, weight in parts) if total else ()
