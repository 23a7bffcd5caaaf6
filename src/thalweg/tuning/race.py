"""Rule, learning rate and decay, chosen by a race: each candidate is the final run itself, and who falls behind is stopped.

A race decides who goes on; it runs nothing, and depends neither on the task nor on where candidates run. `bench/tuning` plays it
on a table of finished runs: the courses below were chosen there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple, Protocol

from thalweg.descent.cooling import FEWEST
from thalweg.descent.projection import COOL
from thalweg.tuning.priors import TIMESCALE

SPACING = 2.17  # between neighbouring rates
WIDENINGS = 8  # the most candidates beyond the edge
CLEARLY = 0.005  # share of a score by which the one at the edge must be better than its neighbour


class Point(NamedTuple):
    """What a candidate has of its own: rule, rate, and the share of the run in which weights decay by e (None: they do not)."""

    rule: str
    rate: float
    timescale: float | None = TIMESCALE


class Line(NamedTuple):
    """The rates of one rule: the usual one, and by which factor neighbours differ; and the timescales of their decay.

    `timescale`: of the usual rate and higher ones; `lower`: of those below. `timescales`: those that the best is tried with in
    the end.
    """

    rule: str
    usual: float
    spacing: float = SPACING
    timescales: tuple[float | None, ...] = ()
    timescale: float | None = TIMESCALE
    lower: float | None = TIMESCALE

    def point(self, place: float) -> Point:
        """Give the point so many neighbours above the usual rate."""
        return self.at(self.usual * self.spacing**place)

    def at(self, rate: float) -> Point:
        """Give the point at a rate."""
        rate = _rounded(rate)
        return Point(self.rule, rate, self.lower if rate < _rounded(self.usual) else self.timescale)


class Stage(NamedTuple):
    """All that are left go as far as `share` of the run, and cool down in `cool` of it; the best `keep` of them go on."""

    share: float
    keep: int
    cool: float = COOL

    def in_steps(self, steps: int) -> Stage:
        """Give the stage as it is in a run of so many steps: both parts are whole steps, and not too few to judge by."""
        at = step_at(self.share, steps)
        return Stage(at / steps, self.keep, min(max(FEWEST, round(self.cool * steps)), steps - at) / steps)


def step_at(share: float, steps: int, most: int | None = None) -> int:
    """Give the step at a share of a run of so many steps; `most`: of one that may go on, to so many."""
    return min(max(FEWEST, round(share * steps)), steps if most is None else most)


class Course(NamedTuple):
    """What a race does: of each line, how many candidates are lower and higher than the usual rate, and the stages.

    `anew`: the winner's run is not gone on with, but begun again.
    """

    sides: tuple[tuple[int, int], ...]
    stages: tuple[Stage, ...]
    anew: bool = False

    @property
    def price(self) -> float:
        """Give what the race and the rest of the winner's run cost, in full trainings, where nothing is added."""
        paid, before, left = 0.0, 0.0, sum(lower + 1 + higher for lower, higher in self.sides)
        for share, keep, cool in self.stages:
            paid += left * (share - before + cool)
            before, left = share, keep
        return paid + 1.0 - (0.0 if self.anew else before)


COURSES = (
    Course(((1, 1),), (Stage(0.1, 1),)),
    Course(((1, 2),), (Stage(0.1, 2), Stage(0.35, 1))),
    Course(((1, 3),), (Stage(0.1, 2), Stage(0.35, 1))),
    Course(((1, 2),), (Stage(0.1, 3), Stage(1.0, 1, 0.0))),
    Course(((1, 2), (0, 0)), (Stage(0.2, 3), Stage(1.0, 1, 0.0))),
    Course(((1, 3), (0, 0)), (Stage(0.1, 5), Stage(1.0, 1, 0.0))),
)
"""From the cheapest on. A race never costs more than the price it is given."""


class Track(Protocol):
    """Where candidates run."""

    def expect(self, points: Sequence[Point], share: float) -> None:
        """The scores of all of these at a share of the run will be asked for next: they may be found at once."""

    def score(self, point: Point, share: float) -> float:
        """Take a candidate on to a share of the run, and give what it would be worth there; less is better.

        Infinite where it diverged.
        """
        ...

    def stop(self, point: Point) -> None:
        """A candidate is out of the race: nothing of it is needed any more."""


