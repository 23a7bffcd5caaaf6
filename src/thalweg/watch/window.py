"""The window: what the causes are asked about. Recent losses and gradient norms, smoothed and at their best."""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any

from thalweg.records.step_figures import StepFigures

LENGTH = 128
SMOOTHING = 0.9
FIRST = 5  # losses whose mean is the start: one alone may be a lucky batch
MIN_LOSSES = 10  # losses before the smoothed one is worth being called the best
RECENT = 10
STANDS_OUT = 2.0  # times the way from the median to the largest, beyond the median


class Window:
    """The last steps' figures.

    Values that are not finite stay out, so that one NaN does not blind it, and so does a loss that stands out alone: one bad
    batch is no trend. Two in a row are let in.
    """

    def __init__(self) -> None:
        self.step = 0
        self.loss = math.nan
        self.gradient_norm = math.nan
        self.rate = math.nan
        self.skipped = False
        self.initial_loss: float | None = None  # the loss before training, where somebody measured it on many examples
        self.start: float | None = (
            None  # that or the first loss, whichever is larger; else the mean of the first losses
        )
        self.losses: deque[float] = deque(maxlen=LENGTH)
        self.gradient_norms: deque[float] = deque(maxlen=LENGTH)
        self.smoothed = math.nan
        self.best = math.inf  # the smoothed loss's; the start until that is worth something
        self.count = 0
        self.stood_out = False
        self._sum = 0.0
        self._weight = 0.0

    def push(self, figures: StepFigures) -> None:
        """Take in one step."""
        loss, gradient_norm, skipped = figures.loss, figures.gradient_norm, figures.skipped
        self.step, self.rate = figures.step, figures.learning_rate
        self.loss, self.gradient_norm, self.skipped = loss, gradient_norm, skipped
        if math.isfinite(loss):
            alone = not self.stood_out
            self.stood_out = self._stands_out(loss)
            if not (self.stood_out and alone):
                self._take_in(loss)
        if math.isfinite(gradient_norm) and not skipped:
            self.gradient_norms.append(gradient_norm)

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradient of the last step were finite, so that it could be taken."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm) and not self.skipped

    def mean_and_deviation(self) -> tuple[float, float] | None:
        """Give mean and standard deviation of the losses before the last ten, None where there are too few."""
        before = list(self.losses)[:-RECENT]
        return (statistics.fmean(before), statistics.pstdev(before)) if len(before) >= RECENT else None

    def _take_in(self, loss: float) -> None:
        self.count += 1
        self.losses.append(loss)
        self._sum = SMOOTHING * self._sum + (1 - SMOOTHING) * loss
        self._weight = SMOOTHING * self._weight + (1 - SMOOTHING)
        self.smoothed = self._sum / self._weight
        if self.initial_loss is not None and self.count == 1:
            self.start = self.best = max(self.initial_loss, loss)
        elif self.initial_loss is None and self.count <= FIRST:
            self.start = self.best = statistics.fmean(self.losses)
        elif self.count >= MIN_LOSSES:
            self.best = min(self.best, self.smoothed)

    def _stands_out(self, loss: float) -> bool:
        # Only the largest so far can stand out, and to ask that costs nothing.
        if self.count < MIN_LOSSES or loss <= max(self.losses):
            return False
        middle = statistics.median(self.losses)
        return loss - middle > STANDS_OUT * (max(self.losses) - middle)

    def state_dict(self) -> dict[str, Any]:
        """Give plain values."""
        return {
            "expected": self.initial_loss,
            "start": self.start,
            "losses": list(self.losses),
            "norms": list(self.gradient_norms),
            "best": self.best,
            "seen": self.count,
            "stood_out": self.stood_out,
            "sum": self._sum,
            "weight": self._weight,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`'s values."""
        self.start, self.best, self._sum, self._weight = state["start"], state["best"], state["sum"], state["weight"]
        self.initial_loss, self.count, self.stood_out = state["expected"], state["seen"], state["stood_out"]
        self.losses = deque(state["losses"], maxlen=LENGTH)
        self.gradient_norms = deque(state["norms"], maxlen=LENGTH)
        self.smoothed = self._sum / self._weight if self._weight else math.nan
