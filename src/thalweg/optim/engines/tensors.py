"""The tensor engine: runs any rule's equation on torch tensors, on any device; in float64 it is the reference.

Small tensors of a group are gathered into one flat block, large ones are worked on in place piece by piece.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from thalweg.optim.engines.arithmetic import COMPUTE, count_nonfinite, exact_norm, real
from thalweg.optim.engines.blocks import EMA, PIECE, Block, Move, averaging, shaped, steps_taken
from thalweg.optim.engines.lane import Lane
from thalweg.optim.engines.work import Moves, Norms, StateOf, Work
from thalweg.rules.rule import State

SMALL = 1 << 15
"""Elements below which a tensor is gathered with others."""


def with_decay(work: Work, decay: Any) -> Work:
    """Give the work with another weight decay, in the form its rule has."""
    if "weight_decay" in work.constants:
        return replace(work, constants={**work.constants, "weight_decay": decay})
    return replace(work, coupled_decay=decay)


class Flat(Block):
    """Small tensors, laid end to end."""

    def __init__(self, parameters: Sequence[Tensor], states: Sequence[State], counts: bool) -> None:
        super().__init__(parameters, states, counts)
        self.sizes = [real(p.detach()).numel() for p in parameters]
        self.flats = [torch.empty(sum(self.sizes), dtype=self.compute, device=self.device) for _ in states]
        for key, flat in zip(self.keys, self.flats, strict=True):
            self.views[key] = [shaped(part, p) for part, p in zip(flat.split(self.sizes), self.parameters, strict=True)]
        shapes = [real(p.detach()).shape for p in parameters]
        self.weights, self.gradients = (
            torch.empty(sum(self.sizes), dtype=self.compute, device=self.device) for _ in range(2)
        )
        self.weight_parts = [x.view(shape) for x, shape in zip(self.weights.split(self.sizes), shapes, strict=True)]
        self.gradient_parts = [x.view(shape) for x, shape in zip(self.gradients.split(self.sizes), shapes, strict=True)]
        self.pool: list[Tensor] = []
        self.lanes = [Lane(tensor, self.pool) for tensor in (self.weights, self.gradients, *self.flats)]
        self._decays: tuple[list[float], Any] | None = None

    def decayed(self, work: Work, decays: list[float]) -> Work:
        """Give the work with the members' decays: one number where they agree, else one number a weight."""
        if self._decays is None or self._decays[0] != decays:
            vector: Any = decays[0]
            if len(set(decays)) > 1:
                parts = [torch.full((n,), d, dtype=self.compute) for n, d in zip(self.sizes, decays, strict=True)]
                vector = Lane(torch.cat(parts).to(self.device), self.pool)
            self._decays = (decays, vector)
        return with_decay(work, self._decays[1])

    def update(self, move: Move, gradients: Sequence[Tensor], carried: int) -> None:
        """Move all weights of the block."""
        targets = [real(p.detach()) for p in self.parameters]
        _copy(self.weight_parts, targets)
        _copy(self.gradient_parts, [real(g) for g in gradients])
        out = move.equation()(*self.lanes[: 2 + carried])
        for flat, fresh in zip(self.flats, out[1:], strict=False):
            flat.copy_(fresh.tensor)
        self.weights.copy_(out[0].tensor)
        if move.ema is not None:
            self.flats[-1].lerp_(self.weights, averaging(move.ema, move.step))
        _copy(targets, self.weight_parts)


class Large(Block):
    """One tensor, worked on in place."""

    def __init__(self, parameters: Sequence[Tensor], states: Sequence[State], counts: bool) -> None:
        super().__init__(parameters, states, counts)
        (p,) = parameters
        like = real(p.detach())
        plain = [torch.empty_like(like, dtype=self.compute, memory_format=torch.contiguous_format) for _ in states]
        self.flats = plain
        for key, tensor in zip(self.keys, plain, strict=True):
            self.views[key] = [torch.view_as_complex(tensor) if p.is_complex() else tensor]
        self.pools: dict[torch.Size, list[Tensor]] = {}

    def decayed(self, work: Work, decays: list[float]) -> Work:
        """Give the work with this tensor's decay."""
        return with_decay(work, decays[0])

    def update(self, move: Move, gradients: Sequence[Tensor], carried: int) -> None:
        """Move the tensor's weights."""
        target, gradient = real(self.parameters[0].detach()), real(gradients[0])
        equation = move.equation()
        if target.is_contiguous() and gradient.is_contiguous():
            whole = [target.view(-1), gradient.view(-1), *(flat.view(-1) for flat in self.flats)]
            for pieces in zip(*(tensor.split(PIECE) for tensor in whole), strict=True):
                self._piece(move, equation, pieces, carried)
        else:
            self._piece(move, equation, (target, gradient, *self.flats), carried)

    def _piece(self, move: Move, equation: Any, pieces: Sequence[Tensor], carried: int) -> None:
        w, g, *held = pieces
        pool = self.pools.setdefault(w.shape, [])
        lanes = [Lane(tensor, pool) for tensor in (w.to(self.compute), g.to(self.compute), *held[:carried])]
        out = equation(*lanes)
        for tensor, fresh in zip(held, out[1:], strict=False):
            tensor.copy_(fresh.tensor)
        if move.ema is not None:
            held[-1].lerp_(out[0].tensor, averaging(move.ema, move.step))
        w.copy_(out[0].tensor)


