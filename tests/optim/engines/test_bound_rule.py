import pytest
from hypothesis import given
from hypothesis import strategies as st

from thalweg.optim.engines.bound_rule import BoundRule, ema_weight_at, moved_average
from thalweg.optim.engines.interface import GroupStep
from thalweg.rules import RULES


def bound(rule="gradient_descent", scale=1.0, clip_value=None, maximize=False, **constants):
    one = RULES[rule]
    group = GroupStep(one, one.complete(constants), 0.5, 0.0, maximize, [], [])
    return BoundRule(group, one.numbers(1, {}, group.constants, group.lr), scale, clip_value)


@given(st.floats(0.01, 0.999), st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30))
def test_the_average_forgets_its_start(decay, visited):
    average = 1e6
    for step, w in enumerate(visited, 1):
        average = moved_average(average, w, ema_weight_at(decay, step))
    shares = [decay ** (len(visited) - s) for s in range(1, len(visited) + 1)]
    mean = sum(share * w for share, w in zip(shares, visited, strict=True)) / sum(shares)
    assert average == pytest.approx(mean, abs=1e-8)


@given(st.floats(0.01, 0.999))
def test_the_first_average_is_the_weights_bit_for_bit(decay):
    assert moved_average(7.0, 0.1, ema_weight_at(decay, 1)) == 0.1


def test_the_order_is_scale_then_sign_then_coupled_decay():
    (w,) = bound(scale=0.5, maximize=True).formula()(0.1, 2.0, 4.0)
    assert w == 2.0 - 0.5 * (-0.5 * 4.0 + 0.1 * 2.0)


def test_inactive_states_are_neither_taken_nor_given():
    assert len(bound("rmsprop").formula()(None, 1.0, 1.0, 0.0)) == 2
    assert len(bound("rmsprop", centered=True, momentum=0.5).formula()(None, 1.0, 1.0, 0.0, 0.0, 0.0)) == 4
