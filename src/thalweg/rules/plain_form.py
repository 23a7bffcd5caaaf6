"""A rule in its plain form: its equation applied step by step, on numbers or arrays, with no engine around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thalweg.rules.rule import DECAY, Rule, State


class PlainForm:
    """Weights that a rule moves, with the rule's state: slow, and obviously the equation.

    Engines are tested against it. Weight decay is that of the rule's own form, coupled or decoupled. With a matrix rule, a tensor
    that is no matrix is moved by its `rest`.

    Attributes:
        w: the weights: a number, or an array, each of whose elements is a weight.
        state: the rule's states, in its order; those that do not exist under these constants are 0.
        carried: the numbers that the rule carries from step to step.
        steps: how many steps were taken.

    >>> from thalweg.rules.momentum import momentum
    >>> form = PlainForm(momentum, 1.0, lr=0.1)
    >>> [round(form.step(form.w), 3) for _ in range(3)]
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
        active = rule.states(self.constants)
        self.state: list[Any] = [
            _start(state, w, state.begin(self.constants)) if state in active and state.exists_for(matrix) else 0.0
            for state in rule.state
        ]
        self.carried = rule.begin(self.constants)
        self.steps = 0

    def step(self, g: Any) -> Any:
        """Take one step with a gradient, and give the new weights."""
        rule, self.steps = self.rule, self.steps + 1
        numbers = {**rule.numbers(self.steps, self.carried, self.constants, self.lr), DECAY: self.weight_decay}
        if rule.couples(self.constants):
            g, numbers[DECAY] = g + self.weight_decay * self.w, 0.0
        if rule.sums is not None and rule.decide is not None:
            taken = rule.sums.__code__.co_varnames
            summands = rule.sums(
                self.w, g, *self.state, **{name: value for name, value in numbers.items() if name in taken}
            )
            numbers |= rule.decide([_total(summand) for summand in summands], numbers)
        moved = rule(self.w, g, *self.state, **{name: numbers[name] for name in rule.takes})
        self.w, *self.state = moved if isinstance(moved, tuple) else (moved,)
        self.carried = {name: numbers[name] for name in rule.carried}
        return self.w


def _start(state: State, w: Any, start: float | str) -> Any:
    """Give a state as it is before the first step, in its shape: of the weights, of their rows, or of their columns."""
    like = w if state.shape == "weights" else w[..., :1] if state.shape == "rows" else w[..., :1, :]
    return like if start == "weights" else 0.0 * like + start


def _total(value: Any) -> float:
    return float(value.sum() if hasattr(value, "sum") else value)
