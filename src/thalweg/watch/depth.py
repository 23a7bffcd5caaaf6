"""How gradients grow or shrink over the depth of a network."""

from __future__ import annotations

import math
from statistics import median
from typing import NamedTuple

import numpy as np

from thalweg.watch.window import Place, Window

FEWEST_LAYERS = 4
FITS = 0.8  # share of the variance that a straight line explains: less is no growth over depth


class Growth(NamedTuple):
    """A straight line through the logarithms of the layers' gradients, each per weight, from the first layer to the last.

    `ratio` is that of the first to the last layer's along it, `fits` the share of the variance that it explains; `layers` are
    the names of the weights, with the root mean square of their gradients.
    """

    ratio: float
    fits: float
    layers: dict[str, float]

    @property
    def is_line(self) -> bool:
        """Whether there are enough layers, and they lie along the line."""
        return len(self.layers) >= FEWEST_LAYERS and self.fits >= FITS


def gradient_over_depth(window: Window) -> Growth | None:
    """Fit the line to the last steps' gradients of matrices and kernels; None where they are not known, or fewer than two.

    A gradient of exactly zero counts as one of the least positive number: it vanished.
    """
    if not window.by_parameter or len(window.places) != len(window.by_parameter[-1]):
        return None
    by_parameter = [norms for norms in window.by_parameter if len(norms) == len(window.places)]
    found: list[tuple[Place, float]] = []
    for index, place in enumerate(window.places):
        norms = [norms[index] for norms in by_parameter if math.isfinite(norms[index])]
        if len(place.shape) >= 2 and norms:
            found.append((place, median(norms) / math.sqrt(math.prod(place.shape))))
    found.sort(key=lambda pair: pair[0].depth)
    if len(found) < 2:
        return None
    least = np.finfo(np.float32).smallest_subnormal
    logs = np.log([max(float(size), float(least)) for _, size in found])
    x = np.arange(len(found))
    slope, start = np.polyfit(x, logs, 1)
    spread = float(((logs - logs.mean()) ** 2).sum())
    fits = 1 - float(((logs - slope * x - start) ** 2).sum()) / spread if spread > 0 else 0.0
    ratio = math.exp(-float(slope) * (len(found) - 1))
    return Growth(ratio, fits, {place.name: float(size) for place, size in found})
