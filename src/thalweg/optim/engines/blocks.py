"""A block: the weights that one evaluation of an equation serves, and who owns their state.

The state that a block calculates with is what stands in `optimizer.state`: the same tensors, or views of the block's own. So
anything that reads or copies `optimizer.state` sees it, and a tensor put there by somebody else is noticed and taken over.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from operator import attrgetter, is_
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from thalweg.optim.engines.arithmetic import COMPUTE, Array, real
from thalweg.optim.engines.work import StateOf, Work
from thalweg.rules.rule import Rule, State

EMA = State("ema", "ema", "weights")

_EXACT = 1 << 24
"""Beyond this many steps float32 cannot count one by one, so the block's own count is the truth."""


FACE = attrgetter("dtype", "device", "shape")


Figures = tuple[Sequence[Any], Sequence[Any], Sequence[Any]]
"""Of each tensor: norm of the weights, norm of the update, root mean square of the gradient over its second moment."""


class Block:
    """Parameters, their state in the order in which the equation takes it (then `ema`), and their step counts."""

    def __init__(self, parameters: Sequence[Tensor], states: Sequence[State], work: Work) -> None:
        self.parameters = list(parameters)
        self.states = tuple(states)
        self.begin = {s.key: s.begin(work.constants) for s in states}
        self.averages = bool(states) and states[-1] is EMA
        self.carried = len(states) - self.averages
        self.device = parameters[0].device
        self.dtype = parameters[0].dtype
        self.compute = COMPUTE[self.dtype]
        self.faces = [*map(FACE, parameters)]
        self.rule = work.rule
        self.taken = 0
        self.begun = False  # whether a step of the rule lies behind, which its state tells
        counts = work.rule.counts_steps or self.averages
        self.steps: Array | None = np.zeros(len(parameters), np.float32) if counts else None
        # Numbers that the rule carries from step to step, a column a parameter, all columns alike.
        self.carried_names = tuple(work.rule.carried)
        self.numbers = np.tile([*work.rule.begin(work.constants).values()], (len(parameters), 1)).astype(np.float64)
        # For each parameter what `optimizer.state` must hold: (key, tensor) pairs; and the dict that held them last.
        self.held: list[list[tuple[str, Tensor]]] = [[] for _ in parameters]
        self.entries: list[dict[str, Any] | None] = [None for _ in parameters]
        self.standing: list[Any] = []  # what stands in those dicts, one after another
        self.owned = False
        if self.steps is not None:
            for held, step in zip(self.held, torch.from_numpy(self.steps).unbind(), strict=True):
                held.append(("step", step))
        for i, name in enumerate(self.carried_names):
            self.hold(name, torch.from_numpy(self.numbers[:, i]).unbind())

    def hold(self, key: str, tensors: Sequence[Tensor]) -> None:
        """Name the tensors, one a parameter, that are this block's state under a key."""
        for held, tensor in zip(self.held, tensors, strict=True):
            held.append((key, tensor))

    def fits(self, state: StateOf, same: bool = False) -> bool:
        """Tell whether parameters and state are still those that the block was made for, and equally far on.

        `same` says that each parameter's part of `state` is the very dict it was.
        """
        if [*map(FACE, self.parameters)] != self.faces:
            return False
        return not self.owned or self.has_its_state(state, same)

    def has_its_state(self, state: StateOf, same: bool) -> bool:
        """Tell whether what stands in the optimiser's state is what this block put there, and all are equally far on."""
        if not same and not all(map(is_, map(state.get, self.parameters), self.entries)):
            return False
        entries = cast("list[dict[str, Any]]", self.entries)
        there = chain.from_iterable(map(dict.values, entries))
        if sum(map(len, entries)) != len(self.standing) or not all(map(is_, there, self.standing)):
            for entry, held in zip(entries, self.held, strict=True):
                for key, tensor in held:
                    if entry.get(key) is not tensor:
                        return False
        return self._counted()

    def own(self, state: StateOf) -> None:
        """Take over what state there is (after loading, say), start the rest, and put the block's tensors in its place."""
        if self.owned:
            return
        self.owned = True
        self.begun = has_begun(state.get(self.parameters[0], {}), self.states)
        for i, (parameter, held) in enumerate(zip(self.parameters, self.held, strict=True)):
            entry = state.setdefault(parameter, {})
            for key, tensor in held:
                if key == "step":
                    tensor.fill_(steps_taken(entry))
                elif key in self.carried_names:
                    tensor.fill_(float(entry.get(key, tensor)))
                else:
                    start(tensor, entry.get(key), self.begin[key], parameter)
                entry[key] = tensor
            self.entries[i] = entry
        self.standing = [value for entry in self.entries for value in (entry or {}).values()]
        self._counted()

    def let_go(self) -> None:
        """Keep nothing of the step's gradients."""

    def advance(self, numbers: Mapping[str, Any]) -> None:
        """Count the step just taken, and carry what it carries."""
        self.taken += 1
        self.begun = True
        if self.steps is not None:
            self.steps.fill(self.taken)
        if self.carried_names:
            self.numbers[:] = [float(numbers[name]) for name in self.carried_names]

    @property
    def coming(self) -> int:
        """The number of the step to come: 1, 2, 3 …; of a rule that counts none, 1 and then always 2."""
        return self.taken + 1 if self.rule.counts_steps else 1 + self.begun

    def carried_numbers(self) -> dict[str, float]:
        """Give the numbers carried so far."""
        return dict(zip(self.carried_names, self.numbers[0].tolist(), strict=True))

    def _counted(self) -> bool:
        """Read the count from the state's own tensors; false where the parameters are not equally far on."""
        if self.carried_names and not (self.numbers == self.numbers[0]).all():
            return False
        if self.steps is None:
            return True
        counts = self.steps.tolist()
        if counts[0] != float(np.float32(self.taken)) if self.taken >= _EXACT else counts[0] != self.taken:
            self.taken = int(counts[0])
        return counts.count(counts[0]) == len(counts)


def steps_taken(entry: Mapping[str, Any]) -> int:
    """Read the step count of a parameter's state: a tensor, a number, or none yet."""
    value = entry.get("step")
    return 0 if value is None else int(value)


def has_begun(entry: Mapping[str, Any], states: Iterable[State]) -> bool:
    """Tell whether a parameter has state of a rule, so that the rule's first step is behind."""
    return any(entry.get(state.key) is not None for state in states if state is not EMA)


def standing(entry: Mapping[str, Any], rule: Rule) -> tuple[float, ...]:
    """Read how far on a parameter's state is: its step count, or whether it has begun, and the numbers carried."""
    begun = not rule.counts_steps and rule.scalars is not None and has_begun(entry, rule.state)
    carried = (float(entry[name]) if name in entry else math.nan for name in rule.carried)
    return steps_taken(entry), begun, *carried


def start(tensor: Tensor, found: Any, begin: float | str, parameter: Tensor) -> None:
    """Fill a state's tensor: from what was found, else as the rule's description says."""
    if found is tensor:
        return
    if isinstance(found, Tensor):
        tensor.copy_(found)
    elif isinstance(begin, str):
        tensor.copy_(parameter)
    else:
        real(tensor).fill_(begin)
