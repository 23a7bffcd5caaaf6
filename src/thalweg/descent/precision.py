"""Half precision: autocast around the forward pass, and a loss scale that keeps float16 gradients from vanishing."""

from __future__ import annotations

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

    def update(self, overflowed: bool) -> None:
        """Take in how the last step went."""
        if not self.active:
            return
        self.good = 0 if overflowed else self.good + 1
        if overflowed:
            self.value = max(self.value / 2, 1.0)
        elif self.good == self.patience:
            self.value, self.good = self.value * 2, 0

    @property
    def exhausted(self) -> bool:
        """Whether overflow can no longer be the scale's fault."""
        return not self.active or self.value <= 1.0

    def state_dict(self) -> dict[str, float | int]:
        """Give plain values."""
        return {"value": self.value, "good": self.good}

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        """Go on from `state_dict`'s values."""
        self.value, self.good = float(state["value"]), int(state["good"])
