"""The tensor engine: runs any rule's equation on any device; in float64 it is the reference for every other engine.

It partitions the parameters into blocks, each of which evaluates the equation on all its parameters at once: small tensors are
flattened into one, large ones are updated in place, chunk by chunk.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from operator import is_
from typing import Any, cast

import torch
from torch import Tensor

from thalweg.optim.engines import blocks, foreach
from thalweg.optim.engines.arithmetic import as_real, count_nonfinite, exact_norm
from thalweg.optim.engines.blocks import EMA, PerTensorNorms, ema_since, progress
from thalweg.optim.engines.bound_rule import BoundRule, ema_weight_at
from thalweg.optim.engines.chunked import ChunkedBlock
from thalweg.optim.engines.flattened import FlattenedBlock
from thalweg.optim.engines.fused import FusedBlock
from thalweg.optim.engines.interface import DeviceNorms, GroupStep, Norms, StateOf, UpdateNorms
from thalweg.optim.engines.matrix import MatrixBlock
from thalweg.optim.engines.sharded import ShardedBlock
from thalweg.optim.engines.validate import OWN_MEMORY, StepCheck, check_entries, validate
from thalweg.rules.rule import Rule, State

SMALL = 1 << 15
"""Tensors of fewer elements are flattened together with others."""

UNDERFLOW = 1e-15
"""A norm below this is measured anew in float64: squares so small may have underflown in float32."""

AnyBlock = FlattenedBlock | ChunkedBlock | FusedBlock | MatrixBlock | ShardedBlock | foreach.ForeachBlock

Partition = list[tuple[AnyBlock, list[int]]]
"""Blocks, each with the indices of its parameters among those of their group."""


@dataclass(slots=True)
class BlockStep:
    """What one block does in this step: `indices` are its parameters' among all of the step, `decays` their weight decays."""

    block: AnyBlock
    group: GroupStep
    indices: Sequence[int]
    decays: Sequence[float]


