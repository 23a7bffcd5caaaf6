"""A tensor that stands for memory elsewhere: sharded over processes (`DTensor`), wrapped, or of a type nobody here knows.

Its operations are its own, so the equation runs on it as a whole and nothing reads its address; a norm or a sum over a sharded
tensor is that of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from thalweg.optim.engines.arithmetic import joined, real
from thalweg.optim.engines.blocks import PerTensorNorms
from thalweg.optim.engines.bound_rule import BoundRule, kept_share
from thalweg.optim.engines.chunked import ChunkedBlock


class ShardedBlock(ChunkedBlock):
    """The block of one such tensor."""

    def look(self, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """Remember the gradient, and give its Euclidean norm."""
        return [*map(joined, super().look(gradients))]

    def clipped_norms(self, clip_value: float) -> Sequence[Tensor]:
        """Give the norm of the gradient as clipping its entries would leave it."""
        return [*map(joined, super().clipped_norms(clip_value))]

    def totals(self, move: BoundRule, decays: Sequence[float]) -> list[Any]:
        """Give what the rule adds up over all weights."""
        return [*map(joined, super().totals(move, decays))]

    def update(self, move: BoundRule, decays: Sequence[float]) -> PerTensorNorms | None:
        """Update the weights; gives norms of weights and update, and the ratio, where they are to be recorded."""
        figures = super().update(move, decays)
        if figures is None:
            return None
        weights, updates, ratios = ([*map(joined, figure)] for figure in figures)
        return weights, updates, ratios

    def _kept(self, move: BoundRule, decay: Any) -> Any:
        seen = joined(
            move.aligned(decay, *self._computed(self._pieces()[0])[: 2 + self.carried]).sum(dtype=self.compute)
        )
        return kept_share(seen if self.is_away else float(seen), self.parameters[0].numel())

    def _pieces(self) -> list[tuple[Tensor, ...]]:
        assert self.gradient is not None
        return [(real(self.parameters[0].detach()), self.gradient, *self.flats)]

    def _lent(self, tensors: Sequence[Tensor]) -> Sequence[Any]:
        return tensors
