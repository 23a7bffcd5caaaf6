"""The fused block: weights of any size on the CPU, moved in place by a compiled kernel, in one sweep over memory."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, repeat
from operator import attrgetter
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from thalweg.optim.engines import kernels
from thalweg.optim.engines.arithmetic import Array, real
from thalweg.optim.engines.blocks import FACE, Block, PerTensorNorms, has_begun, start
from thalweg.optim.engines.bound_rule import BoundRule, floor, kept_share
from thalweg.optim.engines.interface import GroupStep, StateOf
from thalweg.optim.engines.metadata_guards import MetadataGuard
from thalweg.optim.engines.thread_pool import run
from thalweg.optim.engines.validate import PLAIN, has_memory, look_over
from thalweg.rules.rule import State

SPAN = 1 << 16
"""Weights a span. Two threads took 7.4 ms for 11 M weights with a quarter of it, which has the processor begin anew with half a
dozen streams too often, 6.2 with this, 6.0 with four times as many, too few to share out well; its sums need but float32."""

SMALL = 1 << 15
"""Weights below which tensors keep their state side by side, so that one address tells where all of it lies."""

FEW = 32
"""Spans up to which Python's own arithmetic on their sums is quicker than NumPy's."""

KINDS = {torch.float32: "float32", torch.float64: "float64", torch.complex64: "float32", torch.complex128: "float64"}

Frame = tuple[kernels.Kernel, Any, int]
"""A kernel, the cells of what it reads, and their address."""

_ADDRESS = Tensor.data_ptr
_count_change = getattr(torch._C, "_increment_version", torch.autograd.graph.increment_version)
_BYTES = attrgetter("nbytes")
_DTYPE = attrgetter("dtype")
_ZEROS = repeat(0.0)


def is_fusible(parameter: Tensor) -> bool:
    """Whether a parameter's memory can be swept from end to end: on the CPU, of a fitting dtype, without holes."""
    there = parameter.device.type == "cpu" and parameter.dtype in KINDS and type(parameter) in PLAIN
    return there and parameter.numel() > 0 and _is_dense(parameter)


