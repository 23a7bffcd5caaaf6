"""The fused block: parameters on the CPU, updated in place by a compiled kernel, in one pass over memory."""

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
from thalweg.optim.engines.arithmetic import Array, as_real
from thalweg.optim.engines.blocks import METADATA, Block, PerTensorNorms, fill_state, has_rule_state
from thalweg.optim.engines.bound_rule import BoundRule, cautious_scale_for, second_moment_floor
from thalweg.optim.engines.interface import GroupStep, StateOf
from thalweg.optim.engines.metadata_guards import STORAGE, STORAGE_BYTES, MetadataGuard
from thalweg.optim.engines.thread_pool import run
from thalweg.optim.engines.validate import OWN_MEMORY, are_apart, has_memory
from thalweg.rules.rule import State

CHUNK = 1 << 16
"""Weights per chunk, the unit that threads share (see `kernels.ARGUMENTS`). Two threads took 7.4 ms for 11 M weights with a
quarter of it, where prefetching starts anew too often, 6.2 with this, and 6.0 with four times as many, too few to share evenly.
The sums of one chunk are still exact enough in float32."""

SMALL = 1 << 15
"""Tensors of fewer weights share one allocation for their state, whose one address tells whether any of it has moved."""

FEW_CHUNKS = 32
"""Up to so many chunks, plain Python adds their sums faster than NumPy."""

KERNEL_DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.complex64: "float32",
    torch.complex128: "float64",
}

Launch = tuple[kernels.Kernel, Any, int]
"""A kernel with its arguments (`kernels.ARGUMENTS`) as a ctypes array, and the address of that."""

_ADDRESS = Tensor.data_ptr
# Kernels write behind autograd's back. Without a new version, a backward pass that saved the weights before the step would
# silently use the new ones. The private function is the public one without its Python wrapper.
_increment_versions = getattr(torch._C, "_increment_version", torch.autograd.graph.increment_version)
_BYTES = attrgetter("nbytes")
_DTYPE = attrgetter("dtype")
_ZEROS = repeat(0.0)


def is_fusible(parameter: Tensor) -> bool:
    """Whether a kernel can update a parameter: on the CPU, of a fitting dtype, and dense in memory, in whatever order."""
    suits = parameter.device.type == "cpu" and parameter.dtype in KERNEL_DTYPES and type(parameter) in OWN_MEMORY
    return suits and parameter.numel() > 0 and _is_dense(parameter)


