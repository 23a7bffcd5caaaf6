"""The tensor engine: runs any rule's equation on any device; in float64 it is the reference for every other engine.

Small tensors are gathered into flat blocks, large ones are worked on in place.
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
from thalweg.optim.engines.arithmetic import count_nonfinite, exact_norm, real
from thalweg.optim.engines.blocks import EMA, PerTensorNorms, standing
from thalweg.optim.engines.bound_rule import BoundRule, share_of_newest
from thalweg.optim.engines.chunked import ChunkedBlock
from thalweg.optim.engines.flattened import FlattenedBlock
from thalweg.optim.engines.fused import FusedBlock
from thalweg.optim.engines.interface import DeviceNorms, GroupStep, Norms, StateOf, UpdateNorms
from thalweg.optim.engines.matrix import MatrixBlock
from thalweg.optim.engines.sharded import ShardedBlock
from thalweg.optim.engines.validate import PLAIN, check
from thalweg.rules.rule import Rule, State

SMALL = 1 << 15
"""Weights below which a tensor is gathered with others."""

UNDERFLOW = 1e-15
"""Squares of gradients below this may have vanished in float32."""

AnyBlock = FlattenedBlock | ChunkedBlock | FusedBlock | MatrixBlock | ShardedBlock | foreach.ForeachBlock

Cut = list[tuple[AnyBlock, list[int]]]
"""Blocks, each with its parameters' places in the work."""


@dataclass(slots=True)
class BlockStep:
    """What one block does in this step: `members` are its parameters' places among all of the step's."""

    block: AnyBlock
    work: GroupStep
    members: Sequence[int]
    decays: Sequence[float]


