"""A tensor that a matrix rule moves as a whole, in its own shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from thalweg.optim.engines.arithmetic import joined, put, wide
from thalweg.optim.engines.blocks import Block, PerTensorNorms
from thalweg.optim.engines.bound_rule import BoundRule, kept_share
from thalweg.optim.engines.interface import GroupStep
from thalweg.optim.engines.validate import look_over
from thalweg.rules.rule import State


class MatrixBlock(Block):
    """The block of one tensor under a matrix rule; its state may be a number a row or a column."""

    def __init__(self, parameters: Sequence[Tensor], states: Sequence[State], work: GroupStep) -> None:
        (parameter,) = parameters
        kept = [s for s in states if s.is_kept(parameter.ndim >= 2)]
        super().__init__(parameters, states, work)
        self.present = [s in kept for s in states]
        self.flats = [_empty(s, parameter, self.compute) for s in kept]
        for described, tensor in zip(kept, self.flats, strict=True):
            self.hold(described.key, [tensor])
        self.gradient: Tensor | None = None

    def look(self, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """Remember the gradient, and give its Euclidean norm."""
        look_over(self.parameters, gradients)
        gradient: Tensor = joined(gradients[0])  # a matrix is one, however many processes hold its rows
        self.gradient = gradient
        return [_norm(gradient)]

    def clipped_norms(self, clip_value: float) -> Sequence[Tensor]:
        """Give the norm of the gradient as clipping its entries would leave it."""
        assert self.gradient is not None
        return [_norm(self.gradient.clamp(-clip_value, clip_value))]

    def let_go(self) -> None:
        """Keep nothing of the step's gradient."""
        self.gradient = None

    def update(self, move: BoundRule, decays: Sequence[float]) -> PerTensorNorms | None:
        """Update the weights; gives norms of weights and update where they are to be recorded."""
        assert self.gradient is not None
        parameter, flats = self.parameters[0].detach(), iter(self.flats)
        if parameter.numel() == 0:
            return ([0.0], [0.0], [math.nan]) if move.record else None
        parts = [next(flats) if there else 0.0 for there in self.present]
        before, *held = map(joined, (parameter, *parts))
        w, g = before.to(self.compute), self.gradient.to(self.compute)
        kept = _share_of if move.work.cautious else None
        with torch.autocast(parameter.device.type, enabled=False):  # which would round the products of matrices
            fresh, *rest = move.formula()(decays[0], w, g, *held[: self.carried], kept=kept)
        norms = ([_norm(w)], [_norm(fresh - w)], [math.nan]) if move.record else None
        for part, old, new in zip(parts, held, rest, strict=False):
            if isinstance(old, Tensor):
                put(part, move.settled(new, old))
        if isinstance(average := held[-1] if self.averages else None, Tensor):
            put(parts[-1], move.averaged(average, fresh))
        put(parameter, move.settled(fresh, before).to(parameter.dtype))
        return norms


def _empty(state: State, parameter: Tensor, dtype: torch.dtype) -> Tensor:
    shape = [*parameter.shape]
    if state.shape == "rows":
        shape[-1] = 1
    elif state.shape == "columns":
        shape[-2] = 1
    if shape == [*parameter.shape]:
        return torch.empty_like(parameter.detach(), dtype=dtype)
    return torch.empty(shape, dtype=dtype, device=parameter.device)


def _share_of(against: Tensor) -> Any:
    return kept_share(against.sum(dtype=torch.float32), against.numel())


def _norm(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor, dtype=wide(tensor))
