"""A large tensor worked on in place, a piece at a time, so that what lies between stays in the cache.

At 11 M weights pieces were 2.2 times as fast as whole tensors, and no copy of the weights is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thalweg.optim.engines.arithmetic import real, wide
from thalweg.optim.engines.blocks import Block, PerTensorNorms
from thalweg.optim.engines.bound_rule import BoundRule, kept_share, ratio_of
from thalweg.optim.engines.interface import GroupStep
from thalweg.optim.engines.validate import look_over
from thalweg.optim.engines.workspace import WorkspaceTensor, bare
from thalweg.rules.rule import State

PIECE = 1 << 17
"""Weights worked on at a time on the CPU (20 ms for 4.4 M weights; 23 at half or twice of it, 30 at 2^20)."""


class ChunkedBlock(Block):
    """The block of one tensor."""

    def __init__(self, parameters: Sequence[Tensor], states: Sequence[State], work: GroupStep) -> None:
        super().__init__(parameters, states, work)
        (parameter,) = parameters
        like = real(parameter.detach())
        self.flats = [torch.empty_like(like, dtype=self.compute) for _ in states]
        for described, tensor in zip(states, self.flats, strict=True):
            self.hold(described.key, [torch.view_as_complex(tensor) if parameter.is_complex() else tensor])
        self.pools: dict[torch.Size, list[Tensor]] = {}
        self.gradient: Tensor | None = None

    @np.errstate(all="ignore")
    def look(self, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """Remember the gradient, and give its Euclidean norm."""
        look_over(self.parameters, gradients)
        self.gradient = real(gradients[0])
        return [_norm(self.gradient)]

    @np.errstate(all="ignore")
    def clipped_norms(self, clip_value: float) -> Sequence[Tensor]:
        """Give the norm of the gradient as clipping its entries would leave it."""
        assert self.gradient is not None
        return [_norm(self.gradient.clamp(-clip_value, clip_value))]

    @np.errstate(all="ignore")
    def totals(self, move: BoundRule, decays: Sequence[float]) -> list[Any]:
        """Give what the rule adds up over all weights."""
        parts = [
            [bare(part).sum() for part in move.summands(decays[0], *self._computed(piece)[: 2 + self.carried])]
            for piece in self._pieces()
        ]
        return [sum(column) for column in zip(*parts, strict=True)]

    def let_go(self) -> None:
        """Keep nothing of the step's gradient."""
        self.gradient = None

    @np.errstate(all="ignore")
    def update(self, move: BoundRule, decays: Sequence[float]) -> PerTensorNorms | None:
        """Update the weights; gives norms of weights and update, and the ratio, where they are to be recorded."""
        decay = decays[0] if decays[0] or not move.work.couples else None
        kept = self._kept(move, decay) if move.work.cautious else None
        formula, figures = move.formula(), list[tuple[Any, Any, Any]]()
        for piece in self._pieces():
            w, _, *held = piece
            w_in, g_in, *rest_in = self._computed(piece, mixed=move.work.cautious)
            fresh, *rest = formula(decay, w_in, g_in, *rest_in[: self.carried], kept=kept)
            if move.record:
                ratio = ratio_of(move, decay, w_in, g_in, rest)  # a lane: its buffer is used again once it is gone
                figures.append(
                    (_norm(bare(w_in)), _norm(bare(fresh - w_in)), _norm(w * 0 if ratio is None else bare(ratio**0.5)))
                )
            for old, new in zip(held, rest, strict=False):
                old.copy_(move.settled(bare(new), old))
            if self.averages:
                held[-1].copy_(bare(move.averaged(rest_in[-1], fresh)))
            w.copy_(move.settled(bare(fresh), w))
        if not figures:
            return None
        weights, updates, ratios = ([_norm(torch.stack(parts))] for parts in zip(*figures, strict=True))
        size = math.sqrt(self.flats[0].numel()) if self.flats else math.nan
        return weights, updates, [r / size if move.work.rule.second_moment else r * math.nan for r in ratios]

    def _kept(self, move: BoundRule, decay: Any) -> Any:
        """Give what a cautious step multiplies the parts by that it keeps."""
        aligned, count = 0.0, 0
        for piece in self._pieces():
            seen = bare(move.aligned(decay, *self._computed(piece, mixed=True)[: 2 + self.carried])).sum(
                dtype=self.compute
            )
            aligned, count = aligned + (seen if self.is_away else float(seen)), count + piece[0].numel()
        return kept_share(aligned, count)

    def _pieces(self) -> list[tuple[Tensor, ...]]:
        """Cut weights, gradient and state alike; whole where they are not on the CPU or lie differently in memory."""
        assert self.gradient is not None
        tensors = [real(self.parameters[0].detach()), self.gradient, *self.flats]
        if self.is_away or not all(t.is_contiguous() for t in tensors):
            return [tuple(tensors)]
        return list(zip(*(t.view(-1).split(PIECE) for t in tensors), strict=True))

    def _computed(self, piece: Sequence[Tensor], *, mixed: bool = False) -> Sequence[Any]:
        """Give a piece in the dtype of the calculation, with buffers lent to it unless dtypes will be mixed."""
        w, g, *held = piece
        tensors = (w.to(self.compute), g.to(self.compute), *held)
        return tensors if mixed else self._lent(tensors)

    def _lent(self, tensors: Sequence[Tensor]) -> Sequence[Any]:
        """Let the equation write into buffers that are used again; accelerators keep a pool themselves."""
        if self.is_away:
            return tensors
        pool = self.pools.setdefault(tensors[0].shape, [])
        return [WorkspaceTensor(tensor, pool) for tensor in tensors]


def _norm(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor, dtype=wide(tensor))