class TensorEngine:
    """Runs a step in two passes: measure the gradients, then update."""

    def __init__(self) -> None:
        self._partitions: list[tuple[GroupStep, tuple[State, ...], Partition]] = []
        self._previous: PreviousStep | None = None
        # The ids of the dicts in `optimizer.state` at the last step: to compare these is faster than to look up every parameter.
        # No dict that was replaced can pass for the old one: blocks keep references to theirs, so that no id is used again.
        self._entries: list[int] = []
        self._pending: list[BlockStep] = []  # measured, and not yet updated
        self._check = StepCheck()

    @property
    def block_steps(self) -> Sequence[BlockStep]:
        """What each block did in the last step."""
        return () if self._previous is None else self._previous.block_steps

    def prepare(self, group: GroupStep, *, clips: bool, ema: bool) -> None:
        """Nothing is compiled beforehand."""

    def measure_gradients(
        self, groups: Sequence[GroupStep], state: StateOf, *, clip_value: float | None, ema: bool
    ) -> Norms | DeviceNorms:
        """Give the gradients' norms; changes neither weights nor `state`.

        No host synchronisation where all parameters are on one accelerator, else one per device.
        """
        block_steps = self._pending = self._assign_blocks(groups, state, ema)
        parameters = groups[0].parameters if len(groups) == 1 else [p for group in groups for p in group.parameters]
        gradients = groups[0].gradients if len(groups) == 1 else [g for group in groups for g in group.gradients]
        gradients = self._check.checked(parameters, gradients, state)
        norms = [one.block.read_gradients(_select(gradients, one.indices)) for one in block_steps]
        clipped_norms = [] if clip_value is None else [one.block.clipped_norms(clip_value) for one in block_steps]
        if (
            all(one.block.is_device_resident for one in block_steps)
            and len({one.block.device for one in block_steps}) == 1
        ):
            return _device_norms(_in_order(norms, block_steps, len(gradients)), [*chain.from_iterable(clipped_norms)])
        values = _on_host([*norms, *clipped_norms])
        each = _in_order(values[: len(norms)], block_steps, len(gradients))
        total = math.hypot(*each)
        clipped = math.hypot(*(n for some in values[len(norms) :] for n in some)) if clipped_norms else total
        if math.isfinite(total) and total >= UNDERFLOW and math.isfinite(clipped):
            return Norms(each, total, clipped, 0)
        return _measure_in_float64(gradients, clip_value)

    def update(
        self,
        state: StateOf,
        *,
        scale: Any,
        clip_value: float | None,
        ema: float | None,
        record_norms: bool,
        finite: Tensor | None = None,
    ) -> UpdateNorms | None:
        """Update weights, state and EMA by the gradients measured last."""
        block_steps, self._pending = self._pending, []
        norms: list[PerTensorNorms] = []
        if not all(one.block.owns_state for one in block_steps):
            for one in block_steps:
                one.block.adopt_state(state)
            self._entries = [*map(id, state.values())]
        for one, numbers in zip(block_steps, _numbers_of_blocks(block_steps, scale, clip_value), strict=True):
            block = one.block
            ema_weight = None if ema is None else ema_weight_at(ema, block.averaged_steps)
            bound = BoundRule(one.group, numbers, scale, clip_value, ema_weight, record_norms, finite)
            block_norms = block.update(bound, one.decays)
            block.advance(numbers, finite)
            if block_norms is not None:
                norms.append(block_norms)
        self.release_gradients()
        if not record_norms:
            return None
        count = sum(len(one.indices) for one in block_steps)
        return UpdateNorms(*(_stacked(kind, block_steps, count) for kind in zip(*norms, strict=True)))

    def release_gradients(self) -> None:
        """Keep no gradient alive from one step to the next."""
        self._pending = []
        if self._previous is not None:
            for group in self._previous.groups:
                group.gradients = []
            for merged in self._previous.merged:
                merged.group.gradients = []
            for one in self._previous.block_steps:
                one.block.release_gradients()

    def _assign_blocks(self, groups: Sequence[GroupStep], state: StateOf, ema: bool) -> list[BlockStep]:
        """Give the blocks that take this step: those of the last one as long as they fit, else new ones."""
        entries = [*map(id, state.values())]
        same_entries = entries == self._entries
        previous = self._previous
        if previous is not None and previous.ema is ema and _differ_in_numbers_only(groups, previous):
            previous.take_numbers(groups)
            if all(_still_fits(one.block, state, same_entries) for one in previous.block_steps):
                self._entries = entries
                return previous.block_steps
        block_steps: list[BlockStep] = []
        partitions: list[tuple[GroupStep, tuple[State, ...], Partition]] = []
        all_merged, decays = _merge(groups), _decays(groups)
        for merged in all_merged:
            states = (*merged.group.rule.states(merged.group.constants), *((EMA,) if ema else ()))
            partition = self._previous_partition(merged.group, states)
            if partition is None or not all(_still_fits(block, state, same_entries) for block, _ in partition):
                partition = self._new_partition(merged.group, states, state)
            partitions.append((merged.group, states, partition))
            for block, own in partition:
                indices = merged.indices if len(partition) == 1 else [merged.indices[i] for i in own]
                block_steps.append(BlockStep(block, merged.group, indices, [decays[i] for i in indices]))
        # Only now: where a block refuses the state, the next step must look at it again.
        self._partitions, self._entries = partitions, entries
        self._previous = PreviousStep(groups, ema, all_merged, block_steps, _equal_rates(groups))
        return block_steps

    def _previous_partition(self, group: GroupStep, states: tuple[State, ...]) -> Partition | None:
        """Give the last step's blocks of the same parameters under the same rule."""
        for old_group, old_states, partition in self._partitions:
            if old_states == states and _same_rule_and_parameters(old_group, group):
                return partition
        return None

    def _block_type(self, parameter: Tensor, rule: Rule) -> type[AnyBlock]:
        """Give the kind of block for a parameter."""
        if rule.is_matrix:
            return MatrixBlock
        if type(parameter) not in OWN_MEMORY:
            return ShardedBlock
        if not blocks.uses_numpy(parameter.device) and foreach.can_compile(parameter.device) and rule.sums is None:
            return foreach.ForeachBlock
        return FlattenedBlock if 0 < parameter.numel() < SMALL else ChunkedBlock

    def _new_partition(self, group: GroupStep, states: Sequence[State], state: StateOf) -> Partition:
        """Put parameters into blocks, those that can be updated together into one. Earlier blocks that still fit are used again.

        Together are parameters of one device, dtype and step count, in the kinds of block that take several.
        """
        # Keyed by ids, since tensors compare by element. A block holds its tensors, so no id of one can be another's meanwhile.
        earlier = [block for _, _, partition in self._partitions for block, _ in partition]
        old = {(block.rule, block.states, *map(id, block.parameters)): block for block in earlier}
        fused = [block for block in old.values() if isinstance(block, FusedBlock)]
        reusable = {id(tensor): tensor for block in fused for items in block.state_items for _, tensor in items}
        together: dict[tuple[Any, ...], list[int]] = {}
        check_entries([state[p] for p in group.parameters if p in state])
        for i, parameter in enumerate(group.parameters):
            validate(parameter, group.gradients[i], state.get(parameter, {}), states)
            kind = self._block_type(parameter, group.rule)
            if kind in (FlattenedBlock, FusedBlock, foreach.ForeachBlock):
                entry = state.get(parameter, {})
                since = ema_since(entry) if states and states[-1] is EMA else 0
                key = kind, parameter.device, parameter.dtype, since, progress(entry, group.rule)
            else:
                key = kind, i
            together.setdefault(key, []).append(i)
        partition: Partition = []
        for key, indices in together.items():
            parameters = [group.parameters[i] for i in indices]
            block = old.get((group.rule, tuple(states), *map(id, parameters)))
            if block is None or not block.fits(state):
                block = key[0](parameters, states, group)
                if isinstance(block, FusedBlock):
                    block.reusable = reusable
            partition.append((block, indices))
        return partition


