"""Adadelta: a step is as long as recent steps were, in the units of the weight, whatever the units of the loss.

    v <- rho v + (1 - rho) g²
    d  = sqrt(u + eps) / sqrt(v + eps) g
    u <- rho u + (1 - rho) d²
    w <- w - lr d

Source: Zeiler 2012, arXiv:1212.5701; there lr is 1.
"""

from __future__ import annotations

from thalweg.rules.maths import sqrt
from thalweg.rules.rule import rule


@rule(
    state={"v": ("square_avg", "zeros"), "u": ("acc_delta", "zeros")},
    ranges={"rho": "[0, 1)", "eps": "(0, inf)"},
    source="Zeiler 2012, arXiv:1212.5701",
    counts_steps=True,
    second_moment="v",
)
def adadelta(
    w: float, g: float, v: float, u: float, *, lr: float = 1.0, rho: float = 0.9, eps: float = 1e-6
) -> tuple[float, float, float]:
    """Adadelta: a step is as long as recent steps were, in the units of the weight, whatever the units of the loss."""
    v = rho * v + (1 - rho) * (g * g)
    d = sqrt(u + eps) / sqrt(v + eps) * g
    u = rho * u + (1 - rho) * (d * d)
    return w - lr * d, v, u
