"""The fused block: weights of any size on the CPU, moved in place by a compiled kernel, in one sweep over memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from thalweg.optim.engines import kernels
from thalweg.optim.engines.arithmetic import Array, real
from thalweg.optim.engines.blocks import Block, Figures, start
from thalweg.optim.engines.crew import share
from thalweg.optim.engines.move import Move, floor, kept_share
from thalweg.optim.engines.work import StateOf, Work
from thalweg.rules.rule import State

SPAN = 1 << 14
"""Weights a span: half a dozen arrays of it lie in the second-level cache, and its sums need no more than float32."""

KINDS = {torch.float32: "float32", torch.float64: "float64", torch.complex64: "float32", torch.complex128: "float64"}


def is_fusible(parameter: Tensor) -> bool:
    """Whether a parameter's memory can be swept from end to end: on the CPU, of a fitting dtype, without holes."""
    there = parameter.device.type == "cpu" and parameter.dtype in KINDS
    return there and parameter.numel() > 0 and _is_dense(parameter)


class Fused(Block):
    """The block of tensors of one dtype that lie without holes in the CPU's memory."""

    def __init__(self, parameters: Sequence[Tensor], states: Sequence[State], work: Work) -> None:
        super().__init__(parameters, states, work)
        self.kind = KINDS[self.dtype]
        self.strides = [p.stride() for p in parameters]
        self.sizes = sizes = [real(p.detach()).numel() for p in parameters]
        spans = [(i, low, min(low + SPAN, size)) for i, size in enumerate(sizes) for low in range(0, size, SPAN)]
        self.tensor, self.start, self.stop = (np.ascontiguousarray(part) for part in np.array(spans, np.int64).T)
        self.firsts = np.searchsorted(self.tensor, np.arange(len(sizes)))
        self.weights, self.spans = sum(sizes), len(spans)
        self.sums = np.zeros((self.spans, kernels.totals(work.rule)))
        # By their ids, the state tensors of the blocks that this one takes the place of.
        self.lent: dict[int, Tensor] = {}
        self.at_states: list[Array] = []
        self.at_gradients = np.zeros(len(sizes), np.int64)
        self.gradients: Sequence[Tensor] = ()
        self.rows = np.zeros(len(sizes), np.int64)
        self._decays: Sequence[float] = ()
        self._different: Sequence[float] = ()

    def fits(self, state: StateOf) -> bool:
        """Tell whether parameters and state are still those that the block was made for, and lie as they did."""
        return super().fits(state) and [*map(Tensor.stride, self.parameters)] == self.strides

    def own(self, state: StateOf) -> None:
        """Take over what state there is: the very tensors of an earlier block of this engine, a copy of anybody else's."""
        if self.owned:
            return
        for described in self.states:
            kept: list[Tensor] = []
            for p in self.parameters:
                entry = state.setdefault(p, {})
                found = entry.get(described.key)
                if isinstance(found, Tensor) and self.lent.get(id(found)) is found and _lies_as(found, p):
                    mine = found
                else:
                    start(mine := torch.empty_like(p), found, self.begin[described.key], p)
                entry[described.key] = mine
                kept.append(mine)
            self.hold(described.key, kept)
            self.at_states.append(_addresses(kept))
        self.lent = {}
        super().own(state)

    def look(self, gradients: Sequence[Tensor]) -> Sequence[float]:
        """Take in where the gradients lie, and give each one's Euclidean norm."""
        self._point(gradients)
        return self._norms(0, np.inf)

    def clipped_norms(self, clip_value: float) -> Sequence[float]:
        """Give the norms of the gradients as clipping their entries would leave them."""
        return self._norms(1, clip_value)

    def totals(self, move: Move, decays: Sequence[float]) -> list[float]:
        """Give what the rule adds up over all weights."""
        assert move.work.rule.sums is not None
        self._sweep(kernels.Form(self.kind, "sums", move.clip_value is not None), move, self._table(move, decays))
        return self.sums.sum(0).tolist()

    def update(self, move: Move, decays: Sequence[float]) -> Figures | None:
        """Move weights, state and average by the gradients that `look` was shown."""
        clips, cautious = move.clip_value is not None, move.work.cautious
        table = self._table(move, decays)
        if cautious:
            self._sweep(kernels.Form(self.kind, "aligned", clips), move, table)
            aligned = np.add.reduceat(self.sums[:, 0], self.firsts).tolist()
            table[:, kernels.LEADING.index("kept")] = list(map(kept_share, aligned, self.sizes))
        self._sweep(kernels.Form(self.kind, "move", clips, self.averages, cautious), move, table)
        self.gradients = ()
        torch.autograd.graph.increment_version(self.parameters)
        if not move.record:
            return None
        ratios = [math.nan for _ in self.sizes]
        if move.work.rule.second_moment is not None:
            ratios = [root / math.sqrt(size) for root, size in zip(self._roots(2), self.sizes, strict=True)]
        return self._roots(0), self._roots(1), ratios

    def _sweep(self, form: kernels.Form, move: Move, table: Array) -> None:
        kernel = kernels.of(move.work.rule, move.work.constants, form)
        states = self.at_states if form.averages or not self.averages else self.at_states[:-1]
        addresses = (_addresses(self.parameters), self.at_gradients, *states)
        share(
            kernel,
            self.spans,
            self.weights,
            self.tensor,
            self.start,
            self.stop,
            self.rows,
            table,
            *addresses,
            self.sums,
        )

    def _point(self, gradients: Sequence[Tensor]) -> None:
        """Take the gradients' addresses, which change every step; one of another dtype or layout is copied."""
        kept = list(gradients)
        for i, (g, p, strides) in enumerate(zip(gradients, self.parameters, self.strides, strict=True)):
            if g.dtype is not p.dtype or g.stride() != strides or g.is_conj() or g.is_neg():
                kept[i] = torch.empty_like(p).copy_(g)
        self.gradients = kept  # nobody may free them before the sweep
        self.at_gradients[:] = [g.data_ptr() for g in kept]

    def _norms(self, column: int, limit: float) -> Sequence[float]:
        spans = (self.tensor, self.start, self.stop)
        share(kernels.look(self.kind), self.spans, self.weights, *spans, self.at_gradients, limit, self.sums)
        return self._roots(column)

    def _roots(self, column: int) -> Sequence[float]:
        """Add the spans' sums of squares tensor by tensor, and give the roots."""
        sums = self.sums[:, column]
        if self.spans > len(self.firsts):
            sums = np.add.reduceat(sums, self.firsts)
        return np.sqrt(sums).tolist()

    def _table(self, move: Move, decays: Sequence[float]) -> Array:
        """Give the numbers of this step, a row for each weight decay; `rows` says which is a tensor's."""
        work = move.work
        if decays != self._decays:
            self._decays = list(decays)
            # A cautious step has a number of its own for each tensor.
            self._different = list(decays) if work.cautious else list(dict.fromkeys(decays))
            self.rows[:] = range(len(decays)) if work.cautious else [self._different.index(d) for d in decays]
        leading = (
            -move.scale if work.maximize else move.scale,
            np.inf if move.clip_value is None else move.clip_value,
            1.0 if move.share is None else move.share,
            1.0,
        )
        numbers = {"floor": floor(move.numbers), **move.numbers}
        names = kernels.numbers(work.rule)[1:]
        rest = [float(numbers.get(name, 0.0)) for name in names]
        return np.array([[*leading, decay, *rest] for decay in self._different])


def _lies_as(one: Tensor, other: Tensor) -> bool:
    return one.dtype is other.dtype and one.shape == other.shape and one.stride() == other.stride()


def _addresses(tensors: Sequence[Tensor]) -> Array:
    return np.array([t.data_ptr() for t in tensors], np.int64)


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
