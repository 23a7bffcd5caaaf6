"""A tensor subclass: sharded over processes (`DTensor`), a wrapper, or any other.

Its numbers may not lie in its own storage, so the equation runs on it through the subclass's own operations, all at once, and
nothing reads its address. Norms and sums of a sharded tensor are those of the full one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from thalweg.optim.engines.arithmetic import as_real, full_tensor
from thalweg.optim.engines.blocks import PerTensorNorms
from thalweg.optim.engines.bound_rule import BoundRule, cautious_scale_for
from thalweg.optim.engines.chunked import ChunkedBlock


class ShardedBlock(ChunkedBlock):
    """The block of one tensor of a subclass."""

    def read_gradients(self, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """Keep the gradient for `update`, and give its Euclidean norm."""
        return [*map(full_tensor, super().read_gradients(gradients))]

    def clipped_norms(self, clip_value: float) -> Sequence[Tensor]:
        """Give the norm of the gradient as clipping its entries would leave it."""
        return [*map(full_tensor, super().clipped_norms(clip_value))]

    def rule_sums(self, bound: BoundRule, decays: Sequence[float]) -> list[Any]:
        """Give the rule's sums over all weights of the block."""
        return [*map(full_tensor, super().rule_sums(bound, decays))]

    def update(self, bound: BoundRule, decays: Sequence[float]) -> PerTensorNorms | None:
        """Update the weights; gives norms of weights and update, and the ratio, where they are to be recorded."""
        norms = super().update(bound, decays)
        if norms is None:
            return None
        weights, updates, ratios = ([*map(full_tensor, one)] for one in norms)
        return weights, updates, ratios

    def _cautious_scale(self, bound: BoundRule, decay: Any) -> Any:
        operands = self._operands(self._chunks()[0])[: 2 + self.num_rule_states]
        aligned = full_tensor(bound.aligned(decay, *operands).sum(dtype=self.compute_dtype))
        return cautious_scale_for(aligned if self.is_device_resident else float(aligned), self.parameters[0].numel())

    def _chunks(self) -> list[tuple[Tensor, ...]]:
        assert self.gradient is not None
        return [(as_real(self.parameters[0].detach()), self.gradient, *self.state_tensors)]

    def _with_workspace(self, tensors: Sequence[Tensor]) -> Sequence[Any]:
        return tensors