def course_for(price: float, steps: int | None = None, lines: int = 1, *, anew: bool = False) -> Course | None:
    """Give the best course over so many lines for a price in full trainings, the final one included; None where it pays for none.

    In a run of a few `steps` the least that a candidate can be judged by is a large part of it, so there a course costs more.

    >>> course_for(1.0) is None, [stage.share for stage in course_for(2.0).stages], course_for(2.0, steps=4) is None
    (True, [0.1, 0.35], True)
    """
    courses = [course._replace(sides=course.sides[:lines], anew=anew) for course in COURSES]
    if steps is not None:
        courses = [
            course._replace(stages=tuple(stage.in_steps(steps) for stage in course.stages)) for course in courses
        ]
    affordable = [course for course in courses if course.price <= price]
    return affordable[-1] if affordable else None


def race(track: Track, lines: Sequence[Line], course: Course, price: float) -> Point | None:
    """Give the point that wins; None where none of them trains.

    What the price pays for beyond the course is spent on candidates beyond the edge of a line, as long as the best one lies
    there, and, where candidates are trained to the end, on the best with other decays and on rates between it and its
    neighbours. Where none trains, lower rates are tried whatever they cost.

    Arguments:
        track: gives the scores.
        lines: the first is the usual one; of points that are alike, its own win.
        course: which points are tried, and how far.
        price: the most that it may cost, in full trainings, the final one included.
    """
    left = [
        line.point(place)
        for line, (lower, higher) in zip(lines, course.sides, strict=False)
        for place in range(-lower, higher + 1)
    ]
    spare, earlier = price - course.price, dict[Point, float]()
    for number, stage in enumerate(course.stages):
        if not left:
            return None
        scores, group, left, cost = dict[Point, float](), left, list[Point](), stage.share + stage.cool
        more = chain(
            _beyond_the_edge(scores, lines, only_lower=number > 0),
            _beside_the_best(scores, lines) if stage.share == 1 else (),
        )
        while group:
            track.expect(group, stage.share)
            for point in group:
                scores[point] = track.score(point, stage.share)
                best = [one for one in _ranked(scores, lines, earlier)[: stage.keep] if math.isfinite(scores[one])]
                for loser in {*left, point} - {*best}:  # stopped at once, so that few are held in memory
                    track.stop(loser)
                left = best
            affordable = max(int(spare / cost), 0 if left else 1)
            group = next(more, [])[:affordable] if affordable else []
            spare -= cost * len(group)
        earlier = scores
    return left[0] if left else None


def _beyond_the_edge(
    scores: Mapping[Point, float], lines: Sequence[Line], *, only_lower: bool = False
) -> Iterator[list[Point]]:
    """Give points, one after the other, beyond the edge of a line as long as the best one lies there, and lower ones as long as
    none trains.

    `scores` are those so far, with that of each point that was given. `only_lower`: only where none trains.
    """
    for _ in range(WIDENINGS):
        best = _ranked(scores, lines)[0]
        line = next(line for line in lines if line.rule == best.rule)
        own = sorted((one for one in scores if one.rule == line.rule), key=lambda one: one.rate)
        none_trains = math.isinf(scores[best])
        neighbour = own[min(1, len(own) - 1)] if best == own[0] else own[-2]
        is_clear = neighbour == best or scores[neighbour] - scores[best] > CLEARLY * abs(scores[best])
        if not none_trains and (only_lower or best not in (own[0], own[-1]) or not is_clear):
            return
        lower = none_trains or best == own[0]
        yield [line.at(own[0].rate / line.spacing if lower else own[-1].rate * line.spacing)]


def _beside_the_best(scores: Mapping[Point, float], lines: Sequence[Line]) -> Iterator[list[Point]]:
    """Give the best with other timescales of decay, and then two points between the best of all and its neighbours in rate.

    Those that are given together do not depend on each other's scores.
    """
    best = _ranked(scores, lines)[0]
    if math.isinf(scores[best]):
        return
    line = next(line for line in lines if line.rule == best.rule)
    if others := [timescale for timescale in line.timescales if timescale != best.timescale]:
        yield [best._replace(timescale=timescale) for timescale in others]
    best = _ranked(scores, lines)[0]
    yield [best._replace(rate=_rounded(best.rate * line.spacing**half)) for half in (0.5, -0.5)]


def _ranked(
    scores: Mapping[Point, float], lines: Sequence[Line], earlier: Mapping[Point, float] | None = None
) -> list[Point]:
    """Order points by their scores; of equal ones the better earlier score comes first, then the first line, the usual rate."""
    places = {line.rule: (number, line.usual) for number, line in enumerate(lines)}

    def key(point: Point) -> tuple[float, float, int, float, float]:
        line, usual = places[point.rule]
        return scores[point], (earlier or {}).get(point, 0.0), line, abs(math.log(point.rate / usual)), point.rate

    return sorted(scores, key=key)


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")
