"""The interface between an optimiser and its engine: a step in two calls, `measure_gradients`, then `update`.

An engine is anything with the methods of `Engine`. `tensors.py` runs every rule on every device; a fused engine for one kind of
device implements the same two calls. It may keep the addresses of weights and state from step to step, but not those of
gradients: `zero_grad` frees them, and the next backward pass allocates new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from thalweg.rules.rule import Rule

StateOf = MutableMapping[Tensor, dict[str, Any]]
"""`optimizer.state`: of each parameter its entries by name."""


@dataclass(slots=True)
class GroupStep:
    """One parameter group in one step: its options, and those of its parameters that have a gradient.

    `constants` are the equation's. `decay` is the group's weight decay: the equation's own `weight_decay` where it takes one,
    else the engine adds `decay * w` to the gradient. `lr` is a number, or a 0-dim tensor on the parameters' accelerator.
    """

    rule: Rule
    constants: Mapping[str, Any]
    lr: float | Tensor
    decay: float
    maximize: bool
    parameters: list[Tensor]
    gradients: list[Tensor]
    cautious: bool = False

    @property
    def couples(self) -> bool:
        """Whether the engine adds the weight decay to the gradient (coupled decay)."""
        return self.rule.couples(self.constants)

    def with_only(self, chosen: Callable[[Tensor], bool]) -> GroupStep:
        """Give the same with only the parameters for which `chosen` is true."""
        pairs = [pair for pair in zip(self.parameters, self.gradients, strict=True) if chosen(pair[0])]
        return replace(self, parameters=[p for p, _ in pairs], gradients=[g for _, g in pairs])


class Norms(NamedTuple):
    """Euclidean norms of the gradients as they came, and of all gradients after clipping by value.

    `each` has one norm per parameter, group after group. `total` is finite whenever every element is; `nonfinite` counts the
    elements that are not. `clipped` is the norm after clipping by value, `total` where nothing is clipped by value.
    """

    each: Sequence[float]
    total: float
    clipped: float
    nonfinite: int


class DeviceNorms(NamedTuple):
    """The same as tensors on the accelerator that holds all parameters, so that the host need not synchronise with it.

    `each` is 1-D, the others 0-dim. `nonfinite` counts the parameters whose gradient has an element that is not finite.
    """

    each: Tensor
    total: Tensor
    clipped: Tensor
    nonfinite: Tensor


class UpdateNorms(NamedTuple):
    """Per parameter the norm of the weights before the step, and that of the step itself (1-D tensors, in the groups' order).

    `ratios` are RMS(g / sqrt(v)), NaN where the rule has no second moment.
    """

    weights: Tensor
    updates: Tensor
    ratios: Tensor


class Engine(Protocol):
    """Runs one step over all groups."""

    @property
    def block_steps(self) -> Sequence[Any]:
        """What each of the engine's blocks of parameters did in the last step."""
        ...

    def prepare(self, group: GroupStep, *, clips: bool, ema: bool) -> None:
        """Compile in the background what steps of this kind will need; gradients are not there yet."""
        ...

    def measure_gradients(
        self, groups: Sequence[GroupStep], state: StateOf, *, clip_value: float | None, ema: bool
    ) -> Norms | DeviceNorms:
        """Give the gradients' norms; changes neither weights nor `state`.

        No host synchronisation where all parameters are on one accelerator, else one at most. `clip_value` is given where the
        norm of the gradients clipped by value is wanted too.
        """
        ...

    def release_gradients(self) -> None:
        """Keep no reference to the gradients measured last; `update` does so itself."""
        ...

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
        """Update weights, state and EMA by the gradients measured last.

        In this order: clip by value, multiply by `scale`, maximise, coupled weight decay, the rule's equation, EMA. `scale` may
        be a 0-dim tensor on the accelerator; `finite`, one of bool there, says whether anything changes at all.

        Missing state is made and put into `state[parameter]` under the rule's keys: besides the rule's own, `step` (0-dim
        float32 on the CPU) where the rule counts steps or `ema` is on, and `ema`. Called at most once after each
        `measure_gradients`; no reference to the gradients is kept.
        """
        ...
