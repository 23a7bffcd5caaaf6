"""A tensor under a matrix rule, whose equation takes whole tensors in their own shape (Muon, Adafactor)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from thalweg.optim.engines.arithmetic import copy_full, full_tensor, norm_dtype
from thalweg.optim.engines.blocks import Block, PerTensorNorms
from thalweg.optim.engines.bound_rule import BoundRule, cautious_scale_for
from thalweg.optim.engines.interface import GroupStep
from thalweg.rules.rule import State


class MatrixBlock(Block):
    """The block of one tensor under a matrix rule; its state may have one number per row or per column."""

    def __init__(self, parameters: Sequence[Tensor], states: Sequence[State], group: GroupStep) -> None:
        (parameter,) = parameters
        present = [s for s in states if s.exists_for(parameter.ndim >= 2)]
        super().__init__(parameters, states, group)
        self.is_present = [s in present for s in states]
        self.state_tensors = [_empty(s, parameter, self.compute_dtype) for s in present]
        for state, tensor in zip(present, self.state_tensors, strict=True):
            self.register_state(state.key, [tensor])
        self.gradient: Tensor | None = None

    def read_gradients(self, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """Keep the gradient for `update`, and give its Euclidean norm."""
        gradient: Tensor = full_tensor(gradients[0])  # the equation needs all rows, whichever process holds them
        self.gradient = gradient
        return [_norm(gradient)]

    def clipped_norms(self, clip_value: float) -> Sequence[Tensor]:
        """Give the norm of the gradient as clipping its entries would leave it."""
        assert self.gradient is not None
        return [_norm(self.gradient.clamp(-clip_value, clip_value))]

    def release_gradients(self) -> None:
        """Keep no reference to the step's gradient."""
        self.gradient = None

    def update(self, bound: BoundRule, decays: Sequence[float]) -> PerTensorNorms | None:
        """Update the weights; gives norms of weights and update where they are to be recorded."""
        assert self.gradient is not None
        parameter, state_tensors = self.parameters[0].detach(), iter(self.state_tensors)
        if parameter.numel() == 0:
            return ([0.0], [0.0], [math.nan]) if bound.record_norms else None
        # Parameter and states are perhaps sharded; what is calculated with is gathered from all processes.
        own_states = [next(state_tensors) if is_present else 0.0 for is_present in self.is_present]
        before, *states = map(full_tensor, (parameter, *own_states))
        w, g = before.to(self.compute_dtype), self.gradient.to(self.compute_dtype)
        scale = _cautious_scale if bound.group.cautious else None
        with torch.autocast(parameter.device.type, enabled=False):  # it would round the products of matrices
            new_w, *new_states = bound.formula()(decays[0], w, g, *states[: self.num_rule_states], cautious_scale=scale)
        norms = ([_norm(w)], [_norm(new_w - w)], [math.nan]) if bound.record_norms else None
        for own, old, new in zip(own_states, states, new_states, strict=False):
            if isinstance(old, Tensor):
                copy_full(own, bound.where_finite(new, old))
        if isinstance(average := states[-1] if self.has_ema else None, Tensor):
            copy_full(own_states[-1], bound.new_average(average, new_w))
        copy_full(parameter, bound.where_finite(new_w, before).to(parameter.dtype))
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


def _cautious_scale(is_aligned: Tensor) -> Any:
    return cautious_scale_for(is_aligned.sum(dtype=torch.float32), is_aligned.numel())


def _norm(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor, dtype=norm_dtype(tensor))
