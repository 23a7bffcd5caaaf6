"""heavyball, which compiles its step with `torch.compile`; "max-autotune" as is its default takes longer for the same code."""

from __future__ import annotations

import heavyball
from torch import Tensor

from peers.steps import Stepper
from peers.steps.sequence import around

heavyball.utils.compile_mode = "default"


def make(starts: list[Tensor]) -> Stepper:
    def build(weights: list[Tensor]) -> heavyball.AdamW:
        return heavyball.AdamW(weights, lr=1e-3, betas=(0.9, 0.999), weight_decay=0.01)

    return around(build, starts)
