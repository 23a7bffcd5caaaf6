"""RAdam: Adam that takes plain momentum steps until its second moment is worth dividing by, which is a warm-up of its own.

    m <- m + (1 - beta1)(g - m),   v <- beta2 v + (1 - beta2) g²
    rho = rho_inf - 2 t beta2^t / (1 - beta2^t),   rho_inf = 2 / (1 - beta2) - 1
    r   = sqrt((rho - 4)(rho - 2) rho_inf / ((rho_inf - 4)(rho_inf - 2) rho))         where rho > 5
    w <- w - lr m̂ r sqrt(1 - beta2^t) / (sqrt(v) + eps)                               where rho > 5
    w <- w - lr m̂                                                                     else

Source: Liu et al. 2020, arXiv:1908.03265, with PyTorch's threshold of 5 and place of eps. Weight decay is coupled (added
to the gradient); with `decoupled_weight_decay` it shrinks the weights themselves, by 1 - lr weight_decay, as in AdamW.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thalweg.rules.maths import maximum, sqrt, where
from thalweg.rules.rule import rule


def rectification(step: int, constants: Mapping[str, Any]) -> dict[str, float]:
    """Give the corrections of a step: `rectified` is r, 0 where the second moment is not yet worth dividing by."""
    beta1, beta2 = constants["beta1"], constants["beta2"]
    correction2 = 1 - beta2**step
    most = 2 / (1 - beta2) - 1
    rho = most - 2 * step * beta2**step / correction2
    below = maximum(
        (most - 4) * (most - 2) * rho, 1e-30
    )  # no change where rho is above 5; elsewhere it avoids a division by 0
    r = where(rho > 5, sqrt((rho - 4) * (rho - 2) * most / below), 0.0)
    return {"correction1": 1 - beta1**step, "root2": sqrt(correction2), "rectified": r}


@rule(
    state={"m": ("exp_avg", "zeros"), "v": ("exp_avg_sq", "zeros")},
    ranges={"beta1": "[0, 1)", "beta2": "[0, 1)", "eps": "(0, inf)"},
    scalars=rectification,
    grouped={"betas": ("beta1", "beta2")},
    decoupled="decoupled_weight_decay",
    second_moment="v / (root2 * root2)",
    optimizer="RAdam",
    source="Liu et al. 2020, arXiv:1908.03265",
)
def radam(
    w: float,
    g: float,
    m: float,
    v: float,
    *,
    lr: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    correction1: float,
    root2: float,
    rectified: float,
) -> tuple[float, float, float]:
    """RAdam: Adam that takes plain momentum steps until its second moment is worth dividing by."""
    m = m + (1 - beta1) * (g - m)
    v = beta2 * v + (1 - beta2) * (g * g)
    step = m * where(rectified > 0, rectified * root2 / (sqrt(v) + eps), 1.0)
    return (1 - lr * weight_decay) * w - (lr / correction1) * step, m, v
