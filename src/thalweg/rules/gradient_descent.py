"""Gradient descent: a step straight downhill, as long as the slope is steep.

    w <- w - lr g

Source: Cauchy 1847. Weight decay is coupled (added to the gradient), as in PyTorch's `SGD`.
"""

from __future__ import annotations

from thalweg.rules.rule import rule


@rule(
    takes_sparse=True,
    source="Cauchy 1847, Comptes rendus 25, 536",
    aliases=("sgd",),
    fixed={"momentum": 0, "dampening": 0, "nesterov": False},
)
def gradient_descent(w: float, g: float, *, lr: float = 1e-3) -> float:
    """Gradient descent: a step straight downhill, as long as the slope is steep."""
    return w - lr * g
