"""Do the weights of a network look trained, or as they were drawn?

The largest singular value of an m x n matrix of independent entries of deviation s is about s (sqrt(m) + sqrt(n)), no more
(Marchenko and Pastur 1967; Geman 1980); training makes some directions stand out (Martin and Mahoney 2021, arXiv:1810.01075).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

LEAST = 8  # rows and columns: smaller matrices say little
STANDS_OUT = 1.12  # times the largest singular value of independent entries; drawn ones have 0.82 to 1.05
MANY = 0.3  # of a network's matrices
MOST, LARGEST = 16, 1024  # matrices that are looked at, and rows and columns of each
YOUNG = 20  # steps after which weights that look trained have learnt something
ROUNDS = 30  # of the power iteration


def look_trained(model: nn.Module) -> bool:
    """Tell whether in many of a network's matrices a direction stands out, as in none that was just drawn.

    >>> look_trained(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 32)))
    False
    """
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    found = [stands_out(weight) for weight in matrices[:: max(1, len(matrices) // MOST)]]
    known = [each for each in found if each is not None]
    return bool(known) and sum(each > STANDS_OUT for each in known) > MANY * len(known)


def has_learnt(model: nn.Module, began_trained: bool, step: int) -> bool:
    """Tell whether a network's weights hold what somebody would miss: it began trained, or has been trained since.

    Arguments:
        began_trained: whether it looked trained at the start.
        step: how many steps it had taken at the weights that are asked about: the first ones make drawn weights look trained too.
    """
    return began_trained or (step > YOUNG and look_trained(model))


def stands_out(weight: Tensor) -> float | None:
    """Give the largest singular value of a matrix or kernel over that of independent entries of its size; None where it is too
    small to tell, zero, or of other numbers."""
    if not weight.is_floating_point() or weight.is_meta:
        return None
    matrix = weight.detach().flatten(1)[:LARGEST, :LARGEST].float()
    rows, columns = matrix.shape
    deviation = float(matrix.double().square().mean().sqrt())
    if min(rows, columns) < LEAST or not deviation > 0 or not math.isfinite(deviation):
        return None
    vector = 1 + torch.linspace(0, 1, columns, device=matrix.device)
    matrix = matrix / deviation
    for _ in range(ROUNDS):
        vector = matrix.T @ (matrix @ (vector / vector.norm()))
        if not float(vector.norm()) > 0:
            return None
    return math.sqrt(float(vector.norm())) / (math.sqrt(rows) + math.sqrt(columns))
