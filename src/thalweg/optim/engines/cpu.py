"""The fused CPU engine: one compiled sweep over weights, state and average, where the tensor engine takes a dozen."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from thalweg.optim.engines import kernels
from thalweg.optim.engines.fused import KINDS, FusedBlock, is_fusible
from thalweg.optim.engines.interface import GroupStep
from thalweg.optim.engines.tensors import AnyBlock, TensorEngine
from thalweg.rules.rule import Rule


class CpuEngine(TensorEngine):
    """Sweeps over what lies densely in the CPU's memory; anything else is left to the tensor engine's blocks."""

    def prepare(self, work: GroupStep, *, clips: bool, ema: bool) -> None:
        """Let another thread fetch or compile the kernels, while the first batch is still on its way."""
        rest = work.rule.rest
        if rest is not None:
            vectors = [p for p in work.parameters if p.ndim < 2]
            work = replace(work, rule=rest, constants=rest.constants, parameters=vectors)
        if work.rule.is_matrix:
            return
        for kind in {KINDS[p.dtype] for p in work.parameters if is_fusible(p)}:
            forms = [kernels.Form(kind, "move", clips, ema, work.cautious)]
            forms += [kernels.Form(kind, "aligned", clips)] if work.cautious else []
            forms += [kernels.Form(kind, "sums", clips)] if work.rule.sums else []
            kernels.prepare(work.rule, work.constants, forms)

    def _kind(self, parameter: Tensor, rule: Rule) -> type[AnyBlock]:
        return FusedBlock if is_fusible(parameter) and not rule.is_matrix else super()._kind(parameter, rule)
