"""thalweg's AdamW, whose step includes clipping, the check and the average."""

from __future__ import annotations

from torch import Tensor

import thalweg as tw
from peers.steps import Stepper


def make(starts: list[Tensor]) -> Stepper:
    weights = [start.clone().requires_grad_() for start in starts]
    optimizer = tw.optim.AdamW(weights, lr=1e-3, weight_decay=0.01, clip_norm=1.0, ema=0.999)

    def prepare(gradients: list[Tensor]) -> None:
        for w, g in zip(weights, gradients, strict=True):
            w.grad = g.clone()

    return Stepper(prepare, optimizer.step, lambda: [w.detach() for w in weights])
