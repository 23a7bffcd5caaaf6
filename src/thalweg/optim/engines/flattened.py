"""Small tensors laid end to end, so that one operation serves all of them.

A call of any operation costs more than 10,000 additions. On the CPU the equation runs on NumPy's views of the block, whose calls
cost half of torch's (42 against 150 us for AdamW on 10 k weights); elsewhere on the tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from thalweg.optim.engines.arithmetic import real, wide
from thalweg.optim.engines.blocks import Block, PerTensorNorms
from thalweg.optim.engines.bound_rule import BoundRule, average_in_place, kept_share, ratio_of
from thalweg.optim.engines.interface import GroupStep
from thalweg.optim.engines.validate import look_over
from thalweg.rules.rule import State

PIECE = 1 << 16
"""Bytes of each array worked on at a time: the equation's dozen intermediate arrays then stay in the second-level cache."""


class FlattenedBlock(Block):
    """The block of small tensors of one device and dtype."""

    def __init__(self, parameters: Sequence[Tensor], states: Sequence[State], work: GroupStep) -> None:
        super().__init__(parameters, states, work)
        self.sizes = [real(p.detach()).numel() for p in parameters]
        self.starts = [0, *accumulate(self.sizes)][:-1]
        length = sum(self.sizes)
        self.flats = [torch.empty(length, dtype=self.compute, device=self.device) for _ in range(2 + len(states))]
        self.weights, self.gradients, *held = (self._shaped(flat) for flat in self.flats)
        for described, tensors in zip(states, held, strict=True):
            self.hold(described.key, tensors)
        self.on_arrays = not self.is_away
        self.arrays: list[Any] = [flat.numpy() for flat in self.flats] if self.on_arrays else self.flats
        piece = PIECE // self.compute.itemsize if self.on_arrays else length
        self.places = [slice(i, i + piece) for i in range(0, length, piece)]
        self.pieces = [tuple(array[place] for array in self.arrays) for place in self.places]
        self._spare: Any = None
        self._decays: tuple[Sequence[float], list[Any]] = ((), [])

    @np.errstate(all="ignore")
    def look(self, gradients: Sequence[Tensor]) -> Sequence[float] | Sequence[Tensor]:
        """Lay weights and gradients out, and give each gradient's Euclidean norm."""
        look_over(self.parameters, gradients)
        _copy([*self.weights, *self.gradients], [*self.parameters, *gradients])
        return self._norms(self.arrays[1], self.gradients)

    @np.errstate(all="ignore")
    def clipped_norms(self, clip_value: float) -> Sequence[float] | Sequence[Tensor]:
        """Give the norms of the gradients as clipping their entries would leave them."""
        if self.on_arrays:
            return self._norms(self.arrays[1].clip(-clip_value, clip_value), ())
        return _tensor_norms([real(g).clamp(-clip_value, clip_value) for g in self.gradients])

    @np.errstate(all="ignore")
    def totals(self, move: BoundRule, decays: Sequence[float]) -> list[Any]:
        """Give what the rule adds up over all weights."""
        parts = [
            [part.sum() for part in move.summands(decay, w, g, *held[: self.carried])]
            for decay, (w, g, *held) in zip(self._decayed(decays, move), self.pieces, strict=True)
        ]
        return [sum(column) for column in zip(*parts, strict=True)]

    @np.errstate(all="ignore")
    def update(self, move: BoundRule, decays: Sequence[float]) -> PerTensorNorms | None:
        """Update the weights laid out by `look`; give norms of weights and updates, and ratios, where they are to be recorded."""
        before = self.flats[0].clone() if move.record else None
        formula = move.formula()
        decayed = self._decayed(decays, move)
        kept = self._kept(move, decayed) if move.work.cautious else [None for _ in self.pieces]
        ratios = list[Any]()
        for decay, share, piece in zip(decayed, kept, self.pieces, strict=True):
            w, g, *held = piece
            fresh, *rest = formula(decay, w, g, *held[: self.carried], kept=share)
            if move.record:
                ratios.append(ratio_of(move, decay, w, g, rest))
            w[...] = move.settled(fresh, w)
            for old, new in zip(held, rest, strict=False):
                old[...] = move.settled(new, old)
            if self.averages and self.is_away:
                held[-1][...] = move.averaged(held[-1], w)
            elif self.averages:
                average_in_place(held[-1], w, cast(float, move.share or 1.0))
        _copy(self.parameters, self.weights)
        return None if before is None else (*self._moves(before), self._roots(ratios))

    def _kept(self, move: BoundRule, decays: Sequence[Any]) -> list[Any]:
        """Give, weight by weight, what a cautious step multiplies the parts by that it keeps: one number a tensor."""
        aligned = self._joined(
            [
                move.aligned(decay, w, g, *held[: self.carried])
                for decay, (w, g, *held) in zip(decays, self.pieces, strict=True)
            ]
        )
        counts = [part.sum(dtype=self.compute) if self.is_away else float(part.sum()) for part in self._split(aligned)]
        kept = self._spread([kept_share(n, size) for n, size in zip(counts, self.sizes, strict=True)])
        return [kept[place] for place in self.places]

    def _roots(self, ratios: Sequence[Any]) -> Sequence[Any]:
        """Give each tensor's root of the mean ratio; NaN where the rule has none."""
        if not ratios or ratios[0] is None:
            return [math.nan for _ in self.sizes]
        return [part.mean() ** 0.5 for part in self._split(self._joined(ratios))]

    def _joined(self, parts: Sequence[Any]) -> Any:
        return np.concatenate(parts) if self.on_arrays else torch.cat([*parts])

    def _split(self, whole: Any) -> Sequence[Any]:
        return np.split(whole, self.starts[1:]) if self.on_arrays else whole.split(self.sizes)

    def _spread(self, values: Sequence[Any]) -> Any:
        """Lay one number a tensor out weight by weight."""
        numbers = [torch.as_tensor(value, dtype=self.compute, device=self.device) for value in values]
        parts = [number.expand(n) for number, n in zip(numbers, self.sizes, strict=True)]
        vector = torch.cat(parts)
        return vector.numpy() if self.on_arrays else vector

    def _decayed(self, decays: Sequence[float], move: BoundRule) -> list[Any]:
        """Give each piece its weight decay: one number where all agree, else one a weight."""
        if self._decays[0] != decays:
            if len(set(decays)) == 1:
                one = decays[0] if decays[0] or not move.work.couples else None
                values: list[Any] = [one] * len(self.pieces)
            else:
                whole = self._spread(decays)
                values = [whole[place] for place in self.places]
            self._decays = (list(decays), values)
        return self._decays[1]

    def _moves(self, before: Tensor) -> tuple[Sequence[Any], Sequence[Any]]:
        moved = self.flats[0] - before
        if self.on_arrays:
            return self._norms(before.numpy(), ()), self._norms(moved.numpy(), ())
        return _tensor_norms(before.split(self.sizes)), _tensor_norms(moved.split(self.sizes))

    def _norms(self, array: Any, tensors: Sequence[Tensor]) -> Sequence[float] | Sequence[Tensor]:
        if not self.on_arrays:
            return _tensor_norms([real(t) for t in tensors])
        if self._spare is None:
            self._spare = np.empty_like(array)
        return np.sqrt(np.add.reduceat(np.multiply(array, array, out=self._spare), self.starts)).tolist()

    def _shaped(self, flat: Tensor) -> list[Tensor]:
        """See a flat stretch of reals in the shapes (and complexness) of the parameters."""
        parts = zip(flat.split(self.sizes), self.parameters, strict=True)
        return [
            torch.view_as_complex(part.view(*p.shape, 2)) if p.is_complex() else part.view(p.shape) for part, p in parts
        ]


def _copy(to: list[Tensor], of: list[Tensor]) -> None:
    torch._foreach_copy_(to, of)  # pyright: ignore[reportPrivateImportUsage]


def _tensor_norms(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    return torch._foreach_norm(list(tensors), dtype=wide(tensors[0]))  # pyright: ignore[reportPrivateImportUsage]
