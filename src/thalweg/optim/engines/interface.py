"""What an optimiser asks of an engine: a step in two passes, first look, then move.

An engine is anything with the two methods of `Engine`. `tensors.py` runs every rule on every device; a fused engine for one
kind of device fits the same two calls (addresses of weights and state are in `GroupStep` and `state`; gradients move every step).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from thalweg.rules.rule import Rule

StateOf = MutableMapping[Tensor, dict[str, Any]]


@dataclass(slots=True)
class GroupStep:
    """One parameter group's share of a step: only parameters that have a gradient.

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
        """Whether the engine adds the decay to the gradient."""
        return self.rule.couples(self.constants)

    def of_those(self, chosen: Callable[[Tensor], bool]) -> GroupStep:
        """Give the same of the chosen parameters alone."""
        pairs = [pair for pair in zip(self.parameters, self.gradients, strict=True) if chosen(pair[0])]
        return replace(self, parameters=[p for p, _ in pairs], gradients=[g for _, g in pairs])


class Norms(NamedTuple):
    """Euclidean norms of the gradients as they came, and of what `clip_value` leaves of them.

    `each` follows the works' parameters one after another. `total` is finite whenever every element is; `nonfinite` counts the
    elements that are not. `clipped` equals `total` without `clip_value`.
    """

    each: Sequence[float]
    total: float
    clipped: float
    nonfinite: int


class DeviceNorms(NamedTuple):
    """The same where all is on one accelerator, as tensors there (`each` of one dimension, the others of none): nobody waits.

    `nonfinite` counts the parameters whose gradient has an element that is not finite.
    """

    each: Tensor
    total: Tensor
    clipped: Tensor
    nonfinite: Tensor


class UpdateNorms(NamedTuple):
    """Per-tensor norms of the weights before the step and of what the step added, in the works' order (1-D tensors).

    `ratios` are RMS(g / sqrt(v)), NaN where the rule has no second moment.
    """

    weights: Tensor
    updates: Tensor
    ratios: Tensor


class Engine(Protocol):
    """Runs one step over all groups."""

    @property
    def shares(self) -> Sequence[Any]:
        """What each of its blocks did in the last step."""
        ...

    def prepare(self, work: GroupStep, *, clips: bool, ema: bool) -> None:
        """Get ready for steps of this kind (gradients are not yet there), without keeping anybody waiting."""
        ...

    def measure(self, works: Sequence[GroupStep], state: StateOf, *, clip_value: Any, ema: bool) -> Norms | DeviceNorms:
        """Read the gradients, change neither weights nor `state`; no wait where all is on one accelerator, else one at most.

        `clip_value` is given where the norm of the clipped gradient is wanted too.
        """
        ...

    def let_go(self) -> None:
        """Keep nothing of the gradients measured last; `update` does so itself."""
        ...

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
        """Update weights, state and EMA by the gradients measured last: clamp, times `scale`, maximise, decay, equation, EMA.

        `scale` and `clip_value` may be 0-dim tensors on the accelerator, and `finite` there says whether anything moves at all.

        Missing state is made here and put into `state[parameter]` under the rule's keys; `step` (0-dim float32 on the CPU) where
        the rule counts or `ema` is on, and `ema`. Called at most once after each `measure`; gradients are let go afterwards.
        """
        ...
