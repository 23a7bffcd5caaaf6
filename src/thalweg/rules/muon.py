"""Muon: momentum whose matrix is made nearly orthogonal, so that every direction in it moves equally far.

    m <- momentum m + (1 - momentum) g
    u  = momentum m + (1 - momentum) g                 with nesterov; else u = m
    o  = U V',  where u = U S V'                       nearly: singular values above 0.0015 |u| come into [0.68, 1.21]
    w <- (1 - lr weight_decay) w - lr scale o

    scale = 0.2 sqrt(max(rows, columns))               "match_rms_adamw": RMS 0.2 lr, as AdamW's in long training
    scale = sqrt(max(1, rows / columns))               "original"

`o` comes of ns_steps of `x <- a x + (b A + c A²) x`, A = x x', from x = u / max(|u|, eps); a, b, c are ns_coefficients. What has
more than two dimensions (filters) is taken as a matrix of its first against the others; what has fewer is moved by AdamW. The
authors leave embeddings and the output layer to AdamW too: give those a group of their own, with "rule": "adamw".

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; "match_rms_adamw": Liu et al. 2025, arXiv:2502.16982, so
that one learning rate and decay serve the matrices and what AdamW moves. PyTorch's `Muon` is "original" by default and
iterates in bfloat16, as this does with `half`: on accelerators and CPUs that multiply bfloat16 it takes half the time, on others
five to thirty times as long as float32. Where |u| falls below eps the step becomes smaller.
"""

from __future__ import annotations

import math
from typing import Any

from thalweg.rules.adamw import adamw
from thalweg.rules.maths import add, gemm, lerp, maximum, norm
from thalweg.rules.maths import half as rounded
from thalweg.rules.rule import matrix_rule


@matrix_rule(
    rest=adamw,
    state={"m": ("momentum_buffer", "zeros")},
    ranges={"momentum": "[0, 1)", "eps": "(0, inf)", "ns_steps": "[0, 100)"},
    choices={"adjust_lr_fn": ("match_rms_adamw", "original", None)},
    grouped={"ns_coefficients": ("ns_a", "ns_b", "ns_c")},
    source="Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv:2502.16982",
)
def muon(
    w: Any,
    g: Any,
    m: Any,
    *,
    lr: float = 1e-3,
    momentum: float = 0.95,
    nesterov: bool = True,
    ns_a: float = 3.4445,
    ns_b: float = -4.7750,
    ns_c: float = 2.0315,
    ns_steps: int = 5,
    eps: float = 1e-7,
    adjust_lr_fn: str | None = "match_rms_adamw",
    half: bool = False,
    weight_decay: float = 0.1,
) -> tuple[Any, Any]:
    """Muon: momentum whose matrix is made nearly orthogonal, so that every direction in it moves equally far."""
    m = lerp(m, g, 1 - momentum)
    u = lerp(g, m, momentum) if nesterov else m
    u = u.reshape(u.shape[0], -1)
    o = orthogonal(rounded(u) if half else u, (ns_a, ns_b, ns_c), ns_steps, eps)
    rows, columns = u.shape
    scale = 0.2 * math.sqrt(max(rows, columns))
    if adjust_lr_fn != "match_rms_adamw":
        scale = math.sqrt(max(1, rows / columns))
    return add((1 - lr * weight_decay) * w, o.reshape(w.shape), -lr * scale), m


def orthogonal(u: Any, coefficients: tuple[float, float, float], steps: int, eps: float) -> Any:
    """Give U V' of the matrix u = U S V', nearly, by Newton and Schulz's iteration on the smaller of u u' and u' u."""
    a, b, c = coefficients
    x = u / maximum(norm(u), eps)
    x = x.mT if u.shape[0] > u.shape[1] else x
    for _ in range(steps):
        gram = x @ x.mT
        x = gemm(x, gemm(gram, gram, gram, b, c), x, a, 1.0)
    return x.mT if u.shape[0] > u.shape[1] else x
