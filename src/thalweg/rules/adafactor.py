"""Adafactor: a second moment stored as one number per row and per column, and steps in proportion to the weights.

    share   = t^beta2_decay                                           1 - beta2 at step t: 1 at first, then less and less
    row    <- (1 - share) row + share mean of g² along each row       matrices
    column <- (1 - share) column + share mean of g² down each column  matrices
    v       = row column / mean(row)                                  matrices; of vectors the running mean of g² itself
    u       = g / max(sqrt(v), eps1)
    w      <- (1 - lr weight_decay) w - min(lr, 1 / sqrt(t)) max(eps2, RMS(w)) u / max(1, RMS(u) / d)

So `lr` is a share of the weights' own size. The state of a matrix of r rows and c columns is r + c numbers; of more than two
dimensions the last two are factored.

Source: Shazeer & Stern 2018, arXiv:1804.04235, algorithm 4, with PyTorch's place of eps1 (the paper adds it, 1e-30, to g²), its
`lr` in place of the paper's 0.01, and its decoupled weight decay. PyTorch's eps1 is None, the step of the weights' dtype at 1;
here it is a number, float32's, whatever the weights are, and a None that PyTorch saved is read as this default. Mean squares
count as 1e30 at most, where PyTorch's would overflow and every weight become NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thalweg.rules.maths import lerp, maximum, rms, sqrt, where
from thalweg.rules.rule import matrix_rule


def schedule(step: int, numbers: Mapping[str, Any]) -> dict[str, float]:
    """Give the share of the newest square, and the largest relative step."""
    lr, falling = numbers["lr"], step**-0.5
    return {"share": step ** numbers["beta2_decay"], "longest": where(lr < falling, lr, falling)}


@matrix_rule(
    state={
        "row": ("row_var", "zeros", None, "rows", "matrices"),
        "column": ("col_var", "zeros", None, "columns", "matrices"),
        "v": ("variance", "zeros", None, "weights", "vectors"),
    },
    ranges={"beta2_decay": "(-inf, 0]", "eps1": "(0, inf)", "eps2": "[0, inf)", "d": "[1, inf)"},
    scalars=schedule,
    grouped={"eps": ("eps1", "eps2")},
    source="Shazeer & Stern 2018, arXiv:1804.04235",
)
def adafactor(
    w: Any,
    g: Any,
    row: Any,
    column: Any,
    v: Any,
    *,
    lr: float = 1e-2,
    beta2_decay: float = -0.8,
    eps1: float = 2.0**-23,
    eps2: float = 1e-3,
    d: float = 1.0,
    weight_decay: float = 0.0,
    share: float,
    longest: float,
) -> tuple[Any, Any, Any, Any]:
    """Adafactor: a second moment stored as one number per row and per column, and steps in proportion to the weights."""
    if w.ndim < 2:
        v = lerp(v, finite(g * g), share)
        root = sqrt(v)
    else:
        along, down = mean_squares(g)
        row, column = lerp(row, along, share), lerp(column, down, share)
        root = sqrt(row / maximum(row.mean(-2, keepdims=True), eps1)) * sqrt(column)
    u = g / maximum(root, eps1)
    u *= longest * maximum(rms(w), eps2) / maximum(rms(u) / d, 1.0)
    return (1 - lr * weight_decay) * w - u, row, column, v


def mean_squares(g: Any) -> tuple[Any, Any]:
    """Give the mean square of each row, and of each column."""
    square = g * g
    return finite(square.mean(-1, keepdims=True)), finite(square.mean(-2, keepdims=True))


def finite(square: Any) -> Any:
    """Take squares as 1e30 at most: float32 overflows at 3e38, and infinity over infinity would be no step but NaN."""
    return -maximum(-square, -1e30)
