"""A rule bound to one step's numbers: what a block evaluates, once on all its weights or chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thalweg.optim.engines.interface import GroupStep
from thalweg.rules import maths

Formula = Callable[..., Sequence[Any]]

LEAST_ALIGNED = 1e-3
"""A cautious step is scaled by one over the share of weights that still move, but as if that were at least so much."""


@dataclass(slots=True)
class BoundRule:
    """A group's rule with this step's numbers.

    - `numbers`: what the equation takes, by name, `lr` among them, weight decay not.
    - `scale` of the gradient (clipping by norm), `clip_value` of its entries, None for none.
    - `ema_weight`: weight of the newest parameters in their average, None without an average.
    - `record_norms`: whether the block is to give norms of weights and update.
    - `finite`: on an accelerator whether the step is taken at all, a 0-dim bool tensor there; None where it is. Then `scale`,
      `ema_weight` and numbers may be 0-dim tensors there too.
    """

    group: GroupStep
    numbers: Mapping[str, Any]
    scale: float | Tensor = 1.0
    clip_value: float | None = None
    ema_weight: float | Tensor | None = None
    record_norms: bool = False
    finite: Tensor | None = None

    @property
    def active(self) -> list[bool]:
        """Of each of the rule's states whether it exists under the group's constants (RMSprop's mean only if `centered`)."""
        constants = self.group.constants
        return [not s.when or bool(constants[s.when]) for s in self.group.rule.state]

    def gradient(self, w: Any, g: Any, decay: Any) -> Any:
        """Give the gradient that the equation sees: clipped, scaled, negated for `maximize`, with coupled decay added."""
        if self.clip_value is not None:
            g = g.clip(-self.clip_value, self.clip_value)
        factor = -self.scale if self.group.maximize else self.scale
        if isinstance(factor, Tensor) or factor != 1.0:
            g = g * factor
        return g + decay * w if decay is not None and self.group.couples else g

    def formula(self) -> Formula:
        """Give the step as a function of (decay, w, g, active states …), which gives the new w and the new states.

        It is plain arithmetic in a fixed order, so numbers, arrays and tensors give the same bits. `decay` may be None for none
        where it is coupled. A cautious step's function also takes `cautious_scale`, which multiplies the update where it goes
        against the gradient: a number per tensor or weight, or a function that computes it from the mask of where that is.
        """
        group, rule = self.group, self.group.rule
        decoupled = rule.takes_decay and not group.couples

        def formula(decay: Any, w: Any, g: Any, *states: Any, cautious_scale: Any = None) -> Sequence[Any]:
            g = self.gradient(w, g, decay)
            w = w if cautious_scale is None else _in_float64(w)
            equation_decay = decay if decoupled and cautious_scale is None else 0.0
            new, *rest = self._evaluate(rule.equation, w, g, states, equation_decay)
            if cautious_scale is None:
                return [new, *rest]
            update = new - w
            is_aligned = update * g < 0
            factor = cautious_scale(is_aligned) if callable(cautious_scale) else cautious_scale
            new = w + factor * maths.where(is_aligned, update, 0.0)
            return [new - (self.numbers["lr"] * decay) * w if decoupled else new, *rest]

        return formula

    def aligned(self, decay: Any, w: Any, g: Any, *states: Any) -> Any:
        """Tell for each weight whether its update would go against its present gradient."""
        g, w = self.gradient(w, g, decay), _in_float64(w)
        new, *_ = self._evaluate(self.group.rule.equation, w, g, states, 0.0)
        return (new - w) * g < 0

    def sum_terms(self, decay: Any, w: Any, g: Any, *states: Any) -> Sequence[Any]:
        """Give, weight by weight, the terms of the sums that the rule takes over all weights before the update."""
        sums = self.group.rule.sums
        assert sums is not None
        found = sums(w, self.gradient(w, g, decay), *_with_inactive(states, self.active), **self._taken_by(sums))
        return found if isinstance(found, tuple) else (found,)

    def where_finite(self, new: Any, old: Any) -> Any:
        """Give the new values, or the old ones where the step is not taken."""
        return new if self.finite is None else torch.where(self.finite, new, old)

    def new_average(self, average: Any, w: Any) -> Any:
        """Give the average of the weights after this step."""
        return self.where_finite(
            moved_average(average, w, 1.0 if self.ema_weight is None else self.ema_weight), average
        )

    def second_moment(self, states: Sequence[Any]) -> Any:
        """Give the mean square that divides the gradient, from the rule's new active states; None where the rule has none."""
        rule = self.group.rule
        if rule.second_moment is None:
            return None
        active = [s.name for s, is_active in zip(rule.state, self.active, strict=True) if is_active]
        names = {**self.numbers, "maximum": maths.maximum, **dict(zip(active, states, strict=False))}
        return eval(rule.second_moment, {"__builtins__": {}}, names)

    def _evaluate(self, equation: Formula, w: Any, g: Any, states: Sequence[Any], decay: Any) -> Sequence[Any]:
        named = dict(self.numbers)
        if self.group.rule.takes_decay:
            named["weight_decay"] = decay
        named = {name: named[name] for name in self.group.rule.takes}
        return _only_active(equation(w, g, *_with_inactive(states, self.active), **named), self.active)

    def _taken_by(self, equation: Formula) -> dict[str, Any]:
        """Give the numbers that a function takes as keyword-only arguments."""
        code = equation.__code__
        names = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
        return {name: self.numbers[name] for name in names}


def gradient_ratio(bound: BoundRule, decay: Any, w: Any, g: Any, states: Sequence[Any]) -> Any:
    """Give g² / v for each weight, far above 1 where a gradient is large against its second moment v; None without one."""
    second = bound.second_moment(states)
    if second is None:
        return None
    g = bound.gradient(w, g, decay)
    return g * g / maths.maximum(second, second_moment_floor(bound.numbers))


def second_moment_floor(numbers: Mapping[str, Any]) -> float:
    """Give the least second moment that a gradient is divided by in `gradient_ratio`: the rule's eps², so that 0 / 0 is 0."""
    return max(float(numbers.get("eps", 0.0)) ** 2, 1e-30)


def cautious_scale_for(aligned: Any, count: int) -> Any:
    """Give what multiplies the updates that go against their gradient, `aligned` of `count`.

    Source: Liang et al. 2024, arXiv:2411.16085.

    >>> cautious_scale_for(50, 100)
    2.0
    """
    return 1.0 / maths.maximum(aligned / max(count, 1), LEAST_ALIGNED)


def moved_average(average: Any, w: Any, ema_weight: Any) -> Any:
    """Give `lerp(average, w, ema_weight)`; at weight 1 it is w, bit for bit."""
    return w if not isinstance(ema_weight, Tensor) and ema_weight == 1.0 else average + ema_weight * (w - average)


def move_average_in_place(average: Any, w: Any, ema_weight: float) -> None:
    """Do the same to an array or tensor in place, with the same bits and less memory."""
    if ema_weight == 1.0:
        average[...] = w
        return
    difference = w - average
    difference *= ema_weight
    average += difference


def ema_weight_at(decay: float, step: Any) -> Any:
    """Weight of the newest parameters in their average: `(1 - d) / (1 - d^t)`, so that the initial value has none.

    The average is then `Σ d^(t-s) w_s / Σ d^(t-s)` over the steps s = 1 … t, as Adam corrects the bias of its own averages.

    >>> ema_weight_at(0.9, 1), round(ema_weight_at(0.9, 2), 6)
    (1.0, 0.526316)
    """
    return (1.0 - decay) / (1.0 - decay**step)


def _in_float64(w: Any) -> Any:
    """Give weights on the CPU in float64: in float32 the difference of new and old weights loses the bits of a small update."""
    if isinstance(w, np.ndarray):
        return w.astype(np.float64)
    return w.double() if isinstance(w, Tensor) and w.device.type == "cpu" else w


def _with_inactive(states: Sequence[Any], active: Sequence[bool]) -> Sequence[Any]:
    """Put 0 in the place of states that are not active, as the equation takes all of them."""
    if len(states) == len(active):
        return states
    rest = iter(states)
    return [next(rest) if is_active else 0.0 for is_active in active]


def _only_active(out: Any, active: Sequence[bool]) -> Sequence[Any]:
    """Leave out what an equation gave for states that are not active."""
    if not isinstance(out, tuple):
        return (out,)
    values: tuple[Any, ...] = out
    if all(active):
        return values
    return [values[0], *(value for value, is_active in zip(values[1:], active, strict=True) if is_active)]
