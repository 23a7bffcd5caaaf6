"""One step's numbers bound to a rule: what a block evaluates, once on all its weights or piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from thalweg.optim.engines.work import Work

Formula = Callable[..., Sequence[Any]]


@dataclass(slots=True)
class Move:
    """How a block moves this step: `scale` of the gradient (clipping), `clip_value` of its entries, `ema` decay, or None."""

    work: Work
    scale: float
    clip_value: float | None
    ema: float | None
    record: bool

    def formula(self, step: int) -> Formula:
        """Bind the rule to this step: a function of (decay, w, g, state …) that gives the new w and the new state.

        It is plain arithmetic in a fixed order, so numbers, arrays and tensors give the same bits.
        """
        work, rule, clip = self.work, self.work.rule, self.clip_value
        constants = dict(work.constants)
        if rule.scalars is not None:
            constants.update(rule.scalars(step, work.constants))
        factor = -self.scale if work.maximize else self.scale
        lr, equation, coupled = work.lr, rule.equation, rule.coupled_decay
        there = [not s.when or bool(work.constants[s.when]) for s in rule.state]

        def formula(decay: Any, w: Any, g: Any, *held: Any) -> Sequence[Any]:
            if clip is not None:
                g = g.clip(-clip, clip)
            if factor != 1.0:
                g = g * factor
            if not coupled:
                out = equation(w, g, *_spread(held, there), lr=lr, weight_decay=decay, **constants)
            else:
                if decay is not None:
                    g = g + decay * w
                out = equation(w, g, *_spread(held, there), lr=lr, **constants)
            return _gather(out, there)

        return formula


def averaged(average: Any, w: Any, share: float) -> Any:
    """Move the average towards the newest weights by `share`; at 1 it is the weights, bit for bit."""
    return w if share == 1.0 else average + share * (w - average)


def average_in_place(average: Any, w: Any, share: float) -> None:
    """Do the same to an array or tensor, with the same bits and less memory."""
    if share == 1.0:
        average[...] = w
        return
    way = w - average
    way *= share
    average += way


def share_of_newest(decay: float, step: int) -> float:
    """Weight of the newest weights in their average: `(1 - d) / (1 - d^t)`, so that the start does not weigh in.

    The average is then `Σ d^(t-s) w_s / Σ d^(t-s)` over the steps s = 1 … t, as Adam corrects its own averages.

    >>> share_of_newest(0.9, 1), round(share_of_newest(0.9, 2), 6)
    (1.0, 0.526316)
    """
    return (1.0 - decay) / (1.0 - decay**step)


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
