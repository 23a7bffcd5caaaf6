"""Adagrad: each weight's step is divided by the size of all its gradients so far.

    s <- s + g²                                            s = initial_accumulator_value before the first step
    w <- w - lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps)

Source: Duchi, Hazan & Singer 2011, JMLR 12. The decay of the rate is PyTorch's; a schedule does it better.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thalweg.rules.maths import sqrt
from thalweg.rules.rule import rule


def slowing(step: int, constants: Mapping[str, Any]) -> dict[str, float]:
    """Give what the rate is divided by at a step."""
    return {"slowed": 1 + (step - 1) * constants["lr_decay"]}


@rule(
    state={"s": ("sum", "initial_accumulator_value")},
    ranges={"lr_decay": "[0, inf)", "initial_accumulator_value": "[0, inf)", "eps": "(0, inf)"},
    scalars=slowing,
    takes_sparse=True,
    source="Duchi, Hazan & Singer 2011, JMLR 12",
)
def adagrad(
    w: float,
    g: float,
    s: float,
    *,
    lr: float = 1e-2,
    lr_decay: float = 0.0,
    initial_accumulator_value: float = 0.0,
    eps: float = 1e-10,
    slowed: float,
) -> tuple[float, float]:
    """Adagrad: each weight's step is divided by the size of all its gradients so far."""
    s = s + g * g
    return w - (lr / slowed) * g / (sqrt(s) + eps), s
