"""The steady step: like the one before it in all but gradients and rates, so that little need be asked before the kernels run.

Between two steps of a small model the processor has forgotten what the long way touches: works, shares, blocks cost 70 us there,
where the kernels take 10. This way looks at what may have changed in between, in one sweep each, and takes the long way
where anything has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from operator import is_, itemgetter
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from thalweg.optim.engines.bound_rule import BoundRule, share_of_newest
from thalweg.optim.engines.fused import FusedBlock
from thalweg.optim.engines.metadata_guards import MetadataGuard
from thalweg.optim.engines.tensors import UNDERFLOW, BlockStep

_ADDRESS = Tensor.data_ptr


class Taken(NamedTuple):
    """A steady step's norm, what the gradients were multiplied by, and each parameter's norm."""

    total: float
    scale: float
    each: Sequence[float]


class Stepping(Protocol):
    """What a steady step asks of its optimiser."""

    param_groups: list[dict[str, Any]]
    state: Any
    clip_value: float | None
    ema: float | None
    cautious: bool
    measure: bool

    @property
    def is_scaled(self) -> bool:
        """Whether a gradient scaler has a say in this step."""
        ...

    def scale(self, norm: float) -> float:
        """Give what a gradient of this norm is multiplied by."""
        ...


class FastPath:
    """What was so at a step that went the long way, and what the next ones need.

    A step is steady where one fused block holds all weights, all have gradients, and the optimiser is asked for nothing rare:
    neither a cautious step nor one that is clipped by value, scaled or measured.
    """

    def __init__(self, share: BlockStep, block: FusedBlock, optimizer: Stepping, gradients: Sequence[Tensor]) -> None:
        self.block, self.work, self.decays = block, share.work, share.decays
        self.groups = [_settings(group) for group in optimizer.param_groups]
        self.faces = MetadataGuard([*block.parameters, *gradients])
        self.state = [*chain.from_iterable(map(dict[str, Any].values, optimizer.state.values()))]

    @staticmethod
    def after(shares: Sequence[BlockStep], optimizer: Stepping) -> FastPath | None:
        """Remember the step just taken; None where the next will not be steady."""
        if len(shares) != 1 or not isinstance(block := shares[0].block, FusedBlock) or not block.owned:
            return None
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if block.rule.sums is not None or shares[0].work.cautious or not _are_the_same(parameters, block.parameters):
            return None
        if any(map(_may_be_written_into, optimizer.param_groups)):
            return None
        gradients = [p.grad for p in parameters if p.grad is not None]
        return FastPath(shares[0], block, optimizer, gradients) if block.reads_in_place(gradients) else None

    def step(self, optimizer: Stepping) -> Taken | None:
        """Take a step; None, with nothing touched, where it has to go the long way."""
        block, ema, groups = self.block, optimizer.ema, optimizer.param_groups
        rare = optimizer.cautious or optimizer.measure or optimizer.clip_value is not None
        if rare or optimizer.is_scaled or (ema is not None) is not block.averages or len(groups) != len(self.groups):
            return None
        parameters, lr = self._settled(groups)
        if parameters is None:
            return None
        gradients = [p.grad for p in parameters]
        both: list[Any] = parameters + gradients
        if not self.faces.are_of(both):
            return None
        addresses = [*map(_ADDRESS, both)]
        count = len(parameters)
        if addresses[:count] != block.addresses or 0 in addresses or not self._has_its_state(optimizer.state):
            return None
        each = block.norms_at(addresses[count:])
        total = math.hypot(*each)
        if not UNDERFLOW <= total < math.inf:
            return None
        scale = optimizer.scale(total)
        numbers = self.work.rule.numbers(block.coming, block.carried_numbers(), self.work.constants, lr)
        newest = None if ema is None else share_of_newest(ema, block.taken + 1)
        block.update(BoundRule(self.work, numbers, scale, None, newest), self.decays)
        block.advance(numbers)
        return Taken(total, scale, each)

    def _settled(self, groups: Sequence[Mapping[str, Any]]) -> tuple[list[Tensor] | None, float]:
        """Give parameters and rate of groups that are as they were and have one rate in common."""
        lr: Any = groups[0]["lr"]
        if type(lr) is not float or not math.isfinite(lr):
            return None, 0.0
        for (pick, size, values), group in zip(self.groups, groups, strict=True):
            if len(group) != size or group["lr"] != lr or pick(group) != values:
                return None, 0.0
        parameters = groups[0]["params"] if len(groups) == 1 else [p for group in groups for p in group["params"]]
        return (parameters, lr) if _are_the_same(parameters, self.block.parameters) else (None, 0.0)

    def _has_its_state(self, state: Mapping[Tensor, dict[str, Any]]) -> bool:
        """Tell whether the very tensors stand in the optimiser's state that stood there, where they lay, and equally far on."""
        entries = state.values()
        if sum(map(len, entries)) != len(self.state):
            return False
        there = chain.from_iterable(map(dict[str, Any].values, entries))
        return all(map(is_, there, self.state)) and self.block.lies_still()


def _settings(group: Mapping[str, Any]) -> tuple[Callable[[Mapping[str, Any]], Any], int, Any]:
    """Give all of a parameter group but its parameters and its rate: how to pick it, the number of all entries, what it is."""
    pick = itemgetter(*(name for name in group if name not in ("params", "param_names", "lr", "initial_lr")))
    return pick, len(group), pick(group)


def _may_be_written_into(group: Mapping[str, Any]) -> bool:
    """Tell whether an option is a tensor, which stays the same one when its number changes."""
    settings = _settings(group)[2]
    options = [settings] if not isinstance(settings, tuple) else settings
    spread = chain.from_iterable(option if isinstance(option, tuple | list) else (option,) for option in options)
    return any(isinstance(option, Tensor) for option in spread)


def _are_the_same(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(some) == len(others) and all(map(is_, some, others))
