"""The fast path: a step like the one before it in all but gradients, rate and weight decay goes straight to the kernels.

In a small model the general path costs 70 us per step where the kernels take 10: between two steps the processor's caches have
lost the many objects that it reads. The fast path checks what may have changed since the last step, each thing for all
parameters at once, and leaves the step to the general path where anything has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, repeat
from operator import attrgetter, is_, itemgetter
from typing import Any, Protocol

import torch
from torch import Tensor

from thalweg.optim.engines.bound_rule import BoundRule, ema_weight_at
from thalweg.optim.engines.fused import FusedBlock
from thalweg.optim.engines.metadata_guards import STORAGE, STORAGE_BYTES, GradientsApart, MetadataGuard
from thalweg.optim.engines.tensors import UNDERFLOW, BlockStep, norms_tensor

_ADDRESS, _OFFSET, _VALUES = Tensor.data_ptr, Tensor.storage_offset, dict[str, Any].values
_GRADIENT = attrgetter("grad")
_DECAY = itemgetter("weight_decay")
_NUMBERS = frozenset({float, int})
_PLAIN = frozenset({*_NUMBERS, type(None)})
_NOT_COMPARED = ("params", "param_names", "lr", "initial_lr", "weight_decay")


FastStep = tuple[float, float, Sequence[float], Sequence[Tensor]]
"""What is recorded of a step: the gradients' norm, what they were multiplied by, and each one's norm; and where the optimiser
measures, the norms of weights and updates, and the gradients' ratios."""


class SteppedOptimizer(Protocol):
    """What the fast path needs of the optimiser."""

    param_groups: list[dict[str, Any]]
    state: Any
    clip_norm: float | None
    clip_value: float | None
    ema: float | None
    cautious: bool
    measure: bool

    def clip_scale(self, norm: float) -> float:
        """Give what gradients of this total norm are multiplied by."""
        ...


