"""How far one can go from a point before the loss has risen to a level: the width of a basin at a given height."""

from __future__ import annotations

import math
from collections.abc import Callable

ACCURACY = 0.05  # of a width
DOUBLINGS = 40  # from the first guess, inwards or outwards


def half_width(loss_at: Callable[[float], float], level: float, guess: float, farthest: float = math.inf) -> float:
    """Find the distance at which a loss has risen above a level, by bisection.

    Of a loss that rises above it more than once, it is one of the distances at which it does.

    Arguments:
        loss_at: the loss at a distance above 0; one that is no number counts as above the level.
        level: above the loss at distance 0.
        guess: the distance at which it is looked at first, above 0.
        farthest: the largest distance that is looked at.

    Gives infinity where it stays below the level up to the farthest distance, and 0 where it is above it however near.

    >>> round(half_width(lambda a: a * a, 9.0, 1.0), 1), half_width(lambda a: 0.0, 1.0, 1.0, farthest=4.0)
    (3.0, inf)
    """
    inside, outside, at = 0.0, math.inf, min(guess, farthest)
    for _ in range(DOUBLINGS):
        if loss_at(at) <= level:
            inside = at
            if at >= farthest:
                return math.inf
        else:
            outside = at
        if inside > 0 and math.isfinite(outside):
            break
        at = at / 2 if inside == 0 else min(2 * at, farthest)
    else:
        return math.inf if inside else 0.0
    while outside > (1 + ACCURACY) * inside:
        middle = math.sqrt(inside * outside)
        inside, outside = (middle, outside) if loss_at(middle) <= level else (inside, middle)
    return math.sqrt(inside * outside)
