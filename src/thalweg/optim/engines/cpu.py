"""The fused CPU engine: one compiled sweep over weights, state and average, where the tensor engine takes a dozen."""

from __future__ import annotations

from torch import Tensor

from thalweg.optim.engines.fused import Fused, is_fusible
from thalweg.optim.engines.tensors import AnyBlock, TensorEngine
from thalweg.rules.rule import Rule


class CpuEngine(TensorEngine):
    """Sweeps over what lies densely in the CPU's memory; anything else is left to the tensor engine's blocks."""

    def _kind(self, parameter: Tensor, rule: Rule) -> type[AnyBlock]:
        return Fused if is_fusible(parameter) and not rule.is_matrix else super()._kind(parameter, rule)
