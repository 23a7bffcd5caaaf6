"""Schedule-free AdamW: steps as long as Adam's from a fast sequence z, whose running average x is the result.

    v <- beta2 v + (1 - beta2) g²
    u  = g / (sqrt(v̂) + eps) + weight_decay y          v̂ = v / (1 - beta2^t),  g taken at y
    z <- z - lr u
    x <- (1 - c) x + c z                  c = s / Σ s over the steps so far,  s = t^r lr_max^weight_lr_power
    y <- beta1 x + (1 - beta1) z

The parameters are y; x is not stored: x = (y - (1 - beta1) z) / beta1. So the two lines for x and y are one,

    y <- y + c (z - y) + lr (beta1 (1 - c) - 1) u

There is no first moment: y between x and z does its work, with beta1 as the share of x. An average over all of the run takes the
place of a falling rate: the rate stays constant after its warm-up. Evaluate and save x, never y. beta1, with which x is computed
from y, must not change during a run.

Source: Defazio et al. 2024, arXiv:2405.15682, as in the authors' package `schedulefree` 1.4, whose training mode holds y too.
Weight decay is decoupled and taken at y, as there. The paper's algorithm 1 (there `AdamWScheduleFreePaper`) has sqrt(1 - beta2^t)
in the rate, so that the first steps weigh less in the average too. There, steps are counted per group, here per parameter: a
parameter that gets no gradient in some steps has an average of its own. The warm-up is the schedule's, not an option of the rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thalweg.rules.maths import maximum, sqrt
from thalweg.rules.rule import rule


def share_of_newest(step: int, numbers: Mapping[str, Any]) -> dict[str, float]:
    """Give c, the newest z's share in the average (1 at the first step), and 1 - beta2^t."""
    largest = maximum(numbers["lr_max"], numbers["lr"])
    weight = step ** numbers["r"] * largest ** numbers["weight_lr_power"]
    total = numbers["weight_sum"] + weight
    share = weight / maximum(total, 1e-300)
    return {
        "share": share,
        "weight_sum": total,
        "lr_max": largest,
        "correction2": 1 - numbers["beta2"] ** step,
    }


def average(y: Any, z: Any, v: Any, *, beta1: float, **others: float) -> Any:
    """Give x, the weights to evaluate and to save."""
    return y + (1 - 1 / beta1) * (z - y)


@rule(
    state={"z": ("z", "weights"), "v": ("exp_avg_sq", "zeros")},
    ranges={"beta1": "(0, 1)", "beta2": "[0, 1)", "eps": "(0, inf)", "r": "[0, inf)", "weight_lr_power": "[0, inf)"},
    scalars=share_of_newest,
    carried={"weight_sum": 0.0, "lr_max": 0.0},
    grouped={"betas": ("beta1", "beta2")},
    average=average,
    fixed={"train_mode": True},  # the weights of a state_dict are y, as the authors' package has them in training mode
    second_moment="v / correction2",
    optimizer="ScheduleFreeAdamW",
    source="Defazio et al. 2024, arXiv:2405.15682",
)
def schedule_free_adamw(
    w: float,
    g: float,
    z: float,
    v: float,
    *,
    lr: float = 0.0025,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
    weight_decay: float = 0.0,
    share: float,
    correction2: float,
) -> tuple[float, float, float]:
    """Schedule-free AdamW: steps as long as Adam's from a fast sequence, whose running average is the result."""
    v = beta2 * v + (1 - beta2) * (g * g)
    step = g / (sqrt(v / correction2) + eps) + weight_decay * w
    return w + share * (z - w) + lr * (beta1 * (1 - share) - 1) * step, z - lr * step, v
