"""The tensor engine: runs any rule's equation on torch tensors, on any device; in float64 it is the reference.

Small tensors of a group are gathered into one flat block, large ones are worked on in place piece by piece.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from thalweg.optim.engines.arithmetic import COMPUTE, count_nonfinite, exact_norm, real
from thalweg.optim.engines.blocks import EMA, PIECE, Block, Move, averaging, shaped, steps_taken
from thalweg.optim.engines.work import Moves, Norms, StateOf, Work
from thalweg.rules.rule import State

SMALL = 1 << 15
"""Elements below which a tensor is gathered with others."""


class Flat(Block):
    """Small tensors, laid end to end."""

    def __init__(self, parameters: Sequence[Tensor], states: Sequence[State], counts: bool) -> None:
        super().__init__(parameters, states, counts)
        self.sizes = [real(p.detach()).numel() for p in parameters]
        self.flats = [torch.empty(sum(self.sizes), dtype=self.compute, device=self.device) for _ in states]
        for key, flat in zip(self.keys, self.flats, strict=True):
            self.views[key] = [shaped(part, p) for part, p in zip(flat.split(self.sizes), self.parameters, strict=True)]
        self.shapes = [real(p.detach()).shape for p in parameters]

    def update(self, move: Move, gradients: Sequence[Tensor], carried: int) -> None:
        """Move all weights of the block."""
        targets = [real(p.detach()) for p in self.parameters]
        w = self._lay(targets)
        out = move.equation()(w, self._lay([real(g) for g in gradients]), *self.flats[:carried])
        for flat, fresh in zip(self.flats, out[1:], strict=False):
            flat.copy_(fresh)
        if move.ema is not None:
            self.flats[-1].lerp_(out[0], averaging(move.ema, move.step))
        parts = [part.view(shape) for part, shape in zip(out[0].split(self.sizes), self.shapes, strict=True)]
        torch._foreach_copy_(targets, parts)  # pyright: ignore[reportPrivateImportUsage]

    def _lay(self, tensors: Sequence[Tensor]) -> Tensor:
        flat = torch.cat([t.reshape(-1) for t in tensors])
        return flat if flat.dtype is self.compute else flat.to(self.compute)


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
        out = equation(w.to(self.compute), g.to(self.compute), *held[:carried])
        for tensor, fresh in zip(held, out[1:], strict=False):
            tensor.copy_(fresh)
        if move.ema is not None:
            held[-1].lerp_(out[0], averaging(move.ema, move.step))
        w.copy_(out[0])


class TensorEngine:
    """Runs a step in two passes: look at the gradients, then move."""

    def __init__(self) -> None:
        self._works: Sequence[Work] = ()
        self._blocks: dict[int, list[tuple[Flat | Large, list[int]]]] = {}
        self._made_for: dict[int, tuple[Any, ...]] = {}

    def measure(self, works: Sequence[Work], state: StateOf, *, clip_value: float | None, ema: bool) -> Norms:
        """Read the gradients, change nothing; one wait for the device."""
        del state, ema
        self._works = works
        gradients = [g for work in works for g in work.gradients]
        each = _norms(gradients)
        total = math.sqrt(math.fsum(n * n for n in each)) if all(n < 1e150 for n in each) else math.inf
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
        before = [p.detach().clone() for work in self._works for p in work.parameters] if record else []
        for work in self._works:
            carried = len(work.rule.carried(work.constants))
            for block, members in self._blocks_of(work, state, ema is not None):
                block.own(state)
                step = block.count()[0] + 1
                move = Move(work, step, scale, clip_value, ema)
                block.update(move, [work.gradients[i] for i in members], carried)
                block.advance(step)
        if not record:
            return None
        after = [p.detach() for work in self._works for p in work.parameters]
        moved = [a.to(COMPUTE[a.dtype]) - b for a, b in zip(map(real, after), map(real, before), strict=True)]
        return Moves(torch.tensor(_norms(before)), torch.tensor(_norms(moved)))

    def _blocks_of(self, work: Work, state: StateOf, ema: bool) -> list[tuple[Flat | Large, list[int]]]:
        states = [*work.rule.carried(work.constants), *([EMA] if ema else [])]
        made_for = (work.rule.name, tuple(s.key for s in states), *map(id, work.parameters))
        blocks = self._blocks.get(work.group)
        if (
            blocks is None
            or self._made_for[work.group] != made_for
            or not all(b.fits(state) and _even(b) for b, _ in blocks)
        ):
            blocks = _cut(work, states, state, ema)
            self._blocks[work.group], self._made_for[work.group] = blocks, made_for
        return blocks


def _even(block: Block) -> bool:
    return len(set(block.count())) == 1


def _cut(work: Work, states: Sequence[State], state: StateOf, ema: bool) -> list[tuple[Flat | Large, list[int]]]:
    """Put a group's parameters into blocks: gathered where small and equally far on, else alone."""
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


def _norms(tensors: Sequence[Tensor]) -> list[float]:
    """Euclidean norms as numbers, with one wait for each device."""
    if not tensors:
        return []
    lengths = torch._foreach_norm([real(t.detach()) for t in tensors])  # pyright: ignore[reportPrivateImportUsage]
    if len({t.device for t in lengths}) > 1 or len({t.dtype for t in lengths}) > 1:
        return [float(n) for n in lengths]
    return torch.stack(list(lengths)).tolist()
