"""How strongly the gradients of batches differ along a direction, and what barrier that noise is worth.

Steps of a rate lr on batches whose gradients have the variance s² along a direction move the weights as a particle at the
temperature T = gain lr s² / 2 is moved, in units of the loss: in a bowl of curvature L the weights have the variance T / L
there, and a basin whose rim is h higher is left after a time that grows like exp(h / T). `gain` is what a rule makes of
noise, 1 / (1 - b) of momentum b. Where a rule divides gradients by their usual size, with D = diag(1 / (sqrt(v) + eps)), it
descends in the coordinates D^(-1/2) w, in which its steps are plain ones: along a direction u of the weights the variance
there is that of u·g divided by u·D^-1 u.

It holds for noise that is independent from step to step and nearly normal, and for rates far below the rule's stable edge.

Sources: Kramers 1940, doi:10.1016/S0031-8914(40)90098-2; Mandt, Hoffman and Blei 2017, arXiv:1704.04289; Jastrzebski et al. 2018,
arXiv:1711.04623.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.special import chdtri
from torch import Tensor

from thalweg.landscape.dots import dot
from thalweg.landscape.model_surface import ModelSurface

CONFIDENCE = 0.9


class Variance(NamedTuple):
    """The variance of batches' gradients along a direction, with its interval of 90 %."""

    value: float
    low: float
    high: float

    def times(self, factor: float) -> Variance:
        """Give it in other units."""
        return Variance(*(factor * each for each in self))


def variances_along(surface: ModelSurface, point: Tensor, directions: Sequence[Tensor]) -> list[Variance]:
    """Estimate the variance of the gradients of a surface's batches along directions of length 1, each of shape (size,).

    The interval is that of a normal distribution's variance (chi-squared). Raises ValueError for fewer than two batches.
    """
    if len(surface.parts) < 2:
        raise ValueError("One batch says nothing of how batches differ.")
    surface.move_to(point)
    seen = [[dot(own, direction) for direction in directions] for _, _, own in surface.gradients_of_parts()]
    freedom = len(seen) - 1
    spread = torch.tensor(seen, dtype=torch.float64).var(0, correction=1).tolist()
    tail = (1 - CONFIDENCE) / 2
    upper, lower = float(chdtri(freedom, tail)), float(chdtri(freedom, 1 - tail))
    return [Variance(value, value * freedom / upper, value * freedom / lower) for value in spread]