def _still_fits(block: AnyBlock, state: StateOf, same_entries: bool) -> bool:
    """Tell whether a block can take one more step as it is.

    One that has not taken a step has yet to take over the state, which may have changed since it was checked.
    """
    return block.owns_state and block.fits(state, same_entries)


def _same_rule_and_parameters(one: GroupStep, other: GroupStep) -> bool:
    same = one.rule is other.rule and len(one.parameters) == len(other.parameters)
    return same and all(map(is_, one.parameters, other.parameters))


@dataclass(slots=True)
class MergedGroups:
    """Groups that one evaluation of the equation can serve, as one group.

    `indices` are the parameters' among all of the step; `sources` the indices of the groups.
    """

    group: GroupStep
    indices: list[int]
    sources: list[int]


def _merge(groups: Sequence[GroupStep]) -> list[MergedGroups]:
    """Merge groups that differ in nothing but their weight decay.

    An evaluation of the equation costs the same few dozen calls, however few the weights, so fewer evaluations are faster.
    """
    merged: dict[tuple[Any, ...], MergedGroups] = {}
    start = 0
    for i, group in enumerate(groups):
        count = len(group.parameters)
        key = (group.rule, group.lr, group.maximize, group.cautious, *group.constants.values())
        one = merged.setdefault(key, MergedGroups(replace(group, parameters=[], gradients=[]), [], []))
        one.group.parameters += group.parameters
        one.group.gradients += group.gradients
        one.indices += range(start, start + count)
        one.sources.append(i)
        start += count
    return list(merged.values())


def _decays(groups: Sequence[GroupStep]) -> list[float]:
    """Give the weight decay of each parameter of the step."""
    return [group.decay for group in groups for _ in group.parameters]


