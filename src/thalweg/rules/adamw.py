"""AdamW: Adam whose weight decay shrinks the weights themselves instead of bending the gradient.

    m <- m + (1 - beta1)(g - m)
    v <- beta2 v + (1 - beta2) g²
    w <- (1 - lr weight_decay) w - lr m̂ / (sqrt(v̂) + eps)          m̂ = m / (1 - beta1^t),  v̂ = v / (1 - beta2^t)

With `amsgrad` the largest v so far divides (Reddi, Kale & Kumar 2018, arXiv:1904.09237).

Source: Loshchilov & Hutter 2019, arXiv:1711.05101, with the rate inside the decay as in PyTorch (the paper's schedule multiplier
alone scales it there: decay then does not change with the peak rate).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thalweg.rules.maths import maximum, sqrt
from thalweg.rules.rule import rule


def corrections(step: int, constants: Mapping[str, Any]) -> dict[str, float]:
    """Give `1 - beta^step` in float64; float32 would be 1.3e-5 off for beta2 at step 1."""
    return {"correction1": 1 - constants["beta1"] ** step, "correction2": 1 - constants["beta2"] ** step}


@rule(
    state={
        "m": ("exp_avg", "zeros"),
        "v": ("exp_avg_sq", "zeros"),
        "largest": ("max_exp_avg_sq", "zeros", "amsgrad"),
    },
    ranges={"beta1": "[0, 1)", "beta2": "[0, 1)", "eps": "(0, inf)"},
    scalars=corrections,
    grouped={"betas": ("beta1", "beta2")},
    fixed={"decoupled_weight_decay": True},
    second_moment="v / correction2",
    optimizer="AdamW",
    source="Loshchilov & Hutter 2019, arXiv:1711.05101",
)
def adamw(
    w: float,
    g: float,
    m: float,
    v: float,
    largest: float,
    *,
    lr: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    amsgrad: bool = False,
    weight_decay: float = 0.01,
    correction1: float,
    correction2: float,
) -> tuple[float, float, float, float]:
    """AdamW: Adam whose weight decay shrinks the weights themselves instead of bending the gradient."""
    m = m + (1 - beta1) * (g - m)
    v = beta2 * v + (1 - beta2) * (g * g)
    divisor = v
    if amsgrad:
        largest = maximum(largest, v)
        divisor = largest
    return (1 - lr * weight_decay) * w - (lr / correction1) * m / (sqrt(divisor / correction2) + eps), m, v, largest
