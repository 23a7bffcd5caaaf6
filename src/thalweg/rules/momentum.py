"""Heavy-ball momentum: a running sum of past gradients, like a marble that has built up speed.

    velocity <- momentum velocity + (1 - dampening) g                  at the first step velocity <- g
    w        <- w - lr velocity

Source: Polyak 1964; in PyTorch's form (Sutskever et al. 2013): the rate multiplies the velocity, so a change of rate acts on all
of it at once. (Polyak's own form puts the rate inside the sum; Keras does so.) That the first gradient is taken in full whatever
the dampening is PyTorch's too.
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
    source="Polyak 1964, doi:10.1016/0041-5553(64)90137-5",
    aliases=("heavy_ball",),
    fixed={"nesterov": False},
)
def momentum(
    w: float,
    g: float,
    velocity: float,
    *,
    lr: float = 1e-3,
    momentum: float = 0.9,
    dampening: float = 0.0,
    newest: float,
) -> tuple[float, float]:
    """Heavy-ball momentum: a running sum of past gradients, like a marble that has built up speed."""
    push = g
    if dampening:
        push = newest * g
    velocity = momentum * velocity + push
    return w - lr * velocity, velocity
