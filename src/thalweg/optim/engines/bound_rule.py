"""One step's numbers bound to a rule: what a block evaluates, once on all its weights or piece by piece."""

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

LEAST_KEPT = 1e-3
"""Cautious steps are made longer by one over the share of weights that still move, but by no more than this allows."""


@dataclass(slots=True)
class BoundRule:
    """How a block moves this step.

    - `numbers`: what the equation takes, by name, `lr` among them, weight decay not.
    - `scale` of the gradient (clipping), `clip_value` of its entries, None for neither.
    - `share` of the newest weights in their average, None without an average; `record`: give norms.
    - `finite`: on an accelerator whether the step is taken at all, a 0-dim tensor there; None where it is. Then `scale`, `share`
      and numbers may be such tensors too.
    """

    work: GroupStep
    numbers: Mapping[str, Any]
    scale: float | Tensor = 1.0
    clip_value: float | Tensor | None = None
    share: float | Tensor | None = None
    record: bool = False
    finite: Tensor | None = None

    @property
    def there(self) -> list[bool]:
        """Which of the rule's states the constants leave in being."""
        constants = self.work.constants
        return [not s.when or bool(constants[s.when]) for s in self.work.rule.state]

    def gradient(self, w: Any, g: Any, decay: Any) -> Any:
        """Give the gradient that the equation sees: clipped, scaled, turned where the rule climbs, with coupled decay."""
        if self.clip_value is not None:
            g = g.clip(-self.clip_value, self.clip_value)
        factor = -self.scale if self.work.maximize else self.scale
        if isinstance(factor, Tensor) or factor != 1.0:
            g = g * factor
        return g + decay * w if decay is not None and self.work.couples else g

    def formula(self) -> Formula:
        """Bind the rule to this step: a function of (decay, w, g, state …) that gives the new w and the new state.

        It is plain arithmetic in a fixed order, so numbers, arrays and tensors give the same bits. `decay` may be None for none
        where it is coupled. A cautious step's function takes `kept` too, what its still aligned parts are multiplied by, or a
        function that gives it of which parts those are.
        """
        work, rule = self.work, self.work.rule
        own = rule.takes_decay and not work.couples

        def formula(decay: Any, w: Any, g: Any, *held: Any, kept: Any = None) -> Sequence[Any]:
            g = self.gradient(w, g, decay)
            w = w if kept is None else _precise(w)
            fresh, *rest = self._evaluate(rule.equation, w, g, held, decay if own and kept is None else 0.0)
            if kept is None:
                return [fresh, *rest]
            way = fresh - w
            against = way * g < 0
            factor = kept(against) if callable(kept) else kept
            fresh = w + factor * maths.where(against, way, 0.0)
            return [fresh - (self.numbers["lr"] * decay) * w if own else fresh, *rest]

        return formula

    def aligned(self, decay: Any, w: Any, g: Any, *held: Any) -> Any:
        """Tell for each weight whether it would move against its present gradient."""
        g, w = self.gradient(w, g, decay), _precise(w)
        fresh, *_ = self._evaluate(self.work.rule.equation, w, g, held, 0.0)
        return (fresh - w) * g < 0

    def summands(self, decay: Any, w: Any, g: Any, *held: Any) -> Sequence[Any]:
        """Give, for each weight, what the rule adds up before it moves."""
        sums = self.work.rule.sums
        assert sums is not None
        found = sums(w, self.gradient(w, g, decay), *_spread(held, self.there), **self._named(sums))
        return found if isinstance(found, tuple) else (found,)

    def settled(self, new: Any, old: Any) -> Any:
        """Give what is new, or what is old where the step is not taken."""
        return new if self.finite is None else torch.where(self.finite, new, old)

    def averaged(self, average: Any, w: Any) -> Any:
        """Give the average moved towards the newest weights."""
        return self.settled(averaged(average, w, 1.0 if self.share is None else self.share), average)

    def second_moment(self, state: Sequence[Any]) -> Any:
        """Give the mean square that divides the gradient, of new state in the order of the rule's states; None if none does."""
        rule = self.work.rule
        if rule.second_moment is None:
            return None
        carried = [s.name for s, there in zip(rule.state, self.there, strict=True) if there]
        names = {**self.numbers, "maximum": maths.maximum, **dict(zip(carried, state, strict=False))}
        return eval(rule.second_moment, {"__builtins__": {}}, names)

    def _evaluate(self, equation: Formula, w: Any, g: Any, held: Sequence[Any], decay: Any) -> Sequence[Any]:
        named = dict(self.numbers)
        if self.work.rule.takes_decay:
            named["weight_decay"] = decay
        named = {name: named[name] for name in self.work.rule.takes}
        return _gather(equation(w, g, *_spread(held, self.there), **named), self.there)

    def _named(self, equation: Formula) -> dict[str, Any]:
        code = equation.__code__
        names = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
        return {name: self.numbers[name] for name in names}