class TensorEngine:
    """Runs a step in two passes: look at the gradients, then move."""

    def __init__(self) -> None:
        self._cuts: list[tuple[GroupStep, tuple[State, ...], Cut]] = []
        self._before: Before | None = None
        self._entries: list[int] = []
        self._shares: list[BlockStep] = []

    @property
    def shares(self) -> Sequence[BlockStep]:
        """What each block did in the last step."""
        return () if self._before is None else self._before.shares

    def prepare(self, work: GroupStep, *, clips: bool, ema: bool) -> None:
        """Nothing needs to be made ready."""

    def measure(self, works: Sequence[GroupStep], state: StateOf, *, clip_value: Any, ema: bool) -> Norms | DeviceNorms:
        """Read the gradients, change neither weights nor `state`; no wait where all is on one accelerator, else one."""
        shares = self._shares = self._share_out(works, state, ema)
        gradients = works[0].gradients if len(works) == 1 else [g for work in works for g in work.gradients]
        looked = [share.block.look(_of_all(gradients, share.members)) for share in shares]
        cut = [] if clip_value is None else [share.block.clipped_norms(clip_value) for share in shares]
        if all(share.block.is_away for share in shares) and len({share.block.device for share in shares}) == 1:
            return _away(_in_order(looked, shares, len(gradients)), [*chain.from_iterable(cut)])
        values = _numbers([*looked, *cut])
        each = _in_order(values[: len(looked)], shares, len(gradients))
        total = math.hypot(*each)
        clipped = math.hypot(*(n for norms in values[len(looked) :] for n in norms)) if cut else total
        if math.isfinite(total) and total >= UNDERFLOW and math.isfinite(clipped):
            return Norms(each, total, clipped, 0)
        return _exactly(gradients, clip_value)

    def update(
        self,
        state: StateOf,
        *,
        scale: Any,
        clip_value: Any,
        ema: float | None,
        record: bool,
        finite: Tensor | None = None,
    ) -> UpdateNorms | None:
        """Update weights, state and EMA by the gradients measured last."""
        shares, self._shares = self._shares, []
        moves: list[PerTensorNorms] = []
        if not all(share.block.owned for share in shares):
            for share in shares:
                share.block.own(state)
            self._entries = [*map(id, state.values())]
        for share, numbers in zip(shares, _numbers_of(shares, scale, clip_value), strict=True):
            block = share.block
            newest = None if ema is None else share_of_newest(ema, block.taken + 1)
            move = BoundRule(share.work, numbers, scale, clip_value, newest, record, finite)
            moved = block.update(move, share.decays)
            block.advance(numbers, finite)
            if moved is not None:
                moves.append(moved)
        self.let_go()
        if not record:
            return None
        count = sum(len(share.members) for share in shares)
        return UpdateNorms(*(_stacked(norms, shares, count) for norms in zip(*moves, strict=True)))

    def let_go(self) -> None:
        """Keep no gradient alive from one step to the next."""
        self._shares = []
        if self._before is not None:
            for work in self._before.works:
                work.gradients = []
            for one in self._before.merged:
                one.work.gradients = []
            for share in self._before.shares:
                share.block.let_go()

    def _share_out(self, works: Sequence[GroupStep], state: StateOf, ema: bool) -> list[BlockStep]:
        """Give every block its share; blocks stay as long as they fit, and are cut anew where parameters come or go."""
        entries = [*map(id, state.values())]
        same, self._entries = entries == self._entries, entries
        before = self._before
        if before is not None and before.ema is ema and _are_as_before(works, before):
            before.renew(works)
            if all(share.block.fits(state, same) for share in before.shares):
                return before.shares
        shares: list[BlockStep] = []
        cuts: list[tuple[GroupStep, tuple[State, ...], Cut]] = []
        merged = _merged(works)
        for one in merged:
            states = (*one.work.rule.states(one.work.constants), *((EMA,) if ema else ()))
            cut = self._cut_before(one.work, states)
            if cut is None or not all(block.fits(state, same) for block, _ in cut):
                cut = self._cut_anew(one.work, states, state)
            cuts.append((one.work, states, cut))
            for block, places in cut:
                members = one.members if len(cut) == 1 else [one.members[place] for place in places]
                shares.append(BlockStep(block, one.work, members, [one.decays[place] for place in places]))
        self._cuts, self._before = cuts, Before(works, ema, merged, shares, _pattern(works))
        return shares

    def _cut_before(self, work: GroupStep, states: tuple[State, ...]) -> Cut | None:
        """Give the last step's blocks of the same weights under the same rule."""
        for before, old, cut in self._cuts:
            if old == states and _are_of_the_same(before, work):
                return cut
        return None

    def _kind(self, parameter: Tensor, rule: Rule) -> type[AnyBlock]:
        """Give the kind of block for a parameter."""
        if rule.is_matrix:
            return MatrixBlock
        if type(parameter) not in PLAIN:
            return ShardedBlock
        if not blocks.on_arrays(parameter.device) and foreach.compiles(parameter.device) and rule.sums is None:
            return foreach.ForeachBlock
        return FlattenedBlock if 0 < parameter.numel() < SMALL else ChunkedBlock

    def _cut_anew(self, work: GroupStep, states: Sequence[State], state: StateOf) -> Cut:
        """Put parameters into blocks: gathered where small and equally far on, else alone. Blocks that still fit are kept."""
        before = [block for _, _, cut in self._cuts for block, _ in cut]
        old = {(block.rule, block.states, *map(id, block.parameters)): block for block in before}
        lent = {
            id(t): t for block in old.values() if isinstance(block, FusedBlock) for held in block.held for _, t in held
        }
        gathered: dict[tuple[Any, ...], list[int]] = {}
        for i, parameter in enumerate(work.parameters):
            check(parameter, work.gradients[i], state.get(parameter, {}), states)
            kind = self._kind(parameter, work.rule)
            far = standing(state.get(parameter, {}), work.rule)
            key = (
                (kind, parameter.device, parameter.dtype, far)
                if kind in (FlattenedBlock, FusedBlock, foreach.ForeachBlock)
                else (kind, i)
            )
            gathered.setdefault(key, []).append(i)
        cut: Cut = []
        for key, members in gathered.items():
            parameters = [work.parameters[i] for i in members]
            block = old.get((work.rule, tuple(states), *map(id, parameters)))
            if block is None or not block.fits(state):
                block = key[0](parameters, states, work)
                if isinstance(block, FusedBlock):
                    block.lent = lent
            cut.append((block, members))
        return cut


