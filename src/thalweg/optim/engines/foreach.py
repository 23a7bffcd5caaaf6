"""Many tensors on an accelerator, updated by one function of lists that torch.compile fuses into few kernels.

The step count is a tensor on the accelerator, and what depends on it (bias corrections, say) is computed there too, so that a
step is a handful of kernel launches without host synchronisation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from thalweg.optim.engines import foreach_arithmetic as ops
from thalweg.optim.engines.arithmetic import as_real, norm_dtype
from thalweg.optim.engines.blocks import Block, PerTensorNorms
from thalweg.optim.engines.bound_rule import BoundRule, cautious_scale_for, second_moment_floor
from thalweg.optim.engines.interface import GroupStep
from thalweg.rules.rule import DECAY, State
from thalweg.terminal import warn

BACKEND = "inductor"


@cache
def can_compile(device: torch.device) -> bool:
    """Tell whether torch.compile can compile for an accelerator here."""
    from torch.utils._triton import has_triton

    return device.type in ("cuda", "xpu") and has_triton()


class ForeachBlock(Block):
    """The block of tensors of one accelerator and dtype."""

    def __init__(self, parameters: Sequence[Tensor], states: Sequence[State], group: GroupStep) -> None:
        super().__init__(parameters, states, group)
        self.states_as_real: list[list[Tensor]] = []  # of each state the tensors of all parameters
        for state in states:
            tensors = [torch.empty_like(p.detach(), dtype=_state_dtype(p, self.compute_dtype)) for p in parameters]
            self.register_state(state.key, tensors)
            self.states_as_real.append([as_real(t) for t in tensors])
        self.gradients: list[Tensor] = []
        self.functions: dict[tuple[Any, ...], Callable[..., Any]] = {}
        self._decays: tuple[Sequence[float], Any] = ((), 0.0)  # of the last step, and what was made of them

    def read_gradients(self, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """Keep the gradients for `update`, and give each one's Euclidean norm."""
        self.gradients = [as_real(g) for g in gradients]
        return _norms(self.gradients)

    def clipped_norms(self, clip_value: float) -> Sequence[Tensor]:
        """Give the norms of the gradients as clipping their entries would leave them."""
        return _norms([g.clamp(-clip_value, clip_value) for g in self.gradients])

    def release_gradients(self) -> None:
        """Keep no reference to the step's gradients."""
        self.gradients = []

    def update(self, bound: BoundRule, decays: Sequence[float]) -> PerTensorNorms | None:
        """Update the weights; gives norms of weights and updates, and ratios, where they are to be recorded."""
        group = bound.group
        weights = [as_real(p.detach()) for p in self.parameters]
        # As tensors: torch.compile takes a Python number for a constant, and would compile again for every new value.
        decay = self._decay(decays)
        key = (group.maximize, group.cautious, bound.record_norms, type(decay), *group.constants.values())
        if key not in self.functions:
            fixed = replace(group, parameters=[], gradients=[], lr=0.0, decay=0.0)
            self.functions[key] = _compile(_step_function(fixed, self.has_ema, bound.record_norms))
        numbers = {name: self._as_tensor(value) for name, value in bound.numbers.items() if name not in group.constants}
        scale, ema_weight = (
            self._as_tensor(bound.scale),
            self._as_tensor(1.0 if bound.ema_weight is None else bound.ema_weight),
        )
        finite = torch.ones_like(scale, dtype=torch.bool) if bound.finite is None else bound.finite
        given = (
            numbers,
            decay,
            scale,
            bound.clip_value,
            ema_weight,
            finite,
            weights,
            self.gradients,
            self.states_as_real,
        )
        return self.functions[key](*given)

    def _decay(self, decays: Sequence[float]) -> Any:
        """Give the weight decay as a step takes it: 0.0 for none, a tensor, or a list of tensors where parameters differ."""
        if self._decays[0] != decays:
            of_value = {decay: self._as_tensor(decay) for decay in decays}
            decay: Any = [of_value[one].to(self.compute_dtype) for one in decays]
            if len(of_value) == 1:
                decay = of_value[decays[0]] if decays[0] else 0.0
            self._decays = list(decays), decay
        return self._decays[1]

    def _as_tensor(self, value: Any) -> Tensor:
        return torch.as_tensor(value, dtype=self.steps_taken.dtype, device=self.device)


