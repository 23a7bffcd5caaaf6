"""The fused CPU engine: one compiled loop over weights, state and average, where the tensor engine runs a dozen operations."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from thalweg.optim.engines import kernels
from thalweg.optim.engines.fused import KERNEL_DTYPES, FusedBlock, is_fusible
from thalweg.optim.engines.interface import GroupStep
from thalweg.optim.engines.tensors import AnyBlock, TensorEngine
from thalweg.rules.rule import Rule


class CpuEngine(TensorEngine):
    """Puts parameters that are dense in the CPU's memory into fused blocks; all others into the tensor engine's blocks."""

    def prepare(self, group: GroupStep, *, clips: bool, ema: bool) -> None:
        """Load or compile the kernels in another thread, while the first batch is being prepared."""
        rest = group.rule.rest
        if rest is not None:
            vectors = [p for p in group.parameters if p.ndim < 2]
            group = replace(group, rule=rest, constants=rest.constants, parameters=vectors)
        if group.rule.is_matrix:
            return
        for dtype in {KERNEL_DTYPES[p.dtype] for p in group.parameters if is_fusible(p)}:
            variants = [kernels.Variant(dtype, "update", clips, ema, group.cautious)]
            variants += [kernels.Variant(dtype, "aligned", clips)] if group.cautious else []
            variants += [kernels.Variant(dtype, "sums", clips)] if group.rule.sums else []
            kernels.prepare(group.rule, group.constants, variants)

    def _block_type(self, parameter: Tensor, rule: Rule) -> type[AnyBlock]:
        return FusedBlock if is_fusible(parameter) and not rule.is_matrix else super()._block_type(parameter, rule)
