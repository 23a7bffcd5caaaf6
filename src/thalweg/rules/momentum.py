"""Heavy-ball momentum: a running sum of past gradients, like a marble that has built up speed.

    velocity <- momentum velocity + g
    w        <- w - lr velocity

Source: Polyak 1964; in PyTorch's form (Sutskever et al. 2013), without dampening: the rate multiplies the velocity, so a
change of rate acts on all of it at once. (Polyak's own form puts the rate inside the sum; Keras does so.)
"""

from __future__ import annotations

from thalweg.rules.rule import rule


@rule(
    state={"velocity": ("momentum_buffer", "zeros")},
    ranges={"momentum": "[0, 1)"},
    source="Polyak 1964, doi:10.1016/0041-5553(64)90137-5",
    aliases=("heavy_ball",),
    fixed={"dampening": 0, "nesterov": False},
)
def momentum(w: float, g: float, velocity: float, *, lr: float, momentum: float = 0.9) -> tuple[float, float]:
    """Heavy-ball momentum: a running sum of past gradients, like a marble that has built up speed."""
    velocity = momentum * velocity + g
    return w - lr * velocity, velocity