def _compile(step: Callable[..., Any]) -> Callable[..., Any]:
    """Have torch compile a step at its first call; where it cannot, warn, and run the step uncompiled from then on."""
    compiled = torch.compile(step, fullgraph=True, backend=BACKEND)
    can_run = True

    def run(*given: Any) -> Any:
        nonlocal can_run
        if can_run:
            try:
                return compiled(*given)
            except _compile_errors() as error:  # raised before any tensor was written
                can_run = False
                what = str(error).strip().splitlines()[0]
                warn(f"torch could not compile the optimiser's step, which goes on uncompiled: {what}", stacklevel=2)
        return step(*given)

    return run


def _compile_errors() -> tuple[type[Exception], ...]:
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    return TorchDynamoException, InductorError


def _step_function(group: GroupStep, has_ema: bool, record_norms: bool) -> Callable[..., Any]:
    """Make the function that takes one step; what does not change from step to step is a constant in it."""
    rule, constants, couples = group.rule, dict(group.constants), group.couples
    formula = ops.equation(rule, constants)
    second_moment = ops.second_moment(rule, tuple(s.name for s in rule.states(constants)))
    least_moment = second_moment_floor(constants)

    def evaluate(w: Any, g: Any, state: list[list[Tensor]], numbers: dict[str, Any], own_decay: Any) -> tuple[Any, ...]:
        known = {**constants, **numbers, DECAY: own_decay}
        return formula(w, g, *state, **{name: known[name] for name in rule.takes})

    def step(
        numbers: dict[str, Tensor],
        decay: Any,
        scale: Tensor,
        clip_value: Any,
        ema_weight: Tensor,
        finite: Tensor,
        weights: list[Tensor],
        gradients: list[Tensor],
        states: list[list[Tensor]],
    ) -> PerTensorNorms | None:
        compute_dtype = states[0][0].dtype if states else weights[0].dtype
        w, g = [t.to(compute_dtype) for t in weights], [t.to(compute_dtype) for t in gradients]
        if clip_value is not None:
            g = ops.clamp(g, -clip_value, clip_value)
        g = ops.mul(g, -scale if group.maximize else scale)
        if couples:
            g = ops.add(g, ops.mul(w, decay))
        rule_states = states[:-1] if has_ema else states
        own_decay = 0.0 if couples or group.cautious else decay  # a cautious step's decay is no part of what it masks
        new_w, *new_states = evaluate(w, g, rule_states, numbers, own_decay)
        if group.cautious:
            update = ops.sub(new_w, w)
            is_aligned = [a * b < 0 for a, b in zip(update, g, strict=True)]
            scales = [cautious_scale_for(a.sum(dtype=compute_dtype), a.numel()) for a in is_aligned]
            new_w = ops.add(w, ops.mul(ops.where(is_aligned, update, 0.0), scales))
            if not couples:
                new_w = ops.sub(new_w, ops.mul(w, ops.mul(decay, numbers["lr"])))
        all_numbers = {**constants, **numbers}
        norms = (
            _tensor_norms(w, g, new_w, second_moment, all_numbers, new_states, least_moment) if record_norms else None
        )
        for old, new in zip(rule_states, new_states, strict=True):
            _write(old, ops.where(finite, new, old))
        if has_ema:
            average = states[-1]
            _write(average, ops.where(finite, ops.add(average, ops.mul(ops.sub(new_w, average), ema_weight)), average))
        _write(weights, ops.where(finite, new_w, w))
        return norms

    return step


def _tensor_norms(
    w: list[Tensor],
    g: list[Tensor],
    new_w: list[Tensor],
    second_moment: Callable[..., Any] | None,
    numbers: Mapping[str, Any],
    states: Sequence[list[Tensor]],
    least_moment: float,
) -> PerTensorNorms:
    roots: list[Any] = [math.nan] * len(w)
    if second_moment is not None:
        moments = ops.maximum(second_moment(*states, **numbers), least_moment)
        roots = [(a * a / v).mean() ** 0.5 for a, v in zip(g, moments, strict=True)]
    return _norms(w), _norms(ops.sub(new_w, w)), roots


def _write(targets: list[Tensor], values: list[Tensor]) -> None:
    torch._foreach_copy_(targets, values)  # pyright: ignore[reportPrivateImportUsage]


def _norms(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    return torch._foreach_norm(list(tensors), dtype=norm_dtype(tensors[0]))  # pyright: ignore[reportPrivateImportUsage]


def _state_dtype(parameter: Tensor, compute_dtype: torch.dtype) -> torch.dtype:
    return parameter.dtype if parameter.is_complex() else compute_dtype
