"""Blocks: the sets of weights that one evaluation of the equation serves.

Small tensors are gathered into one flat block, because a call of any operation costs more than 10,000 additions; a large
tensor is a block of its own and is worked on in place, a piece at a time, so that what lies between stays in the cache.
Both have the same face: `gather` the gradients, `norms`, `update`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thalweg.optim.engines.arithmetic import COMPUTE, Array
from thalweg.optim.engines.work import StateOf, Work
from thalweg.rules.rule import State

PIECE = 1 << 16
"""Elements worked on at a time: eight arrays of 64 k floats lie in a second-level cache of 2 MB."""

EMA = State("ema", "ema", "weights")


@dataclass(slots=True)
class Move:
    """How one block moves this step."""

    work: Work
    step: int
    scale: float
    clip_value: float | None
    ema: float | None

    def equation(self) -> Callable[..., Any]:
        """Bind this step's numbers to the rule: a function of (w, g, carried state) that gives all of them anew."""
        work, rule = self.work, self.work.rule
        constants = dict(work.constants)
        if rule.scalars is not None:
            constants.update(rule.scalars(self.step, work.constants))
        factor = -self.scale if work.maximize else self.scale
        clip, lr = self.clip_value, work.lr
        decay = None if isinstance(work.coupled_decay, float) and work.coupled_decay == 0.0 else work.coupled_decay
        places = [not (s.when and not work.constants[s.when]) for s in rule.state]
        everything = all(places)

        def moved(w: Any, g: Any, *held: Any) -> Sequence[Any]:
            if clip is not None:
                g = g.clip(-clip, clip)
            if factor != 1.0:
                g = g * factor
            if decay is not None:
                g = g + decay * w
            if everything:
                out = rule.equation(w, g, *held, lr=lr, **constants)
                return out if held else (out,)
            rest = iter(held)
            out = rule.equation(w, g, *(next(rest) if there else 0.0 for there in places), lr=lr, **constants)
            return [out[0], *(value for value, there in zip(out[1:], places, strict=True) if there)]

        return moved


def averaging(decay: float, step: int) -> float:
    """Weight of the newest weights in their average: `(1 - d) / (1 - d^t)`, so that the start does not weigh in.

    >>> averaging(0.9, 1)
    1.0
    """
    return (1.0 - decay) / (1.0 - decay**step)


def shaped(flat: Tensor, like: Tensor) -> Tensor:
    """See a flat stretch of reals in the shape (and complexness) of a parameter."""
    if like.is_complex():
        return torch.view_as_complex(flat.view(*like.shape, 2))
    return flat.view(like.shape)


class Block:
    """Parameters, their state in the order that the equation takes it (then `ema`), and their step counts."""

    def __init__(self, parameters: Sequence[Tensor], states: Sequence[State], counts: bool) -> None:
        self.parameters = list(parameters)
        self.states = tuple(states)
        self.keys = tuple(s.key for s in states)
        self.device = parameters[0].device
        self.dtype = parameters[0].dtype
        self.compute = COMPUTE[self.dtype]
        self.views: dict[str, list[Tensor]] = {}
        self.steps: Array | None = np.zeros(len(parameters), np.float32) if counts else None
        self.step_views: list[Tensor] = []
        if self.steps is not None:
            self.step_views = list(torch.from_numpy(self.steps).unbind())
        self.counts = [0] * len(parameters)
        self.owned = [False] * len(parameters)

    def fits(self, state: StateOf) -> bool:
        """Tell whether parameters and state are still those that the block was made for."""
        device, dtype = self.device, self.dtype
        for i, parameter in enumerate(self.parameters):
            if parameter.dtype is not dtype or parameter.device != device:
                return False
            if self.owned[i]:
                entry = state.get(parameter)
                if entry is None:
                    return False
                for key in self.keys:
                    if entry.get(key) is not self.views[key][i]:
                        return False
                if self.steps is not None and entry.get("step") is not self.step_views[i]:
                    return False
        return True

    def own(self, state: StateOf) -> None:
        """Take over what state there is (after loading, say), start the rest, and put the block's views in its place."""
        for i, parameter in enumerate(self.parameters):
            if self.owned[i]:
                continue
            entry = state.setdefault(parameter, {})
            for described in self.states:
                view = self.views[described.key][i]
                _start(view, entry.get(described.key), described, parameter)
                entry[described.key] = view
            if self.steps is not None:
                self.steps[i] = self.counts[i] = steps_taken(entry)
                entry["step"] = self.step_views[i]
            self.owned[i] = True

    @property
    def even(self) -> bool:
        """Whether all parameters have taken the same number of steps."""
        return self.steps is None or len(self.steps) == 1 or bool((self.steps == self.steps[0]).all())

    def count(self) -> list[int]:
        """Give how many steps each parameter has taken: the tensors in `state` decide, beyond float32's 2^24 our own count."""
        if self.steps is not None and any(c < 1 << 24 for c in self.counts[:1]):
            self.counts = [int(s) for s in self.steps.tolist()]
        return self.counts

    def advance(self, step: int) -> None:
        """Write the step just taken."""
        if self.steps is not None:
            self.steps.fill(step)
        self.counts[:] = [step] * len(self.counts)


def steps_taken(entry: Mapping[str, Any]) -> int:
    """Read the step count of a parameter's state: a tensor, a number, or none yet."""
    value = entry.get("step")
    return 0 if value is None else int(value)


def _start(view: Tensor, found: Any, described: State, parameter: Tensor) -> None:
    if isinstance(found, Tensor):
        view.copy_(found)
    elif described.start == "weights":
        view.copy_(parameter.detach())
    else:
        view.fill_(0.0 if described.start == "zeros" else float(described.start))
