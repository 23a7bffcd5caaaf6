"""A walk: a rule in its plain form, one step after another on numbers or arrays, with nothing around the equation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thalweg.rules.rule import DECAY, Rule, State


class Walk:
    """Weights that move by a rule, and all that the rule keeps.

    `w` is a number or anything that calculates (an array: each of its elements is a weight); `state` are the rule's states in
    their order, those that the constants switch off as 0; `numbers` what it carries from step to step. Weight decay is that of
    the rule's own form. A rule of matrices leaves what is none to its `rest`. Slow, and obviously the equation.

    >>> from thalweg.rules.momentum import momentum
    >>> walk = Walk(momentum, 1.0, lr=0.1)
    >>> [round(walk.step(walk.w), 3) for _ in range(3)]
    [0.9, 0.72, 0.486]
    """

    def __init__(
        self,
        rule: Rule,
        w: Any,
        *,
        lr: float | None = None,
        weight_decay: float = 0.0,
        constants: Mapping[str, Any] | None = None,
    ) -> None:
        matrix = getattr(w, "ndim", 0) >= 2
        if rule.rest is not None and not matrix:
            rule = rule.rest
        self.rule, self.w, self.weight_decay = rule, w, weight_decay
        self.lr = rule.learning_rate if lr is None else lr
        self.constants = rule.complete(constants or {})
        kept = rule.states(self.constants)
        self.state: list[Any] = [
            _start(state, w, state.begin(self.constants)) if state in kept and state.is_kept(matrix) else 0.0
            for state in rule.state
        ]
        self.numbers = rule.begin(self.constants)
        self.taken = 0

    def step(self, g: Any) -> Any:
        """Take one step against a gradient, and give the new weights."""
        rule, self.taken = self.rule, self.taken + 1
        numbers = {**rule.numbers(self.taken, self.numbers, self.constants, self.lr), DECAY: self.weight_decay}
        if rule.couples(self.constants):
            g, numbers[DECAY] = g + self.weight_decay * self.w, 0.0
        if rule.sums is not None and rule.decide is not None:
            names = rule.sums.__code__.co_varnames
            found = rule.sums(
                self.w, g, *self.state, **{name: value for name, value in numbers.items() if name in names}
            )
            numbers |= rule.decide([_total(part) for part in found], numbers)
        moved = rule(self.w, g, *self.state, **{name: numbers[name] for name in rule.takes})
        self.w, *self.state = moved if isinstance(moved, tuple) else (moved,)
        self.numbers = {name: numbers[name] for name in rule.carried}
        return self.w


def _start(state: State, w: Any, start: float | str) -> Any:
    shaped = w if state.shape == "weights" else w[..., :1] if state.shape == "rows" else w[..., :1, :]
    return shaped if start == "weights" else 0.0 * shaped + start


def _total(value: Any) -> float:
    return float(value.sum() if hasattr(value, "sum") else value)
