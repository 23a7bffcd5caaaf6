"""The window: recent losses and gradient norms, and the smoothed loss with its best value, which causes are asked about."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

from thalweg.records.step_figures import StepFigures

LENGTH = 128  # losses and gradient norms
SMOOTHING = 0.9  # decay of the smoothed loss
START_LOSSES = 5  # losses whose mean is `start`: one alone may be a lucky batch
MIN_LOSSES = 10  # fewer say nothing about the best smoothed loss or about outliers
RECENT = 10  # steps
OUTLIER = 2.0  # a loss so many times as far above the median as the largest before it is an outlier


class Window:
    """The last steps' figures.

    Values that are not finite are left out, since one NaN would make the means NaN, and so is a single outlier among the
    losses: one bad batch is no trend. The second of two outliers in a row is included.
    """

    def __init__(self) -> None:
        self.step = 0
        self.loss = math.nan
        self.gradient_norm = math.nan
        self.rate = math.nan
        self.skipped = False
        self.memory: Mapping[str, int] = {}  # bytes in use, by whose they are; empty where this step did not read them
        self.initial_loss: float | None = None  # before training, if it was measured, on many examples
        # The larger of `initial_loss` and the first loss; without the former the mean of the first losses.
        self.start: float | None = None
        self.losses: deque[float] = deque(maxlen=LENGTH)
        self.gradient_norms: deque[float] = deque(maxlen=LENGTH)
        self.smoothed = math.nan
        self.best = math.inf  # smoothed loss; `start` until there are MIN_LOSSES
        self.is_finite = True  # loss and gradient of the last step were, and it was taken
        self.count = 0  # of losses added
        self.was_outlier = False  # whether the last loss was an outlier
        self._sum = 0.0
        self._weight = 0.0

    def push(self, figures: StepFigures) -> None:
        """Add one step."""
        loss, gradient_norm, skipped = figures.loss, figures.gradient_norm, figures.skipped
        self.step, self.rate = figures.step, figures.learning_rate
        self.loss, self.gradient_norm, self.skipped = loss, gradient_norm, skipped
        self.memory = figures.memory
        finite_loss, finite_norm = math.isfinite(loss), math.isfinite(gradient_norm)
        self.is_finite = finite_loss and finite_norm and not skipped
        if finite_loss:
            after_outlier = self.was_outlier
            self.was_outlier = self._is_outlier(loss)
            if after_outlier or not self.was_outlier:
                self._add(loss)
        if finite_norm and not skipped:
            self.gradient_norms.append(gradient_norm)

    def mean_and_deviation(self) -> tuple[float, float] | None:
        """Give mean and standard deviation of the losses before the last ten, None where there are too few."""
        before = list(self.losses)[:-RECENT]
        return (statistics.fmean(before), statistics.pstdev(before)) if len(before) >= RECENT else None

    def _add(self, loss: float) -> None:
        self.count += 1
        self.losses.append(loss)
        self._sum = SMOOTHING * self._sum + (1 - SMOOTHING) * loss
        self._weight = SMOOTHING * self._weight + (1 - SMOOTHING)
        self.smoothed = self._sum / self._weight
        if self.initial_loss is not None and self.count == 1:
            self.start = self.best = max(self.initial_loss, loss)
        elif self.initial_loss is None and self.count <= START_LOSSES:
            self.start = self.best = statistics.fmean(self.losses)
        elif self.count >= MIN_LOSSES:
            self.best = min(self.best, self.smoothed)

    def _is_outlier(self, loss: float) -> bool:
        # Only the largest so far can be an outlier, and that is a cheap test.
        if self.count < MIN_LOSSES or loss <= max(self.losses):
            return False
        middle = statistics.median(self.losses)
        return loss - middle > OUTLIER * (max(self.losses) - middle)

    def state_dict(self) -> dict[str, Any]:
        """Give the state as built-in types."""
        return {
            "expected": self.initial_loss,
            "start": self.start,
            "losses": list(self.losses),
            "norms": list(self.gradient_norms),
            "best": self.best,
            "seen": self.count,
            "stood_out": self.was_outlier,
            "sum": self._sum,
            "weight": self._weight,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`'s values."""
        self.start, self.best, self._sum, self._weight = state["start"], state["best"], state["sum"], state["weight"]
        self.initial_loss, self.count, self.was_outlier = state["expected"], state["seen"], state["stood_out"]
        self.losses = deque(state["losses"], maxlen=LENGTH)
        self.gradient_norms = deque(state["norms"], maxlen=LENGTH)
        self.smoothed = self._sum / self._weight if self._weight else math.nan
