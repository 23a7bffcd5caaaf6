import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thalweg.landscape.critical_step import LEAST, MOST, PASSES, critical_step


@given(st.floats(1e-3, 1e5))
def test_of_a_parabola_it_is_twice_the_way_to_the_minimum(critical):
    calls = []

    def loss_at(multiple):
        calls.append(multiple)
        return 3.0 + (1 - 2 * multiple / critical) ** 2

    found = critical_step(loss_at)
    assert found.lowers <= critical * (1 + 1e-6)
    assert found.raises >= critical * (1 - 1e-6)
    assert found.raises / found.lowers < 1.5
    assert found.multiple == pytest.approx(critical, rel=0.25)
    assert len(calls) == found.passes <= PASSES + 1


def test_a_line_that_falls_for_ever_is_followed_to_a_bound():
    found = critical_step(lambda multiple: -multiple)
    assert found.raises == math.inf
    assert found.multiple == found.lowers == MOST


@pytest.mark.parametrize("after", [1.0, 2.0, math.inf, math.nan])
def test_where_no_step_lowers_the_loss_it_is_zero(after):
    found = critical_step(lambda multiple: after if multiple else 1.0)
    assert found.lowers == found.multiple == 0.0
    assert found.raises == LEAST


def test_a_loss_that_is_not_finite_before_the_step_is_lowered_by_nothing():
    assert critical_step(lambda multiple: math.nan).multiple == 0.0


def test_beyond_an_overflow_the_step_is_too_long():
    found = critical_step(lambda multiple: math.inf if multiple > 40 else 1 / (1 + multiple))
    assert found.lowers <= 40 < found.raises
