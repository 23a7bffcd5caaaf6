"""How the eigenvalues of a symmetric matrix are spread, from its products only: stochastic Lanczos quadrature.

From a random direction, some Lanczos steps give the values and weights of a quadrature whose mean over directions is the share of
eigenvalues near each value. Every vector is made orthogonal to all before it, so that no value comes up once more. How much a
share differs between directions is its error. A direction has had steps enough when more of them no longer move its shares.

Sources: Golub and Welsch 1969; Lin, Saad and Yang 2016, arXiv:1308.5467; Ghorbani, Krishnan and Xiao 2019, arXiv:1901.10159.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import ndtr
from torch import Tensor

from thalweg.landscape.surface import Product

STEPS, PROBES = 60, 6
PERIOD = 6  # steps between two looks at the shares
WIDTH = 0.002  # of the range of the eigenvalues, by which shares are smoothed before they are compared
TOLERANCE = 0.005  # by which a share may still differ from what it was a period earlier
INVARIANT = {
    torch.float32: 1e-5,
    torch.float64: 1e-12,
}  # of the largest product: the rest of one beyond which there is none
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
    product: Product,
    start: Tensor,
    *,
    steps: int = STEPS,
    probes: int = PROBES,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> SpectralDensity:
    """Estimate the density of the eigenvalues.

    Arguments:
        product: multiplies the matrix with a vector of shape (size,).
        start: a vector whose shape, dtype and device the others have.
        steps: products for each direction, at most; probes: random directions, two or more for an error.
        tolerance: a direction takes no more steps when the share of eigenvalues below any value, smoothed by a five-hundredth of
            their range, has changed by no more over the last six; 0: all steps are taken.
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
        earlier: tuple[Array, Array] | None = None
        scale = 0.0
        for number in range(steps):
            basis[number] = vector
            rest = product(vector)
            products += 1
            diagonal.append(float(torch.dot(vector, rest)))
            for _ in range(2):
                rest = rest - basis[: number + 1].T @ (basis[: number + 1] @ rest)
            length = float(rest.norm())
            scale = max(scale, abs(diagonal[-1]), length)
            if number == steps - 1 or length <= INVARIANT.get(start.dtype, 1e-5) * scale:
                break
            if tolerance > 0 and number % PERIOD == PERIOD - 1:
                now = _quadrature(diagonal, off)
                if earlier is not None and _apart(earlier, now) <= tolerance:
                    break
                earlier = now
            off.append(length)
            vector = rest / length
        found, shares = _quadrature(diagonal, off)
        values[probe, : len(found)], weights[probe, : len(found)] = found, shares
    return SpectralDensity(values, weights, products)


def _quadrature(diagonal: list[float], off: list[float]) -> tuple[Array, Array]:
    """Give the values of the quadrature, and the weight of each."""
    found, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))
    return found, vectors[0] ** 2


def _apart(one: tuple[Array, Array], other: tuple[Array, Array]) -> float:
    """Give by how much the share below some value differs most between two quadratures, both smoothed."""
    values = np.concatenate([one[0], other[0]])
    width = WIDTH * float(np.ptp(values)) or 1.0
    first, second = (
        (ndtr((values[:, None] - found[None, :]) / width) * shares[None, :]).sum(1) for found, shares in (one, other)
    )
    return float(np.abs(first - second).max())
