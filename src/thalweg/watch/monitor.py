"""The monitor: asks every cause after each step, ranks what they find, and pairs it with a cure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.records.step_figures import StepFigures
from thalweg.watch.cause import Cause, Detector
from thalweg.watch.causes import all_causes
from thalweg.watch.findings import ranked
from thalweg.watch.replay import Batch, Replay
from thalweg.watch.window import Window

AtHand = Callable[[], tuple[Batch, Replay | None]]
MOST_ATTEMPTS = 8
MOST_DEVIATIONS = 5.0  # above the mean loss, of weights worth going back to
SAME_PLACE = 10  # steps after a failure within which another one is at the same place


class Monitor:
    """Sees every step of one run; `observe` gives diagnoses with their cures.

    `attempts` counts rollbacks at one place: a failure at most ten steps behind the furthest failed step is at the same place.

    Arguments:
        causes: what to ask; None: all causes there are, third parties' included.
    """

    def __init__(self, causes: Iterable[Cause] | None = None) -> None:
        self.window = Window()
        self.attempts = 0
        self.failed_at = -1
        self.noted_at: dict[str, int] = {}  # cause -> last step at which it was found, of those that change nothing
        asked = [cause for cause in (all_causes() if causes is None else causes) if cause.during is not None]
        self.detectors: list[tuple[Cause, Detector]] = [(cause, cause.during()) for cause in asked if cause.during]

    def expect(self, loss: float) -> None:
        """Take in the loss before the first step, measured on many examples: a better start than one batch's loss."""
        if math.isfinite(loss):
            self.window.initial_loss = loss

    def observe(self, figures: StepFigures, at_hand: AtHand | None = None) -> list[Diagnosis]:
        """Take in one step, and give what the causes find, gravest first.

        `at_hand`: asked only where something is found, gives the step's batch and a replay (None where there is no snapshot),
        by which a cause decides what the figures leave open. Without it a cause goes by the figures.
        """
        window = self.window
        window.push(figures)
        found: list[tuple[Cause, Diagnosis]] = []
        for cause, detector in self.detectors:
            diagnosis = detector.observe(window)
            if diagnosis is not None:
                found.append((cause, diagnosis))
        return self._answer(ranked(found), figures, at_hand) if found else []

    def _answer(
        self, found: list[tuple[Cause, Diagnosis]], figures: StepFigures, at_hand: AtHand | None
    ) -> list[Diagnosis]:
        """Pair findings with cures. Of those that undo the step only the first is answered: the others may follow from it."""
        answered: list[Diagnosis] = []
        changed = False
        for cause, diagnosis in found:
            if cause.test is not None and at_hand is not None:
                diagnosis = cause.test(diagnosis, *at_hand())
            if diagnosis.cure is None and cause.cure is not None:
                diagnosis = replace(diagnosis, cure=self._cure(cause, figures.step))
            if intervenes(diagnosis.cure):
                if not changed:
                    self._count(diagnosis, figures.step)
                    answered.append(diagnosis)
                changed = True
            elif self._is_new(cause, figures.step):
                answered.append(diagnosis)
        return answered

    def _cure(self, cause: Cause, step: int) -> Cure:
        assert cause.cure is not None
        return cause.cure(self.window, self._attempts_at(step) + 1)

    def _attempts_at(self, step: int) -> int:
        return self.attempts if step <= self.failed_at + SAME_PLACE else 0

    def _count(self, diagnosis: Diagnosis, step: int) -> None:
        skips = diagnosis.cure is not None and diagnosis.cure.skip_batch  # then the rate was not at fault
        self.attempts = self._attempts_at(step) + (0 if skips else 1)
        self.failed_at = max(self.failed_at, step)

    def _is_new(self, cause: Cause, step: int) -> bool:
        """Tell whether a finding that changes nothing is another one than that of the last steps, which is known."""
        before = self.noted_at.get(cause.name)
        self.noted_at[cause.name] = step
        return before is None or step > before + SAME_PLACE

    def trusts(self, loss: float) -> bool:
        """Whether weights that gave this loss are worth going back to: it is finite and within what was seen before."""
        window = self.window
        if not math.isfinite(loss) or window.start is None:
            return math.isfinite(loss)
        mean, deviation = window.mean_and_deviation() or (window.start, 0.0)
        return loss <= max(window.start, *window.losses, mean + MOST_DEVIATIONS * deviation)

    @property
    def exhausted(self) -> bool:
        """Whether the cures at hand were all tried at this place."""
        return self.attempts > MOST_ATTEMPTS

    @property
    def healthy(self) -> bool:
        """Whether this is a state worth going back to: nothing looked abnormal lately."""
        return not self.window.skipped and not any(detector.suspicious for _, detector in self.detectors)

    def state_dict(self) -> dict[str, Any]:
        """Give plain values."""
        return {
            "window": self.window.state_dict(),
            "attempts": self.attempts,
            "failed_at": self.failed_at,
            "noted_at": dict(self.noted_at),
            "causes": {cause.name: detector.state_dict() for cause, detector in self.detectors},
        }

    def load_state_dict(self, state: dict[str, Any], *, keep_attempts: bool = False) -> None:
        """Restore `state_dict`'s values; after a rollback the count of attempts, and what was noted, is kept."""
        self.window.load_state_dict(state["window"])
        for cause, detector in self.detectors:
            if cause.name in state["causes"]:
                detector.load_state_dict(state["causes"][cause.name])
        if not keep_attempts:
            self.attempts, self.failed_at = state["attempts"], state["failed_at"]
            self.noted_at = dict(state["noted_at"])


def intervenes(cure: Cure | None) -> bool:
    """Tell whether a cure undoes the step that was just taken, rather than letting it stand."""
    return cure is not None and (cure.rollback or cure.skip_batch)
