"""Half precision: autocast around the forward pass, and a loss scale that keeps float16 gradients from vanishing."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Give the context for the forward pass; one that does nothing for "float32"."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=_DTYPES[precision])


class LossScale:
    """A power of two by which the loss is multiplied before the backward pass; 1 unless the precision is float16.

    It halves when a gradient overflows (that step is not taken) and doubles after `growth_interval` steps without overflow.
    The defaults are those of `torch.amp.GradScaler`: 65,536 at first, factor 2, 2,000 steps.
    """

    def __init__(self, precision: str, *, initial: float = 65536.0, growth_interval: int = 2000) -> None:
        self.active = precision == "float16"
        self.value = initial if self.active else 1.0
        self.growth_interval = growth_interval
        self.steps_since_overflow = 0

    def update(self, loss: float, skipped: bool) -> bool:
        """Adapt the scale to a step's loss and whether the step was skipped; give whether the scale made the gradient overflow.

        Where the loss itself is not finite, or the scale is 1, the scale is not the reason: the step is abnormal.
        """
        if not self.active or not math.isfinite(loss):
            return False
        if skipped:
            self.steps_since_overflow = 0
            if self.value > 1.0:
                self.value /= 2
                return True
            return False
        self.steps_since_overflow += 1
        if self.steps_since_overflow == self.growth_interval:
            self.value, self.steps_since_overflow = self.value * 2, 0
        return False

    def state_dict(self) -> dict[str, float | int]:
        """Give the state as built-in types."""
        return {"value": self.value, "good": self.steps_since_overflow}

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        """Continue from `state_dict`'s values."""
        self.value, self.steps_since_overflow = float(state["value"]), int(state["good"])
