"""Directions in the space of weights along which slices of the loss are drawn.

A random direction is made as long, filter by filter, as the weights are there, so that slices of networks that compute the
same with weights of other sizes look the same. Biases and the weights of normalisations stay as they are.

Source: Li, Xu, Taylor, Studer and Goldstein 2018, arXiv:1712.09913.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def random_directions(weights: Sequence[Tensor], count: int, seed: int = 0) -> list[Tensor]:
    """Give random directions that are normalised by filters, each a vector of shape (size,).

    Arguments:
        weights: the parameters, in the order of the vector. The first dimension of a matrix or kernel counts filters.
        count: of directions.
        seed: of the random numbers, which are the same on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = list[Tensor]()
    for _ in range(count):
        parts = list[Tensor]()
        for weight in weights:
            drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float32).to(weight)
            parts.append(normalised_by_filters(drawn, weight.detach()).reshape(-1))
        directions.append(torch.cat(parts))
    return directions


def normalised_by_filters(direction: Tensor, weight: Tensor) -> Tensor:
    """Give a direction, of one parameter's shape, with the length of each filter's weights; zero for vectors and numbers.

    >>> normalised_by_filters(torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [5.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [5.0000, 0.0000]])
    """
    if weight.dim() < 2:
        return torch.zeros_like(weight)
    rows, lengths = direction.flatten(1), weight.flatten(1).norm(dim=1, keepdim=True)
    return (rows * (lengths / rows.norm(dim=1, keepdim=True).clamp(min=1e-30))).view_as(weight)
