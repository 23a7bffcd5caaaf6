"""Each equation by hand: one weight, numbers that can be checked on paper."""

import math

import pytest

from thalweg.rules import RULES, rule
from thalweg.rules.adamw import adamw
from thalweg.rules.gradient_descent import gradient_descent
from thalweg.rules.momentum import momentum
from thalweg.rules.nesterov import nesterov
from thalweg.rules.rmsprop import rmsprop
from thalweg.rules.walk import Walk


def test_gradient_descent_goes_lr_times_the_slope():
    assert gradient_descent(1.0, 4.0, lr=0.25) == 0.0


def test_momentum_reaches_lr_over_one_minus_momentum_on_a_constant_slope():
    velocity, w = 0.0, 0.0
    for _ in range(400):
        before = w
        w, velocity = momentum(w, 1.0, velocity, lr=0.1, momentum=0.9)
    assert before - w == pytest.approx(0.1 / (1 - 0.9), rel=1e-12)


def test_nesterov_looks_one_momentum_ahead():
    w, velocity = nesterov(0.0, 1.0, 2.0, lr=1.0, momentum=0.5)
    assert (w, velocity) == (-(1.0 + 0.5 * 2.0), 2.0)


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("gradient", [1e-3, 7.0, -1e5])
def test_adams_first_step_is_lr_whatever_the_slope(name, gradient):
    w = Walk(RULES[name], 0.0, lr=0.01, constants={"eps": 1e-300}).step(gradient)
    assert w == pytest.approx(-math.copysign(0.01, gradient), rel=1e-9)


def test_adamw_shrinks_weights_by_lr_times_decay_without_a_gradient():
    walk = Walk(adamw, 2.0, lr=0.1, weight_decay=0.5)
    walk.step(0.0)
    assert (walk.w, *walk.state[:2]) == (2.0 * (1 - 0.05), 0.0, 0.0)


def test_amsgrad_never_forgets_the_largest_gradient():
    walk = Walk(adamw, 0.0, lr=0.1, constants={"amsgrad": True})
    walk.step(10.0)
    largest = walk.state[2]
    for _ in range(50):
        walk.step(1e-3)
    assert walk.state[1] < walk.state[2] == largest


def test_rmsprops_step_tends_to_lr_on_a_constant_slope():
    w, v = 0.0, 0.0
    for _ in range(5000):
        before = w
        w, v, _, _ = rmsprop(w, 3.0, v, 0.0, 0.0, lr=0.01)
    assert before - w == pytest.approx(0.01, rel=1e-6)


def test_centred_rmsprop_takes_a_spread_that_rounding_made_negative_as_zero():
    w, *_ = rmsprop(0.0, 0.1, 0.01, 0.1 + 1e-12, 0.0, lr=1e-12, centered=True)
    assert math.isfinite(w)


@pytest.mark.parametrize("name", RULES)
def test_a_source_is_named(name):
    assert any(c.isdigit() for c in RULES[name].source)


def test_a_rule_of_ones_own_is_an_equation_and_a_source():
    @rule(state=["speed"], source="here")
    def signed(w, g, speed, *, lr, friction=0.5):
        """Roll with friction."""
        speed = friction * speed + g
        return w - lr * speed, speed

    assert signed(1.0, 1.0, 1.0, lr=0.5) == (0.25, 1.5)
