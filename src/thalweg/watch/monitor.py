"""The monitor: shows each step to the causes, and pairs what they find with a cure."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from thalweg.records.diagnosis import Diagnosis
from thalweg.records.step_figures import StepFigures
from thalweg.watch import cures
from thalweg.watch.causes.diverging import diverging
from thalweg.watch.causes.nonfinite import nonfinite
from thalweg.watch.window import Window

MOST_ATTEMPTS = 8
MOST_DEVIATIONS = 5.0  # above the mean loss, of weights worth going back to


class Monitor:
    """Sees every step; `observe` gives a diagnosis with a cure, or nothing.

    `attempts` counts cures at one place: a failure at or before the furthest failed step is the same place.
    """

    def __init__(self) -> None:
        self.window = Window()
        self.attempts = 0
        self.failed_at = -1

    def expect(self, loss: float) -> None:
        """Take in the loss before the first step, measured on many examples: a better start than one batch's loss."""
        if math.isfinite(loss):
            self.window.expected = loss

    def observe(self, figures: StepFigures) -> Diagnosis | None:
        """Take in one step."""
        window = self.window
        window.push(figures)
        found = nonfinite(window) or diverging(window)
        if found is None:
            return None
        self.attempts = self.attempts + 1 if figures.step <= self.failed_at + 10 else 1
        self.failed_at = max(self.failed_at, figures.step)
        return replace(found, cure=cures.calm(window.norms, self.attempts, figures.learning_rate))

    def trusts(self, loss: float) -> bool:
        """Whether weights that gave this loss are worth going back to: it is finite and within what was seen before."""
        window = self.window
        if not math.isfinite(loss) or window.start is None:
            return math.isfinite(loss)
        mean, deviation = window.usual() or (window.start, 0.0)
        return loss <= max(window.start, *window.losses, mean + MOST_DEVIATIONS * deviation)

    @property
    def exhausted(self) -> bool:
        """Whether the cures at hand were all tried at this place."""
        return self.attempts > MOST_ATTEMPTS

    @property
    def healthy(self) -> bool:
        """Whether this is a state worth going back to: nothing looked wrong lately."""
        return not self.window.skipped and sum(self.window.above) == 0

    def state_dict(self) -> dict[str, Any]:
        """Give plain values."""
        return {"window": self.window.state_dict(), "attempts": self.attempts, "failed_at": self.failed_at}

    def load_state_dict(self, state: dict[str, Any], *, keep_attempts: bool = False) -> None:
        """Go on from `state_dict`'s values; after a rollback the count of attempts is kept."""
        self.window.load_state_dict(state["window"])
        if not keep_attempts:
            self.attempts, self.failed_at = state["attempts"], state["failed_at"]
