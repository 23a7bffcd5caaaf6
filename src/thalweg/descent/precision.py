"""Half precision: autocast around the forward pass, and a loss scale that keeps float16 gradients from vanishing."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Give the context for the forward pass; nothing for "float32"."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=_DTYPES[precision])


class LossScale:
    """A power of two by which the loss is multiplied before the backward pass, float16 only.

    It halves when a gradient overflows (that step is not taken) and doubles after `patience` good steps. Same numbers as
    `torch.amp.GradScaler`: start 65,536, factor 2, 2,000 steps.
    """

    def __init__(self, precision: str, *, start: float = 65536.0, patience: int = 2000) -> None:
        self.active = precision == "float16"
        self.value = start if self.active else 1.0
        self.patience = patience
        self.good = 0

    def overflowed(self, loss: float, skipped: bool) -> bool:
        """Take in how the last step went, and tell whether it was skipped because of the scale."""
        if not self.active or not math.isfinite(loss):
            return False
        if skipped:
            self.good = 0
            if self.value > 1.0:
                self.value /= 2
                return True
            return False
        self.good += 1
        if self.good == self.patience:
            self.value, self.good = self.value * 2, 0
        return False

    def state_dict(self) -> dict[str, float | int]:
        """Give plain values."""
        return {"value": self.value, "good": self.good}

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        """Go on from `state_dict`'s values."""
        self.value, self.good = float(state["value"]), int(state["good"])
