"""A candidate of the search: the final run itself, at one point, taken as far as the search needs to judge it.

It is judged by a branch that cools down: a copy whose rate falls to zero within a few per cent of the run, which gives the
figure of a finished run where an unfinished one's says little. The candidate itself goes on as if it had not been judged.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

from thalweg.descent.cooling import cooled_plan
from thalweg.descent.loop import descend
from thalweg.descent.problem import Problem
from thalweg.descent.recorder import Progress, Recorder
from thalweg.descent.state import Descent
from thalweg.descent.suspended import Suspended, TapedHistory
from thalweg.descent.their_objects import as_found
from thalweg.errors import CheckpointError, DivergedError
from thalweg.records.diagnosis import Diagnosis
from thalweg.records.plan import Plan
from thalweg.records.task import Task
from thalweg.tuning.candidate_files import CandidateFiles
from thalweg.tuning.outcome import Outcome

SAVE_SECONDS = 60.0  # between two saves of a candidate that goes on
DIVERGED, TOO_HIGH = "diverged", "too high, the watch had to lower it"
NO_NUMBER = "no finite figure"


class Candidate:
    """The run of a settled plan, taken on in parts. `steps_paid` counts all its steps, those of its branches too.

    With `files` its state is written once a minute and wherever it stops, and gone on from where one is there already. `alive` is
    called after every step. `progress`, where it is set, shows the steps that are taken.
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
        self.progress: Progress | None = None
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
        return self.suspended is not None and self.suspended.changes.rate_factor < 1

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
            paid = self.steps_paid - descent.steps_taken

            def save() -> None:
                self._save(Suspended.of(descent, recorder, history, copied=False), paid + descent.steps_taken)

            recorder = _Recorder(history, diagnoses, self._alive, save if self._files else None, self.progress)
            recorder.shown_plan = self.plan.replace(steps=step)
            try:
                descend(descent, recorder, step)
            except DivergedError:
                self.failed, self.suspended = True, None
                self.steps_paid = paid + descent.steps_taken
                return {}
            self.suspended, self.steps_paid = Suspended.of(descent, recorder, history), paid + descent.steps_taken
            self._save(self.suspended, self.steps_paid)
            recorder.stop_request.check("Interrupted in the search.")
        return self._figures()

    def keep_in(self, files: CandidateFiles) -> None:
        """Write what was in memory alone, so that another process can go on from it."""
        if self._files is None and self.suspended is not None:
            self._files = files
            self._save(self.suspended, self.steps_paid)

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
            recorder, before = _Recorder(alive=self._alive), descent.steps_taken
            try:
                descend(descent, recorder)
            except DivergedError:
                return {}
            finally:
                self.steps_paid += descent.steps_taken - before
            recorder.stop_request.check("Interrupted in the search.")
            return dict(descent.last_validation)

    def judge(self, step: int) -> Outcome:
        """Go on to a step, and find what a copy that cools down from there is worth."""
        return self.judged_at(step)

    def judged_at(self, step: int, length: int | None = None) -> Outcome:
        """Give the outcome after a step, of a copy that cools down in `length` steps; None: as `cooled` does."""
        started = time.perf_counter()
        self.advance(step)
        figures = {} if self.rate_was_lowered else self.cooled(length)
        outcome = outcome_of(self.problem.task, step, figures, self.rate_was_lowered)
        return outcome._replace(steps_paid=self.steps_paid, seconds=time.perf_counter() - started)

    @property
    def steps(self) -> int:
        """The steps of the whole run."""
        assert self.plan.steps is not None
        return self.plan.steps

    def _figures(self) -> dict[str, float]:
        assert self.suspended is not None
        best = self.suspended.best
        return dict(best.figures) if best is not None else self.suspended.last_validation


def outcome_of(task: Task, step: int, figures: Mapping[str, float], is_too_high: bool) -> Outcome:
    """Give the outcome that figures after a step amount to; there are none where it diverged."""
    figures = {} if is_too_high else figures
    value, reason = figures.get(task.select, math.nan), ""
    if is_too_high:
        reason = TOO_HIGH
    elif not figures:
        reason = DIVERGED
    elif not math.isfinite(value):
        reason = NO_NUMBER
    return Outcome(step, value, 0, reason=reason, loss=figures.get("loss", math.nan))


class _Recorder(Recorder):
    """A recorder of a candidate: it calls `alive` after every step and, once a minute and when it is to stop, `save`."""

    def __init__(
        self,
        history: TapedHistory | None = None,
        diagnoses: Sequence[Diagnosis] = (),
        alive: Callable[[], None] = lambda: None,
        save: Callable[[], None] | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(history=history, diagnoses=diagnoses, progress=progress)
        self._alive, self._suspend, self._next_save = alive, save, time.monotonic() + SAVE_SECONDS

    def checkpoint_when_due(self, descent: Descent) -> None:
        """Save where that is due. Raises Interrupted where it was asked to stop."""
        self._alive()
        is_due = self.stop_request.received or time.monotonic() >= self._next_save
        if self._suspend is not None and is_due and not descent.is_over:
            self._suspend()
            self._next_save = time.monotonic() + SAVE_SECONDS
        super().checkpoint_when_due(descent)
