"""A noisy bowl to descend in: a fixed quadratic plus fixed noise, the same bits on every machine.

Only sums and products of float64 in a fixed order, and the raw words of a PCG64, whose stream NumPy keeps from version to version
(that of its normal distribution it does not).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

STEPS = 200
KEPT = (1, 2, 10, 50, 200)
"""The steps after which golden files hold the weights."""

SHAPES = [(5, 3), (4,), (3, 2, 2)]
WARM_UP = 20


class Bowl:
    """All weights in one flat array: neighbours pull at one another, curvatures lie between 1 and 3.

    `away` multiplies the start (0: from the origin), `steep` the gradient.
    """

    def __init__(self, shapes: Iterable[Sequence[int]] = SHAPES, away: float = 1.0, steep: float = 1.0):
        self.shapes = [tuple(shape) for shape in shapes]
        self.sizes = [int(np.prod(shape)) for shape in self.shapes]
        words = np.random.PCG64(7).random_raw((STEPS + 3) * sum(self.sizes))
        between = ((words >> 11) * 2.0**-53 - 0.5).reshape(STEPS + 3, -1)
        self.start, self.centre, self.curvature = away * 2 * between[0], 2 * between[1], 1.5 + between[2]
        self.noise, self.steep = between[3:], steep

    def gradient(self, w: np.ndarray, step: int) -> np.ndarray:
        """Give the gradient at the flat weights, for the step to come; the first is 1."""
        pull = self.curvature * (w - self.centre) + 0.25 * (w + w - np.roll(w, 1) - np.roll(w, -1))
        return self.steep * (pull + self.noise[step - 1])

    def split(self, flat: np.ndarray) -> list[np.ndarray]:
        """Give the tensors that the flat array is made of."""
        ends = np.cumsum(self.sizes)[:-1]
        return [part.reshape(shape) for part, shape in zip(np.split(flat, ends), self.shapes, strict=True)]


def concatenated(tensors: Iterable[np.ndarray]) -> np.ndarray:
    """Give all weights in one flat array of float64."""
    return np.concatenate([np.asarray(t, np.float64).reshape(-1) for t in tensors])


def rates(kind: str, lr: float) -> list[float]:
    """Give the rate of every step: "constant", "warmed" (up over 20 steps), or "falling" (the same, then down to a tenth)."""
    steps = range(1, STEPS + 1)
    if kind == "constant":
        return [lr for _ in steps]
    risen = [lr * min(1.0, step / WARM_UP) for step in steps]
    return risen if kind == "warmed" else [r * (1 - 0.9 * step / STEPS) for r, step in zip(risen, steps, strict=True)]