class TensorEngine:
    """Runs a step in two passes: look at the gradients, then move."""

    def __init__(self) -> None:
        self._works: Sequence[Work] = ()
        self._cuts: dict[tuple[Any, ...], list[tuple[Flat | Large, list[int]]]] = {}

    def measure(self, works: Sequence[Work], state: StateOf, *, clip_value: float | None, ema: bool) -> Norms:
        """Read the gradients, change nothing; one wait for the device."""
        del state, ema
        self._works = works
        gradients = [g for work in works for g in work.gradients]
        each = _norms(gradients)
        total = math.hypot(*each)
        nonfinite = 0
        if not math.isfinite(total):
            nonfinite = sum(count_nonfinite(g) for g in gradients)
            each = [exact_norm(g) for g in gradients]
            total = math.nan if nonfinite else math.hypot(*each)
        clipped = total
        if clip_value is not None and not nonfinite:
            clipped = math.hypot(*_norms([real(g).clamp(-clip_value, clip_value) for g in gradients]))
        return Norms(each, total, clipped, nonfinite)

    def update(
        self, state: StateOf, *, scale: float, clip_value: float | None, ema: float | None, record: bool
    ) -> Moves | None:
        """Move weights, state and EMA by the gradients measured last."""
        works = self._works
        before = [p.detach().clone() for work in works for p in work.parameters] if record else []
        for work, decays in _merged(works):
            carried = len(work.rule.carried(work.constants))
            for block, members in self._blocks_of(work, state, ema is not None):
                block.own(state)
                step = block.count()[0] + 1
                move = Move(block.decayed(work, [decays[i] for i in members]), step, scale, clip_value, ema)
                block.update(move, [work.gradients[i] for i in members], carried)
                block.advance(step)
        self._works = ()
        if not record:
            return None
        after = [p.detach() for work in works for p in work.parameters]
        moved = [a.to(COMPUTE[a.dtype]) - b for a, b in zip(map(real, after), map(real, before), strict=True)]
        return Moves(torch.tensor(_norms(before)), torch.tensor(_norms(moved)))

    def _blocks_of(self, work: Work, state: StateOf, ema: bool) -> list[tuple[Flat | Large, list[int]]]:
        states = [*work.rule.carried(work.constants), *([EMA] if ema else [])]
        key = (work.group, work.rule.name, *(s.key for s in states), *map(id, work.parameters))
        blocks = self._cuts.get(key)
        if blocks is None or not all(block.fits(state) and block.even for block, _ in blocks):
            self._cuts = {k: v for k, v in self._cuts.items() if k[0] != work.group}
            self._cuts[key] = blocks = _cut(work, states, state, ema)
        return blocks


def _merged(works: Sequence[Work]) -> list[tuple[Work, list[float]]]:
    """Put groups together that differ in nothing but their weight decay, and give each parameter's decay beside.

    Every evaluation of the equation costs the same few dozen calls, however few the weights, so fewer evaluations are faster.
    """
    together: dict[tuple[Any, ...], list[Work]] = {}
    for work in works:
        rest = tuple((k, v) for k, v in work.constants.items() if k != "weight_decay")
        together.setdefault((work.rule.name, work.lr, work.maximize, rest), []).append(work)
    merged: list[tuple[Work, list[float]]] = []
    for alike in together.values():
        decays = [w.constants.get("weight_decay", w.coupled_decay) for w in alike for _ in w.parameters]
        if len(alike) == 1:
            merged.append((alike[0], decays))
            continue
        parameters = [p for w in alike for p in w.parameters]
        gradients = [g for w in alike for g in w.gradients]
        merged.append((replace(alike[0], parameters=parameters, gradients=gradients), decays))
    return merged


def _cut(work: Work, states: Sequence[State], state: StateOf, ema: bool) -> list[tuple[Flat | Large, list[int]]]:
    """Put parameters into blocks: gathered where small and equally far on, else alone."""
    counts = work.rule.counts_steps or ema
    gathered: dict[tuple[Any, ...], list[int]] = {}
    for i, parameter in enumerate(work.parameters):
        alone = parameter.numel() >= SMALL
        key = (i,) if alone else ("small", parameter.device, parameter.dtype, steps_taken(state.get(parameter, {})))
        gathered.setdefault(key, []).append(i)
    blocks: list[tuple[Flat | Large, list[int]]] = []
    for key, members in gathered.items():
        kind = Flat if key[0] == "small" else Large
        blocks.append((kind([work.parameters[i] for i in members], states, counts), members))
    return blocks


def _copy(to: list[Tensor], of: list[Tensor]) -> None:
    torch._foreach_copy_(to, of)  # pyright: ignore[reportPrivateImportUsage]


def _norms(tensors: Sequence[Tensor]) -> list[float]:
    """Euclidean norms as numbers, with one wait for each device."""
    if not tensors:
        return []
    lengths = torch._foreach_norm([real(t.detach()) for t in tensors])  # pyright: ignore[reportPrivateImportUsage]
    if len({t.device for t in lengths}) > 1 or len({t.dtype for t in lengths}) > 1:
        return [float(n) for n in lengths]
    return torch.stack(list(lengths)).tolist()
