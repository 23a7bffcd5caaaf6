"""Many tensors on an accelerator, moved by one compiled function over lists of them: torch.compile fuses it into few kernels.

What depends on the step alone is worked out inside too, from a count that lies there, so that a step is a handful of launches
and nobody waits for any of them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from thalweg.optim.engines import foreach_arithmetic as ops
from thalweg.optim.engines.arithmetic import real, wide
from thalweg.optim.engines.blocks import Block, PerTensorNorms
from thalweg.optim.engines.bound_rule import BoundRule, floor, kept_share
from thalweg.optim.engines.interface import GroupStep
from thalweg.rules.rule import DECAY, State

BACKEND = "inductor"


@cache
def compiles(device: torch.device) -> bool:
    """Tell whether torch can compile for an accelerator here."""
    from torch.utils._triton import has_triton

    return device.type in ("cuda", "xpu") and has_triton()


class ForeachBlock(Block):
    """The block of tensors of one accelerator and dtype."""

    def __init__(self, parameters: Sequence[Tensor], states: Sequence[State], work: GroupStep) -> None:
        super().__init__(parameters, states, work)
        self.lists: list[list[Tensor]] = []
        for state in states:
            tensors = [torch.empty_like(p.detach(), dtype=_kept_in(p, self.compute)) for p in parameters]
            self.hold(state.key, tensors)
            self.lists.append([real(t) for t in tensors])
        self.gradients: list[Tensor] = []
        self.functions: dict[tuple[Any, ...], Callable[..., Any]] = {}

    def look(self, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """Remember the gradients, and give each one's Euclidean norm."""
        self.gradients = [real(g) for g in gradients]
        return _norms(self.gradients)

    def clipped_norms(self, clip_value: Any) -> Sequence[Tensor]:
        """Give the norms of the gradients as clipping their entries would leave them."""
        return _norms([g.clamp(-clip_value, clip_value) for g in self.gradients])

    def let_go(self) -> None:
        """Keep nothing of the step's gradients."""
        self.gradients = []

    def update(self, move: BoundRule, decays: Sequence[float]) -> PerTensorNorms | None:
        """Update the weights; gives norms of weights and updates, and ratios, where they are to be recorded."""
        work = move.work
        kind = (work.maximize, work.cautious, move.record, *decays, *work.constants.values())
        if kind not in self.functions:
            one = decays[0] if len(set(decays)) == 1 else [self._number(decay).to(self.compute) for decay in decays]
            bare = replace(work, parameters=[], gradients=[], lr=0.0, decay=0.0)
            self.functions[kind] = _compiled(_function(bare, one, self.averages, move.record))
        weights = [real(p.detach()) for p in self.parameters]
        # As tensors, so that another value is no reason to compile again.
        numbers = {name: self._number(value) for name, value in move.numbers.items() if name not in work.constants}
        scale, share = self._number(move.scale), self._number(1.0 if move.share is None else move.share)
        finite = torch.ones_like(scale, dtype=torch.bool) if move.finite is None else move.finite
        given = (numbers, scale, move.clip_value, share, finite, weights, self.gradients, self.lists)
        return self.functions[kind](*given)

    def _number(self, value: Any) -> Tensor:
        return torch.as_tensor(value, dtype=self.taken.dtype, device=self.device)


def _compiled(step: Callable[..., Any]) -> Callable[..., Any]:
    """Have torch compile a step at its first call; where it cannot, the step goes on as it is, list by list."""
    compiled = torch.compile(step, fullgraph=True, backend=BACKEND)
    able = True

    def run(*given: Any) -> Any:
        nonlocal able
        if able:
            try:
                return compiled(*given)
            except _failures() as error:  # before anything has moved
                able = False
                what = str(error).strip().splitlines()[0]
                warnings.warn(
                    f"torch could not compile the optimiser's step, which goes on uncompiled: {what}", stacklevel=2
                )
        return step(*given)

    return run


def _failures() -> tuple[type[Exception], ...]:
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    return TorchDynamoException, InductorError


def _function(work: GroupStep, decay: Any, averages: bool, record: bool) -> Callable[..., Any]:
    """Make the function of one step, for what does not change from step to step."""
    rule, constants, couples = work.rule, dict(work.constants), work.couples
    formula = ops.equation(rule, constants)
    moment = ops.second_moment(rule, tuple(s.name for s in rule.states(constants)))
    least = floor(constants)

    def calculate(w: Any, g: Any, state: list[list[Tensor]], numbers: dict[str, Any], own: Any) -> tuple[Any, ...]:
        known = {**constants, **numbers, DECAY: own}
        return formula(w, g, *state, **{name: known[name] for name in rule.takes})

    def step(
        numbers: dict[str, Tensor],
        scale: Tensor,
        clip_value: Any,
        share: Tensor,
        finite: Tensor,
        weights: list[Tensor],
        gradients: list[Tensor],
        lists: list[list[Tensor]],
    ) -> PerTensorNorms | None:
        compute = lists[0][0].dtype if lists else weights[0].dtype
        w, g = [t.to(compute) for t in weights], [t.to(compute) for t in gradients]
        if clip_value is not None:
            g = ops.clamp(g, -clip_value, clip_value)
        g = ops.mul(g, -scale if work.maximize else scale)
        if couples:
            g = ops.add(g, ops.mul(w, decay))
        state = lists[:-1] if averages else lists
        own = 0.0 if couples or work.cautious else decay
        fresh, *rest = calculate(w, g, state, numbers, own)
        if work.cautious:
            way = ops.sub(fresh, w)
            against = [a * b < 0 for a, b in zip(way, g, strict=True)]
            kept = [kept_share(a.sum(dtype=compute), a.numel()) for a in against]
            fresh = ops.add(w, ops.mul(ops.where(against, way, 0.0), kept))
            if not couples:
                fresh = ops.sub(fresh, ops.mul(w, ops.mul(decay, numbers["lr"])))
        figures = _figures(w, g, fresh, moment, {**constants, **numbers}, rest, least) if record else None
        for old, new in zip(state, rest, strict=True):
            _write(old, ops.where(finite, new, old))
        if averages:
            _write(
                lists[-1],
                ops.where(finite, ops.add(lists[-1], ops.mul(ops.sub(fresh, lists[-1]), share)), lists[-1]),
            )
        _write(weights, ops.where(finite, fresh, w))
        return figures

    return step


def _figures(
    w: list[Tensor],
    g: list[Tensor],
    fresh: list[Tensor],
    moment: Callable[..., Any] | None,
    numbers: Mapping[str, Any],
    state: Sequence[list[Tensor]],
    least: float,
) -> PerTensorNorms:
    roots: list[Any] = [math.nan] * len(w)
    if moment is not None:
        seconds = ops.maximum(moment(*state, **numbers), least)
        roots = [(a * a / v).mean() ** 0.5 for a, v in zip(g, seconds, strict=True)]
    return _norms(w), _norms(ops.sub(fresh, w)), roots


def _write(to: list[Tensor], of: list[Tensor]) -> None:
    torch._foreach_copy_(to, of)  # pyright: ignore[reportPrivateImportUsage]


def _norms(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    return torch._foreach_norm(list(tensors), dtype=wide(tensors[0]))  # pyright: ignore[reportPrivateImportUsage]


def _kept_in(parameter: Tensor, compute: torch.dtype) -> torch.dtype:
    return parameter.dtype if parameter.is_complex() else compute
