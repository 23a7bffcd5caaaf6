"""How much the choice of the learning rate matters: what half or twice the rate would cost, from the candidates' scores."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

FARTHEST = 5.0  # a neighbour of a rate is at most so many times as high or low


def cost_of_another_rate(scores: Mapping[float, float], rate: float) -> tuple[float, float] | None:
    """Give by which share of the score half the rate and twice the rate are worse; None where its neighbours were not tried.

    It is read off the parabola over the logarithm of the rate that goes through the rate and its neighbours on both sides.

    Arguments:
        scores: by rate, of candidates that were taken equally far; less is better, infinite where one diverged.
        rate: the one that was chosen.

    >>> cost_of_another_rate({0.01: 1.2, 0.02: 1.0, 0.04: 1.4, 0.08: 5.0}, 0.02)
    (0.2, 0.4)
    """
    finite = {one: score for one, score in scores.items() if math.isfinite(score)}
    lower = max((one for one in finite if rate / FARTHEST <= one < rate), default=None)
    higher = min((one for one in finite if rate < one <= rate * FARTHEST), default=None)
    if lower is None or higher is None or not finite.get(rate):
        return None
    places = np.log2([lower / rate, 1.0, higher / rate])
    worse = np.array([finite[one] - finite[rate] for one in (lower, rate, higher)]) / abs(finite[rate])
    parabola = np.polynomial.Polynomial.fit(places, worse, 2)
    return float(f"{parabola(-1.0):.2g}"), float(f"{parabola(1.0):.2g}")
