"""How much the choice of the learning rate matters, from the candidates' scores: what half or twice the rate would cost, and
from which rate on training diverges."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

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


def stable_edge(scores: Iterable[tuple[float, float]]) -> tuple[float, float | None] | None:
    """Give the highest rate below the edge of stability, and the lowest above it; None where no rate trained.

    Above the edge every candidate diverged, or had its rate lowered by the watch. Where the highest rate trained, nothing is
    known of the edge but that it lies above.

    Arguments:
        scores: pairs of rate and score, in any order and of any stage of the run; infinite where a candidate diverged.

    >>> stable_edge([(0.01, 1.2), (0.02, 1.0), (0.04, math.inf), (0.02, 0.9)])
    (0.02, 0.04)
    """
    trains = dict[float, bool]()
    for rate, score in scores:
        trains[rate] = trains.get(rate, True) and math.isfinite(score)  # one that diverged later on is above the edge
    if not any(trains.values()):
        return None
    highest = max(rate for rate, does in trains.items() if does)
    return highest, min((rate for rate in trains if rate > highest), default=None)
