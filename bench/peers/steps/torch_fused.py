"""PyTorch's fused AdamW."""

from __future__ import annotations

import torch
from torch import Tensor

from peers.steps import Stepper
from peers.steps.sequence import around


def make(starts: list[Tensor]) -> Stepper:
    return around(lambda weights: torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.01, fused=True), starts)