@dataclass(slots=True)
class PreviousStep:
    """The last step's groups and blocks, which take the next one too while nothing but gradients and numbers changes.

    The numbers are learning rates and weight decays.
    """

    groups: Sequence[GroupStep]
    ema: bool
    merged: Sequence[MergedGroups]
    block_steps: list[BlockStep]
    equal_rates: Sequence[int] | None

    def take_numbers(self, groups: Sequence[GroupStep]) -> None:
        """Take gradients, learning rates and weight decays of a new step."""
        if any(group.decay != old.decay for group, old in zip(groups, self.groups, strict=True)):
            decays = _decays(groups)
            for one in self.block_steps:
                one.decays = [decays[i] for i in one.indices]
        self.groups = groups
        for merged in self.merged:
            first, *others = merged.sources
            merged.group.lr = groups[first].lr
            gradients = groups[first].gradients
            merged.group.gradients = (
                [*gradients, *(g for i in others for g in groups[i].gradients)] if others else gradients
            )


def _differ_in_numbers_only(groups: Sequence[GroupStep], previous: PreviousStep) -> bool:
    """Tell whether groups are those of the last step but for gradients and numbers, and can be merged in the same way."""
    if groups is not previous.groups:
        if len(groups) != len(previous.groups):
            return False
        for group, old in zip(groups, previous.groups, strict=True):
            same = group.constants is old.constants and group.maximize is old.maximize
            if not same or group.cautious is not old.cautious or not _same_rule_and_parameters(group, old):
                return False
    return len(groups) == 1 or (previous.equal_rates is not None and _equal_rates(groups) == previous.equal_rates)


def _equal_rates(groups: Sequence[GroupStep]) -> Sequence[int] | None:
    """Give for each group the index of the first with the same learning rate; None where a rate is a tensor on a device."""
    rates = [group.lr for group in groups]
    return None if any(isinstance(rate, Tensor) for rate in rates) else [*map(rates.index, rates)]


def _numbers_of_blocks(
    block_steps: Sequence[BlockStep], scale: Any, clip_value: float | None
) -> list[Mapping[str, Any]]:
    """Give each block the numbers that the equation takes at this step, in float64.

    Where the rule takes sums over all weights of a group, the group's blocks, which follow one another, share their numbers.
    """
    found: list[Mapping[str, Any]] = []
    for one in block_steps:
        group, block = one.group, one.block
        if group.rule.sums is None:
            found.append(group.rule.numbers(block.next_step, block.read_carried(), group.constants, group.lr))
        elif len(found) and block_steps[len(found) - 1].group is group:
            found.append(found[-1])
        else:
            found.append(
                _numbers_with_sums([other for other in block_steps if other.group is group], scale, clip_value)
            )
    return found


def _numbers_with_sums(block_steps: Sequence[BlockStep], scale: Any, clip_value: float | None) -> Mapping[str, Any]:
    """Give the numbers of one group's blocks, those that its rule makes of sums over all weights included."""
    group, group_blocks = block_steps[0].group, [one.block for one in block_steps]
    on_device = all(block.is_device_resident for block in group_blocks)
    most_advanced = _most_advanced_on_device if on_device and len(group_blocks) > 1 else _most_advanced
    numbers = group.rule.numbers(*most_advanced(group_blocks), group.constants, group.lr)
    bound = BoundRule(group, numbers, scale, clip_value)
    each = [
        one.block.rule_sums(bound, one.decays)
        for one in block_steps
        if not isinstance(one.block, MatrixBlock | foreach.ForeachBlock)
    ]
    assert group.rule.decide is not None
    add = sum if on_device else _sum_on_host
    return {**numbers, **group.rule.decide([add(column) for column in zip(*each, strict=True)], numbers)}


def _most_advanced(some: Sequence[AnyBlock]) -> tuple[Any, Mapping[str, Any]]:
    """Give number of the next step and carried numbers of the block that has taken the most steps."""
    block = max(some, key=lambda block: block.steps_taken) if len(some) > 1 else some[0]
    return block.next_step, block.read_carried()


