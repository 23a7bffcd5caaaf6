"""NAdam: Adam that already looks where its momentum is about to take it, with a momentum that grows to its full size.

    m  <- m + (1 - beta1)(g - m)
    v  <- beta2 v + (1 - beta2) g²
    mu  = beta1 (1 - 0.96^(t momentum_decay) / 2)              mu' the same at t + 1;  M <- M mu, M = 1 before the first step
    w  <- w - lr ((1 - mu) / (1 - M) g + mu' / (1 - M mu') m) / (sqrt(v̂) + eps)              v̂ = v / (1 - beta2^t)

Source: Dozat 2016, ICLR workshop, with the schedule of mu that the report proposes, in PyTorch's form. There M is float32
unless the default dtype is float64, here float64. Weight decay is coupled (added to the gradient); with
`decoupled_weight_decay` it shrinks the weights themselves, by 1 - lr weight_decay, as in AdamW.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thalweg.rules.maths import sqrt
from thalweg.rules.rule import rule


def schedule(step: int, numbers: Mapping[str, Any]) -> dict[str, float]:
    """Give the weights of gradient and momentum at a step, and the product of all mu so far."""
    mu = numbers["beta1"] * (1 - 0.5 * 0.96 ** (step * numbers["momentum_decay"]))
    following = numbers["beta1"] * (1 - 0.5 * 0.96 ** ((step + 1) * numbers["momentum_decay"]))
    product = numbers["mu_product"] * mu
    return {
        "mu_product": product,
        "of_gradient": (1 - mu) / (1 - product),
        "of_momentum": following / (1 - product * following),
        "correction2": 1 - numbers["beta2"] ** step,
    }


@rule(
    state={"m": ("exp_avg", "zeros"), "v": ("exp_avg_sq", "zeros")},
    ranges={"beta1": "[0, 1)", "beta2": "[0, 1)", "eps": "(0, inf)", "momentum_decay": "[0, inf)"},
    scalars=schedule,
    carried={"mu_product": 1.0},
    grouped={"betas": ("beta1", "beta2")},
    decoupled="decoupled_weight_decay",
    second_moment="v / correction2",
    optimizer="NAdam",
    source="Dozat 2016, ICLR workshop, https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ",
)
def nadam(
    w: float,
    g: float,
    m: float,
    v: float,
    *,
    lr: float = 2e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum_decay: float = 4e-3,
    decoupled_weight_decay: bool = False,
    of_gradient: float,
    of_momentum: float,
    correction2: float,
) -> tuple[float, float, float]:
    """NAdam: Adam that already looks where its momentum is about to take it."""
    m = m + (1 - beta1) * (g - m)
    v = beta2 * v + (1 - beta2) * (g * g)
    step = (lr * of_gradient) * g + (lr * of_momentum) * m
    return (1 - lr * weight_decay) * w - step / (sqrt(v / correction2) + eps), m, v
