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

from thalweg.optim.engines.arithmetic import COMPUTE, Array, on_arrays, real
from thalweg.optim.engines.interface import GroupStep, StateOf
from thalweg.rules.rule import Rule, State

EMA = State("ema", "ema", "weights")

_EXACT = 1 << 24
"""Beyond this many steps float32 cannot count one by one, so the block's own count is the truth."""


FACE = attrgetter("dtype", "device", "shape")


PerTensorNorms = tuple[Sequence[Any], Sequence[Any], Sequence[Any]]
"""Of each tensor: norm of the weights, norm of the update, root mean square of the gradient over its second moment."""


class Block:
    """Parameters, their state in the order in which the equation takes it (then `ema`), and their step counts."""

    def __init__(self, parameters: Sequence[Tensor], states: Sequence[State], work: GroupStep) -> None:
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
        # On an accelerator counts and numbers are tensors there, so that no step waits to know whether the last was taken.
        self.is_away = not on_arrays(self.device)
        self.taken: Any = self._here(np.zeros((), np.float64)) if self.is_away else 0
        self.begun: Any = (
            self._here(np.zeros((), np.float64)) if self.is_away else False
        )  # whether the rule's state has begun
        counts = work.rule.counts_steps or self.averages
        self.steps: Any = self._here(np.zeros(len(parameters), np.float32)) if counts else None
        # Numbers that the rule carries from step to step, a column a parameter, all columns alike.
        self.carried_names = tuple(work.rule.carried)
        start = [*work.rule.begin(work.constants).values()]
        self.numbers: Any = self._here(np.tile(start, (len(parameters), 1)).astype(np.float64))
        # For each parameter what `optimizer.state` must hold: (key, tensor) pairs; and the dict that held them last.
        self.held: list[list[tuple[str, Tensor]]] = [[] for _ in parameters]
        self.entries: list[dict[str, Any] | None] = [None for _ in parameters]
        self.standing: list[Any] = []  # what stands in those dicts, one after another
        self.owned = False
        if self.steps is not None:
            for held, step in zip(self.held, _tensor(self.steps).unbind(), strict=True):
                held.append(("step", step))
        for i, name in enumerate(self.carried_names):
            self.hold(name, _tensor(self.numbers)[:, i].unbind())

    def _here(self, array: Array) -> Any:
        """Give numbers of the block's own as they are calculated with: an array, or a tensor on the accelerator."""
        if not self.is_away:
            return array
        precise = self.device.type != "mps"  # which has no float64
        return torch.from_numpy(array).to(self.device, None if precise else torch.float32)

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
        begun = has_begun(state.get(self.parameters[0], {}), self.states)
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
        if self.is_away:
            self.begun.fill_(float(begun))
            if self.steps is not None:
                self.taken.copy_(self.steps[0])
        else:
            self.begun = begun
            self._counted()

    def let_go(self) -> None:
        """Keep nothing of the step's gradients."""

    def advance(self, numbers: Mapping[str, Any], finite: Tensor | None = None) -> None:
        """Count the step just taken, and carry what it carries; on an accelerator where `finite` says that it was taken."""
        if self.is_away:
            self._advance_away(numbers, finite)
            return
        self.taken += 1
        self.begun = True
        if self.steps is not None:
            self.steps.fill(self.taken)
        if self.carried_names:
            self.numbers[:] = [float(numbers[name]) for name in self.carried_names]

    def _advance_away(self, numbers: Mapping[str, Any], finite: Tensor | None) -> None:
        moved: Any = 1.0 if finite is None else finite
        self.taken += moved
        self.begun.copy_((self.begun + moved).clamp(max=1.0))
        if self.steps is not None:
            self.steps += moved
        if self.carried_names:
            dtype = self.numbers.dtype
            fresh = torch.stack(
                [torch.as_tensor(numbers[n], dtype=dtype, device=self.device) for n in self.carried_names]
            )
            self.numbers.copy_(fresh if finite is None else torch.where(finite, fresh, self.numbers))

    @property
    def coming(self) -> Any:
        """The number of the step to come: 1, 2, 3 …; of a rule that counts none, 1 and then always 2."""
        return self.taken + 1 if self.rule.counts_steps else 1 + self.begun

    def carried_numbers(self) -> dict[str, Any]:
        """Give the numbers carried so far."""
        if not self.carried_names:
            return {}
        if self.is_away:
            return dict(zip(self.carried_names, self.numbers[0].unbind(), strict=True))
        return dict(zip(self.carried_names, self.numbers[0].tolist(), strict=True))

    def _counted(self) -> bool:
        """Read the count from the state's own tensors; false where the parameters are not equally far on."""
        if self.is_away:  # to look would be to wait
            return True
        if self.carried_names and not (self.numbers == self.numbers[0]).all():
            return False
        if self.steps is None:
            return True
        counts = self.steps.tolist()
        if not 0 <= counts[0] < math.inf:
            return False
        if counts[0] != float(np.float32(self.taken)) if self.taken >= _EXACT else counts[0] != self.taken:
            self.taken = int(counts[0])
        return counts.count(counts[0]) == len(counts)


def _tensor(numbers: Any) -> Tensor:
    """See numbers as a tensor where they are; `as_tensor` would copy them to whatever device is torch's default."""
    return numbers if isinstance(numbers, Tensor) else torch.from_numpy(numbers)


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
