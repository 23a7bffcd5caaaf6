"""The monitor: asks every cause after each step, ranks what they find, and pairs it with a cure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from thalweg.errors import ThalwegError
from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.records.step_figures import StepFigures
from thalweg.watch.cause import Cause, Detector, check_diagnosis, warn_of_failure
from thalweg.watch.causes import all_causes
from thalweg.watch.findings import ranked
from thalweg.watch.replay import Batch, Replay
from thalweg.watch.window import Window

BatchAndReplay = Callable[[], tuple[Batch, Replay | None]]
MOST_ATTEMPTS = 8
MOST_DEVIATIONS = 5.0  # above the mean loss, for a snapshot to be taken
SAME_FAILURE_STEPS = 10  # a failure so soon after another one counts as the same failure


class Monitor:
    """Observes every step of one run, and gives diagnoses with their cures.

    `attempts` counts the rollbacks for one failure; one at most ten steps after the latest failed step is the same failure.

    Arguments:
        causes: the causes to ask; None: all, third parties' included.
    """

    def __init__(self, causes: Iterable[Cause] | None = None) -> None:
        self.window = Window()
        self.attempts = 0
        self.failed_at = -1
        self.dismissed = list[str]()  # causes that are not asked any more
        self.noted_at: dict[str, int] = {}  # cause -> last step of a diagnosis whose cure changes nothing
        asked = [cause for cause in (all_causes() if causes is None else causes) if cause.during is not None]
        self.detectors: list[tuple[Cause, Detector]] = [(cause, cause.during()) for cause in asked if cause.during]

    def expect(self, loss: float) -> None:
        """Set the loss before the first step, measured on many examples: less noisy than the first batch's loss."""
        if math.isfinite(loss):
            self.window.initial_loss = loss

    def observe(self, figures: StepFigures, batch_and_replay: BatchAndReplay | None = None) -> list[Diagnosis]:
        """Add one step to the window, and give what the causes find, gravest first.

        `batch_and_replay`: called only where something is found, gives the step's batch and a replay (None where there is no
        snapshot), for causes that figures alone do not decide.
        """
        window = self.window
        window.push(figures)
        found: list[tuple[Cause, Diagnosis]] = []
        for cause, detector in self.detectors:
            try:
                diagnosis = detector.observe(window)
                if diagnosis is not None:
                    found.append((cause, check_diagnosis(diagnosis)))
            except Exception as error:
                warn_of_failure(cause, error, "is left out of the rest of this run")
                self.detectors = [pair for pair in self.detectors if pair[0] is not cause]
        return self._with_cures(ranked(found), figures, batch_and_replay) if found else []

    def _with_cures(
        self, found: list[tuple[Cause, Diagnosis]], figures: StepFigures, batch_and_replay: BatchAndReplay | None
    ) -> list[Diagnosis]:
        """Pair findings with cures. Of those that undo the step only the first is given: the others may follow from it."""
        diagnoses: list[Diagnosis] = []
        changed = False
        for cause, diagnosis in found:
            if cause.test is not None and batch_and_replay is not None:
                diagnosis = _tested(cause, diagnosis, batch_and_replay)
            if diagnosis.cure is None and cause.cure is not None:
                diagnosis = replace(diagnosis, cure=self._cure(cause, figures.step))
            if intervenes(diagnosis.cure):
                if not changed:
                    self._count(diagnosis, figures.step)
                    diagnoses.append(diagnosis)
                changed = True
            elif self._is_new(cause, figures.step):
                diagnoses.append(diagnosis)
        return diagnoses

    def _cure(self, cause: Cause, step: int) -> Cure | None:
        assert cause.cure is not None
        try:
            return cause.cure(self.window, self._attempts_at(step) + 1)
        except Exception as error:
            warn_of_failure(cause, error, "proposes no cure")
            return None

    def _attempts_at(self, step: int) -> int:
        return self.attempts if step <= self.failed_at + SAME_FAILURE_STEPS else 0

    def _count(self, diagnosis: Diagnosis, step: int) -> None:
        skips = diagnosis.cure is not None and diagnosis.cure.skip_batch  # a bad batch says nothing about the rate
        self.attempts = self._attempts_at(step) + (0 if skips else 1)
        self.failed_at = max(self.failed_at, step)

    def _is_new(self, cause: Cause, step: int) -> bool:
        """Tell whether a finding that changes nothing was not made in the last steps already."""
        last = self.noted_at.get(cause.name)
        self.noted_at[cause.name] = step
        return last is None or step > last + SAME_FAILURE_STEPS

    def dismiss(self, name: str) -> None:
        """Ask a cause no more: what it finds is no fault of this run."""
        self.dismissed.append(name)
        self.detectors = [pair for pair in self.detectors if pair[0].name != name]
        self.attempts, self.failed_at = 0, -1

    def trusts(self, loss: float) -> bool:
        """Whether weights that gave this loss are worth a snapshot: it is finite and within the usual range."""
        window = self.window
        if not math.isfinite(loss) or window.start is None:
            return math.isfinite(loss)
        mean, deviation = window.mean_and_deviation() or (window.start, 0.0)
        return loss <= max(window.start, *window.losses, mean + MOST_DEVIATIONS * deviation)

    @property
    def exhausted(self) -> bool:
        """Whether the most attempts were made for this failure."""
        return self.attempts > MOST_ATTEMPTS

    @property
    def healthy(self) -> bool:
        """Whether this state is worth a snapshot: no recent step was abnormal."""
        return not self.window.skipped and not any(detector.suspicious for _, detector in self.detectors)

    def state_dict(self) -> dict[str, Any]:
        """Give the state as built-in types."""
        return {
            "window": self.window.state_dict(),
            "attempts": self.attempts,
            "failed_at": self.failed_at,
            "noted_at": dict(self.noted_at),
            "causes": {cause.name: detector.state_dict() for cause, detector in self.detectors},
            **({"dismissed": list(self.dismissed)} if self.dismissed else {}),
        }

    def load_state_dict(self, state: dict[str, Any], *, keep_attempts: bool = False) -> None:
        """Restore `state_dict`'s values; after a rollback the attempts, and what was noted and dismissed, are kept."""
        self.window.load_state_dict(state["window"])
        # Checkpoints written before causes had states of their own hold that of the only one that had any in the window.
        causes = state.get("causes", {"diverging": {"above": state["window"].get("above", [])}})
        for cause, detector in self.detectors:
            if cause.name in causes:
                detector.load_state_dict(causes[cause.name])
        if not keep_attempts:
            for name in state.get("dismissed", []):
                self.dismiss(name)
            self.attempts, self.failed_at = state["attempts"], state["failed_at"]
            self.noted_at = dict(state.get("noted_at", {}))


def _tested(cause: Cause, diagnosis: Diagnosis, batch_and_replay: BatchAndReplay) -> Diagnosis:
    """Let a cause decide by trial what figures leave open; where its test fails, the figures decide."""
    assert cause.test is not None
    try:
        return check_diagnosis(cause.test(diagnosis, *batch_and_replay()))
    except ThalwegError:
        raise
    except Exception as error:
        warn_of_failure(cause, error, "is not tested")
        return diagnosis


def intervenes(cure: Cure | None) -> bool:
    """Tell whether a cure undoes the step that was just taken, rather than letting it stand."""
    return cure is not None and (cure.rollback or cure.skip_batch)
