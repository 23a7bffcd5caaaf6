"""How far to go along a direction in which the loss falls."""

from __future__ import annotations

import math

from torch import Tensor

from thalweg.landscape.surface import Surface

FIRST = 1e-3  # of the length of the weights: the first distance that is tried
CLOSER, SHORTER = 8, 8  # where it rises at once: a distance so much shorter is tried, until so many losses are known
NARROWED = 5  # evaluations between the two distances beside the lowest one
GOLDEN = (math.sqrt(5) - 1) / 2


def lowest_along(surface: Surface, point: Tensor, direction: Tensor, *, most: int = 40) -> tuple[float, float]:
    """Follow the loss from a point until it rises again, and look closer around where it was lowest.

    Arguments:
        surface, point: the loss, and a vector of shape (size,).
        direction: of shape (size,), length 1.
        most: evaluations at most.

    Returns the distance, 0 where the loss falls nowhere, and the loss there.

    >>> import torch
    >>> from thalweg.landscape.surface import FunctionSurface
    >>> valley = FunctionSurface(lambda w: ((w - 3) ** 2).sum(), torch.tensor([0.0], dtype=torch.float64))
    >>> distance, loss = lowest_along(valley, valley.point, torch.tensor([1.0], dtype=torch.float64))
    >>> 2.5 < distance < 3.5
    True
    """
    first = FIRST * (float(point.double().norm()) or 1.0)
    tried = {0.0: surface.loss(point)}

    def loss_at(distance: float) -> float:
        loss = surface.loss(point + distance * direction)
        tried[distance] = loss if math.isfinite(loss) else math.inf
        return tried[distance]

    # At a critical point the loss changes with the square of the distance: the first ones may not show it, or be far too long.
    distance, lowest = first, tried[0.0]
    while loss_at(distance) > lowest and len(tried) < SHORTER:
        distance /= CLOSER
    lowest = min(tried.values())
    distance *= 2
    while len(tried) < most - NARROWED:
        loss = loss_at(distance)
        if loss > lowest and (lowest < tried[0.0] or loss > tried[0.0] + abs(tried[0.0])):
            break
        lowest = min(lowest, loss)
        distance *= 2
    best = min(tried, key=lambda at: tried[at])
    if best == 0.0:
        return 0.0, tried[0.0]
    known = sorted(tried)
    place = known.index(best)
    low, high = known[place - 1], known[min(place + 1, len(known) - 1)]
    for _ in range(NARROWED):
        one, other = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        values = [tried.get(at, math.nan) for at in (one, other)]
        values = [loss_at(at) if math.isnan(value) else value for at, value in zip((one, other), values, strict=True)]
        if values[0] < values[1]:
            high = other
        else:
            low = one
    best = min(tried, key=lambda at: tried[at])
    return best, tried[best]
