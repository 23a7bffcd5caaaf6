"""Nesterov's momentum: the heavy ball that already looks where it is about to roll.

    velocity <- momentum velocity + (1 - dampening) g                  at the first step velocity <- g
    w        <- w - lr (g + momentum velocity)

Source: Nesterov 1983, in the form of Sutskever et al. 2013 that takes the gradient at the weights themselves, as PyTorch does.
Its `SGD` refuses dampening together with `nesterov`; the formula is the one that it has for both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thalweg.rules.maths import where
from thalweg.rules.rule import rule


def share_of_newest(step: int, constants: Mapping[str, Any]) -> dict[str, float]:
    """Give the weight of the newest gradient: 1 for the first, then 1 - dampening."""
    return {"newest": where(step == 1, 1.0, 1 - constants["dampening"])}


@rule(
    state={"velocity": ("momentum_buffer", "zeros")},
    ranges={"momentum": "[0, 1)", "dampening": "[0, 1]"},
    scalars=share_of_newest,
    counts_steps=False,
    takes_sparse=True,
    source="Nesterov 1983; Sutskever et al. 2013, ICML",
    fixed={"nesterov": True},
)
def nesterov(
    w: float,
    g: float,
    velocity: float,
    *,
    lr: float = 1e-3,
    momentum: float = 0.9,
    dampening: float = 0.0,
    newest: float,
) -> tuple[float, float]:
    """Nesterov's momentum: the heavy ball that already looks where it is about to roll."""
    push = g
    if dampening:
        push = newest * g
    velocity = momentum * velocity + push
    return w - lr * (g + momentum * velocity), velocity
