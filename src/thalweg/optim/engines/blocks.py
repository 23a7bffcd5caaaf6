"""A block: parameters that one evaluation of a rule's equation updates together, and their state.

The tensors of state that a block calculates with are those in `optimizer.state`: the same ones, or views of larger tensors of
the block's. So whatever reads or copies `optimizer.state` sees the true state. A tensor that somebody else puts there (by
`load_state_dict`, say) is noticed at the next step, and its values are copied.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from operator import attrgetter, is_
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from thalweg.errors import RuleError, shown
from thalweg.optim.engines.arithmetic import COMPUTE_DTYPE, Array, as_real, uses_numpy
from thalweg.optim.engines.interface import GroupStep, StateOf
from thalweg.optim.engines.metadata_guards import STORAGE, STORAGE_BYTES, ExactGuard
from thalweg.optim.engines.validate import OWN_MEMORY
from thalweg.rules.rule import Rule, State

EMA = State("ema", "ema", "weights")
EMA_SINCE = "ema_since"  # in a parameter's state, where its average began on the way: the steps taken before

FLOAT32_EXACT = 1 << 24
"""From so many steps on a float32 `step` cannot count one by one, so the block goes by its own count."""


METADATA = attrgetter("dtype", "device", "shape")


PerTensorNorms = tuple[Sequence[Any], Sequence[Any], Sequence[Any]]
"""Three sequences, of each tensor: norm of the weights, norm of the update, RMS(g / sqrt(v)) with the second moment v."""


class Block:
    """Parameters of one group, device and dtype that all have taken the same number of steps, and their state.

    `states` describes the state in the order in which the equation takes it, `ema` last.
    """

    def __init__(self, parameters: Sequence[Tensor], states: Sequence[State], group: GroupStep) -> None:
        self.parameters = list(parameters)
        self.states = tuple(states)
        self.initial_values = {s.key: s.begin(group.constants) for s in states}
        self.has_ema = bool(states) and states[-1] is EMA
        self.num_rule_states = len(states) - self.has_ema
        self.device = parameters[0].device
        self.dtype = parameters[0].dtype
        self.compute_dtype = COMPUTE_DTYPE[self.dtype]
        self.metadata = [*map(METADATA, parameters)]
        self.rule = group.rule
        # On an accelerator step counts and carried numbers are tensors there: only the device knows whether the last step was
        # taken (its gradient may not have been finite), and the host need not synchronise with it to find out.
        self.is_device_resident = not uses_numpy(self.device)
        self.steps_taken: Any = self._on_device(np.zeros((), np.float64)) if self.is_device_resident else 0
        self.ema_since = 0  # steps taken before the average began
        self.past_first_step: Any = self._on_device(np.zeros((), np.float64)) if self.is_device_resident else False
        counts = group.rule.counts_steps or self.has_ema
        self.step_counts: Any = self._on_device(np.zeros(len(parameters), np.float32)) if counts else None
        # Numbers that the rule carries from step to step: a row per parameter, all rows alike, a column per number.
        self.carried_names = tuple(group.rule.carried)
        start = [*group.rule.begin(group.constants).values()]
        self.carried_values: Any = self._on_device(np.tile(start, (len(parameters), 1)).astype(np.float64))
        # Of each parameter the (key, tensor) pairs that `optimizer.state` must hold, and the dict that held them last.
        self.state_items: list[list[tuple[str, Tensor]]] = [[] for _ in parameters]
        self.state_entries: list[dict[str, Any] | None] = [None for _ in parameters]
        self.state_values: list[Any] = []  # the values of all those dicts, one after another
        self.state_memory: list[Tensor] = []  # those of them that are tensors with memory of their own
        self.state_places = _places(())  # of these: their addresses, and the bytes of their storages
        self.state_guard = ExactGuard(())  # and dtypes and layouts
        self.owns_state = False
        if self.step_counts is not None:
            for items, step in zip(self.state_items, _as_tensor(self.step_counts).unbind(), strict=True):
                items.append(("step", step))
        for i, name in enumerate(self.carried_names):
            self.register_state(name, _as_tensor(self.carried_values)[:, i].unbind())

    def _on_device(self, array: Array) -> Any:
        """Give an array as it is where the block is on the CPU, else as a tensor on the accelerator."""
        if not self.is_device_resident:
            return array
        has_float64 = self.device.type != "mps"
        return torch.from_numpy(array).to(self.device, None if has_float64 else torch.float32)

    def register_state(self, key: str, tensors: Sequence[Tensor]) -> None:
        """Set the tensors, one per parameter, that are this block's state under a key of `optimizer.state`."""
        for items, tensor in zip(self.state_items, tensors, strict=True):
            items.append((key, tensor))

    def fits(self, state: StateOf, same_entries: bool = False) -> bool:
        """Tell whether parameters and state are those that the block was made for, all with the same step count.

        `same_entries` says that it is known that each `state[parameter]` is the same dict as at the last step.
        """
        if [*map(METADATA, self.parameters)] != self.metadata:
            return False
        if not self.owns_state:
            return True
        if _places(self.state_memory) != self.state_places or not self.state_guard.matches(self.state_memory):
            return False
        return self.state_is_unchanged(state, same_entries)

    def state_is_unchanged(self, state: StateOf, same_entries: bool) -> bool:
        """Tell whether the optimiser's state holds the very tensors that this block put there, all with the same step count."""
        if not any(self.state_items):
            return True
        if not same_entries and not all(map(is_, map(state.get, self.parameters), self.state_entries)):
            return False
        entries = cast("list[dict[str, Any]]", self.state_entries)
        values = chain.from_iterable(map(dict.values, entries))
        if sum(map(len, entries)) != len(self.state_values) or not all(map(is_, values, self.state_values)):
            for entry, items in zip(entries, self.state_items, strict=True):
                for key, tensor in items:
                    if entry.get(key) is not tensor:
                        return False
        return self.have_same_step_count()

    def adopt_state(self, state: StateOf) -> None:
        """Fill the block's state from `state` where that has any (after loading, say), else with the rule's initial values.

        Then put the block's tensors into `state`.
        """
        if self.owns_state:
            return
        self.owns_state = True
        past_first_step = has_rule_state(state.get(self.parameters[0], {}), self.states)
        self.begin_average(state)
        for i, (parameter, items) in enumerate(zip(self.parameters, self.state_items, strict=True)):
            if not items:  # plain descent has no state, and makes no entry for it
                continue
            entry = state.setdefault(parameter, {})
            for key, tensor in items:
                if key == "step":
                    tensor.fill_(step_count(entry))
                elif key in self.carried_names:
                    tensor.fill_(float(entry.get(key, tensor)))
                else:
                    fill_state(tensor, entry.get(key), self.initial_values[key], parameter)
                entry[key] = tensor
            self.state_entries[i] = entry
        self.state_values = [value for entry in self.state_entries for value in (entry or {}).values()]
        self.state_memory = [value for value in self.state_values if type(value) in OWN_MEMORY]
        self.state_places, self.state_guard = _places(self.state_memory), ExactGuard(self.state_memory)
        if self.is_device_resident:
            self.past_first_step.fill_(float(past_first_step))
            if self.step_counts is not None:
                self.steps_taken.copy_(self.step_counts[0])
        else:
            self.past_first_step = past_first_step
            self.have_same_step_count()

    def begin_average(self, state: StateOf) -> None:
        """Read after how many steps the average of the weights began; where it is about to, on the way, write that down."""
        if not self.has_ema:
            return
        self.ema_since = ema_since(state.get(self.parameters[0], {}))
        for parameter in self.parameters if self.ema_since else ():
            state.setdefault(parameter, {})[EMA_SINCE] = self.ema_since

    def release_gradients(self) -> None:
        """Keep no reference to the step's gradients."""

    def advance(self, numbers: Mapping[str, Any], finite: Tensor | None = None) -> None:
        """Count the step, and keep the numbers that the rule carries to the next; on an accelerator only where `finite`."""
        if self.is_device_resident:
            self._advance_on_device(numbers, finite)
            return
        self.steps_taken += 1
        self.past_first_step = True
        if self.step_counts is not None:
            self.step_counts.fill(self.steps_taken)
        if self.carried_names:
            self.carried_values[:] = [float(numbers[name]) for name in self.carried_names]

    def _advance_on_device(self, numbers: Mapping[str, Any], finite: Tensor | None) -> None:
        one_if_taken: Any = 1.0 if finite is None else finite
        self.steps_taken += one_if_taken
        self.past_first_step.copy_((self.past_first_step + one_if_taken).clamp(max=1.0))
        if self.step_counts is not None:
            self.step_counts += one_if_taken
        if self.carried_names:
            dtype = self.carried_values.dtype
            new = torch.stack(
                [torch.as_tensor(numbers[n], dtype=dtype, device=self.device) for n in self.carried_names]
            )
            self.carried_values.copy_(new if finite is None else torch.where(finite, new, self.carried_values))

    @property
    def averaged_steps(self) -> Any:
        """How many steps the average of the weights holds after the next one."""
        return self.steps_taken + 1 - self.ema_since

    @property
    def next_step(self) -> Any:
        """The number of the next step: 1, 2, 3 …; 1 and then always 2 for a rule that does not count its steps."""
        return self.steps_taken + 1 if self.rule.counts_steps else 1 + self.past_first_step

    def read_carried(self) -> dict[str, Any]:
        """Give the numbers that the rule carries from the last step to the next, by name."""
        if not self.carried_names:
            return {}
        if self.is_device_resident:
            return dict(zip(self.carried_names, self.carried_values[0].unbind(), strict=True))
        return dict(zip(self.carried_names, self.carried_values[0].tolist(), strict=True))

    def have_same_step_count(self) -> bool:
        """Tell whether all parameters have the same step count, and the same carried numbers; False where the count is none.

        The block takes the count from the tensors in the state, where somebody may have set it.
        """
        if self.is_device_resident:  # reading it would synchronise host and device
            return True
        if self.carried_names and not (self.carried_values == self.carried_values[0]).all():
            return False
        if self.step_counts is None:
            return True
        counts = self.step_counts.tolist()
        if counts.count(self.steps_taken) == len(counts):
            return True
        if not 0 <= counts[0] < math.inf:
            return False
        if (
            counts[0] != float(np.float32(self.steps_taken))
            if self.steps_taken >= FLOAT32_EXACT
            else counts[0] != self.steps_taken
        ):
            self.steps_taken = int(counts[0])
        return counts.count(counts[0]) == len(counts)


