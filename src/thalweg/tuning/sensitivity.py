"""How much the choice of the learning rate matters: what half or twice the rate would cost, from the candidates' scores."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

FARTHEST = 5.0  # between neighbouring rates, for a score between them to be told


def cost_of_another_rate(scores: Mapping[float, float], rate: float) -> tuple[float, float] | None:
    """Give by which share of the score half the rate and twice the rate are worse; None where no rates about them were tried.

    It is read off the line between the two nearest rates, over the logarithm of the rate.

    Arguments:
        scores: by rate, of candidates that were taken equally far; less is better, infinite where one diverged.
        rate: the one that was chosen.

    >>> cost_of_another_rate({0.01: 1.2, 0.02: 1.0, 0.04: 1.4, 0.08: 5.0}, 0.02)
    (0.2, 0.4)
    """
    finite = {one: scores[one] for one in sorted(scores) if math.isfinite(scores[one])}
    if not finite.get(rate):
        return None
    costs = list[float]()
    for other in (rate / 2, rate * 2):
        lower = max((one for one in finite if one <= other * (1 + 1e-9)), default=0.0)
        higher = min((one for one in finite if one >= other * (1 - 1e-9)), default=math.inf)
        if not 0 < higher <= FARTHEST * lower:
            return None
        places, values = np.log([lower, higher]), [finite[lower], finite[higher]]
        costs.append(float((np.interp(np.log(other), places, values) - finite[rate]) / abs(finite[rate])))
    return float(f"{costs[0]:.2g}"), float(f"{costs[1]:.2g}")