def _are_of_the_same(one: GroupStep, other: GroupStep) -> bool:
    """Tell whether two works are of the same weights under the same rule."""
    same = one.rule is other.rule and len(one.parameters) == len(other.parameters)
    return same and all(map(is_, one.parameters, other.parameters))


@dataclass(slots=True)
class Merged:
    """Works that one evaluation can serve: `members` are the parameters' places among all of the step's."""

    work: GroupStep
    decays: list[float]
    members: list[int]
    sources: list[int]


def _merged(works: Sequence[GroupStep]) -> list[Merged]:
    """Put groups together that differ in nothing but their weight decay.

    An evaluation of the equation costs the same few dozen calls, however few the weights, so fewer evaluations are faster.
    """
    together: dict[tuple[Any, ...], Merged] = {}
    place = 0
    for i, work in enumerate(works):
        count = len(work.parameters)
        key = (work.rule, work.lr, work.maximize, work.cautious, *work.constants.values())
        one = together.setdefault(key, Merged(replace(work, parameters=[], gradients=[]), [], [], []))
        one.work.parameters += work.parameters
        one.work.gradients += work.gradients
        one.decays += [work.decay] * count
        one.members += range(place, place + count)
        one.sources.append(i)
        place += count
    return list(together.values())


@dataclass(slots=True)
class Before:
    """The last step's works, and how they were shared out; good for the next one while nothing but numbers changes."""

    works: Sequence[GroupStep]
    ema: bool
    merged: Sequence[Merged]
    shares: list[BlockStep]
    pattern: Sequence[int] | None

    def renew(self, works: Sequence[GroupStep]) -> None:
        """Put a step's own gradients and rates in the place of the last one's."""
        self.works = works
        for one in self.merged:
            first, *others = one.sources
            one.work.lr = works[first].lr
            gradients = works[first].gradients
            one.work.gradients = [*gradients, *(g for i in others for g in works[i].gradients)] if others else gradients


def _are_as_before(works: Sequence[GroupStep], before: Before) -> bool:
    """Tell whether works are those of the last step but for gradients and rates, and group alike."""
    if works is not before.works:
        if len(works) != len(before.works):
            return False
        for work, old in zip(works, before.works, strict=True):
            alike = work.constants is old.constants and work.decay == old.decay and work.maximize is old.maximize
            if not alike or work.cautious is not old.cautious or not _are_of_the_same(work, old):
                return False
    return len(works) == 1 or (before.pattern is not None and _pattern(works) == before.pattern)


def _pattern(works: Sequence[GroupStep]) -> Sequence[int] | None:
    """Tell which works have a rate in common, by the place of the first that has it; None where a rate may be far away."""
    rates = [work.lr for work in works]
    return None if any(isinstance(rate, Tensor) for rate in rates) else [*map(rates.index, rates)]


def _numbers_of(shares: Sequence[BlockStep], scale: Any, clip_value: Any) -> list[Mapping[str, Any]]:
    """Give the numbers of this step for each share, in float64; of what a rule sums up, over all shares of one work."""
    found: list[Mapping[str, Any]] = []
    for share in shares:
        work, block = share.work, share.block
        if work.rule.sums is None:
            found.append(work.rule.numbers(block.coming, block.carried_numbers(), work.constants, work.lr))
        elif len(found) and shares[len(found) - 1].work is work:
            found.append(found[-1])
        else:
            found.append(_decided([other for other in shares if other.work is work], scale, clip_value))
    return found


def _decided(shares: Sequence[BlockStep], scale: Any, clip_value: Any) -> Mapping[str, Any]:
    work, blocks_here = shares[0].work, [share.block for share in shares]
    away = all(block.is_away for block in blocks_here)
    farthest = _farthest_away if away and len(blocks_here) > 1 else _farthest
    numbers = work.rule.numbers(*farthest(blocks_here), work.constants, work.lr)
    move = BoundRule(work, numbers, scale, clip_value)
    each = [
        s.block.totals(move, s.decays) for s in shares if not isinstance(s.block, MatrixBlock | foreach.ForeachBlock)
    ]
    assert work.rule.decide is not None
    add = sum if away else _waiting_sum
    return {**numbers, **work.rule.decide([add(column) for column in zip(*each, strict=True)], numbers)}


