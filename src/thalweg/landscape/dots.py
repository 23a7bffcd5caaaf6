"""Products and lengths of long vectors, summed in float64 without a copy of the vectors in it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

CHUNK = 1 << 20  # entries that are in float64 at once


def dot(first: Tensor, second: Tensor) -> float:
    """Give the product of two vectors of shape (size,), summed in float64.

    >>> dot(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    11.0
    """
    if first.dtype == second.dtype == torch.float64:
        return float(torch.dot(first, second))
    pairs = zip(first.split(CHUNK), second.split(CHUNK), strict=True)
    return math.fsum(float(torch.dot(one.double(), other.double())) for one, other in pairs)


def length(vector: Tensor) -> float:
    """Give the Euclidean norm of a vector of shape (size,).

    >>> length(torch.tensor([3.0, 4.0]))
    5.0
    """
    return math.sqrt(dot(vector, vector))