class FusedBlock(Block):
    """The block of dense tensors of one dtype on the CPU."""

    def __init__(self, parameters: Sequence[Tensor], states: Sequence[State], group: GroupStep) -> None:
        super().__init__(parameters, states, group)
        self.kernel_dtype = KERNEL_DTYPES[self.dtype]
        self.parameter_guard = MetadataGuard(parameters)
        self.gradient_guard: MetadataGuard | None = None  # of gradients that kernels can read as they are
        self.strides = [p.stride() for p in parameters]
        self.is_contiguous = all(map(Tensor.is_contiguous, parameters))
        self.bytes = [p.nbytes for p in parameters]
        self.sizes = [as_real(p.detach()).numel() for p in parameters]
        # The chunks (tensor, start and stop of each), the first one of each tensor, and the sums of each.
        chunks = [
            (i, low, min(low + CHUNK, size)) for i, size in enumerate(self.sizes) for low in range(0, size, CHUNK)
        ]
        self.chunk_arrays = [np.ascontiguousarray(part) for part in np.array(chunks, np.int64).T]
        self.first_chunks = np.searchsorted(self.chunk_arrays[0], np.arange(len(parameters)))
        self.num_weights, self.num_chunks = sum(self.sizes), len(chunks)
        self.sums = np.zeros((kernels.num_sums(group.rule), self.num_chunks))
        self.sums_cells = _as_ctypes(self.sums, ctypes.c_double)
        # The table of this step's numbers, and the row of each tensor in it (`kernels.ENGINE_NUMBERS`).
        self.rows = np.zeros(len(parameters), np.int64)
        self.names = kernels.number_names(group.rule)[1:]
        self.table = np.zeros((len(parameters), len(kernels.ENGINE_NUMBERS) + 1 + len(self.names)))
        self.table_cells = _as_ctypes(self.table, ctypes.c_double)
        # A table of one number, for the norms of clipped gradients. `rows` point into it too, so it has as many rows as they may.
        self.clip_limits = np.full(len(parameters), np.inf)
        self.addresses = [p.data_ptr() for p in parameters]
        self.weight_addresses = np.array(self.addresses, np.int64)
        self.gradient_addresses = np.zeros(len(parameters), np.int64)
        self.gradient_address_cells = _as_ctypes(self.gradient_addresses, ctypes.c_int64)
        self.gradients_at: Sequence[int] = ()  # the same addresses
        self.launches: dict[tuple[str, bool, bool], Launch] = {}
        norms_kernel = kernels.gradient_norms(self.kernel_dtype)
        self.norms_launch = self._launch(norms_kernel, self.clip_limits, [self.gradient_addresses])
        self.clipped_norms_launch: Launch | None = None
        self.constants: Mapping[str, Any] = group.constants
        # The tensors of state, those of one key after those of another, and their addresses; the allocations that they lie in,
        # and the addresses of these: while they are where they were, so is all state.
        self.state_tensors: list[Tensor] = []
        self.state_addresses = np.zeros(0, np.int64)
        self.allocations: list[Tensor] = []
        self.state_at: list[int] = []
        self.allocation_bytes: list[int] = []
        # The step counts and the numbers that the rule carries, which tensors in the state show.
        self.number_tensors: list[Tensor] = []
        self.numbers_at: list[int] = []
        # The state tensors, by id, of the engine's earlier blocks: this one takes them over instead of copying them.
        self.reusable: dict[int, Tensor] = {}
        self.gradients: Sequence[Tensor] = ()
        self._decays: Sequence[float] = ()
        self._distinct_decays: Sequence[float] = ()
        self._rows: Sequence[int] = ()
        self._cautious = False

    def fits(self, state: StateOf, same_entries: bool = False) -> bool:
        """Tell whether parameters and state are those that the block was made for; where their memory has moved, follow it."""
        if not self.parameter_guard.matches(self.parameters):
            if [*map(METADATA, self.parameters)] != self.metadata or not self._have_same_layout(self.parameters):
                return False
            if any(p.is_conj() or p.is_neg() for p in self.parameters):
                return False
            self.parameter_guard = MetadataGuard(self.parameters)
        addresses = [*map(_ADDRESS, self.parameters)]
        if addresses != self.addresses:
            if [*map(METADATA, self.parameters)] != self.metadata or not all(map(has_memory, self.parameters)):
                return False
            self.addresses = addresses
            self.weight_addresses[:] = addresses
        if not self.owns_state:
            return True
        if [*map(_ADDRESS, self.number_tensors)] != self.numbers_at:
            return False
        if not self.state_guard.matches(self.state_memory):
            return False
        if not self.state_is_in_place():
            if not all(map(has_memory, self.state_tensors)):
                return False
            if not are_apart([*self.parameters, *self.state_tensors]):
                return False
            self.allocations = self.state_tensors  # each may have memory of its own now
            self._read_state_addresses()
        return self.state_is_unchanged(state, same_entries)

    def adopt_state(self, state: StateOf) -> None:
        """Take over the state: the very tensors where an earlier block of this engine made them, else copies of their values."""
        if self.owns_state:
            return
        past_first_step = has_rule_state(state.get(self.parameters[0], {}), self.states)
        self.begin_average(state)  # before there is one
        found = [state.get(p, {}).get(spec.key) for spec in self.states for p in self.parameters]
        if not are_apart([*self.parameters, *(t for t in found if isinstance(t, Tensor) and id(t) in self.reusable)]):
            self.reusable = {}
        for spec in self.states:
            entries = [state.setdefault(p, {}) for p in self.parameters]
            tensors = [self._reused(e.get(spec.key), p) for e, p in zip(entries, self.parameters, strict=True)]
            self.allocations += [tensor for tensor in tensors if tensor is not None]
            small = [
                p for p, tensor in zip(self.parameters, tensors, strict=True) if tensor is None and p.numel() < SMALL
            ]
            if small:
                self.allocations.append(
                    torch.empty(sum(map(Tensor.numel, small)), dtype=self.dtype, device=self.device)
                )
            views = iter(_views_like(self.allocations[-1], small) if small else [])
            for i, (entry, p) in enumerate(zip(entries, self.parameters, strict=True)):
                tensor = tensors[i]
                if tensor is None and p.numel() < SMALL:
                    tensor = next(views)
                elif tensor is None:
                    self.allocations.append(tensor := torch.empty_like(p))
                fill_state(tensor, entry.get(spec.key), self.initial_values[spec.key], p)
                tensors[i] = entry[spec.key] = tensor
            self.register_state(spec.key, cast("list[Tensor]", tensors))
            self.state_tensors += cast("list[Tensor]", tensors)
        self.reusable = {}
        self.state_addresses = np.zeros(len(self.state_tensors), np.int64)
        self._read_state_addresses()
        super().adopt_state(state)
        self.number_tensors = [
            t for items in self.state_items for key, t in items if key == "step" or key in self.carried_names
        ]
        self.numbers_at = [*map(_ADDRESS, self.number_tensors)]
        self.past_first_step = past_first_step

    def _reused(self, found: Any, parameter: Tensor) -> Tensor | None:
        """Give a tensor of state that an earlier block of this engine made, where it still fits its parameter; else None."""
        fits = isinstance(found, Tensor) and self.reusable.get(id(found)) is found and _are_alike(found, parameter)
        return found if fits and _is_as_in_memory(found) else None

    def _read_state_addresses(self) -> None:
        self.state_at = [*map(_ADDRESS, self.state_tensors)]
        self.allocation_bytes = [*map(STORAGE_BYTES, map(STORAGE, self.allocations))]
        self.state_addresses[:] = self.state_at

    def read_gradients(self, gradients: Sequence[Tensor]) -> Sequence[float]:
        """Read the gradients' addresses, and give each gradient's Euclidean norm."""
        if not self.can_read_in_place(gradients):
            gradients = self._in_layout_of_parameters(gradients)
        self.gradients = gradients  # the update reads them by address, so they must not be freed before it
        return self.norms_at([*map(_ADDRESS, gradients)])

    def norms_at(self, addresses: Sequence[int]) -> Sequence[float]:
        """Give the norms of the gradients at these addresses, whose layout is that of the parameters."""
        if addresses != self.gradients_at:
            self.gradient_address_cells[:] = self.gradients_at = addresses
        self._run(self.norms_launch)
        return self._roots(0)

    def state_is_in_place(self) -> bool:
        """Tell whether all state is where it was, in as much memory as it was."""
        is_in_place = [*map(_ADDRESS, self.state_tensors)] == self.state_at
        return is_in_place and [*map(STORAGE_BYTES, map(STORAGE, self.allocations))] == self.allocation_bytes

    def _in_layout_of_parameters(self, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
        """Give gradients in their parameters' dtype and layout: as they are, or all copied where one has another.

        A lazily negated or conjugated view (`is_neg`, `is_conj`) has other values than its memory, and a subclass may have its
        numbers elsewhere.
        """
        if not self._have_same_layout(gradients) or not all(map(_is_as_in_memory, gradients)):
            return [*map(_like, gradients, self.parameters)]
        self.gradient_guard = MetadataGuard(gradients)
        return gradients

    def can_read_in_place(self, gradients: Sequence[Tensor]) -> bool:
        """Tell whether gradients are known to have the parameters' dtype and layout, so that none need be copied."""
        return self.gradient_guard is not None and self.gradient_guard.matches(gradients)

    def clipped_norms(self, clip_value: float) -> Sequence[float]:
        """Give the norms of the gradients as clipping their entries would leave them."""
        self.clip_limits[:] = clip_value
        if self.clipped_norms_launch is None:
            kernel = kernels.gradient_norms(self.kernel_dtype, clips=True)
            self.clipped_norms_launch = self._launch(kernel, self.clip_limits, [self.gradient_addresses])
        self._run(self.clipped_norms_launch)
        return self._roots(0)

    def rule_sums(self, bound: BoundRule, decays: Sequence[float]) -> list[float]:
        """Give the rule's sums over all weights of the block."""
        self._fill_table(bound, decays)
        self._run_rule("sums", bound)
        return self.sums[: kernels.num_rule_sums(self.rule)].sum(1).tolist()

    def update(self, bound: BoundRule, decays: Sequence[float]) -> PerTensorNorms | None:
        """Update weights, state and average by the gradients that `read_gradients` was given."""
        self._fill_table(bound, decays)
        if bound.group.cautious:
            self._run_rule("aligned", bound)
            aligned = np.add.reduceat(self.sums[0], self.first_chunks).tolist()
            scales = list(map(cautious_scale_for, aligned, self.sizes))
            self.table[:, kernels.ENGINE_NUMBERS.index("cautious_scale_")] = scales
        self._run_rule("update", bound)
        _increment_versions(self.parameters)
        if not bound.record_norms:
            return None
        ratios = [math.nan for _ in self.sizes]
        if bound.group.rule.second_moment is not None:
            ratios = [root / math.sqrt(size) for root, size in zip(self._roots(2), self.sizes, strict=True)]
        return self._roots(0), self._roots(1), ratios

    def release_gradients(self) -> None:
        """Keep no reference to the step's gradients."""
        self.gradients = ()

    def _have_same_layout(self, tensors: Sequence[Tensor]) -> bool:
        """Tell whether tensors have the sizes, dtype and layout that the block's parameters had when it was made.

        The dtype is compared too, as by `Tensor.grad_dtype` a gradient may have another one of the same size (int32).
        """
        return (
            [*map(_BYTES, tensors)] == self.bytes
            and [*map(_DTYPE, tensors)].count(self.dtype) == len(tensors)
            and (
                all(map(Tensor.is_contiguous, tensors))
                if self.is_contiguous
                else [*map(Tensor.stride, tensors)] == self.strides
            )
        )

    def _roots(self, column: int) -> Sequence[float]:
        """Add up one column of the chunks' sums of squares tensor by tensor, and give the roots."""
        if self.num_chunks <= FEW_CHUNKS and self.num_chunks == len(self.first_chunks):
            return [*map(math.sqrt, self.sums_cells[column * self.num_chunks : (column + 1) * self.num_chunks])]
        return np.sqrt(np.add.reduceat(self.sums[column], self.first_chunks)).tolist()

    def _fill_table(self, bound: BoundRule, decays: Sequence[float]) -> None:
        """Write this step's numbers into the table: a row for each weight decay, or for each tensor in a cautious step."""
        group, numbers = bound.group, bound.numbers
        if decays != self._decays or group.cautious is not self._cautious:
            self._decays, self._cautious = list(decays), group.cautious
            self._distinct_decays = self._decays if group.cautious else list(dict.fromkeys(decays))
            row_of = {decay: row for row, decay in enumerate(self._distinct_decays)}
            rows = [*range(len(decays))] if group.cautious else [*map(row_of.__getitem__, decays)]
            if rows != self._rows:  # to fill an array takes longer than to compare, and decays may change at every step
                self._rows = self.rows[:] = rows
        engine_numbers = (
            -bound.scale if group.maximize else bound.scale,
            math.inf if bound.clip_value is None else bound.clip_value,
            1.0 if bound.ema_weight is None else bound.ema_weight,
            1.0,
            second_moment_floor(numbers),
        )
        rest = [*map(numbers.get, self.names, _ZEROS)]
        width, at = self.table.shape[1], 0
        for decay in self._distinct_decays:
            self.table_cells[at : at + width] = [*engine_numbers, decay, *rest]
            at += width

    def _run_rule(self, purpose: str, bound: BoundRule) -> None:
        """Run the rule's kernel for a purpose (`kernels.Variant`) on the table's numbers."""
        group, clips = bound.group, bound.clip_value is not None
        if group.constants is not self.constants and group.constants != self.constants:  # one of them may be a switch
            self.constants, self.launches = group.constants, {}
        key = purpose, clips, group.cautious
        if key not in self.launches:
            updates = purpose == "update"
            variant = kernels.Variant(
                self.kernel_dtype, purpose, clips, updates and self.has_ema, updates and group.cautious
            )
            states = self.state_addresses.reshape(len(self.states), len(self.parameters))
            if not variant.has_ema:
                states = states[: self.num_rule_states]
            kernel = kernels.for_rule(group.rule, group.constants, variant)
            self.launches[key] = self._launch(
                kernel, self.table, [self.gradient_addresses, self.weight_addresses, *states]
            )
        self._run(self.launches[key])

    def _launch(self, kernel: kernels.Kernel, table: Array, operands: Sequence[Array]) -> Launch:
        """Prepare the arguments of a kernel (`kernels.ARGUMENTS`), most of them addresses of this block's arrays.

        So those arrays are only ever written into while the block lives: a new array in the place of one would leave the kernel
        with the address of freed memory.
        """
        arrays = [*self.chunk_arrays, self.sums, self.rows, table, *operands]
        arguments = np.array([0, self.num_chunks, *(array.ctypes.data for array in arrays)], np.int64)
        return kernel, _as_ctypes(arguments, ctypes.c_int64), arguments.ctypes.data

    def _run(self, launch: Launch) -> None:
        kernel, cells, address = launch
        cells[0] = 0  # the next chunk is the first
        run(kernel, address, self.num_chunks, self.num_weights)


def _like(gradient: Tensor, parameter: Tensor) -> Tensor:
    """Give a gradient in its parameter's dtype and layout, copied where it is not so already."""
    alike = gradient.dtype is parameter.dtype and gradient.stride() == parameter.stride()
    if alike and _is_as_in_memory(gradient):
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def _is_as_in_memory(tensor: Tensor) -> bool:
    """Tell whether a tensor's values are the numbers in its memory."""
    return type(tensor) in OWN_MEMORY and not tensor.is_conj() and not tensor.is_neg()


def _as_ctypes(array: Array, kind: type[Any]) -> Any:
    """Give a ctypes array that shares an array's memory: to copy a list in or out takes a third of NumPy's time, or less."""
    cells: Any = kind
    return (cells * array.size).from_buffer(array)


def _views_like(flat: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Divide a 1-D tensor into views with the shapes and strides of parameters."""
    starts = accumulate((p.numel() for p in parameters), initial=0)
    return [flat.as_strided(p.shape, p.stride(), at) for p, at in zip(parameters, starts, strict=False)]


def _are_alike(one: Tensor, other: Tensor) -> bool:
    return one.dtype is other.dtype and one.shape == other.shape and one.stride() == other.stride()


def _is_dense(tensor: Tensor) -> bool:
    """Whether a tensor's elements fill a piece of memory without gaps or overlaps, in whatever order of dimensions.

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
