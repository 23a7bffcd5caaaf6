"""The fastest whole step that PyTorch has, around any optimiser: foreach clipping, one check of the norm, foreach lerp."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from peers.steps import Stepper


def around(build: Callable[[list[Tensor]], Any], starts: list[Tensor]) -> Stepper:
    weights = [start.clone().requires_grad_() for start in starts]
    optimizer = build(weights)
    average = [w.detach().clone() for w in weights]

    def prepare(gradients: list[Tensor]) -> None:
        for w, g in zip(weights, gradients, strict=True):
            w.grad = g.clone()  # clipping scales it in place

    def step() -> None:
        norm = torch.nn.utils.clip_grad_norm_(weights, 1.0, foreach=True)
        if bool(torch.isfinite(norm)):
            optimizer.step()
            torch._foreach_lerp_(average, [w.detach() for w in weights], 0.001)

    return Stepper(prepare, step, lambda: [w.detach() for w in weights])
