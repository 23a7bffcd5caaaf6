"""Schedule-free descent: gradients are taken between a fast sequence z and its running average x, and x is the result.

    z <- z - lr g(y)
    x <- (1 - c) x + c z                  c = s / Σ s over the steps so far,  s = t^r lr_max^weight_lr_power
    y <- momentum x + (1 - momentum) z

The parameters are y; x is not stored: x = (y - (1 - momentum) z) / momentum. So the two lines for x and y are one,

    y <- y + c (z - y) + lr (momentum (1 - c) - 1) g

An average over all of the run takes the place of a falling rate, and the run's length need not be known: the rate stays
constant after its warm-up (`lr_max`, the largest so far, weighs the early steps less). Evaluate and save x, never y. `momentum`,
with which x is computed from y, must not change during a run.

Source: Defazio et al. 2024, arXiv:2405.15682, as in the authors' package `schedulefree` 1.4, whose training mode holds y too.
Weight decay is added to the gradient at y, as there. There, steps are counted per group, here per parameter: a parameter
that gets no gradient in some steps has an average of its own. The warm-up is the schedule's, not an option of the rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thalweg.rules.maths import maximum
from thalweg.rules.rule import rule


def share_of_newest(step: int, numbers: Mapping[str, Any]) -> dict[str, float]:
    """Give c, the newest z's share in the average (1 at the first step)."""
    largest = maximum(numbers["lr_max"], numbers["lr"])
    weight = step ** numbers["r"] * largest ** numbers["weight_lr_power"]
    total = numbers["weight_sum"] + weight
    return {"share": weight / maximum(total, 1e-300), "weight_sum": total, "lr_max": largest}


def average(y: Any, z: Any, *, momentum: float, **others: float) -> Any:
    """Give x, the weights to evaluate and to save."""
    return y + (1 - 1 / momentum) * (z - y)


@rule(
    state={"z": ("z", "weights")},
    ranges={"momentum": "(0, 1)", "r": "[0, inf)", "weight_lr_power": "[0, inf)"},
    scalars=share_of_newest,
    carried={"weight_sum": 0.0, "lr_max": 0.0},
    average=average,
    fixed={"train_mode": True},  # the weights of a state_dict are y, as the authors' package has them in training mode
    optimizer="ScheduleFreeSGD",
    source="Defazio et al. 2024, arXiv:2405.15682",
)
def schedule_free_sgd(
    w: float,
    g: float,
    z: float,
    *,
    lr: float = 1.0,
    momentum: float = 0.9,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
    share: float,
) -> tuple[float, float]:
    """Schedule-free SGD: gradients are taken between a fast sequence and its running average, and the average is the result."""
    return w + share * (z - w) + lr * (momentum * (1 - share) - 1) * g, z - lr * g