def _as_tensor(numbers: Any) -> Tensor:
    """Give an array as a tensor that shares its memory; `torch.as_tensor` would copy it to torch's default device."""
    return numbers if isinstance(numbers, Tensor) else torch.from_numpy(numbers)


def _places(tensors: Sequence[Tensor]) -> tuple[list[int], list[int]]:
    """Give the tensors' addresses, and the bytes of their storages."""
    return [*map(Tensor.data_ptr, tensors)], [*map(STORAGE_BYTES, map(STORAGE, tensors))]


def step_count(entry: Mapping[str, Any]) -> int:
    """Read the step count of a parameter's state, a tensor or a number; 0 where there is none yet."""
    value = entry.get("step")
    return 0 if value is None else int(value)


def ema_since(entry: Mapping[str, Any]) -> int:
    """Give how many steps were taken before the average of the weights began; where there is none yet it begins with the next.

    >>> ema_since({"step": 12}), ema_since({"step": 12, "ema": 0.0}), ema_since({"step": 12, "ema": 0.0, "ema_since": 7})
    (12, 0, 7)
    """
    return step_count(entry) if entry.get("ema") is None else int(entry.get(EMA_SINCE) or 0)


def has_rule_state(entry: Mapping[str, Any], states: Iterable[State]) -> bool:
    """Tell whether a parameter has state of its rule, so that the rule has taken its first step."""
    return any(entry.get(state.key) is not None for state in states if state is not EMA)


def progress(entry: Mapping[str, Any], rule: Rule) -> tuple[float, ...]:
    """Read what the parameters of one block must have in common: step count, or past the first step or not; carried numbers."""
    past_first_step = not rule.counts_steps and rule.scalars is not None and has_rule_state(entry, rule.state)
    carried = (carried_number(name, entry[name]) if name in entry else math.nan for name in rule.carried)
    return step_count(entry), past_first_step, *carried


def carried_number(name: str, value: Any) -> float:
    """Read a number that a rule carries from step to step. Raises RuleError where it is no finite one."""
    with suppress(TypeError, ValueError, RuntimeError, OverflowError):
        if math.isfinite(number := float(value)):
            return number
    raise RuleError(
        f"`{name}` in the state of a parameter is {shown(value, 80)}, but it must be a finite number: load the state anew. No"
        " weight has moved."
    )


def fill_state(tensor: Tensor, found: Any, initial: float | str, parameter: Tensor) -> None:
    """Fill a tensor of state: from one that was found, else with the initial value, a number or "weights"."""
    if found is tensor:
        return
    if isinstance(found, Tensor):
        tensor.copy_(found)
    elif isinstance(initial, str):
        tensor.copy_(parameter)
    else:
        as_real(tensor).fill_(initial)
