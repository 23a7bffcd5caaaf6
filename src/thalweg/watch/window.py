"""The window: what the causes are asked about. Recent losses and gradient norms, smoothed and at their best."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

LENGTH = 128
SMOOTHING = 0.9


class Window:
    """The last steps' figures. Values that are not finite stay out, so that one NaN does not blind it."""

    def __init__(self) -> None:
        self.step = 0
        self.loss = math.nan
        self.gradient_norm = math.nan
        self.rate = math.nan
        self.skipped = False
        self.start: float | None = None  # mean loss of the first steps
        self.losses: deque[float] = deque(maxlen=LENGTH)
        self.norms: deque[float] = deque(maxlen=LENGTH)
        self.smoothed = math.nan
        self.best = math.inf
        self.above: deque[int] = deque(maxlen=10)
        self._sum = 0.0
        self._weight = 0.0

    def push(self, step: int, loss: float, gradient_norm: float, rate: float, skipped: bool) -> None:
        """Take in one step."""
        self.step, self.loss, self.gradient_norm, self.rate, self.skipped = step, loss, gradient_norm, rate, skipped
        if math.isfinite(loss):
            self.losses.append(loss)
            self._sum = SMOOTHING * self._sum + (1 - SMOOTHING) * loss
            self._weight = SMOOTHING * self._weight + (1 - SMOOTHING)
            self.smoothed = self._sum / self._weight
            self.best = min(self.best, self.smoothed)
            if self.start is None:
                self.start = loss
        if math.isfinite(gradient_norm) and not skipped:
            self.norms.append(gradient_norm)

    def state_dict(self) -> dict[str, Any]:
        """Give plain values."""
        return {
            "start": self.start,
            "losses": list(self.losses),
            "norms": list(self.norms),
            "best": self.best,
            "above": list(self.above),
            "sum": self._sum,
            "weight": self._weight,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`'s values."""
        self.start, self.best, self._sum, self._weight = state["start"], state["best"], state["sum"], state["weight"]
        self.losses = deque(state["losses"], maxlen=LENGTH)
        self.norms = deque(state["norms"], maxlen=LENGTH)
        self.above = deque(state["above"], maxlen=10)
        self.smoothed = self._sum / self._weight if self._weight else math.nan
