import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thalweg.tuning.sensitivity import cost_of_another_rate


@given(st.floats(0.1, 10), st.floats(0.01, 3), st.floats(-0.9, 0.9), st.sampled_from([1.5, 2.17, 4.0]))
def test_of_a_parabola_it_is_the_parabolas_own(best, bend, shift, spacing):
    def score(rate):
        return 1.0 + bend * (math.log2(rate) - shift) ** 2

    rates = [best / spacing, best, best * spacing]
    half, double = cost_of_another_rate({rate: score(rate) for rate in rates}, best)
    assert half == pytest.approx((score(best / 2) - score(best)) / score(best), rel=0.06, abs=1e-9)
    assert double == pytest.approx((score(best * 2) - score(best)) / score(best), rel=0.06, abs=1e-9)


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
