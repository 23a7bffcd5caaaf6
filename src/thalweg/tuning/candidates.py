"""The candidates of a race: trained here or by workers, each as far as it is asked for, and what is known of them told once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from thalweg.descent.problem import Problem
from thalweg.descent.recorder import Progress
from thalweg.descent.suspended import Suspended
from thalweg.descent.their_objects import as_found
from thalweg.errors import StudyError
from thalweg.records.plan import Plan
from thalweg.tuning.candidate import Candidate
from thalweg.tuning.outcome import Outcome, plan_sum
from thalweg.tuning.priors import TIMESCALE
from thalweg.tuning.race import COOL, Point, step_at
from thalweg.tuning.search import Search, can_be_copied, some_descent
from thalweg.tuning.sharing import WAIT_SECONDS, Sharing
from thalweg.tuning.trunk import Trunk, trunk_plan
from thalweg.tuning.workers import Workers, most_workers

WORTHWHILE = 0.5  # seconds of work below which a process of its own is not worth its start


class Scored(NamedTuple):
    """A candidate's score after some steps, without those of its cool-down; less is better, infinite where it has none."""

    point: Point
    steps: int
    score: float


class Candidates:
    """The candidates of a race. What the search knows of them already is not found again.

    `criterion` is what they are judged by: the task's own or, where that is no number with the first one that trains (a metric
    that the validation data cannot give), the loss, of which less is better. `most`: where their length is open, the most steps
    of a run; their plans are those of the shortest one, of which shares are then, above 1 too.
    """

    def __init__(
        self,
        problem: Problem,
        plan_for: Callable[[Point], Plan],
        say: Callable[[str], None],
        search: Search,
        most: int | None = None,
        criterion: str | None = None,
    ) -> None:
        self._problem, self._plan_for, self._say, self._search = problem, plan_for, say, search
        self._most = most
        self._plans = dict[Point, Plan]()
        self._running = dict[Point, Candidate]()
        self._racing = set[Point]()
        self._paid = dict[str, int]()  # by the sum of a plan
        self.scores = list[Scored]()
        self.criterion = criterion
        self._told = set[tuple[Point, int]]()
        self._at_once: int | None = None
        self.progress: Progress | None = None  # shows steps that are taken in this process
        self.seconds_before = 0.0  # that earlier processes took for what is known

    @property
    def steps_paid(self) -> int:
        """All steps taken for the scores so far."""
        return sum(self._paid.values())

    def expect(self, points: Sequence[Point], share: float) -> None:
        """Find these scores at once, by workers, where there is more than one to find and that pays; with others, all of them."""
        if self._search.sharing is None:
            self._train_at_once(points, share)
            return
        try:
            self._share(self._search.sharing, points, share)
        except StudyError as error:
            self._search.sharing = None
            self._say(f"warning: {error} The search is not shared with others any more, and goes on alone.")

    def _share(self, sharing: Sharing, points: Sequence[Point], share: float) -> None:
        """Find these scores together with whoever else searches: each trains what it has claimed, first what it has begun."""
        self._search.refresh()
        while left := self._unknown(points, share):
            plan = self._plan(left[0])
            most = self._most_at_once(plan, self._seconds(plan, share)) if len(left) > 1 else 1
            left.sort(key=lambda point: (not self._is_here(point), sharing.order(self._plan(point))))
            mine = {plan_sum(self._plan(point)): point for point in left}
            claimed = sharing.claim([self._plan(point) for point in left], self._step(plan, share), most)
            taken = [mine[plan_sum(one)] for one in claimed]
            self._search.refresh()
            if taken:
                self._train_at_once(taken, share)
                for point in self._unknown(taken, share):
                    self._train(point, share)
            else:
                time.sleep(WAIT_SECONDS)
            self._search.refresh()

    def _unknown(self, points: Sequence[Point], share: float) -> list[Point]:
        plans = [(point, self._plan(point)) for point in points]
        return [p for p, plan in plans if self._search.outcome(plan, self._step(plan, share)) is None]

    def _is_here(self, point: Point) -> bool:
        """Whether this process has trained a candidate so far."""
        files = self._search.files
        return point in self._running or (files is not None and files.has(self._in_training(self._plan(point))))

    def _in_training(self, plan: Plan) -> Plan:
        """Give the plan by which a candidate is trained before it is finished."""
        return plan if self._most is None else trunk_plan(plan, self._most)

    def _step(self, plan: Plan, share: float) -> int:
        """Give the step at a share of a candidate's run."""
        assert plan.steps is not None
        return step_at(share, plan.steps, self._most)

    def _seconds(self, plan: Plan, share: float) -> float:
        """Give about how long it takes to take a candidate from its start to a share of the run, and to judge it."""
        return self._search.seconds_per_step * (self._step(plan, share) + COOL * (plan.steps or 0))

    def _most_at_once(self, plan: Plan, seconds: float) -> int:
        return self._workers(plan) if seconds >= WORTHWHILE else 1

    def _train(self, point: Point, share: float) -> Outcome:
        """Take a candidate on in this process, and record what it is worth."""
        plan = self._plan(point)
        self._search.enter(plan)
        outcome = self._candidate(point).judge(self._step(plan, share))
        self._search.add(plan, outcome)
        return self._search.outcome(plan, outcome.step) or outcome

    def _train_at_once(self, points: Sequence[Point], share: float) -> None:
        """Find those of these scores that are not known, by workers, where there is more than one to find and that pays."""
        left = self._unknown(points, share)
        if len(left) < 2:
            return
        plan = self._plan(left[0])
        seconds = self._seconds(plan, share)
        at_once = min(len(left), self._most_at_once(plan, seconds))
        if at_once < 2:
            return
        steps = {point: self._step(self._plan(point), share) for point in left}

        def work(point: Point, alive: Callable[[], None]) -> dict[str, Any]:
            return self._new(point, alive).judge(steps[point]).to_dict()

        def done(number: int, answer: dict[str, Any]) -> None:
            outcome = Outcome(**answer)
            self._search.add(self._plan(left[number]), outcome)
            # Without both the first in order decides what counts.
            if self.criterion is not None or math.isfinite(outcome.value):
                criterion, select = self.criterion, self._problem.task.select
                by_loss = criterion is not None and criterion != select
                self._tell(left[number], outcome.by_loss() if by_loss else outcome, criterion or select)

        def lost(number: int, how: str, is_replaced: bool) -> None:
            point, plan = left[number], self._plan(left[number])
            self._search.lose(plan, how)
            what = "it is trained again" if is_replaced else "it is left out"
            self._say(f"warning: learning rate {point.rate:.3g} by {plan.rule}: {how}; {what}.")
            if not is_replaced:
                paid = 0 if (last := self._search.trial(plan).last) is None else last.steps_paid
                self._search.add(plan, Outcome(steps[point], math.nan, paid, reason=how))

        for point in left:
            self._search.enter(self._plan(point))
            here = self._running.pop(point, None)  # its worker goes on from its file
            if here is not None and self._search.files is not None:
                here.keep_in(self._search.files)
        workers = Workers(at_once, seconds, lost, self._keep_up)
        workers.do([partial(work, point) for point in left], done)
        if not workers.serve:
            self._at_once = 1
            self._say("warning: Processes of their own do not serve here; candidates are trained one after the other.")

    def _keep_up(self) -> None:
        """Let others know that this process is still at what it has claimed."""
        if self._search.sharing is not None:
            with suppress(StudyError):  # it is told where an outcome is to be written
                self._search.sharing.keep_up()

    def _workers(self, plan: Plan) -> int:
        """Give how many candidates may be trained at once; the first time it is asked, that is said."""
        if self._at_once is None:
            self._at_once, why = most_workers(self._problem, plan)
            if self._at_once > 1 and self._search.files is None:
                with as_found(self._problem.task):
                    is_whole = can_be_copied(some_descent(self._problem, plan.seed))
                if is_whole:
                    self._search.have_files()
                else:
                    self._at_once, why = 1, "task or model hold what cannot be copied"
            if self._at_once > 1:
                self._say(f"Up to {self._at_once} candidates are trained at once, each in a process of its own.")
            else:
                self._say(f"Candidates are trained one after the other, in this process: {why}.")
        return self._at_once

    def score(self, point: Point, share: float) -> float:
        """Take a candidate on to a share of the run, and give the criterion of a cool-down there; less is better."""
        plan, task = self._plan(point), self._problem.task
        at = self._step(plan, share)
        if self._search.sharing is not None:
            self.expect([point], share)
        outcome = self._search.outcome(plan, at)
        if outcome is None:
            outcome = self._train(point, share)
        elif self._search.was_known(plan, at):
            self.seconds_before += outcome.seconds
        outcome = self._judged(outcome)
        criterion = self.criterion or task.select
        score = outcome.score(task.mode if criterion == task.select else "min")
        self._paid[plan_sum(plan)] = outcome.steps_paid
        self._racing.add(point)
        self.scores.append(Scored(point, at, score))
        self._tell(point, outcome, criterion)
        return score

    def _tell(self, point: Point, outcome: Outcome, criterion: str) -> None:
        """Say what a candidate is worth, once."""
        plan, at = self._plan(point), outcome.step
        if (point, at) in self._told:
            return
        self._told.add((point, at))
        shown = outcome.reason or f"{criterion} {outcome.value:.4g}"
        how = (
            f"trained {'' if self._most else 'all '}{at:,} steps"
            if at >= (plan.steps or 0)
            else f"cooled down after {at:,} of {plan.steps or 0:,} steps"
        )
        kept = " (kept)" * self._search.was_known(plan, at)
        decay = "" if point.timescale == TIMESCALE else f", weight decay {plan.weight_decay:.3g}"
        self._say(f"learning rate {point.rate:.3g} by {plan.rule}{decay}, {how}: {shown}{kept}")

    def _judged(self, outcome: Outcome) -> Outcome:
        """Give an outcome by the criterion, which the first one that has figures decides."""
        select = self._problem.task.select
        if self.criterion is None and math.isfinite(outcome.loss):
            self.criterion = select if math.isfinite(outcome.value) else "loss"
            if self.criterion != select:
                self._say(f"`{select}` is no number in validation: candidates are judged by the loss instead.")
        return outcome if self.criterion in (None, select) else outcome.by_loss()

    def stop(self, point: Point) -> None:
        """Let go of a candidate, whose plan another one may have too."""
        self._running.pop(point, None)
        self._racing.discard(point)
        if plan_sum(self._plan(point)) not in {plan_sum(self._plan(other)) for other in self._racing}:
            self._search.stop(self._plan(point))
            if self._most is not None and self._search.files is not None:
                self._search.files.remove(trunk_plan(self._plan(point), self._most))

    def suspended(self, point: Point) -> Suspended | None:
        """Give the run of a candidate as far as it is trained; None where nothing is left of it."""
        return self._candidate(point).suspended

    def outcome(self, point: Point, share: float) -> Outcome:
        """Give the outcome of a candidate whose score at a share of its run is known."""
        plan = self._plan(point)
        outcome = self._search.outcome(plan, self._step(plan, share))
        assert outcome is not None
        return self._judged(outcome)

    def finished(self, point: Point, steps: int) -> Suspended | None:
        """Give the finished run of so many steps of a candidate of open length; None where it is not here."""
        run = self._trunk(point).finished_run(steps, anew=False)
        return None if run.suspended is None or not run.suspended.is_over else run.suspended

    def drop(self, point: Point, steps: int) -> None:
        """Let go of a finished run that is not needed any more."""
        self._trunk(point).drop(steps)

    def _trunk(self, point: Point) -> Trunk:
        trunk = self._candidate(point)
        assert isinstance(trunk, Trunk)
        return trunk

    def _plan(self, point: Point) -> Plan:
        if point not in self._plans:
            self._plans[point] = self._plan_for(point)
        return self._plans[point]

    def _candidate(self, point: Point) -> Candidate:
        if point not in self._running:
            self._running[point] = self._new(point)
        self._running[point].progress = self.progress
        return self._running[point]

    def _new(self, point: Point, alive: Callable[[], None] | None = None) -> Candidate:
        """Give a candidate where its file says that it stands, else at its start."""
        plan, rest = self._plan(point), (self._search.files, alive or self._keep_up, self._say)
        candidate = (
            Candidate(self._problem, plan, *rest)
            if self._most is None
            else Trunk(self._problem, plan, self._most, *rest)
        )
        if (last := self._search.trial(plan).last) is not None:  # its cool-downs are paid for too
            candidate.steps_paid = max(candidate.steps_paid, last.steps_paid)
        return candidate
