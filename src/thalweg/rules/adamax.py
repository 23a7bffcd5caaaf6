"""Adamax: Adam with the largest recent gradient in the place of the usual one, so no single step is longer than the rate.

    m <- m + (1 - beta1)(g - m)
    u <- max(beta2 u, |g| + eps)
    w <- w - lr / (1 - beta1^t) m / u

Source: Kingma & Ba 2015, arXiv:1412.6980, section 7.1; eps is where PyTorch has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thalweg.rules.maths import maximum
from thalweg.rules.rule import rule


def correction(step: int, constants: Mapping[str, Any]) -> dict[str, float]:
    """Give `1 - beta1^step` in float64."""
    return {"correction1": 1 - constants["beta1"] ** step}


@rule(
    state={"m": ("exp_avg", "zeros"), "u": ("exp_inf", "zeros")},
    ranges={"beta1": "[0, 1)", "beta2": "[0, 1)", "eps": "(0, inf)"},
    scalars=correction,
    grouped={"betas": ("beta1", "beta2")},
    source="Kingma & Ba 2015, arXiv:1412.6980, section 7.1",
)
def adamax(
    w: float,
    g: float,
    m: float,
    u: float,
    *,
    lr: float = 2e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    correction1: float,
) -> tuple[float, float, float]:
    """Adamax: Adam with the largest recent gradient in the place of the usual one, so no single step is longer than the rate."""
    m = m + (1 - beta1) * (g - m)
    u = maximum(beta2 * u, maximum(g, -g) + eps)
    return w - (lr / correction1) * m / u, m, u
