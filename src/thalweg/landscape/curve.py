"""A curved way of low loss between two points: a quadratic Bézier curve, whose bend is trained.

The way is (1 - t)² first + 2 t (1 - t) bend + t² second. The bend descends the loss averaged over the way: the gradient at
the point t, times 2 t (1 - t). Each sixth of the way has its turn, at a random t within.

Source: Garipov, Izmailov, Podoprikhin, Vetrov and Wilson 2018, arXiv:1802.10026. Here the bend moves by Adam, as far as the ends
are apart allows, and of the bends that were met the one with the lowest top counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from thalweg.landscape.barrier import between
from thalweg.landscape.surface import Slope, Surface

GRADIENTS = 200  # at most
STRATA = 6
LOOKS = 8  # in all, at how high a bend's way leads
AT = tuple(number / 10 for number in range(1, 10))  # of the way, where a look is taken
RATE = 0.1  # of the root mean square of what lies between the ends, at first
DECAYS = 0.9, 0.99  # of the running means


def trained_bend(
    surface: Surface,
    first: Tensor,
    second: Tensor,
    *,
    gradients: int = GRADIENTS,
    slope: Callable[[Tensor], Slope] | None = None,
    seed: int = 0,
    say: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """Find the bend of a low curve from one point to another, a vector of shape (size,); the middle of the straight way where
    none is lower.

    Arguments:
        surface: the loss.
        first, second: the ends.
        gradients: how many are computed at most, each at one point of the way; a tenth of as many losses are looked at beside.
        slope: gives the gradient at a point; default: the surface's own.
        seed: of the points at which gradients are taken.
        say: called now and then with the number of gradients so far.

    >>> import torch
    >>> from thalweg.landscape.surface import FunctionSurface
    >>> ring = FunctionSurface(lambda w: (w.norm() - 1) ** 2, torch.tensor([1.0, 0.0]))
    >>> one, other = torch.tensor([1.0, 0.0]), torch.tensor([-0.8, 0.6])
    >>> bend = trained_bend(ring, one, other)
    >>> round(ring.loss((one + other) / 2), 2), round(ring.loss(on_curve(one, bend, other, 0.5)), 2)
    (0.47, 0.0)
    """
    slope = surface.slope if slope is None else slope
    generator = torch.Generator().manual_seed(seed)
    bend = between(first, second, 0.5)
    rate = RATE * float((second - first).double().norm()) / math.sqrt(max(1, first.numel()))
    best, lowest = bend.clone(), _top(surface, first, bend, second)
    mean, square = torch.zeros_like(bend), torch.zeros_like(bend)
    every = max(1, gradients // LOOKS)
    for step in range(gradients):
        if step % STRATA == 0:
            order = torch.randperm(STRATA, generator=generator).tolist()
        t = (order[step % STRATA] + float(torch.rand((), generator=generator))) / STRATA  # pyright: ignore[reportPossiblyUnboundVariable]
        found = slope(on_curve(first, bend, second, t))
        if not bool(torch.isfinite(found.gradient).all()):
            break
        gradient = found.gradient * (2 * t * (1 - t))
        mean.lerp_(gradient, 1 - DECAYS[0])
        square.lerp_(gradient.square(), 1 - DECAYS[1])
        direction = (mean / (1 - DECAYS[0] ** (step + 1))) / (
            (square / (1 - DECAYS[1] ** (step + 1))).sqrt() + torch.finfo(bend.dtype).tiny ** 0.5
        )
        bend = bend - rate * (0.5 + 0.5 * math.cos(math.pi * step / gradients)) * direction
        if (step + 1) % every == 0 or step + 1 == gradients:
            top = _top(surface, first, bend, second)
            if top < lowest:
                best, lowest = bend.clone(), top
            say(step + 1)
    return best


def on_curve(first: Tensor, bend: Tensor, second: Tensor, share: float) -> Tensor:
    """Give the point of the curve at a share from 0 to 1; the ends exactly."""
    if share in (0, 1):
        return between(first, second, share)
    return (1 - share) ** 2 * first + 2 * share * (1 - share) * bend + share**2 * second


def curve_length(first: Tensor, bend: Tensor, second: Tensor, pieces: int = 64) -> float:
    """Give how long the curve is."""
    length, before = 0.0, first
    for number in range(1, pieces + 1):
        point = on_curve(first, bend, second, number / pieces)
        length += float((point - before).double().norm())
        before = point
    return length


def _top(surface: Surface, first: Tensor, bend: Tensor, second: Tensor) -> float:
    losses = [surface.loss(on_curve(first, bend, second, t)) for t in AT]
    return max(losses) if all(map(math.isfinite, losses)) else math.inf