class FastPath:
    """What a step on the general path found, to compare the next ones with, and what these need.

    Steps take the fast path where one fused block holds all parameters, all have gradients, and the optimiser does nothing rare:
    neither a cautious step nor clipping by value.
    """

    def __init__(
        self, block_step: BlockStep, block: FusedBlock, optimizer: SteppedOptimizer, gradients: Sequence[Tensor]
    ) -> None:
        self.block, self.group, self.decays = block, block_step.group, block_step.decays
        self.options = [_options(group) for group in optimizer.param_groups]
        self.group_decays = [*map(_DECAY, optimizer.param_groups)]
        state = [*chain.from_iterable(map(_VALUES, optimizer.state.values()))]
        self.kept = [*block.parameters, *state]
        self.guard = MetadataGuard([*block.parameters, *gradients])
        # Of weights and state: the tensors, their addresses, and their storages with the size of each. While these are held here,
        # nothing else can come to lie at those addresses, so no step need read each tensor's storage anew.
        self.places = [*block.parameters, *(value for value in state if isinstance(value, Tensor))]
        self.addresses = [*map(_ADDRESS, self.places)]
        self.storages = [*map(STORAGE, [*block.parameters, *block.allocations])]
        self.storage_bytes = [*map(STORAGE_BYTES, self.storages)]
        self.gradient_bytes = [*map(STORAGE_BYTES, map(STORAGE, gradients))]
        self.gradient_offsets = [*map(_OFFSET, gradients)]
        self.gradients_are_apart = GradientsApart(gradients, self.places)

    @staticmethod
    def after_step(block_steps: Sequence[BlockStep], optimizer: SteppedOptimizer) -> FastPath | None:
        """Make the fast path for the steps that follow the one just taken; None where they cannot take it."""
        if len(block_steps) != 1 or not isinstance(block := block_steps[0].block, FusedBlock) or not block.owns_state:
            return None
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if (
            block.rule.sums is not None
            or block_steps[0].group.cautious
            or not _are_identical(parameters, block.parameters)
        ):
            return None
        if any(map(_has_tensor_option, optimizer.param_groups)):
            return None
        gradients = [p.grad for p in parameters if p.grad is not None]
        if any(g.layout is not torch.strided for g in gradients):
            return None
        return FastPath(block_steps[0], block, optimizer, gradients) if block.can_read_in_place(gradients) else None

    def step(self, optimizer: SteppedOptimizer) -> FastStep | None:
        """Take a step; None, with nothing changed, where it must take the general path."""
        block, ema, groups = self.block, optimizer.ema, optimizer.param_groups
        rare = optimizer.cautious or optimizer.clip_value is not None
        if type(ema) not in _PLAIN or type(optimizer.clip_norm) not in _PLAIN:
            return None
        if rare or (ema is not None) is not block.has_ema or len(groups) != len(self.options):
            return None
        parameters, lr = self._unchanged_groups(groups, optimizer.state)
        if parameters is None or not self._take_decays(groups):
            return None
        gradients: list[Any] = [*map(_GRADIENT, parameters)]
        if not self.guard.matches(parameters + gradients) or not self._is_in_place(gradients):
            return None
        addresses = [*map(_ADDRESS, gradients)]
        if not self.gradients_are_apart(addresses) or not block.have_same_step_count():
            return None
        each = block.norms_at(addresses)
        total = math.hypot(*each)
        if not UNDERFLOW <= total < math.inf:
            return None
        try:
            scale = optimizer.clip_scale(total)
        except OverflowError:  # of a whole number that no float can be
            return None
        if not 0.0 < scale <= 1.0 or (
            ema is not None and not 0.0 < ema < 1.0
        ):  # who set this is told on the general path
            return None
        numbers = self.group.rule.numbers(block.next_step, block.read_carried(), self.group.constants, lr)
        ema_weight = None if ema is None else ema_weight_at(ema, block.averaged_steps)
        measured = block.update(BoundRule(self.group, numbers, scale, None, ema_weight, optimizer.measure), self.decays)
        block.advance(numbers)
        return total, scale, each, () if measured is None else [*map(norms_tensor, measured)]

    def _unchanged_groups(
        self, groups: Sequence[Mapping[str, Any]], state: Mapping[Tensor, dict[str, Any]]
    ) -> tuple[list[Tensor] | None, float]:
        """Give the groups' parameters and their common learning rate; None where rates differ, or groups or state changed."""
        lr: Any = groups[0]["lr"]
        if type(lr) is not float or not math.isfinite(lr):
            return None, 0.0
        for (pick, size, count, values), group in zip(self.options, groups, strict=True):
            try:
                if len(group) != size or len(group["params"]) != count or group["lr"] != lr or pick(group) != values:
                    return None, 0.0
            except (RuntimeError, ValueError):  # an option has become an array, whose comparison gives another one
                return None, 0.0
        parameters = groups[0]["params"] if len(groups) == 1 else [p for group in groups for p in group["params"]]
        held = [*parameters, *chain.from_iterable(map(_VALUES, state.values()))]
        return (parameters, lr) if _are_identical(held, self.kept) else (None, 0.0)

    def _take_decays(self, groups: Sequence[Mapping[str, Any]]) -> bool:
        """Take the groups' weight decays, which a schedule may change at every step; False for what is no plain number."""
        decays = [*map(_DECAY, groups)]
        if not {*map(type, decays)} <= _NUMBERS:
            return False
        if decays != self.group_decays:
            if not all(_is_finite(decay) for decay in decays):
                return False
            self.group_decays = decays
            self.decays = [*chain.from_iterable(map(repeat, decays, (count for _, _, count, _ in self.options)))]
        return True

    def _is_in_place(self, gradients: Sequence[Tensor]) -> bool:
        """Tell whether all memory is as it was: kernels read and write at the addresses that they are given unchecked.

        Weights and state must be where the block's arguments say, and no storage may have been made shorter.
        """
        return (
            [*map(_ADDRESS, self.places)] == self.addresses
            and [*map(STORAGE_BYTES, self.storages)] == self.storage_bytes
            and [*map(STORAGE_BYTES, map(STORAGE, gradients))] == self.gradient_bytes
            and [*map(_OFFSET, gradients)] == self.gradient_offsets
        )


def _options(group: Mapping[str, Any]) -> tuple[Callable[[Mapping[str, Any]], Any], int, int, Any]:
    """Give how to pick a group's options, but parameters, rate and decay; how many entries and parameters it has; the options."""
    pick = itemgetter(*(name for name in group if name not in _NOT_COMPARED))
    return pick, len(group), len(group["params"]), pick(group)


def _has_tensor_option(group: Mapping[str, Any]) -> bool:
    """Tell whether an option is a tensor: somebody may write another value into it, and it would still compare equal."""
    picked = _options(group)[-1]
    options = [picked] if not isinstance(picked, tuple) else picked  # itemgetter gives a single one bare
    flat = chain.from_iterable(option if isinstance(option, tuple | list) else (option,) for option in options)
    return any(isinstance(option, Tensor) for option in flat)


def _is_finite(decay: float) -> bool:
    """Tell whether a number is a finite float, or a whole number that one can be."""
    try:
        return math.isfinite(decay)
    except OverflowError:
        return False


def _are_identical(some: Sequence[Any], others: Sequence[Any]) -> bool:
    """Tell whether two sequences hold the very same objects."""
    return len(some) == len(others) and all(map(is_, some, others))
