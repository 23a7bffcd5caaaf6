"""Nesterov's momentum: the heavy ball that already looks where it is about to roll.

    velocity <- momentum velocity + g
    w        <- w - lr (g + momentum velocity)

Source: Nesterov 1983, in the form of Sutskever et al. 2013 that takes the gradient at the weights themselves, as PyTorch does.
"""

from __future__ import annotations

from thalweg.rules.rule import rule


@rule(
    state={"velocity": ("momentum_buffer", "zeros")},
    ranges={"momentum": "[0, 1)"},
    source="Nesterov 1983; Sutskever et al. 2013, ICML",
    fixed={"dampening": 0, "nesterov": True},
)
def nesterov(w: float, g: float, velocity: float, *, lr: float, momentum: float = 0.9) -> tuple[float, float]:
    """Nesterov's momentum: the heavy ball that already looks where it is about to roll."""
    velocity = momentum * velocity + g
    return w - lr * (g + momentum * velocity), velocity
