"""The learning rate, chosen by a race: each candidate is the final run itself, and those that fall behind are stopped on the way.

A race decides who goes on; it runs nothing, and depends neither on the task nor on where candidates run. `bench/tuning` plays it
on a table of finished runs: the courses below were chosen there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

COOL = 0.05  # share of the run that a cool-down takes
FEWEST = 2  # steps before a cool-down, and of it
SPACING = 2.17  # between neighbouring rates
WIDENINGS = 8  # the most candidates beyond the edge
CLEARLY = 0.005  # share of a score by which the one at the edge must be better than its neighbour


class Stage(NamedTuple):
    """All that are left go as far as `share` of the run, and cool down in `cool` of it; the best `keep` of them go on."""

    share: float
    keep: int
    cool: float = COOL

    def in_steps(self, steps: int) -> Stage:
        """Give the stage as it is in a run of so many steps: both parts are whole steps, and not too few to judge by."""
        at = step_at(self.share, steps)
        return Stage(at / steps, self.keep, min(max(FEWEST, round(self.cool * steps)), steps - at) / steps)


def step_at(share: float, steps: int) -> int:
    """Give the step at a share of a run of so many steps."""
    return min(max(FEWEST, round(share * steps)), steps)


class Course(NamedTuple):
    """What a race does: how many candidates are `lower` and `higher` than the usual rate, and the stages.

    `anew`: the winner's run is not gone on with, but begun again.
    """

    lower: int
    higher: int
    stages: tuple[Stage, ...]
    anew: bool = False

    @property
    def price(self) -> float:
        """Give what the race and the rest of the winner's run cost, in full trainings, where nothing is added."""
        paid, before, left = 0.0, 0.0, self.lower + 1 + self.higher
        for share, keep, cool in self.stages:
            paid += left * (share - before + cool)
            before, left = share, keep
        return paid + 1.0 - (0.0 if self.anew else before)


COURSES = (
    Course(1, 1, (Stage(0.1, 1),)),
    Course(1, 2, (Stage(0.1, 2), Stage(0.35, 1))),
    Course(2, 2, (Stage(0.2, 3), Stage(1.0, 1, 0.0))),
    Course(2, 3, (Stage(1.0, 1, 0.0),)),
)
"""From the cheapest on. A race never costs more than the price it is given."""


class Track(Protocol):
    """Where candidates run."""

    def score(self, rate: float, share: float) -> float:
        """Take the candidate of a rate on to a share of the run, and give what it would be worth there; less is better.

        Infinite where it diverged.
        """
        ...

    def stop(self, rate: float) -> None:
        """The candidate of a rate is out of the race: nothing of it is needed any more."""


def course_for(price: float, steps: int | None = None, *, anew: bool = False) -> Course | None:
    """Give the best course for a price in full trainings, the final one included; None where it pays for none.

    In a run of a few `steps` the least that a candidate can be judged by is a large part of it, so there a course costs more.

    >>> course_for(1.0) is None, [stage.share for stage in course_for(2.0).stages], course_for(2.0, steps=4) is None
    (True, [0.1, 0.35], True)
    """
    courses = [course._replace(anew=anew) for course in COURSES]
    if steps is not None:
        courses = [
            course._replace(stages=tuple(stage.in_steps(steps) for stage in course.stages)) for course in courses
        ]
    affordable = [course for course in courses if course.price <= price]
    return affordable[-1] if affordable else None


def race(track: Track, usual: float, course: Course, price: float, spacing: float = SPACING) -> float | None:
    """Give the rate that wins; None where none of them trains.

    What the price pays for beyond the course is spent on candidates beyond the edge, as long as the best one lies there, and then
    on two between the best and its neighbours.

    Arguments:
        track: gives the scores.
        usual: the rate in the middle.
        course: which rates are tried, and how far.
        price: the most that it may cost, in full trainings, the final one included.
        spacing: between neighbouring rates.
    """
    left = [_rounded(usual * spacing**k) for k in range(-course.lower, course.higher + 1)]
    spare, earlier = price - course.price, dict[float, float]()
    for number, stage in enumerate(course.stages):
        scores, entered, left = dict[float, float](), left, list[float]()
        more = _more(scores, usual, spacing) if number == 0 else iter(())
        while entered or spare >= stage.share + stage.cool:
            is_added = not entered
            rate = next(more, None) if is_added else entered.pop(0)
            if rate is None:
                break
            spare -= (stage.share + stage.cool) * is_added
            scores[rate] = track.score(rate, stage.share)
            best = [one for one in _ranked(scores, usual, earlier)[: stage.keep] if math.isfinite(scores[one])]
            for loser in {*left, rate} - {*best}:  # stopped at once, so that few are held in memory
                track.stop(loser)
            left = best
        earlier = scores
    return left[0] if left else None


def _more(scores: Mapping[float, float], usual: float, spacing: float) -> Iterator[float]:
    """Give rates beyond the edge as long as the best one lies there, or all diverged, and then one on each side of the best.

    `scores` are those so far, with that of each rate that was given.
    """
    for _ in range(WIDENINGS):
        best, second = _ranked(scores, usual, {})[:2]
        low, high, none_trains = min(scores), max(scores), math.isinf(scores[best])
        is_clear = scores[second] - scores[best] > CLEARLY * abs(scores[best])
        if not none_trains and not (best in (low, high) and is_clear):
            break
        yield _rounded(low / spacing if none_trains or best == low else high * spacing)
    best = _ranked(scores, usual, {})[0]
    yield from (_rounded(best * spacing**0.5), _rounded(best / spacing**0.5))


def _ranked(scores: Mapping[float, float], usual: float, earlier: Mapping[float, float]) -> list[float]:
    """Order rates by their scores; of equal ones the better earlier score comes first, then the nearest to the usual."""
    return sorted(scores, key=lambda rate: (scores[rate], earlier.get(rate, 0.0), abs(math.log(rate / usual)), rate))


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")