def ratio_of(move: BoundRule, decay: Any, w: Any, g: Any, state: Sequence[Any]) -> Any:
    """Give g² / v for each weight, by which a gradient that surprises its own second moment is known; None without one."""
    second = move.second_moment(state)
    if second is None:
        return None
    g = move.gradient(w, g, decay)
    return g * g / maths.maximum(second, floor(move.numbers))


def floor(numbers: Mapping[str, Any]) -> float:
    """Give the least second moment that counts as one: eps² of the rule, so that a gradient of nothing surprises nobody."""
    return max(float(numbers.get("eps", 0.0)) ** 2, 1e-30)


def kept_share(aligned: Any, count: int) -> Any:
    """Give what a cautious step multiplies the parts by that go against their gradient (Liang et al. 2024, arXiv:2411.16085).

    >>> kept_share(50, 100)
    2.0
    """
    return 1.0 / maths.maximum(aligned / max(count, 1), LEAST_KEPT)


def averaged(average: Any, w: Any, share: Any) -> Any:
    """Update the average towards the newest weights by `share`; at 1 it is the weights, bit for bit."""
    return w if not isinstance(share, Tensor) and share == 1.0 else average + share * (w - average)


def average_in_place(average: Any, w: Any, share: float) -> None:
    """Do the same to an array or tensor, with the same bits and less memory."""
    if share == 1.0:
        average[...] = w
        return
    way = w - average
    way *= share
    average += way


def share_of_newest(decay: float, step: Any) -> Any:
    """Weight of the newest weights in their average: `(1 - d) / (1 - d^t)`, so that the start does not weigh in.

    The average is then `Σ d^(t-s) w_s / Σ d^(t-s)` over the steps s = 1 … t, as Adam corrects its own averages.

    >>> share_of_newest(0.9, 1), round(share_of_newest(0.9, 2), 6)
    (1.0, 0.526316)
    """
    return (1.0 - decay) / (1.0 - decay**step)


def _precise(w: Any) -> Any:
    """Give weights in float64, where there is such a thing close by: their difference would lose bits of a small step else."""
    if isinstance(w, np.ndarray):
        return w.astype(np.float64)
    return w.double() if isinstance(w, Tensor) and w.device.type == "cpu" else w


def _spread(held: Sequence[Any], there: Sequence[bool]) -> Sequence[Any]:
    """Put 0 in the place of state that the constants switch off."""
    if len(held) == len(there):
        return held
    rest = iter(held)
    return [next(rest) if present else 0.0 for present in there]


def _gather(out: Any, there: Sequence[bool]) -> Sequence[Any]:
    """Leave out state that the constants switch off."""
    if not isinstance(out, tuple):
        return (out,)
    values: tuple[Any, ...] = out
    if all(there):
        return values
    return [values[0], *(value for value, present in zip(values[1:], there, strict=True) if present)]
