"""Prodigy: Adam that finds its own rate d, a growing estimate of the distance from the starting weights to the solution.

    r   <- beta3 r + (d / d0) lr d <g, w0 - w>               sums over all weights; w0 is where they started
    s   <- beta3 s + (d / d0) lr d g
    d^   = d_coef r / Σ |s|
    m   <- beta1 m + (1 - beta1) d g
    v   <- beta2 v + (1 - beta2) (d g)²
    d'   = max(d, d^), at most growth_rate d
    w   <- (1 - lr d weight_decay) w - lr d m / (sqrt(v) + d' eps)

d never falls and grows within some dozens of steps from d0 to where a tuned rate would lie, whatever the scale of the
gradients. Leave `lr` at 1; it multiplies d, and a schedule goes through it. `d_coef` is to be changed where d turns out too
large or too small. Sixteen-bit weights do not move by a millionth of themselves, so d would never begin to grow: give d0=0.01.

- beta3 = 0 means sqrt(beta2), which the authors' `None` means.
- growth_rate = 0 sets no limit, which the authors' infinity does.
- use_bias_correction: lr d times sqrt(1 - beta2^t) / (1 - beta1^t), as Adam has it.
- safeguard_warmup: s without lr, so that d does not grow too much in a warm-up.
- decouple = False adds the decay to the gradient, as in Adam.

Source: Mishchenko & Defazio 2023, arXiv:2306.06101, as in the authors' package `prodigyopt` 1.1, where d is one number over all
groups and other rates than 0 in a group are refused: here groups of different rates or constants find each their own d. There,
a step at the rate 0 changes nothing; here it changes the averages of the gradients. With beta1 = 0, m is d' g there, d g here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from thalweg.rules.maths import maximum, sqrt, where
from thalweg.rules.rule import rule


def rates(step: int, numbers: Mapping[str, Any]) -> dict[str, float]:
    """Give the length of this step (lr d), the weight of its gradient in s, and the factor on the old s (`kept`)."""
    beta1, beta2, d = numbers["beta1"], numbers["beta2"], numbers["d"]
    correction = (1 - beta2**step) ** 0.5 / (1 - beta1**step) if numbers["use_bias_correction"] else 1.0
    length = d * numbers["lr"] * correction
    return {
        "d_before": d,
        "length": length,
        "weight": d / numbers["d0"] * (d if numbers["safeguard_warmup"] else length),
        "kept": numbers["beta3"] or beta2**0.5,
    }


def summands(
    w: float, g: float, start: float, m: float, v: float, s: float, *, weight: float, kept: float
) -> tuple[float, float]:
    """Give the summands of <g, w0 - w> and of |s|: how far the gradients point back to the start, and how large they are."""
    s = kept * s + weight * g
    return g * (start - w), maximum(s, -s)


def grow(sums: Sequence[float], numbers: Mapping[str, Any]) -> dict[str, float]:
    """Estimate d, and let it grow. Conditions use `where`, since the sums may be tensors on an accelerator."""
    towards_start, s_size = sums[0], sums[1]  # <g, w0 - w> and Σ |s|
    d, d_max, d0 = numbers["d"], numbers["d_max"], numbers["d0"]
    numerator = numbers["kept"] * numbers["d_numerator"] + d / d0 * numbers["length"] * towards_start
    estimate = numbers["d_coef"] * numerator / where(s_size > 0, s_size, 1.0)
    d = where((d == d0) & (estimate > d), estimate, d)
    d_max = where(estimate > d_max, estimate, d_max)
    limit = d * numbers["growth_rate"] if numbers["growth_rate"] else d_max
    updated = {"d": where(limit < d_max, limit, d_max), "d_max": d_max, "d_numerator": numerator}
    grows = (s_size > 0) & (numbers["lr"] > 0)
    return {name: where(grows, value, numbers[name]) for name, value in updated.items()}


@rule(
    state={
        "start": ("p0", "weights"),
        "m": ("exp_avg", "zeros"),
        "v": ("exp_avg_sq", "zeros"),
        "s": ("s", "zeros"),
    },
    ranges={
        "beta1": "[0, 1)",
        "beta2": "[0, 1)",
        "beta3": "[0, 1)",
        "eps": "(0, inf)",
        "d0": "(0, inf)",
        "d_coef": "(0, inf)",
        "growth_rate": "[0, inf)",
    },
    scalars=rates,
    sums=summands,
    decide=grow,
    carried={"d": "d0", "d_max": "d0", "d_numerator": 0.0},
    grouped={"betas": ("beta1", "beta2")},
    decoupled="decouple",
    finds_rate=True,
    source="Mishchenko & Defazio 2023, arXiv:2306.06101",
)
def prodigy(
    w: float,
    g: float,
    start: float,
    m: float,
    v: float,
    s: float,
    *,
    lr: float = 1.0,
    beta1: float = 0.9,
    beta2: float = 0.999,
    beta3: float = 0.0,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decouple: bool = True,
    use_bias_correction: bool = False,
    safeguard_warmup: bool = False,
    d0: float = 1e-6,
    d_coef: float = 1.0,
    growth_rate: float = 0.0,
    d: float,
    d_before: float,
    length: float,
    weight: float,
    kept: float,
) -> tuple[float, float, float, float, float]:
    """Prodigy: Adam that finds its own rate, a growing estimate of the distance from the starting weights to the solution."""
    s = kept * s + weight * g
    m = beta1 * m + (1 - beta1) * (d_before * g)
    v = beta2 * v + (1 - beta2) * ((d_before * g) * (d_before * g))
    return (1 - length * weight_decay) * w - length * m / (sqrt(v) + d * eps), start, m, v, s
