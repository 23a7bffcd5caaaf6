import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thalweg.tuning.race import COOL, COURSES, Line, Point, course_for, race


class Track:
    """Candidates whose score is a formula; what they cost is counted, and that nobody runs who was stopped."""

    def __init__(self, score):
        self.score_of, self.at, self.extra, self.stopped = score, {}, 0.0, set()
        self.expected = []

    def expect(self, points, share):
        """Nothing is found before it is asked for."""
        self.expected.append({*points})

    def score(self, point, share):
        assert point in self.expected[-1]
        self.stopped.discard(point)  # one that was stopped begins again
        assert share >= self.at.get(point, 0.0)
        self.at[point] = share
        self.extra += COOL if share < 1 else 0.0
        return self.score_of(point, share)

    def stop(self, point):
        self.stopped.add(point)

    def price(self, winner):
        return sum(self.at.values()) + self.extra + 1.0 - self.at.get(winner, 0.0)


def valley(best):
    return lambda point, share: abs(math.log(point.rate / best))


def usual(rate):
    return [Line("muon", rate), Line("adamw", rate)]


def at(rate):
    return Point("muon", rate)


@given(st.floats(1.5, 20), st.floats(1e-6, 10), st.floats(1e-4, 1))
def test_a_race_never_costs_more_than_its_price(price, best, middle):
    course = course_for(price)
    assert course is not None
    track = Track(valley(best))
    winner = race(track, usual(middle), course, price)
    assert winner not in track.stopped
    assert track.price(winner) <= price + 1e-9


@pytest.mark.parametrize("course", COURSES)
def test_the_price_of_a_course_is_what_it_costs_where_nothing_is_added(course):
    track = Track(valley(0.02))
    winner = race(track, usual(0.02), course, course.price)
    assert winner == at(0.02)
    assert track.price(winner) == pytest.approx(course.price)


@pytest.mark.parametrize(("best", "found"), [(0.004, 0.00425), (0.02, 0.02), (0.4, 0.443)])
def test_candidates_are_added_beyond_the_edge_where_the_best_one_lies_there(best, found):
    assert race(Track(valley(best)), usual(0.02), COURSES[-1], 12.0) == at(found)


def test_what_leads_early_does_not_win_by_that():
    turns = Track(lambda point, share: abs(math.log(point.rate / (0.04 if share < 0.3 else 0.02))))
    assert race(turns, usual(0.02), COURSES[1], 2.0) == at(0.02)


def test_a_candidate_that_diverges_later_does_not_win():
    cliff = Track(lambda point, share: math.inf if point.rate > 0.01 and share > 0.3 else -point.rate)
    early = Track(lambda point, share: math.inf if point.rate > 0.01 else -point.rate)
    assert race(early, usual(0.04), COURSES[0], 1.5).rate <= 0.01
    for course in COURSES[1:]:
        assert race(Track(cliff.score_of), usual(0.01), course, course.price).rate <= 0.01


def test_where_all_diverge_a_lower_rate_is_tried_and_then_none_wins():
    track = Track(lambda point, share: math.inf)
    assert race(track, usual(0.02), COURSES[-1], 20.0) is None
    assert min(point.rate for point in track.at) < 0.005
    lower = Track(lambda point, share: point.rate if point.rate < 0.004 else math.inf)
    assert race(lower, usual(0.02), COURSES[-1], 20.0) == min(lower.at, key=lambda point: point.rate)


def test_a_price_that_pays_for_no_race_gives_none():
    assert course_for(1.2) is None
    assert [course_for(course.price, lines=2) for course in COURSES] == list(COURSES)


def test_of_rates_that_are_alike_the_usual_one_wins_and_none_is_added():
    track = Track(lambda point, share: 1.0)
    assert race(track, usual(0.02), COURSES[-1], COURSES[-1].price + 0.5) == at(0.02)
    assert len(track.at) == sum(lower + 1 + higher for lower, higher in COURSES[-1].sides)


def test_no_more_candidates_are_held_than_go_on_and_the_one_that_runs():
    held, most = set(), 0

    class Holding(Track):
        def score(self, point, share):
            nonlocal most
            held.add(point)
            most = max(most, len(held))
            return super().score(point, share)

        def stop(self, point):
            held.remove(point)
            super().stop(point)

    for course in COURSES:
        most, winner = 0, race(Holding(valley(0.3)), usual(0.02), course, 15.0)
        assert most <= course.stages[0].keep + 1
        assert held == {winner}
        held.clear()


@given(st.integers(1, 60), st.floats(1.5, 20), st.booleans())
def test_a_race_of_a_few_steps_costs_no_more_than_its_price_either(steps, price, anew):
    course = course_for(price, steps, anew=anew)
    if course is None:
        return
    went, paid = {}, 0

    class Counted(Track):
        def score(self, point, share):
            nonlocal paid
            go_on = round(share * steps)
            paid += go_on - went.get(point, 0) + min(max(2, round(COOL * steps)), steps - go_on)
            went[point] = go_on
            return super().score(point, share)

    winner = race(Counted(valley(0.02)), usual(0.02), course, price)
    assert paid + steps - (0 if anew else went[winner]) <= price * steps + 1e-6


def test_of_equal_scores_the_earlier_ones_decide():
    saturated = Track(lambda point, share: 0.0 if share == 1 else abs(math.log(point.rate / 0.05)))
    assert race(saturated, usual(0.02), COURSES[2], 4.0) == at(0.0434)


def test_where_the_price_pays_for_it_the_best_is_tried_with_other_decays_and_the_best_of_those_wins():
    lines = [Line("muon", 0.02, timescales=(None, 1.0)), Line("adamw", 0.02)]
    course = COURSES[-1]

    def score(point, share):
        return abs(math.log(point.rate / 0.0201)) + (point.timescale is not None)

    assert race(Track(score), lines, course, course.price) == at(0.02)
    track = Track(score)
    assert race(track, lines, course, course.price + 2) == at(0.02)._replace(timescale=None)
    assert at(0.02)._replace(timescale=1.0) in track.at
    assert {at(0.02)._replace(timescale=timescale) for timescale in (None, 1.0)} in track.expected  # at once


def test_rates_below_the_usual_one_have_a_decay_of_their_own():
    line = Line("muon", 0.02, lower=1.0)
    assert [line.point(place).timescale for place in (-2, -1, -0.5, 0, 0.5, 1)] == [1.0, 1.0, 1.0, 0.3, 0.3, 0.3]
    assert line.at(line.point(-1).rate) == line.point(-1)
    assert Line("muon", 0.0200049, lower=1.0).point(0).timescale == 0.3  # rounded, as the point is
    track = Track(valley(line.point(-2).rate))  # beyond the edge too
    assert race(track, [line], COURSES[-1], 12.0) == line.point(-2)
    assert {point.timescale for point in track.at if point.rate < 0.02} == {1.0}
    assert {point.timescale for point in track.at if point.rate >= 0.02} == {0.3}


def test_the_best_is_tried_with_the_decays_that_it_does_not_have():
    line = Line("muon", 0.02, timescales=(None, 1.0, 0.3), lower=1.0)
    track, lower = Track(valley(line.point(-1).rate)), line.point(-1)
    assert race(track, [line], COURSES[-1], COURSES[-1].price + 2.5) == lower
    others = {lower._replace(timescale=timescale) for timescale in (None, 0.3)}
    assert others in track.expected
    assert {point for point in track.at if point.rate == lower.rate} == {lower, *others}
