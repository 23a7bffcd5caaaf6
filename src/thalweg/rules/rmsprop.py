"""RMSprop: each weight's step is divided by the usual size of its own gradient.

    v    <- alpha v + (1 - alpha) g²
    mean <- alpha mean + (1 - alpha) g                     centred only
    step  = g / (sqrt(v - mean²) + eps)                    mean = 0 where not centred
    velocity <- momentum velocity + step                   with momentum only
    w    <- w - lr velocity

Source: Hinton 2012, Coursera lecture 6e; centred: Graves 2013, arXiv:1308.0850. As in PyTorch, eps stands outside the root
(TensorFlow puts it inside) and there is no bias correction. Where rounding makes `v - mean²` negative PyTorch's root is NaN;
here it is taken as 0. Where v has overflowed to infinity, the weight does not move.
"""

from __future__ import annotations

from thalweg.rules.maths import maximum, sqrt, where
from thalweg.rules.rule import rule


@rule(
    state={
        "v": ("square_avg", "zeros"),
        "mean": ("grad_avg", "zeros", "centered"),
        "velocity": ("momentum_buffer", "zeros", "momentum"),
    },
    ranges={"alpha": "[0, 1)", "eps": "(0, inf)", "momentum": "[0, 1)"},
    source="Hinton 2012, Coursera lecture 6e; Graves 2013, arXiv:1308.0850",
    counts_steps=True,
    second_moment="v",
    optimizer="RMSprop",
)
def rmsprop(
    w: float,
    g: float,
    v: float,
    mean: float,
    velocity: float,
    *,
    lr: float = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    momentum: float = 0.0,
    centered: bool = False,
) -> tuple[float, float, float, float]:
    """RMSprop: each weight's step is divided by the usual size of its own gradient."""
    v = alpha * v + (1 - alpha) * (g * g)
    spread = v
    if centered:
        mean = alpha * mean + (1 - alpha) * g
        spread = where(v + v > v, maximum(v - mean * mean, 0.0), v)  # infinity less infinity would be NaN
    step = g / (sqrt(spread) + eps)
    if momentum:
        velocity = momentum * velocity + step
        step = velocity
    return w - lr * step, v, mean, velocity
