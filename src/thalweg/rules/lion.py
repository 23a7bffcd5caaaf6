"""Lion: every weight moves by exactly the rate, in the direction of a momentum that weighs the newest gradient more.

    w <- (1 - lr weight_decay) w - lr sign(m + (1 - beta1)(g - m))
    m <- m + (1 - beta2)(g - m)

Source: Chen et al. 2023, arXiv:2302.06675. Rates are three to ten times smaller than AdamW's, decay as much larger.
"""

from __future__ import annotations

from thalweg.rules.maths import sign
from thalweg.rules.rule import rule


@rule(
    state={"m": ("exp_avg", "zeros")},
    ranges={"beta1": "[0, 1)", "beta2": "[0, 1)"},
    grouped={"betas": ("beta1", "beta2")},
    source="Chen et al. 2023, arXiv:2302.06675",
)
def lion(
    w: float,
    g: float,
    m: float,
    *,
    lr: float = 1e-4,
    beta1: float = 0.9,
    beta2: float = 0.99,
    weight_decay: float = 0.0,
) -> tuple[float, float]:
    """Lion: every weight moves by exactly the rate, in the direction of a momentum that weighs the newest gradient more."""
    direction = sign(m + (1 - beta1) * (g - m))
    return (1 - lr * weight_decay) * w - lr * direction, m + (1 - beta2) * (g - m)