class FusedBlock(Block):
    """The block of tensors of one dtype that lie without holes in the CPU's memory."""

    def __init__(self, parameters: Sequence[Tensor], states: Sequence[State], work: GroupStep) -> None:
        super().__init__(parameters, states, work)
        self.kind = KINDS[self.dtype]
        self.seen = MetadataGuard(parameters)
        self.seen_gradients: MetadataGuard | None = None
        self.strides = [p.stride() for p in parameters]
        self.is_contiguous = all(map(Tensor.is_contiguous, parameters))
        self.bytes = [p.nbytes for p in parameters]
        self.sizes = [real(p.detach()).numel() for p in parameters]
        spans = [(i, low, min(low + SPAN, size)) for i, size in enumerate(self.sizes) for low in range(0, size, SPAN)]
        self.cut = [np.ascontiguousarray(part) for part in np.array(spans, np.int64).T]
        self.firsts = np.searchsorted(self.cut[0], np.arange(len(parameters)))
        self.weights, self.spans = sum(self.sizes), len(spans)
        self.sums = np.zeros((kernels.totals(work.rule), self.spans))
        self.sum_cells = _cells(self.sums, ctypes.c_double)
        self.rows = np.zeros(len(parameters), np.int64)
        self.limit = np.full(1, np.inf)
        self.names = kernels.numbers(work.rule)[1:]
        self.table = np.zeros((len(parameters), len(kernels.LEADING) + 1 + len(self.names)))
        self.cells = _cells(self.table, ctypes.c_double)
        self.addresses = [p.data_ptr() for p in parameters]
        self.at_weights = np.array(self.addresses, np.int64)
        self.at_gradients = np.zeros(len(parameters), np.int64)
        self.gradient_cells = _cells(self.at_gradients, ctypes.c_int64)
        self.frames: dict[tuple[str, bool, bool], Frame] = {}
        self.looking = self._frame(kernels.look(self.kind), self.limit, [self.at_gradients])
        self.cutting: Frame | None = None
        self.constants: Mapping[str, Any] = work.constants
        # Where the tensors of state lie, those of one key after those of another; and what lies still while they do.
        self.kept: list[Tensor] = []
        self.at_states = np.zeros(0, np.int64)
        self.grounds: list[Tensor] = []
        self.lying: list[int] = []
        self.single = [i for i, size in enumerate(self.sizes) if size == 1 or self.dtype.is_complex]
        # By their ids, the state tensors of the blocks that this one takes the place of.
        self.lent: dict[int, Tensor] = {}
        self.gradients: Sequence[Tensor] = ()
        self._decays: Sequence[float] = ()
        self._different: Sequence[float] = ()
        self._cautious = False

    def fits(self, state: StateOf, same: bool = False) -> bool:
        """Tell whether parameters and state are still those that the block was made for, and lie as they did."""
        if not self.seen.are_of(self.parameters):
            if [*map(FACE, self.parameters)] != self.faces or not self._lies_well(self.parameters):
                return False
            if any(p.is_conj() or p.is_neg() for p in self.parameters):
                return False
            self.seen = MetadataGuard(self.parameters)
        addresses = [*map(_ADDRESS, self.parameters)]
        if addresses != self.addresses:
            if [*map(FACE, self.parameters)] != self.faces or not all(map(has_memory, self.parameters)):
                return False
            self.addresses = addresses
            self.at_weights[:] = addresses
        if not self.owned:
            return True
        if [*map(_ADDRESS, self.grounds)] != self.lying:
            owners = self.parameters * len(self.states)
            if not all(map(_lies_as, self.kept, owners)) or not all(map(has_memory, self.kept)):
                return False
            self._locate()
        return self.has_its_state(state, same)

    def own(self, state: StateOf) -> None:
        """Take over what state there is: the very tensors of an earlier block of this engine, a copy of anybody else's."""
        if self.owned:
            return
        begun = has_begun(state.get(self.parameters[0], {}), self.states)
        for described in self.states:
            entries = [state.setdefault(p, {}) for p in self.parameters]
            kept = [self._is_lent(e.get(described.key), p) for e, p in zip(entries, self.parameters, strict=True)]
            self.grounds += [tensor for tensor in kept if tensor is not None]
            small = [p for p, mine in zip(self.parameters, kept, strict=True) if mine is None and p.numel() < SMALL]
            if small:
                self.grounds.append(torch.empty(sum(map(Tensor.numel, small)), dtype=self.dtype, device=self.device))
            places = iter(_laid_out(self.grounds[-1], small) if small else [])
            for i, (entry, p) in enumerate(zip(entries, self.parameters, strict=True)):
                mine = kept[i]
                if mine is None and p.numel() < SMALL:
                    mine = next(places)
                elif mine is None:
                    self.grounds.append(mine := torch.empty_like(p))
                start(mine, entry.get(described.key), self.begin[described.key], p)
                kept[i] = entry[described.key] = mine
            self.hold(described.key, cast("list[Tensor]", kept))
            self.kept += cast("list[Tensor]", kept)
        self.lent = {}
        self.at_states = np.zeros(len(self.kept), np.int64)
        self._locate()
        super().own(state)
        self.begun = begun

    def _is_lent(self, found: Any, parameter: Tensor) -> Tensor | None:
        """Give a tensor of state back where an earlier block of this engine worked on it and it fits; else None."""
        mine = isinstance(found, Tensor) and self.lent.get(id(found)) is found and _lies_as(found, parameter)
        return found if mine else None

    def _locate(self) -> None:
        """Take in where the state lies."""
        self.lying = [*map(_ADDRESS, self.grounds)]
        self.at_states[:] = [*map(_ADDRESS, self.kept)]

    def look(self, gradients: Sequence[Tensor]) -> Sequence[float]:
        """Take in where the gradients lie, and give each one's Euclidean norm."""
        if not self.reads_in_place(gradients):
            gradients = self._take_in(gradients)
        self.gradients = gradients  # nobody may free them before the sweep
        addresses = [*map(_ADDRESS, gradients)]
        if 0 in addresses:
            look_over(self.parameters, gradients)
        return self.norms_at(addresses)

    def norms_at(self, addresses: Sequence[int]) -> Sequence[float]:
        """Give the norms of gradients that lie at these addresses, as the parameters do."""
        self.gradient_cells[:] = addresses
        self._run(self.looking)
        return self._roots(0)

    def lies_still(self) -> bool:
        """Tell whether the state lies where it lay, and all parameters are equally far on."""
        return [*map(_ADDRESS, self.grounds)] == self.lying and self._counted()

    def _take_in(self, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """Give gradients that lie as their parameters do, copied where they do not; remember how those look that do."""
        # Of reals, only a lone number can lie as its parameter does and have its sign in a flag (`imag` of a conjugate).
        if not self._lies_well(gradients) or any(gradients[i].is_neg() or gradients[i].is_conj() for i in self.single):
            look_over(self.parameters, gradients)
            return [*map(_like, gradients, self.parameters)]
        self.seen_gradients = MetadataGuard(gradients)
        return gradients

    def reads_in_place(self, gradients: Sequence[Tensor]) -> bool:
        """Tell whether gradients lie as the parameters do, so that none need be copied."""
        return self.seen_gradients is not None and self.seen_gradients.are_of(gradients)

    def clipped_norms(self, clip_value: float) -> Sequence[float]:
        """Give the norms of the gradients as clipping their entries would leave them."""
        self.limit[0] = clip_value
        if self.cutting is None:
            self.cutting = self._frame(kernels.look(self.kind, clips=True), self.limit, [self.at_gradients])
        self._run(self.cutting)
        return self._roots(0)

    def totals(self, move: BoundRule, decays: Sequence[float]) -> list[float]:
        """Give what the rule adds up over all weights."""
        self._fill(move, decays)
        self._sweep("sums", move)
        return self.sums[: kernels.summands(self.rule)].sum(1).tolist()

    def update(self, move: BoundRule, decays: Sequence[float]) -> PerTensorNorms | None:
        """Update weights, state and average by the gradients that `look` was shown."""
        self._fill(move, decays)
        if move.work.cautious:
            self._sweep("aligned", move)
            aligned = np.add.reduceat(self.sums[0], self.firsts).tolist()
            self.table[:, kernels.LEADING.index("kept_")] = list(map(kept_share, aligned, self.sizes))
        self._sweep("move", move)
        _count_change(self.parameters)
        if not move.record:
            return None
        ratios = [math.nan for _ in self.sizes]
        if move.work.rule.second_moment is not None:
            ratios = [root / math.sqrt(size) for root, size in zip(self._roots(2), self.sizes, strict=True)]
        return self._roots(0), self._roots(1), ratios

    def let_go(self) -> None:
        """Keep nothing of the step's gradients."""
        self.gradients = ()

    def _lies_well(self, tensors: Sequence[Tensor]) -> bool:
        """Tell whether tensors lie as the block's parameters did when it was made: as many numbers of one kind, in one order."""
        return (
            [*map(_BYTES, tensors)] == self.bytes
            and [*map(_DTYPE, tensors)].count(self.dtype)
            == len(tensors)  # `grad_dtype` lets int32 stand beside float32
            and (
                all(map(Tensor.is_contiguous, tensors))
                if self.is_contiguous
                else [*map(Tensor.stride, tensors)] == self.strides
            )
        )

    def _roots(self, column: int) -> Sequence[float]:
        """Add the spans' sums of squares tensor by tensor, and give the roots."""
        if self.spans <= FEW and self.spans == len(self.firsts):
            return [*map(math.sqrt, self.sum_cells[column * self.spans : (column + 1) * self.spans])]
        return np.sqrt(np.add.reduceat(self.sums[column], self.firsts)).tolist()

    def _fill(self, move: BoundRule, decays: Sequence[float]) -> None:
        """Write this step's numbers into the table: a row for each weight decay, or each tensor's where steps are cautious."""
        work, numbers = move.work, move.numbers
        if decays != self._decays or work.cautious is not self._cautious:
            self._decays, self._cautious = list(decays), work.cautious
            self._different = self._decays if work.cautious else list(dict.fromkeys(decays))
            self.rows[:] = range(len(decays)) if work.cautious else [self._different.index(d) for d in decays]
        leading = (
            -move.scale if work.maximize else move.scale,
            math.inf if move.clip_value is None else move.clip_value,
            1.0 if move.share is None else move.share,
            1.0,
            floor(numbers),
        )
        rest = [*map(numbers.get, self.names, _ZEROS)]
        width, at = self.table.shape[1], 0
        for decay in self._different:
            self.cells[at : at + width] = [*leading, decay, *rest]
            at += width

    def _sweep(self, purpose: str, move: BoundRule) -> None:
        work, clips = move.work, move.clip_value is not None
        if work.constants is not self.constants and work.constants != self.constants:  # one of them may be a switch
            self.constants, self.frames = work.constants, {}
        key = purpose, clips, work.cautious
        if key not in self.frames:
            moves = purpose == "move"
            form = kernels.Form(self.kind, purpose, clips, moves and self.averages, moves and work.cautious)
            states = self.at_states.reshape(len(self.states), len(self.parameters))
            arrays = [self.at_gradients, self.at_weights, *states[: None if form.averages else self.carried]]
            self.frames[key] = self._frame(kernels.of(work.rule, work.constants, form), self.table, arrays)
        self._run(self.frames[key])

    def _frame(self, kernel: kernels.Kernel, table: Array, arrays: Sequence[Array]) -> Frame:
        """Lay out what a kernel reads, as `kernels.FIELDS` has it; all of it stays where it is as long as the block lives."""
        parts = [*self.cut, self.sums, self.rows, table, *arrays]
        frame = np.array([0, self.spans, *(part.ctypes.data for part in parts)], np.int64)
        return kernel, _cells(frame, ctypes.c_int64), frame.ctypes.data

    def _run(self, one: Frame) -> None:
        kernel, cells, address = one
        cells[0] = 0
        run(kernel, address, self.spans, self.weights)


def _like(gradient: Tensor, parameter: Tensor) -> Tensor:
    """Give a gradient in its parameter's dtype and layout, copied where it is not so already."""
    alike = gradient.dtype is parameter.dtype and gradient.stride() == parameter.stride()
    if alike and not gradient.is_conj() and not gradient.is_neg():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def _cells(array: Array, kind: type[Any]) -> Any:
    """See an array as cells: a list goes in or out in a third of NumPy's time, and less where the caches are cold."""
    cells: Any = kind
    return (cells * array.size).from_buffer(array)


def _laid_out(ground: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """See stretches of memory in the shapes and layouts of parameters."""
    starts = accumulate((p.numel() for p in parameters), initial=0)
    return [ground.as_strided(p.shape, p.stride(), at) for p, at in zip(parameters, starts, strict=False)]


def _lies_as(one: Tensor, other: Tensor) -> bool:
    return one.dtype is other.dtype and one.shape == other.shape and one.stride() == other.stride()


def _is_dense(tensor: Tensor) -> bool:
    """Whether a tensor's elements fill a stretch of memory, each once, in whatever order.

    >>> _is_dense(torch.zeros(3, 4).t()), _is_dense(torch.zeros(3, 4)[:, :2]), _is_dense(torch.zeros(1).expand(3))
    (True, False, False)
    """
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True
