import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thalweg.tuning.sensitivity import cost_of_another_rate, stable_edge


@given(st.floats(0.1, 10), st.floats(-3, 3), st.sampled_from([1.3, 2.0, 2.17, 4.0]), st.integers(3, 6))
def test_of_a_line_over_the_logarithm_it_is_the_lines_own(rate, slope, spacing, count):
    def score(one):
        return 10.0 + slope * math.log2(one / rate)

    half, double = cost_of_another_rate(
        {rate * spacing**k: score(rate * spacing**k) for k in range(-count, count + 1)}, rate
    )
    assert half == pytest.approx(-slope / 10, rel=0.06, abs=1e-9)
    assert double == pytest.approx(slope / 10, rel=0.06, abs=1e-9)


def test_near_neighbours_do_not_stand_for_what_lies_beyond_them():
    scores = {0.01: 1.1, 0.018: 1.05, 0.02: 1.0, 0.022: 1.05, 0.04: 1.2}
    assert cost_of_another_rate(scores, 0.02) == (0.1, 0.2)


@pytest.mark.parametrize(
    "scores",
    [
        {},
        {0.02: 1.0},
        {0.02: 1.0, 0.04: 1.2, 0.08: 2.0},
        {0.01: math.inf, 0.02: 1.0, 0.04: 1.2},
        {0.0001: 2.0, 0.02: 1.0, 0.04: 1.2},
        {0.01: 2.0, 0.02: math.inf, 0.04: 1.2},
        {0.01: 2.0, 0.02: 0.0, 0.04: 1.2},
    ],
)
def test_where_a_neighbour_is_not_known_nothing_is_said(scores):
    assert cost_of_another_rate(scores, 0.02) is None


def test_scores_of_which_more_is_better_are_shares_of_their_size():
    assert cost_of_another_rate({0.01: -0.8, 0.02: -1.0, 0.04: -0.9}, 0.02) == (0.2, 0.1)


@pytest.mark.parametrize(
    ("scores", "edge"),
    [
        ([], None),
        ([(0.1, math.inf), (0.2, math.nan)], None),
        ([(0.1, 1.0), (0.2, 3.0)], (0.2, None)),
        ([(0.1, 1.0), (0.2, 3.0), (0.4, math.inf), (0.8, math.inf)], (0.2, 0.4)),
        ([(0.1, 1.0), (0.2, 0.5), (0.2, math.inf)], (0.1, 0.2)),
        ([(0.05, math.inf), (0.1, 1.0), (0.2, math.inf)], (0.1, 0.2)),
    ],
)
def test_the_edge_of_stability_lies_between_the_highest_rate_that_trained_to_the_end_and_the_next(scores, edge):
    assert stable_edge(scores) == edge
