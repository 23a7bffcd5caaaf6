"""How sure it is that the chosen candidate is better than the next: on another seed, too, as finished runs of the table show."""

from __future__ import annotations

import math
from collections.abc import Mapping

from thalweg.tuning.race import Point

TELLING = {
    True: 0.25,
    False: 0.4,
}  # relative differences that tell: of candidates trained to the end, of others cooled down
SURE = 0.75  # probability from which one is called better


def probability_of_better(
    scores: Mapping[Point, float], chosen: Point, *, at_the_end: bool
) -> tuple[Point, float] | None:
    """Give the best other candidate, and the probability that the chosen one is better than it on another seed.

    It is 1 - 0.5 exp(-d / t) for scores that differ by a factor of exp(d); t is 0.25 at the end of the run and 0.4 after a
    cool-down on the way. On the tasks of `bench/tuning` fresh seeds agreed at least so often where it is 0.75 or more
    (`bench/tuning/calibration.py`). None where scores are not above zero, as of metrics of which more is better, or there is
    no other.

    Arguments:
        scores: of candidates that were taken equally far; less is better.
        at_the_end: whether they were trained to the end.

    >>> near = {Point("muon", 0.01): 1.0, Point("muon", 0.02): 1.2}
    >>> probability_of_better(near, Point("muon", 0.01), at_the_end=True)
    (Point(rule='muon', rate=0.02, timescale=0.3), 0.76)
    """
    others = {point: score for point, score in scores.items() if point != chosen and math.isfinite(score)}
    if chosen not in scores or not others or min(scores[chosen], *others.values()) <= 0:
        return None
    second = min(others, key=lambda point: others[point])
    difference = max(0.0, math.log(others[second] / scores[chosen]))
    return second, round(1.0 - 0.5 * math.exp(-difference / TELLING[at_the_end]), 2)
