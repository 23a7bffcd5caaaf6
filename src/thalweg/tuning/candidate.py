"""A candidate of the search: the final run itself, at one point, taken as far as the search needs to judge it.

It is judged by a branch that cools down: a copy whose rate falls to zero within a few per cent of the run, which gives the
figure of a finished run where an unfinished one's says little. The candidate itself goes on as if it had not been judged.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from thalweg.descent.cooling import cooled_plan
from thalweg.descent.loop import descend
from thalweg.descent.problem import Problem
from thalweg.descent.recorder import Recorder
from thalweg.descent.state import Descent
from thalweg.descent.suspended import Suspended, TapedHistory
from thalweg.descent.their_objects import as_found
from thalweg.errors import CheckpointError, DivergedError, StudyError
from thalweg.records.diagnosis import Diagnosis
from thalweg.records.plan import Plan
from thalweg.tuning.candidate_files import CandidateFiles
from thalweg.tuning.outcome import Outcome, plan_sum
from thalweg.tuning.priors import TIMESCALE
from thalweg.tuning.race import COOL, Point, step_at
from thalweg.tuning.search import Search, can_be_copied, some_descent
from thalweg.tuning.sharing import WAIT_SECONDS, Sharing
from thalweg.tuning.workers import Workers, most_workers

SAVE_SECONDS = 60.0  # between two saves of a candidate that goes on
WORTHWHILE = 0.5  # seconds of work below which a process of its own is not worth its start
DIVERGED, TOO_HIGH = "diverged", "too high, the watch had to lower it"
NO_NUMBER = "no finite figure"


class Candidate:
    """The run of a settled plan, taken on in parts. `steps_paid` counts all its steps, those of its branches too.

    With `files` its state is written once a minute and wherever it stops, and gone on from where one is there already. `alive` is
    called after every step.
    """

    def __init__(
        self,
        problem: Problem,
        plan: Plan,
        files: CandidateFiles | None = None,
        alive: Callable[[], None] = lambda: None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.problem, self.plan = problem, plan
        self._files, self._alive, self._say = files, alive, say
        self.failed = False
        found = None if files is None else files.load(plan)
        self.suspended, self.steps_paid = found or (None, 0)
        self._is_from_file = found is not None

    @property
    def step(self) -> int:
        """The step that it has come to."""
        return 0 if self.suspended is None else self.suspended.step

    @property
    def rate_was_lowered(self) -> bool:
        """Whether the watch had to lower its rate on the way, which is then too high for this run."""
        return self.suspended is not None and self.suspended.cures["rate_factor"] < 1

    def advance(self, step: int) -> dict[str, float]:
        """Go on to a step, and give the figures of the last validation on the way; none where it diverged.

        Raises Interrupted where it is asked to stop; with `files` it can be gone on from there.
        """
        if self.failed:
            return {}
        begun = self.suspended
        if begun is not None and (begun.is_over or step <= begun.step):
            return self._figures()
        with as_found(self.problem.task):
            descent, history, diagnoses = self._begin()
            paid = self.steps_paid - descent.step

            def save() -> None:
                self._save(Suspended.of(descent, recorder, history, copied=False), paid + descent.step)

            recorder = _Recorder(history, diagnoses, self._alive, save if self._files else None)
            try:
                descend(descent, recorder, step)
            except DivergedError:
                self.failed, self.suspended = True, None
                self.steps_paid = paid + descent.step
                return {}
            self.suspended, self.steps_paid = Suspended.of(descent, recorder, history), paid + descent.step
            self._save(self.suspended, self.steps_paid)
            recorder.stop_request.check("Interrupted in the search.")
        return self._figures()

    def _begin(self) -> tuple[Descent, TapedHistory, list[Diagnosis]]:
        """Give the descent where it stands, or at its start, and what was recorded of it until then."""
        begun = self.suspended
        if begun is not None:
            descent = begun.resumed(self.problem)
            if not (begun.lost and self._is_from_file):
                return descent, begun.history, begun.diagnoses
            self._is_from_file, self.suspended = False, None  # its objects are others in this process
        return Descent(self.problem, self.plan), TapedHistory(), []

    def _save(self, suspended: Suspended, steps_paid: int) -> None:
        """Write a state, where that is done and it is all that there is. What fails is said once."""
        if self._files is None or not suspended.is_whole:
            return
        try:
            self._files.save(suspended, steps_paid)
        except CheckpointError as error:
            self._files = None
            self._say(
                f"warning: A candidate could not be saved, and is trained again where the search is resumed: {error}"
            )

    def cooled(self, length: int | None = None) -> dict[str, float]:
        """Give the figures of a copy that cools down from here, in `length` steps; none where it diverges."""
        if self.suspended is None or self.suspended.is_over:
            return {} if self.failed else self._figures()
        at = self.step
        plan = cooled_plan(self.plan, self.suspended.schedule_factor, at, length)
        with as_found(self.problem.task):
            descent = self.suspended.branch(self.problem, plan)
            if self.suspended.lost and self._is_from_file:
                self._is_from_file, self.suspended = False, None
                self.advance(at)
                return self.cooled(length)
            recorder = _Recorder(alive=self._alive)
            try:
                descend(descent, recorder)
            except DivergedError:
                return {}
            finally:
                self.steps_paid += descent.step - at
            recorder.stop_request.check("Interrupted in the search.")
            return dict(descent.last_validation)

    def judge(self, step: int) -> Outcome:
        """Go on to a step, and find what a copy that cools down from there is worth."""
        started = time.perf_counter()
        self.advance(step)
        figures = {} if self.rate_was_lowered else self.cooled()
        value, reason = figures.get(self.problem.task.select, math.nan), ""
        if self.rate_was_lowered:
            reason = TOO_HIGH
        elif not figures:
            reason = DIVERGED
        elif not math.isfinite(value):
            reason = NO_NUMBER
        seconds, loss = time.perf_counter() - started, figures.get("loss", math.nan)
        return Outcome(step, value, self.steps_paid, seconds, reason, loss)

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
    """The candidates of a race. What the search knows of them already is not found again.

    `criterion` is what they are judged by: the task's own or, where that is no number with the first one that trains (a metric
    that the validation data cannot give), the loss, of which less is better.
    """

    def __init__(
        self,
        problem: Problem,
        plan_for: Callable[[Point], Plan],
        say: Callable[[str], None],
        search: Search,
    ) -> None:
        self._problem, self._plan_for, self._say, self._search = problem, plan_for, say, search
        self._plans = dict[Point, Plan]()
        self._running = dict[Point, Candidate]()
        self._racing = set[Point]()
        self._paid = dict[str, int]()  # by the sum of a plan
        self.scores = list[Scored]()
        self.criterion: str | None = None
        self._told = set[tuple[Point, int]]()
        self._at_once: int | None = None
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
            claimed = sharing.claim([self._plan(point) for point in left], step_at(share, plan.steps or 0), most)
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
        return [p for p, plan in plans if self._search.outcome(plan, step_at(share, plan.steps or 0)) is None]

    def _is_here(self, point: Point) -> bool:
        """Whether this process has trained a candidate so far."""
        return point in self._running or (self._search.files is not None and self._search.files.has(self._plan(point)))

    def _seconds(self, plan: Plan, share: float) -> float:
        """Give about how long it takes to take a candidate from its start to a share of the run, and to judge it."""
        return self._search.seconds_per_step * (step_at(share, plan.steps or 0) + COOL * (plan.steps or 0))

    def _most_at_once(self, plan: Plan, seconds: float) -> int:
        return self._workers(plan) if seconds >= WORTHWHILE else 1

    def _train(self, point: Point, share: float) -> Outcome:
        """Take a candidate on in this process, and record what it is worth."""
        plan = self._plan(point)
        self._search.enter(plan)
        outcome = self._candidate(point).judge(step_at(share, plan.steps or 0))
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
        steps = {point: step_at(share, self._plan(point).steps or 0) for point in left}

        def work(point: Point, alive: Callable[[], None]) -> dict[str, Any]:
            return self._new(point, alive).judge(steps[point])._asdict()

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
            self._running.pop(point, None)  # its worker goes on from its file
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
        assert plan.steps is not None
        at = step_at(share, plan.steps)
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
            f"trained all {at:,} steps"
            if at == plan.steps
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

    def suspended(self, point: Point) -> Suspended | None:
        """Give the run of a candidate as far as it is trained; None where nothing is left of it."""
        return self._candidate(point).suspended

    def _plan(self, point: Point) -> Plan:
        if point not in self._plans:
            self._plans[point] = self._plan_for(point)
        return self._plans[point]

    def _candidate(self, point: Point) -> Candidate:
        if point not in self._running:
            self._running[point] = self._new(point)
        return self._running[point]

    def _new(self, point: Point, alive: Callable[[], None] | None = None) -> Candidate:
        """Give a candidate where its file says that it stands, else at its start."""
        plan = self._plan(point)
        candidate = Candidate(self._problem, plan, self._search.files, alive or self._keep_up, self._say)
        if (last := self._search.trial(plan).last) is not None:  # its cool-downs are paid for too
            candidate.steps_paid = max(candidate.steps_paid, last.steps_paid)
        return candidate


class _Recorder(Recorder):
    """A recorder of a candidate: it calls `alive` after every step and, once a minute and when it is to stop, `save`."""

    def __init__(
        self,
        history: TapedHistory | None = None,
        diagnoses: Sequence[Diagnosis] = (),
        alive: Callable[[], None] = lambda: None,
        save: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(history=history, diagnoses=diagnoses)
        self._alive, self._suspend, self._next_save = alive, save, time.monotonic() + SAVE_SECONDS

    def checkpoint_when_due(self, descent: Descent) -> None:
        """Save where that is due. Raises Interrupted where it was asked to stop."""
        self._alive()
        is_due = self.stop_request.received or time.monotonic() >= self._next_save
        if self._suspend is not None and is_due and not descent.is_over:
            self._suspend()
            self._next_save = time.monotonic() + SAVE_SECONDS
        super().checkpoint_when_due(descent)
