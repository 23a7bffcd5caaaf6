"""How far training went from the weights of a module that was handed over, as when a pre-trained network is fine-tuned."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


def drift_from(start: Any, model: nn.Module) -> dict[str, Any]:
    """Give how far trained weights are from their start, as a share of their length, and which matrix went farthest.

    The result is {"all": share, "farthest": [name, share]}; empty where `start` is no module, nothing trains, or the weights
    cannot be compared.

    Arguments:
        start: what the task gave as its model; a factory makes new weights, from which there is no distance to tell.
        model: the trained copy of it.
    """
    if not isinstance(start, nn.Module):
        return {}
    before, moved, length = dict(start.named_parameters()), 0.0, 0.0
    farthest = ("", 0.0)
    for name, after in model.named_parameters():
        first = before.get(name)
        if (
            first is None
            or not after.requires_grad
            or isinstance(first, nn.UninitializedParameter)  # which has no shape to ask for
            or first.shape != after.shape
        ):
            continue
        difference, own = _square_of_difference(first.detach(), after.detach()), _square(first.detach())
        moved, length = moved + difference, length + own
        share = math.sqrt(difference / own) if own > 0 else 0.0
        if after.ndim >= 2 and share > farthest[1]:  # a bias that starts near zero goes far at once
            farthest = (name, share)
    if not (math.isfinite(moved) and 0 < length < math.inf):
        return {}
    told: dict[str, Any] = {"all": _rounded(math.sqrt(moved / length))}
    return told | ({"farthest": [farthest[0], _rounded(farthest[1])]} if farthest[0] else {})


def _square(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=_wide(tensor))) ** 2


def _square_of_difference(first: Tensor, after: Tensor) -> float:
    return _square(after - first.to(after.device))


def _wide(tensor: Tensor) -> torch.dtype | None:
    return torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else None


def _rounded(share: float) -> float:
    return float(f"{share:.3g}")
