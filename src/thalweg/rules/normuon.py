"""NorMuon: Muon whose steps are as long for every neuron, that is, for every row of a matrix.

    m <- momentum m + (1 - momentum) g
    u  = momentum m + (1 - momentum) g                 with nesterov; else u = m
    o  = U V',  where u = U S V'                       nearly, as in Muon
    v <- beta2 v + (1 - beta2) mean of o² along each row
    d  = o / (sqrt(v) + eps)
    w <- (1 - lr weight_decay) w - 0.2 lr d / RMS(d)   so that the step's RMS is 0.2 lr, AdamW's in long training

Filters, of more than two dimensions, are taken as matrices of their first against the others; what has fewer is moved by AdamW.
Embeddings and the output layer are left to AdamW as under Muon.

Source: Li et al. 2025, arXiv:2510.05491.
"""

from __future__ import annotations

from typing import Any

from thalweg.rules.adamw import adamw
from thalweg.rules.maths import add, lerp, maximum, rms, sqrt
from thalweg.rules.muon import orthogonal
from thalweg.rules.rule import matrix_rule


@matrix_rule(
    rest=adamw,
    state={
        "m": ("momentum_buffer", "zeros"),
        "v": ("row_var", "zeros", None, "rows", "matrices"),
    },
    ranges={"momentum": "[0, 1)", "beta2": "[0, 1)", "eps": "(0, inf)", "ns_steps": "[0, 100)"},
    grouped={"ns_coefficients": ("ns_a", "ns_b", "ns_c")},
    optimizer="NorMuon",
    source="Li et al. 2025, arXiv:2510.05491",
)
def normuon(
    w: Any,
    g: Any,
    m: Any,
    v: Any,
    *,
    lr: float = 1e-3,
    momentum: float = 0.95,
    beta2: float = 0.95,
    nesterov: bool = True,
    ns_a: float = 3.4445,
    ns_b: float = -4.7750,
    ns_c: float = 2.0315,
    ns_steps: int = 5,
    eps: float = 1e-7,
    weight_decay: float = 0.1,
) -> tuple[Any, Any, Any]:
    """NorMuon: Muon whose steps are as long for every neuron, that is, for every row of a matrix."""
    m = lerp(m, g, 1 - momentum)
    u = lerp(g, m, momentum) if nesterov else m
    o = orthogonal(u.reshape(u.shape[0], -1), (ns_a, ns_b, ns_c), ns_steps, eps)
    square = (o * o).mean(-1, keepdims=True)
    v = lerp(v, square.reshape(v.shape[0], *(1,) * (v.ndim - 1)), 1 - beta2)
    o = o / (sqrt(v.reshape(v.shape[0], -1)[:, :1]) + eps)
    o = o / maximum(rms(o), eps)
    return add((1 - lr * weight_decay) * w, o.reshape(w.shape), -0.2 * lr), m, v
