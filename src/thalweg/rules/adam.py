"""Adam: momentum divided by the usual size of the gradient, both freed of their bias towards their start at zero.

    m <- m + (1 - beta1)(g - m)
    v <- beta2 v + (1 - beta2) g²
    w <- w - lr m̂ / (sqrt(v̂) + eps)          m̂ = m / (1 - beta1^t),  v̂ = v / (1 - beta2^t)

With `amsgrad` the largest v so far divides (Reddi, Kale & Kumar 2018, arXiv:1904.09237).

Source: Kingma & Ba 2015, arXiv:1412.6980, algorithm 1. Weight decay is coupled (added to the gradient), as in PyTorch's `Adam`;
TensorFlow's eps is the paper's "epsilon hat", which is not divided by the correction.
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
    fixed={"decoupled_weight_decay": False},
    second_moment="v / correction2",
    source="Kingma & Ba 2015, arXiv:1412.6980",
)
def adam(
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
    correction1: float,
    correction2: float,
) -> tuple[float, float, float, float]:
    """Adam: momentum divided by the usual size of the gradient, both freed of their bias towards zero."""
    m = m + (1 - beta1) * (g - m)
    v = beta2 * v + (1 - beta2) * (g * g)
    divisor = v
    if amsgrad:
        largest = maximum(largest, v)
        divisor = largest
    return w - (lr / correction1) * m / (sqrt(divisor / correction2) + eps), m, v, largest
