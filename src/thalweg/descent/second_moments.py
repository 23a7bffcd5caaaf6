"""The mean of squared gradients that a rule carried, as it was on the way: made again from gradients at the points of a trail.

A run keeps it with its last checkpoints only. It is a linear function of squared gradients, v <- a v + b g², so what the squared
gradients of the run's batches are on average at some points, and between two of them in proportion, says what v was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thalweg import rules
from thalweg.landscape.model_surface import ModelSurface
from thalweg.optim.preconditioner import preconditioner
from thalweg.rules.plain_form import PlainForm

_LATE_STEP = 10**6  # at which corrections of the first steps have gone


class Recursion(NamedTuple):
    """How a rule's state `key` follows the gradient: it becomes `kept` times itself and `added` times the squared gradient."""

    key: str
    kept: float
    added: float


def recursion(rule: str, constants: Mapping[str, Any]) -> Recursion | None:
    """Find how a rule's mean of squared gradients follows them, by evaluating its equation; None where it has none, or one that
    is no linear function of them.

    >>> recursion("adamw", {"beta2": 0.75}), recursion("momentum", {})
    (Recursion(key='exp_avg_sq', kept=0.75, added=0.25), None)
    """
    known = rules.get(rule)
    if known.second_moment is None or known.is_matrix or known.sums is not None:
        return None
    complete = known.complete(constants)
    read = compile(known.second_moment, "<second moment>", "eval").co_names
    places = [place for place, state in enumerate(known.state) if state.name in read]
    if len(places) != 1 or known.state[places[0]] not in known.states(complete):
        return None

    def after(before: float, gradient: float) -> float:
        form = PlainForm(known, 0.0, lr=1e-3, constants=complete)
        form.steps, form.state[places[0]] = _LATE_STEP, before
        form.step(gradient)
        return float(form.state[places[0]])

    kept, added = after(1.0, 0.0), after(0.0, 1.0)
    if not math.isclose(after(2.0, 3.0), 2 * kept + 9 * added, rel_tol=1e-9) or not added > 0:
        return None
    return Recursion(known.state[places[0]].key, kept, added)


def noise_left(of_part: float, batch: int | None, examples: int | None) -> float:
    """Give how much of the variance of gradients of `of_part` examples each those of a run's batches have, drawn without
    replacement from so many examples; a batch or number that is None is not known.

    >>> noise_left(8, 16, None), noise_left(8, 16, 16), noise_left(8, None, None)
    (0.5, 0.0, 1.0)
    """
    return 1.0 if not batch else of_part * (1 / batch - 1 / max(batch, examples or math.inf))


class SecondMoments:
    """Follows a rule's mean of squared gradients along a trail.

    Arguments:
        rule, constants: of the plan; `followed` is how it follows gradients.
        surface: the loss, over small batches: their spread tells that of the run's.
        batch, examples: of the run's steps, and of its training data: how much of that spread is left in a step. None: as
            the surface's batches are.
        shown: examples in all of the surface's batches.
    """

    def __init__(
        self,
        rule: str,
        constants: Mapping[str, Any],
        followed: Recursion,
        surface: ModelSurface,
        *,
        batch: int | None,
        examples: int | None,
        shown: int,
    ) -> None:
        self.rule, self.constants, self.followed, self.surface = rule, constants, followed, surface
        self.sampled = 1.0 if not examples else max(0.0, 1 - shown / examples)  # of the spread is in the mean of all
        self.noise_left = noise_left(shown / len(surface.parts), batch, examples)
        self.step = 0
        self.value, self._squares = torch.zeros(0), torch.zeros(0)

    def go_to(self, step: int, point: Tensor, scale: float = 1.0) -> None:
        """Go to the next point of the trail, after a step; `scale`: what gradients were multiplied by there, as by clipping."""
        squares = self._squared_gradients(point).mul_(scale**2)
        if not len(self.value):
            self.value = torch.zeros_like(squares)
        else:
            taken = step - self.step
            left = self.followed.kept**taken
            weight = taken if self.followed.kept == 1 else (1 - left) / (1 - self.followed.kept)
            self.value.mul_(left).add_(self._squares.add_(squares), alpha=weight * self.followed.added / 2)
        self.step, self._squares = step, squares

    def preconditioner(self) -> Tensor | None:
        """Give 1 / (sqrt(v) + eps) of each weight at the last point, of shape (size,); None before the first step."""
        if self.step < 1:
            return None
        known = rules.get(self.rule)
        state: dict[str, Any] = {each.key: torch.zeros(0) for each in known.states(known.complete(self.constants))}
        return preconditioner(self.rule, self.constants, {**state, self.followed.key: self.value, "step": self.step})

    def _squared_gradients(self, point: Tensor) -> Tensor:
        """Estimate the mean of the squared gradients of the run's batches at a point, of shape (size,)."""
        surface, count = self.surface, len(self.surface.parts)
        mean, squares = torch.zeros_like(point), torch.zeros_like(point)
        surface.move_to(point)
        for part, _, own in surface.gradients_of_parts():
            mean.add_(own, alpha=part.share)
            squares.addcmul_(own, own, value=part.share)
        if count < 2:
            return mean.square_()
        spread = (squares - mean.square()).clamp_(min=0).mul_(count / (count - 1))
        return (
            mean.square_().add_(spread, alpha=-self.sampled / count).clamp_(min=0).add_(spread, alpha=self.noise_left)
        )