def _farthest(some: Sequence[AnyBlock]) -> tuple[Any, Mapping[str, Any]]:
    """Give the coming step's number of the block that is farthest on, and what that one carries."""
    lead = max(some, key=lambda block: block.taken) if len(some) > 1 else some[0]
    return lead.coming, lead.carried_numbers()


def _farthest_away(some: Sequence[AnyBlock]) -> tuple[Any, Mapping[str, Any]]:
    """Do so on an accelerator, where to choose one here would be to wait."""
    at = torch.stack([block.taken for block in some]).argmax().reshape(1)
    carried = torch.stack([block.numbers[0] for block in some]).index_select(0, at)[0]
    coming = torch.stack([torch.as_tensor(block.coming) for block in some]).index_select(0, at)[0]
    return coming, dict(zip(some[0].carried_names, carried.unbind(), strict=True))


def _waiting_sum(parts: Sequence[Any]) -> float:
    return sum(map(float, parts))


def _of_all(values: Sequence[Tensor], places: Sequence[int]) -> Sequence[Tensor]:
    """Pick the values at some places, in order; all of them as they are."""
    return values if len(places) == len(values) else [values[place] for place in places]


def _away(each: Sequence[Any], cut: Sequence[Any]) -> DeviceNorms:
    """Put the norms of tensors on one accelerator together there."""
    every = torch.stack([*each])
    total = torch.linalg.vector_norm(every)
    clipped = torch.linalg.vector_norm(torch.stack([*cut])) if cut else total
    return DeviceNorms(every, total, clipped, (~every.isfinite()).sum())


def _numbers(norms: Sequence[Sequence[float] | Sequence[Tensor]]) -> list[Sequence[float]]:
    """Turn 0-dim tensors into numbers, with one wait for each device."""
    waiting: dict[torch.device, list[Tensor]] = {}
    for one in norms:
        if isinstance(one[0], Tensor):
            for n in cast(Sequence[Tensor], one):
                waiting.setdefault(n.device, []).append(n)
    if not waiting:
        return cast(list[Sequence[float]], list(norms))
    found = {device: iter(_stack(tensors).tolist()) for device, tensors in waiting.items()}
    return [[next(found[n.device]) if isinstance(n, Tensor) else n for n in one] for one in norms]


def _stack(tensors: list[Tensor]) -> Tensor:
    dtypes = {t.dtype for t in tensors}
    return torch.stack(tensors if len(dtypes) == 1 else [t.to(max(dtypes, key=lambda d: d.itemsize)) for t in tensors])


def _in_order(values: Sequence[Sequence[Any]], shares: Sequence[BlockStep], count: int) -> list[Any]:
    """Lay the blocks' figures out in the order of the step's parameters."""
    if len(shares) == 1:
        return list(values[0])
    ordered: list[Any] = [0.0] * count
    for figures, share in zip(values, shares, strict=True):
        for place, figure in zip(share.members, figures, strict=True):
            ordered[place] = figure
    return ordered


def _stacked(norms: Sequence[Sequence[Any]], shares: Sequence[BlockStep], count: int) -> Tensor:
    """Make one tensor of the blocks' figures, on the device they are on where that is one, without a wait."""
    ordered = _in_order(norms, shares, count)
    devices = {n.device for n in ordered if isinstance(n, Tensor)}
    if not devices:
        return torch.tensor(ordered, dtype=torch.float32, device="cpu")
    device = devices.pop() if len(devices) == 1 else torch.device("cpu")
    return torch.stack([torch.as_tensor(n, device=device, dtype=torch.float32) for n in ordered])


def _exactly(gradients: Sequence[Tensor], clip_value: float | None) -> Norms:
    """Measure in float64, where the quick way gave no finite norm or one that may have underflown."""
    nonfinite = sum(count_nonfinite(g) for g in gradients)
    each = [exact_norm(g) for g in gradients]
    if nonfinite:
        return Norms(each, math.nan, math.nan, nonfinite)
    total = math.hypot(*each)
    if clip_value is None:
        return Norms(each, total, total, 0)
    return Norms(each, total, math.hypot(*(exact_norm(real(g).clamp(-clip_value, clip_value)) for g in gradients)), 0)
