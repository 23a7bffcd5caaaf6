"""The largest and smallest eigenvalues of a symmetric matrix that is known by its products with vectors only.

One Lanczos run gives both ends. Every new vector is made orthogonal to all before it, twice, so no eigenvalue comes up again as a
copy of itself. A value is known once its residual |A v - theta v|, which bounds the distance to an eigenvalue, is small beside
it.
Where the vectors span an invariant subspace a new random one is taken, orthogonal to it: so eigenvalues that coincide are
found as often as they are there.
Where more vectors are needed than memory holds, the best combinations of those that there are take their place, and the run goes
on from there: a thick restart.

Sources: Lanczos 1950; Parlett, The Symmetric Eigenvalue Problem, 1980, chapter 13; Kuczynski and Wozniakowski 1992 for the chance
that a random start hides a direction; Wu and Simon 2000, doi:10.1137/S0895479898334605, for restarts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from thalweg.landscape.dots import dot
from thalweg.landscape.dots import length as norm
from thalweg.landscape.surface import Product

MOST_PRODUCTS = 100
TOLERANCE = 1e-3
SMALL = 1e-2  # of the largest eigenvalue: one that is smaller is known to the tolerance of such a one
INVARIANT = 1e-10  # of the largest eigenvalue: the rest of a product beyond which there is none, in float64
CHECK_EVERY = 2  # products between looks at the eigenvalues
FEWEST = 12  # products: with fewer, a loose tolerance may be met by a second eigenvector before the first one shows
SPARE = 3  # vectors beside those that are asked for: with fewer a restart has nothing to go on with
COLUMNS = 1 << 18  # entries of each vector that are combined at once


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
    vectors: int | None = None,
    seed: int = 0,
    enough: Callable[[int], bool] = lambda products: False,
) -> Eigenpairs:
    """Find the eigenvalues at both ends of the spectrum of a symmetric matrix.

    Arguments:
        product: multiplies the matrix with a vector of shape (size,).
        start: a vector of shape (size,), whose dtype and device are those of all others; its values are not used.
        top, bottom: how many of each end; together at most `size`, else fewer of the bottom.
        tolerance: residual relative to the value, or to a hundredth of the largest where the value is smaller.
        most: products. Where they do not suffice, `known` is false and the residuals say how well each is known.
        vectors: that are kept in memory, at least three more than eigenvalues are asked for; None: one for each product. With
            fewer it takes more products.
        seed: of the first vector.
        enough: called after each product with how many were made, gives whether to end with what is known then.

    >>> found = eigenpairs(lambda v: torch.tensor([4.0, 2.0, -1.0]) * v, torch.zeros(3), top=1, bottom=1)
    >>> round(found.top[0], 4), round(found.bottom[0], 4), found.complete
    (4.0, -1.0, True)
    """
    size = start.numel()
    top, wanted = min(top, size), min(top + bottom, size)
    bottom = wanted - top
    generator = torch.Generator().manual_seed(seed)
    steps = min(most, size)
    room = steps if vectors is None else min(steps, size, max(vectors, wanted + SPARE))
    basis = torch.empty(room, size, dtype=start.dtype, device=start.device)
    # The matrix between the vectors of the basis: of three diagonals, and of a full row after a restart.
    projected = torch.zeros(room, room, dtype=torch.float64)
    ritz: _Ritz | None = None
    count, products, scale, length = 0, 0, 0.0, 0.0
    is_known = was_invariant = False
    vector: Tensor | None = None
    while products < steps:
        if ritz is not None and count == room:
            kept = _to_keep(count, top, bottom)
            _combine(basis, ritz.vectors[:, kept])
            projected.zero_()
            count = len(kept)
            projected[:count, :count] = torch.diag(ritz.values[kept])
            projected[count, :count] = projected[:count, count] = length * ritz.vectors[-1, kept]
        if vector is None:
            vector = _orthogonal(_random_like(start, generator), basis[:count])
            if vector is None:
                break
        basis[count] = vector
        del vector
        rest = product(basis[count])
        products += 1
        is_stopped = enough(products)
        projected[count, count] = dot(basis[count], rest)
        rest = rest.add(basis[count], alpha=-float(projected[count, count]))
        count += 1
        for _ in range(2):
            rest.addmv_(basis[:count].T, basis[:count] @ rest, alpha=-1)
        length = norm(rest)
        scale = max(scale, abs(float(projected[count - 1, count - 1])), length)
        is_invariant = length <= _smallest(start.dtype) * scale
        length = 0.0 if is_invariant else length
        vector = None if is_invariant else rest.div_(length)
        del rest
        if count < room:
            projected[count, count - 1] = projected[count - 1, count] = length
        ritz = None
        is_last = count == room or products == steps or is_stopped
        if is_last or (count >= wanted and products % CHECK_EVERY == 0):
            ritz = _ritz(projected[:count, :count], length)
            is_known = ritz.are_known(top, bottom, tolerance)
            # After an invariant subspace all residuals are zero, though a copy of a value may still be missing outside it.
            if is_stopped or (is_known and products >= FEWEST and not (is_invariant or was_invariant)):
                break
        was_invariant = was_invariant or is_invariant
    del vector
    if ritz is None:
        ritz = _ritz(projected[:count, :count], length)
        is_known = ritz.are_known(top, bottom, tolerance)
    order = torch.arange(count)
    chosen_top = order.flip(0)[: min(top, count)]
    chosen_bottom = order[: max(0, min(bottom, count - len(chosen_top)))]
    chosen = torch.cat([chosen_top, chosen_bottom])
    _combine(basis, ritz.vectors[:, chosen])
    found = basis[: len(chosen)]
    found = found.clone() if 2 * len(chosen) < room else found  # else a copy would take more memory than it sets free
    is_complete = products == count == size
    return Eigenpairs(
        ritz.values[chosen_top].tolist(),
        ritz.values[chosen_bottom].tolist(),
        found[: len(chosen_top)],
        found[len(chosen_top) :],
        ritz.residuals[chosen_top].tolist(),
        ritz.residuals[chosen_bottom].tolist(),
        products,
        is_known or is_complete,
        is_complete,
    )


class _Ritz(NamedTuple):
    """Eigenvalues of a projected matrix, ascending, its eigenvectors as columns, and their residuals."""

    values: Tensor
    vectors: Tensor
    residuals: Tensor

    def are_known(self, top: int, bottom: int, tolerance: float) -> bool:
        count = len(self.values)
        if count < top + bottom:
            return False
        floor = SMALL * float(self.values.abs().max())
        small_enough = self.residuals <= tolerance * self.values.abs().clamp(min=floor)
        return bool(torch.cat([small_enough[count - top :], small_enough[:bottom]]).all())


def _ritz(projected: Tensor, length: float) -> _Ritz:
    values, vectors = torch.linalg.eigh(projected)
    return _Ritz(values, vectors, length * vectors[-1].abs())


def _to_keep(count: int, top: int, bottom: int) -> Tensor:
    """Choose the combinations that a restart keeps: those that are asked for, and half as many more as there is room for."""
    more = (count - top - bottom) // 2
    of_top = more * top // (top + bottom)
    return torch.cat([torch.arange(bottom + more - of_top), torch.arange(count - top - of_top, count)])


def _combine(basis: Tensor, coefficients: Tensor) -> None:
    """Replace the first rows of a basis by combinations of its rows, whose coefficients are columns, without a copy of it."""
    used, made = coefficients.shape
    mixing = coefficients.T.to(basis)
    for first in range(0, basis.shape[1], COLUMNS):
        part = slice(first, first + COLUMNS)
        basis[:made, part] = mixing @ basis[:used, part]


def _random_like(start: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(start.numel(), generator=generator, dtype=torch.float32).to(start)


def _orthogonal(vector: Tensor, basis: Tensor) -> Tensor | None:
    """Give the part of a vector that is orthogonal to all of a basis, of length 1; None where there is none."""
    before = norm(vector)
    for _ in range(2):
        vector = vector - basis.T @ (basis @ vector)
    length = norm(vector)
    return vector / length if length > 1e-4 * before else None


def _smallest(dtype: torch.dtype) -> float:
    return INVARIANT if dtype == torch.float64 else 1e-6
