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


def principal_plane(points: Sequence[Tensor], end: Tensor) -> PrincipalPlane:
    """Find the plane through the end of a path that holds most of it.

    Arguments:
        points: at least three vectors of shape (size,), the last of which is the end or near it.
        end: the point (0, 0) of the plane.

    Raises ValueError where the points lie on one line, or there are too few.
    """
    if len(points) < 3:
        raise ValueError(f"{len(points)} points have no plane of their own. Three do.")
    away = [point.to(end) - end for point in points]
    gram = np.array([[float(torch.dot(a.double(), b.double())) for b in away] for a in away])
    values, vectors = np.linalg.eigh(gram)
    order = np.argsort(values)[::-1]
    total = float(np.trace(gram))
    if not total > 0 or values[order[1]] <= 1e-12 * total:
        raise ValueError("The points lie on one line.")
    directions = list[Tensor]()
    for number in order[:2]:
        direction = torch.zeros_like(end)
        for weight, point in zip(vectors[:, number], away, strict=True):
            direction += float(weight) * point
        for other in directions:
            direction -= torch.dot(direction, other) * other
        directions.append(direction / direction.norm())
    coordinates = np.array([[float(torch.dot(p.double(), d.double())) for d in directions] for p in away])
    inside = (coordinates**2).sum(1)
    shares = tuple(float((coordinates[:, axis] ** 2).sum()) / total for axis in range(2))
    distances = np.sqrt(np.maximum(0.0, np.diag(gram) - inside))
    return PrincipalPlane((directions[0], directions[1]), coordinates, (shares[0], shares[1]), distances)
