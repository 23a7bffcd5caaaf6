"""How the eigenvalues of a symmetric matrix are spread, from its products only: stochastic Lanczos quadrature.

From a random direction, some Lanczos steps give the values and weights of a quadrature whose mean over directions is the share of
eigenvalues near each value. Two vectors in
every six are made orthogonal to all before them, which is enough: a value that came up once more would take its share from
where others are. Values beyond the known ends cannot come up; how much a share differs between directions is its
error.

Sources: Golub and Welsch 1969; Lin, Saad and Yang 2016, arXiv:1308.5467; Ghorbani, Krishnan and Xiao 2019, arXiv:1901.10159.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from thalweg.landscape.surface import Product

STEPS, PROBES = 60, 6
PERIOD = 6  # steps, of which the last two vectors are made orthogonal to all before
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SpectralDensity:
    """The quadratures of several random directions.

    Attributes:
        values: eigenvalue estimates, of shape (probes, steps); weights: the share of each, whose sum over a row is 1.
        products: how many times the matrix was multiplied with a vector.
    """

    values: Array
    weights: Array
    products: int

    def share_below(self, at: Array) -> tuple[Array, Array]:
        """Give the share of eigenvalues below each of some values, and its standard error over the directions."""
        below = (self.values[:, :, None] < at[None, None, :]) * self.weights[:, :, None]
        shares = below.sum(1)
        return shares.mean(0), shares.std(0, ddof=1) / np.sqrt(len(shares))

    def density(self, at: Array, width: float) -> tuple[Array, Array]:
        """Give the density at some values, smoothed by a normal distribution of deviation `width`, and its standard error."""
        distance = (at[None, None, :] - self.values[:, :, None]) / width
        kernel = np.exp(-0.5 * distance**2) / (width * np.sqrt(2 * np.pi))
        each = (kernel * self.weights[:, :, None]).sum(1)
        return each.mean(0), each.std(0, ddof=1) / np.sqrt(len(each))


def spectral_density(
    product: Product, start: Tensor, *, steps: int = STEPS, probes: int = PROBES, seed: int = 0
) -> SpectralDensity:
    """Estimate the density of the eigenvalues.

    Arguments:
        product: multiplies the matrix with a vector of shape (size,).
        start: a vector whose shape, dtype and device the others have.
        steps: products for each direction, at most `size`; probes: random directions, at least two.
        seed: of the directions.
    """
    size, generator = start.numel(), torch.Generator().manual_seed(seed)
    steps = min(steps, size)
    values, weights, products = np.zeros((probes, steps)), np.zeros((probes, steps)), 0
    for probe in range(probes):
        vector = torch.randn(size, generator=generator).to(start)
        diagonal, off = list[float](), list[float]()
        vector = vector / vector.norm()
        basis = torch.empty(steps, size, dtype=start.dtype, device=start.device)
        before = torch.zeros_like(vector)
        for number in range(steps):
            basis[number] = vector
            rest = product(vector)
            products += 1
            diagonal.append(float(torch.dot(vector, rest)))
            rest = rest.add(vector, alpha=-diagonal[-1]).sub_(before, alpha=off[-1] if off else 0.0)
            if number % PERIOD >= PERIOD - 2:
                rest -= basis[: number + 1].T @ (basis[: number + 1] @ rest)
            length = float(rest.norm())
            if number == steps - 1 or length <= 1e-6 * max(abs(value) for value in (*diagonal, *off, 1e-300)):
                break
            off.append(length)
            before, vector = vector, rest.div_(length)
        matrix = np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1)
        found, vectors = np.linalg.eigh(matrix)
        values[probe, : len(found)], weights[probe, : len(found)] = found, vectors[0] ** 2
    return SpectralDensity(values, weights, products)
