"""The order in which examples are drawn, as a pure function of (seed, epoch)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MASK = (1 << 64) - 1


def mix(*words: int) -> int:
    """Mix whole numbers into one seed of 63 bits; neighbouring inputs give unrelated seeds.

    Source: the finaliser of SplitMix64 (Steele, Lea & Flood 2014), applied to each word in turn.

    >>> mix(0, 1) != mix(1, 0)
    True
    """
    state = 0x9E3779B97F4A7C15
    for word in words:
        state = (state + word + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def order(
    count: int,
    seed: int,
    epoch: int,
    *,
    shuffle: bool = True,
    replacement: bool = False,
    weights: Tensor | None = None,
    rank: int = 0,
    world: int = 1,
) -> Tensor:
    """Give the indices of one epoch: int64, `count` of them, or one process's part of these.

    Arguments:
        count: number of examples.
        seed, epoch: the order depends on these two alone.
        shuffle: a random permutation; False: 0, 1, 2, …
        replacement: draw each index independently, uniformly or by `weights`.
        weights: float, shape (count,), not negative; implies `replacement`.
        rank, world: of which process the indices are, and how many processes there are; each gets every `world`-th index. Where
            the count cannot be divided, indices are repeated so that all ranks get the same number.

    >>> sorted(order(5, seed=1, epoch=0).tolist())
    [0, 1, 2, 3, 4]
    """
    generator = torch.Generator().manual_seed(mix(seed, epoch))
    if weights is not None:
        edges = weights.double().cumsum(0)
        points = torch.rand(count, generator=generator, dtype=torch.float64) * edges[-1]
        last = int(weights.nonzero()[-1])  # without the clamp rounding might choose an example of weight zero after it
        indices = torch.searchsorted(edges, points, right=True).clamp_(max=last)
    elif replacement:
        indices = torch.randint(count, (count,), generator=generator)
    elif shuffle:
        indices = torch.randperm(count, generator=generator)
    else:
        indices = torch.arange(count)
    if world > 1:
        padding = -count % world
        repeated = indices.repeat(math.ceil(padding / count))[:padding] if padding else indices[:0]
        indices = torch.cat([indices, repeated])[rank::world]
    return indices
