"""pytorch_optimizer: its AdamW is PyTorch's own, so this is its AdamC, which at a constant rate is AdamW (Defazio 2025)."""

from __future__ import annotations

from pytorch_optimizer import AdamC
from torch import Tensor

from peers.steps import Stepper
from peers.steps.sequence import around


def make(starts: list[Tensor]) -> Stepper:
    return around(lambda weights: AdamC(weights, lr=1e-3, weight_decay=0.01, foreach=True), starts)
