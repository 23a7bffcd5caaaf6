"""The trace of a symmetric matrix that is known by its products only: Hutch++, with an interval.

The part of the matrix in a subspace that holds its largest eigenvalues is summed exactly; of the rest the trace is the mean of
v' A v over random signs v (Hutchinson). The spread of these gives the error.

Source: Meyer, Musco, Musco and Woodruff 2021, arXiv:2010.09649.
"""

from __future__ import annotations

import math
import statistics
from typing import NamedTuple

import torch
from torch import Tensor

from thalweg.landscape.dots import dot
from thalweg.landscape.surface import Product

LEAST_PROBES, MOST_PROBES, SKETCH = 8, 60, 8
TOLERANCE = 0.05
# Two-sided 95 % quantiles of Student's distribution, by degrees of freedom.
STUDENT = {7: 2.365, 10: 2.228, 15: 2.131, 20: 2.086, 30: 2.042, 60: 2.0}


class Trace(NamedTuple):
    """A trace, the half-width of its interval of 95 %, and the products that it took."""

    value: float
    error: float
    products: int


def trace(
    product: Product,
    start: Tensor,
    subspace: Tensor | None = None,
    *,
    tolerance: float = TOLERANCE,
    sketch: int = SKETCH,
    most: int = MOST_PROBES,
    seed: int = 0,
) -> Trace:
    """Estimate the trace of a symmetric matrix.

    Arguments:
        product: multiplies it with a vector of shape (size,).
        start: a vector whose shape, dtype and device the others have.
        subspace: orthonormal rows of shape (count, size) that hold large eigenvalues, such as eigenvectors that are known.
        tolerance: of the error relative to the value, at which it stops.
        sketch: further random vectors multiplied once, to find more of the large eigenvalues.
        most: probes of the rest.
        seed: of random vectors.

    >>> found = trace(lambda v: torch.tensor([4.0, 2.0, -1.0]) * v, torch.zeros(3))
    >>> round(found.value, 4)
    5.0
    """
    size, generator = start.numel(), torch.Generator().manual_seed(seed)
    known = torch.empty(0, size, dtype=start.dtype, device=start.device) if subspace is None else subspace
    products, sketched = 0, list[Tensor]()
    for _ in range(min(sketch, size - len(known))):
        sketched.append(product(torch.randn(size, generator=generator).to(start)))
        products += 1
    basis = _orthonormal(torch.cat([known, torch.stack(sketched)]) if sketched else known)
    exact = 0.0
    for vector in basis:
        exact += dot(vector, product(vector))
        products += 1
    if len(basis) >= size:
        return Trace(exact, 0.0, products)
    found = list[float]()
    while len(found) < most:
        probe = _signs(start, generator)
        probe = probe - basis.T @ (basis @ probe)
        found.append(dot(probe, product(probe)))
        products += 1
        if len(found) >= LEAST_PROBES and _half_width(found) <= tolerance * abs(exact + statistics.fmean(found)):
            break
    return Trace(exact + statistics.fmean(found), _half_width(found), products)


def _half_width(found: list[float]) -> float:
    freedom = max((n for n in STUDENT if n <= len(found) - 1), default=7)
    return STUDENT[freedom] * statistics.stdev(found) / math.sqrt(len(found))


def _signs(start: Tensor, generator: torch.Generator) -> Tensor:
    return (torch.randint(0, 2, (start.numel(),), generator=generator) * 2 - 1).to(start)


def _orthonormal(rows: Tensor) -> Tensor:
    """Give orthonormal rows that span the same; what lies in the span of those before it is left out."""
    kept = list[Tensor]()
    for row in rows:
        length = float(row.norm())
        if not length > 0:
            continue
        rest = row / length
        for _ in range(2):
            for other in kept:
                rest = rest - torch.dot(other, rest) * other
        if float(rest.norm()) > 1e-4:
            kept.append(rest / rest.norm())
    return torch.stack(kept) if kept else rows[:0]
