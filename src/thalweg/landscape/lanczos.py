"""The largest and smallest eigenvalues of a symmetric matrix that is known by its products with vectors only.

One Lanczos run gives both ends. Every new vector is made orthogonal to all before it, twice, so no eigenvalue comes up again as a
copy of itself. A value is known once its residual |A v - theta v|, which bounds the distance to an eigenvalue, is small beside
it.
Where the vectors span an invariant subspace a new random one is taken, orthogonal to it: so eigenvalues that coincide are
found as often as they are there.

Sources: Lanczos 1950; Parlett, The Symmetric Eigenvalue Problem, 1980, chapter 13; Kuczynski and Wozniakowski 1992 for the chance
that a random start hides a direction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg.landscape.surface import Product

MOST_PRODUCTS = 100
TOLERANCE = 1e-3
SMALL = 1e-2  # of the largest eigenvalue: one that is smaller is known to the tolerance of such a one
INVARIANT = 1e-10  # of the largest eigenvalue: the rest of a product beyond which there is none, in float64
CHECK_EVERY = 4  # products between looks at the eigenvalues


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues of a symmetric matrix at both ends of its spectrum.

    Attributes:
        top, bottom: the largest ones, descending, and the smallest ones, ascending. No value is in both.
        top_vectors, bottom_vectors: their eigenvectors, of shape (count, size), of length 1.
        top_residuals, bottom_residuals: |A v - theta v| of each: there is an eigenvalue that near.
        products: how many times the matrix was multiplied with a vector.
        known: whether all of them are known to the tolerance.
        complete: whether the whole spectrum was computed, so that nothing can have been missed.
    """

    top: list[float]
    bottom: list[float]
    top_vectors: Tensor
    bottom_vectors: Tensor
    top_residuals: list[float]
    bottom_residuals: list[float]
    products: int
    known: bool
    complete: bool

    @property
    def largest(self) -> float:
        """The largest magnitude of all."""
        return max((abs(value) for value in (*self.top, *self.bottom)), default=0.0)


def eigenpairs(
    product: Product,
    start: Tensor,
    *,
    top: int = 5,
    bottom: int = 5,
    tolerance: float = TOLERANCE,
    most: int = MOST_PRODUCTS,
    seed: int = 0,
) -> Eigenpairs:
    """Find the eigenvalues at both ends of the spectrum of a symmetric matrix.

    Arguments:
        product: multiplies the matrix with a vector of shape (size,).
        start: a vector of shape (size,), whose dtype and device are those of all others; its values are not used.
        top, bottom: how many of each end; together at most `size`, else fewer of the bottom.
        tolerance: residual relative to the value, or to a hundredth of the largest where the value is smaller.
        most: products. Where they do not suffice, `known` is false and the residuals say how well each is known. Each keeps one
            vector in memory.
        seed: of the first vector.

    >>> found = eigenpairs(lambda v: torch.tensor([4.0, 2.0, -1.0]) * v, torch.zeros(3), top=1, bottom=1)
    >>> round(found.top[0], 4), round(found.bottom[0], 4), found.complete
    (4.0, -1.0, True)
    """
    size = start.numel()
    top, wanted = min(top, size), min(top + bottom, size)
    bottom = wanted - top
    generator = torch.Generator().manual_seed(seed)
    steps = min(most, size)
    basis = torch.empty(steps, size, dtype=start.dtype, device=start.device)
    diagonal, off = list[float](), list[float]()
    scale, values, vectors, residuals = 0.0, torch.empty(0), torch.empty(0, 0), torch.empty(0)
    count, is_known = 0, False
    vector: Tensor | None = None
    while count < steps:
        if vector is None:
            vector = _orthogonal(_random_like(start, generator), basis[:count])
            if vector is None:
                break
        basis[count] = vector
        applied = product(basis[count])
        count += 1
        diagonal.append(_dot(basis[count - 1], applied))
        rest = applied - diagonal[-1] * basis[count - 1]
        if off and off[-1]:
            rest -= off[-1] * basis[count - 2]
        for _ in range(2):
            rest -= basis[:count].T @ (basis[:count] @ rest)
        length = math.sqrt(max(0.0, _dot(rest, rest)))
        scale = max(scale, abs(diagonal[-1]), length)
        is_invariant = length <= _smallest(start.dtype) * scale
        off.append(0.0 if is_invariant else length)
        vector = None if is_invariant else rest / length
        if count == steps or (count >= wanted and count % CHECK_EVERY == 0):
            values, vectors, residuals = _ritz(diagonal, off)
            is_known = _are_known(values, residuals, top, bottom, tolerance)
            # After an invariant subspace all residuals are zero, though a copy of a value may still be missing outside it.
            if is_known and not (is_invariant or 0.0 in off[:-1]):
                break
    if len(values) != count:
        values, vectors, residuals = _ritz(diagonal, off)
        is_known = _are_known(values, residuals, top, bottom, tolerance)
    order = torch.arange(count)
    chosen_top = order.flip(0)[: min(top, count)]
    chosen_bottom = order[: max(0, min(bottom, count - len(chosen_top)))]

    def of(chosen: Tensor) -> tuple[list[float], Tensor, list[float]]:
        combined = vectors[:, chosen].T.to(basis.dtype).to(basis.device) @ basis[:count]
        return values[chosen].tolist(), combined, residuals[chosen].tolist()

    top_values, top_vectors, top_residuals = of(chosen_top)
    bottom_values, bottom_vectors, bottom_residuals = of(chosen_bottom)
    return Eigenpairs(
        top_values,
        bottom_values,
        top_vectors,
        bottom_vectors,
        top_residuals,
        bottom_residuals,
        count,
        is_known or count == size,
        count == size,
    )


def _ritz(diagonal: list[float], off: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Give the eigenvalues of the tridiagonal matrix, ascending, its eigenvectors as columns, and their residuals."""
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    between = torch.tensor(off[:-1], dtype=torch.float64)
    matrix += torch.diag(between, 1) + torch.diag(between, -1)
    values, vectors = torch.linalg.eigh(matrix)
    return values, vectors, abs(off[-1]) * vectors[-1].abs()


def _are_known(values: Tensor, residuals: Tensor, top: int, bottom: int, tolerance: float) -> bool:
    if len(values) < top + bottom:
        return False
    floor = SMALL * float(values.abs().max())
    small_enough = residuals <= tolerance * values.abs().clamp(min=floor)
    ends = torch.cat([small_enough[len(values) - top :], small_enough[:bottom]])
    return bool(ends.all())


def _random_like(start: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(start.numel(), generator=generator, dtype=torch.float32).to(start)


def _orthogonal(vector: Tensor, basis: Tensor) -> Tensor | None:
    """Give the part of a vector that is orthogonal to all of a basis, of length 1; None where there is none."""
    before = math.sqrt(_dot(vector, vector))
    for _ in range(2):
        vector = vector - basis.T @ (basis @ vector)
    length = math.sqrt(_dot(vector, vector))
    return vector / length if length > 1e-4 * before else None


def _dot(first: Tensor, second: Tensor) -> float:
    return float(torch.dot(first, second)) if first.dtype == torch.float64 else float((first.double() * second).sum())


def _smallest(dtype: torch.dtype) -> float:
    return INVARIANT if dtype == torch.float64 else 1e-6
