"""The barrier between two points of a loss surface, on the straight way or another one.

It is how far the loss rises above that of the higher end, so that a way that only falls has none. Frankle, Dziugaite, Roy and
Carbin 2020, arXiv:1912.05671, measure from the line between both ends' losses instead, which for ends of one height is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from thalweg.landscape.surface import Surface

POINTS = 21  # of the way, at first
FINEST = 1 / 320  # of the way, between points at the top


class Barrier(NamedTuple):
    """`height` above the loss of the higher end, 0 where it rises nowhere; the shares of the way at which losses were measured,
    ascending, and the losses."""

    height: float
    shares: npt.NDArray[np.float64]
    losses: npt.NDArray[np.float64]


def barrier(surface: Surface, first: Tensor, second: Tensor, at: Callable[[float], Tensor] | None = None) -> Barrier:
    """Follow a way from one point to another, and look closer where the loss is highest.

    `at` gives the point at a share of the way; default: the straight one.

    >>> import torch
    >>> from thalweg.landscape.surface import FunctionSurface
    >>> hill = FunctionSurface(lambda w: 1 - (w * w).sum(), torch.tensor([0.0]))
    >>> round(barrier(hill, torch.tensor([-1.0]), torch.tensor([1.0])).height, 6)
    1.0
    """
    point = at or (lambda share: between(first, second, share))
    losses = {share: _loss(surface, point(share)) for share in np.linspace(0, 1, POINTS).tolist()}
    step = 1 / (POINTS - 1)
    while step > FINEST:
        step /= 2
        top = max(losses, key=lambda share: losses[share])
        for share in (top - step, top + step):
            if 0 < share < 1 and share not in losses:
                losses[share] = _loss(surface, point(share))
    shares = sorted(losses)
    top, higher = max(losses.values()), max(losses[0.0], losses[1.0])
    height = top - higher if top > higher else 0.0
    return Barrier(height, np.array(shares), np.array([losses[share] for share in shares]))


def _loss(surface: Surface, point: Tensor) -> float:
    loss = surface.loss(point)
    return loss if math.isfinite(loss) else math.inf


def between(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Give the point at a share of the way; the ends exactly."""
    return first if share == 0 else second if share == 1 else first + share * (second - first)