def _most_advanced_on_device(some: Sequence[AnyBlock]) -> tuple[Any, Mapping[str, Any]]:
    """Do the same on an accelerator, where to compare the counts on the host would need a synchronisation."""
    at = torch.stack([block.steps_taken for block in some]).argmax().reshape(1)
    carried = torch.stack([block.carried_values[0] for block in some]).index_select(0, at)[0]
    next_step = torch.stack([torch.as_tensor(block.next_step) for block in some]).index_select(0, at)[0]
    return next_step, dict(zip(some[0].carried_names, carried.unbind(), strict=True))


def _sum_on_host(parts: Sequence[Any]) -> float:
    return sum(map(float, parts))


def _select(values: Sequence[Tensor], indices: Sequence[int]) -> Sequence[Tensor]:
    """Give the values at these indices; where that is all of them, as they are, for they are in order."""
    return values if len(indices) == len(values) else [values[i] for i in indices]


def _device_norms(each: Sequence[Any], clipped_each: Sequence[Any]) -> DeviceNorms:
    """Put together the norms of tensors on one accelerator, without host synchronisation."""
    norms = torch.stack([*each])
    total = torch.linalg.vector_norm(norms)
    clipped = torch.linalg.vector_norm(torch.stack([*clipped_each])) if clipped_each else total
    return DeviceNorms(norms, total, clipped, (~norms.isfinite()).sum())


def _on_host(norms: Sequence[Sequence[float] | Sequence[Tensor]]) -> list[Sequence[float]]:
    """Turn 0-dim tensors into Python numbers, with one synchronisation for each device."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for some in norms:
        if isinstance(some[0], Tensor):
            for n in cast(Sequence[Tensor], some):
                by_device.setdefault(n.device, []).append(n)
    if not by_device:
        return cast(list[Sequence[float]], list(norms))
    found = {device: iter(_stack(tensors).tolist()) for device, tensors in by_device.items()}
    return [[next(found[n.device]) if isinstance(n, Tensor) else n for n in some] for some in norms]


def _stack(tensors: list[Tensor]) -> Tensor:
    """Stack 0-dim tensors in the widest of their dtypes."""
    dtypes = {t.dtype for t in tensors}
    return torch.stack(tensors if len(dtypes) == 1 else [t.to(max(dtypes, key=lambda d: d.itemsize)) for t in tensors])


def _in_order(values: Sequence[Sequence[Any]], block_steps: Sequence[BlockStep], count: int) -> list[Any]:
    """Put the blocks' values, one per parameter, into the order of the step's parameters."""
    if len(block_steps) == 1:
        return list(values[0])
    ordered: list[Any] = [0.0] * count
    for of_block, one in zip(values, block_steps, strict=True):
        for i, value in zip(one.indices, of_block, strict=True):
            ordered[i] = value
    return ordered


def _stacked(norms: Sequence[Sequence[Any]], block_steps: Sequence[BlockStep], count: int) -> Tensor:
    """Make one tensor of the blocks' norms: on their device where all are on one, without synchronisation, else on the CPU."""
    ordered = _in_order(norms, block_steps, count)
    devices = {n.device for n in ordered if isinstance(n, Tensor)}
    if not devices:
        return norms_tensor(ordered)
    device = devices.pop() if len(devices) == 1 else torch.device("cpu")
    return torch.stack([torch.as_tensor(n, device=device, dtype=torch.float32) for n in ordered])


def norms_tensor(norms: Sequence[float]) -> Tensor:
    """Make a tensor of norms, on the CPU."""
    return torch.tensor(norms, dtype=torch.float32, device="cpu")


def _measure_in_float64(gradients: Sequence[Tensor], clip_value: float | None) -> Norms:
    """Measure exactly, where the fast way gave a norm that is not finite or may have underflown."""
    nonfinite = sum(count_nonfinite(g) for g in gradients)
    each = [exact_norm(g) for g in gradients]
    if nonfinite:
        return Norms(each, math.nan, math.nan, nonfinite)
    total = math.hypot(*each)
    if clip_value is None:
        return Norms(each, total, total, 0)
    return Norms(
        each, total, math.hypot(*(exact_norm(as_real(g).clamp(-clip_value, clip_value)) for g in gradients)), 0
    )
