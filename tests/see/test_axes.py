"""Axes hold what is shown, with round numbers inside."""

import math

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from thalweg.see.axes import Axis, choose_axis

FLOATS = st.floats(allow_nan=True, allow_infinity=True)


@given(st.lists(FLOATS, max_size=30))
@example([1.0, 6.920590994735129e16])  # whose logarithm rounds to below that of the axis's end
def test_any_values_get_a_finite_range_that_holds_them(values):
    axis = choose_axis([np.array(values)])
    assert axis.low < axis.high
    assert math.isfinite(axis.low)
    assert math.isfinite(axis.high)
    positions = axis.position(np.array([v for v in values if math.isfinite(v)]))
    assert ((positions >= 0) & (positions <= 1)).all()


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.booleans())
def test_ticks_lie_in_the_range_in_order_and_are_few(low, span, log):
    assume(span > 1e-6 * abs(low))
    axis = Axis(abs(low) + 1e-9, abs(low) + span + 1e-9, True) if log else Axis(low, low + span)
    ticks = axis.ticks()
    assert ticks == sorted(set(ticks))
    assert len(ticks) <= 12
    near = 1e-6 * (abs(low) + span)
    assert all(axis.low - near <= tick <= axis.high + near for tick in ticks)


@pytest.mark.parametrize("decades", range(1, 16))
def test_a_logarithmic_axis_has_at_least_two_ticks(decades):
    assert 2 <= len(Axis(0.9, 1.1 * 10.0**decades, True).ticks()) <= 8


@pytest.mark.parametrize(
    "axis", [Axis(-3.0, 7.0), Axis(1e-5, 10.0, True), Axis(0.0, 9.0, knee=0.5), Axis(1e-5, 10.0, True, knee=1.0)]
)
def test_value_is_the_inverse_of_position(axis):
    positions = np.linspace(0, 1, 11)
    np.testing.assert_allclose(axis.position(axis.value(positions)), positions, atol=1e-12)


def test_zeros_do_not_keep_a_loss_from_a_logarithmic_axis():
    axis = choose_axis([np.array([0.0, 1e-3, 1.0])])
    assert axis.log
    assert axis.position(0.0) == 0


def test_a_loss_that_falls_to_nothing_leaves_the_rest_to_be_seen():
    axis = choose_axis([np.array([1e-200, 1e-3, 1.0])])
    assert axis.position(1e-3) > 0.5


def test_values_below_zero_keep_the_axis_linear():
    assert not choose_axis([np.array([-1e-3, 1e6])]).log


def test_a_linear_axis_from_zero_begins_exactly_there():
    assert choose_axis([np.array([2.0, 3.0])], log=False, zero=True).low == 0


@pytest.mark.parametrize("last", [1, 2, 3, 7, 1000])
def test_steps_have_whole_numbers_only(last):
    ticks = Axis(0, last, whole=True).ticks()
    assert ticks == [float(int(t)) for t in ticks]
    assert len(ticks) >= 2


@example([0.0, 4.9e-15], True)
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20), st.booleans())
def test_an_axis_that_enlarges_keeps_the_order_and_its_ticks_are_in_order_and_apart(values, log):
    y = np.abs(np.array(values)) + 1e-3 if log else np.array(values)
    axis = choose_axis([y]).enlarging(y[:2], y)
    positions = axis.position(np.sort(y))
    assert (np.diff(positions) >= 0).all()
    assert ((positions >= 0) & (positions <= 1)).all()
    ticks = axis.ticks()
    assert ticks == sorted(set(ticks))
    assert len(ticks) <= 14
