"""The fused CPU engine: one compiled sweep over weights, state and average, where the tensor engine takes a dozen."""

from __future__ import annotations

from torch import Tensor

from thalweg.optim.engines.flat import Flat
from thalweg.optim.engines.fused import Fused, is_fusible
from thalweg.optim.engines.large import Large
from thalweg.optim.engines.tensors import TensorEngine


class CpuEngine(TensorEngine):
    """Sweeps over what lies densely in the CPU's memory; anything else is left to the tensor engine's blocks."""

    def _kind(self, parameter: Tensor) -> type[Flat | Large | Fused]:
        return Fused if is_fusible(parameter) else super()._kind(parameter)
