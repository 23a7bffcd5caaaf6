"""Where a descent came along: its weights after some steps, from which a survey draws the path.

They go with every checkpoint, so a resumed run has all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

MOST_POINTS, FEWEST_POINTS = 40, 3
BYTES = 16 << 20  # of all points; of a large model two copies of its weights
LONGEST_STEP = 16  # digits
POWER = 1.5  # early steps go further, so more of the points are early


class Trail:
    """Keeps all floating-point weights of a model, end to end, after some of the steps of a run.

    As many points are kept as fit into 16 MB or twice the model's size, 40 at most; in bfloat16 where those do not fit.
    Nothing is kept of a model so small or a run so short that there would be fewer than three.

    Arguments:
        model: whose weights are kept.
        total: steps of the run.
    """

    def __init__(self, model: nn.Module, total: int) -> None:
        size = sum(p.numel() for p in _weights(model))
        room = max(BYTES, 8 * size)
        self.dtype = torch.float32 if MOST_POINTS * 4 * size <= room else torch.bfloat16
        points = 0 if not size else min(MOST_POINTS, total + 1, room // (size * self.dtype.itemsize))
        self.due = (
            frozenset(round(total * (i / (points - 1)) ** POWER) for i in range(points))
            if points >= FEWEST_POINTS
            else frozenset[int]()
        )
        self.points: dict[int, Tensor] = {}

    def keep(self, last: int, step: int, model: nn.Module) -> None:
        """Keep the weights after a step where they are due; `last`: the step before, further back where several batches make
        one."""
        if step in self.due or (step - last > 1 and any(last < due <= step for due in self.due)):
            self.points[step] = torch.cat([p.detach().reshape(-1).to("cpu", self.dtype) for p in _weights(model)])

    def forget(self, after: int) -> None:
        """Forget the points after a step to which the run goes back."""
        self.points = {step: point for step, point in self.points.items() if step <= after}

    def state(self) -> dict[str, Any]:
        """Give the section of a checkpoint that holds the points, if there are any."""
        return {"trail": {str(step): point for step, point in self.points.items()}} if self.points else {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take the points of a checkpoint."""
        self.points = points_of(state)


def points_of(state: Mapping[str, Any]) -> dict[int, Tensor]:
    """Give the points of a checkpoint's state, by step; what is none is left out."""
    section = state.get("trail")
    if not isinstance(section, Mapping):
        return {}
    named = cast("Mapping[Any, Any]", section)
    return {int(step): point for step, point in named.items() if _is_step(step) and _is_point(point)}


def _is_step(step: Any) -> bool:
    return isinstance(step, str) and step.isascii() and step.isdigit() and len(step) < LONGEST_STEP


def _is_point(point: Any) -> bool:
    return isinstance(point, Tensor) and point.is_floating_point() and point.dim() == 1 and bool(point.isfinite().all())


def trained_part(point: Tensor, model: nn.Module) -> Tensor | None:
    """Give the weights of a point that the model trains, end to end; None where it is of another model."""
    weights = list(_weights(model))
    if point.numel() != sum(p.numel() for p in weights):
        return None
    parts = point.split([p.numel() for p in weights])
    return torch.cat([part for part, p in zip(parts, weights, strict=True) if p.requires_grad])


def _weights(model: nn.Module) -> Iterable[nn.Parameter]:
    return (p for p in model.parameters() if p.is_floating_point())
