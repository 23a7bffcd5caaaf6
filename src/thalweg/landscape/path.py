"""The plane in which a descent's path lies as far as a plane can hold it: the first two principal directions of its points.

Source: Li et al. 2018, arXiv:1712.09913, section 7; computed from the products of the points with each other, of which there
are few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PrincipalPlane:
    """A plane through the end of a path.

    Attributes:
        directions: two orthonormal vectors of shape (size,).
        coordinates: of each point in the plane, of shape (points, 2); the end is (0, 0).
        shares: of the variance of the points, that each direction explains.
        distances: of each point from the plane.
    """

    directions: tuple[Tensor, Tensor]
    coordinates: Array
    shares: tuple[float, float]
    distances: Array


def principal_plane(points: Sequence[Tensor], end: Tensor, weights: Sequence[float] | None = None) -> PrincipalPlane:
    """Find the plane through the end of a path that holds most of it.

    Arguments:
        points: at least three vectors of shape (size,), the last of which is the end or near it.
        end: the point (0, 0) of the plane.
        weights: by which the distance of each point counts in the choice of the plane; default: all alike.

    Raises ValueError where the points lie on one line, or there are too few.
    """
    if len(points) < 3:
        raise ValueError(f"{len(points)} points have no plane of their own. Three do.")
    away = [point.to(end) - end for point in points]
    gram = np.array([[float(torch.dot(a.double(), b.double())) for b in away] for a in away])
    weight = np.ones(len(points)) if weights is None else np.array(weights, np.float64)
    values, vectors = np.linalg.eigh(gram * np.outer(weight, weight))
    order = np.argsort(values)[::-1]
    total = float(np.trace(gram))
    if not total > 0 or values[order[1]] <= 1e-12 * values.sum():
        raise ValueError("The points lie on one line.")
    directions = list[Tensor]()
    for number in order[:2]:
        direction = torch.zeros_like(end)
        for share, point in zip(vectors[:, number] * weight, away, strict=True):
            direction += float(share) * point
        for other in directions:
            direction -= torch.dot(direction, other) * other
        directions.append(direction / direction.norm())
    coordinates = np.array([[float(torch.dot(p.double(), d.double())) for d in directions] for p in away])
    if (coordinates[:, 0] ** 2).sum() < (coordinates[:, 1] ** 2).sum():  # as weights may have it
        directions, coordinates = directions[::-1], coordinates[:, ::-1]
    inside = (coordinates**2).sum(1)
    shares = tuple(float((coordinates[:, axis] ** 2).sum()) / total for axis in range(2))
    distances = np.sqrt(np.maximum(0.0, np.diag(gram) - inside))
    return PrincipalPlane((directions[0], directions[1]), coordinates, (shares[0], shares[1]), distances)
