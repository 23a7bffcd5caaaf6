import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thalweg.tuning.confidence import probability_of_better
from thalweg.tuning.race import Point

A, B, C = Point("muon", 0.01), Point("muon", 0.02), Point("adamw", 0.02)


@given(st.floats(1e-6, 1e6), st.floats(1.0, 50.0), st.floats(1.0, 50.0), st.booleans())
def test_it_grows_with_the_distance_to_the_next_whatever_the_losss_scale(scale, near, far, at_the_end):
    near, far = sorted((near, far))
    told = [
        probability_of_better({A: scale, B: other * scale, C: 100 * scale}, A, at_the_end=at_the_end)
        for other in (near, far)
    ]
    assert [point for point, _ in told] == [B, B]
    assert 0.5 <= told[0][1] <= told[1][1] <= 1.0
    assert probability_of_better({A: 1.0, B: near}, A, at_the_end=False)[1] <= told[0][1] or not at_the_end


def test_equal_ones_are_a_toss_up_and_so_is_one_that_is_better():
    assert probability_of_better({A: 1.0, C: 1.0}, A, at_the_end=True) == (C, 0.5)
    assert probability_of_better({A: 1.0, C: 0.9}, A, at_the_end=True) == (C, 0.5)


@pytest.mark.parametrize(
    "scores", [{}, {A: 1.0}, {B: 1.0, C: 2.0}, {A: 1.0, B: math.inf}, {A: 0.0, B: 1.0}, {A: -0.9, B: -0.8}]
)
def test_where_it_cannot_be_told_nothing_is_said(scores):
    assert probability_of_better(scores, A, at_the_end=True) is None
