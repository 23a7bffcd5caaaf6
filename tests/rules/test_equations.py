"""Each equation by hand: one weight, numbers that can be checked on paper."""

import math

import pytest

from thalweg.rules import RULES, rule
from thalweg.rules.adamw import adamw
from thalweg.rules.gradient_descent import gradient_descent
from thalweg.rules.momentum import momentum
from thalweg.rules.nesterov import nesterov
from thalweg.rules.plain_form import PlainForm
from thalweg.rules.rmsprop import rmsprop


def test_gradient_descent_goes_lr_times_the_slope():
    assert gradient_descent(1.0, 4.0, lr=0.25) == 0.0


def test_momentum_reaches_lr_over_one_minus_momentum_on_a_constant_slope():
    form, before = PlainForm(momentum, 0.0, lr=0.1), 0.0
    for _ in range(400):
        before = form.w
        form.step(1.0)
    assert before - form.w == pytest.approx(0.1 / (1 - 0.9), rel=1e-12)


@pytest.mark.parametrize("name", ["momentum", "nesterov"])
def test_dampening_takes_the_first_gradient_in_full_and_the_later_in_part(name):
    form = PlainForm(RULES[name], 0.0, lr=1.0, constants={"momentum": 0.5, "dampening": 0.25})
    velocities = []
    for _ in range(3):
        form.step(2.0)
        velocities.append(form.state[0])
    assert velocities == [2.0, 0.5 * 2.0 + 0.75 * 2.0, 0.5 * 2.5 + 0.75 * 2.0]
    assert form.w == -sum(velocities if name == "momentum" else (2.0 + 0.5 * v for v in velocities))


def test_nesterov_looks_one_momentum_ahead():
    w, velocity = nesterov(0.0, 1.0, 2.0, lr=1.0, momentum=0.5, newest=1.0)
    assert (w, velocity) == (-(1.0 + 0.5 * 2.0), 2.0)


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("gradient", [1e-3, 7.0, -1e5])
def test_adams_first_step_is_lr_whatever_the_slope(name, gradient):
    w = PlainForm(RULES[name], 0.0, lr=0.01, constants={"eps": 1e-300}).step(gradient)
    assert w == pytest.approx(-math.copysign(0.01, gradient), rel=1e-9)


def test_adamw_shrinks_weights_by_lr_times_decay_without_a_gradient():
    form = PlainForm(adamw, 2.0, lr=0.1, weight_decay=0.5)
    form.step(0.0)
    assert (form.w, *form.state[:2]) == (2.0 * (1 - 0.05), 0.0, 0.0)


def test_amsgrad_never_forgets_the_largest_gradient():
    form = PlainForm(adamw, 0.0, lr=0.1, constants={"amsgrad": True})
    form.step(10.0)
    largest = form.state[2]
    for _ in range(50):
        form.step(1e-3)
    assert form.state[1] < form.state[2] == largest


@pytest.mark.parametrize("beta1", [0.8, 0.4])
def test_nadams_first_step_looks_ahead_by_the_next_momentum(beta1):
    form = PlainForm(RULES["nadam"], 0.0, lr=1.0, constants={"beta1": beta1, "momentum_decay": 0.0, "eps": 1e-300})
    form.step(-5.0)
    mu = beta1 / 2  # 0.96^0 = 1: half of beta1 at every step
    assert form.w == pytest.approx(1 + mu / (1 - mu * mu) * (1 - beta1), rel=1e-12)
    assert form.carried == {"mu_product": mu}
    form.step(-5.0)
    assert form.carried == {"mu_product": pytest.approx(mu * mu)}


def test_nadams_momentum_grows_from_half_to_all_of_beta1():
    form = PlainForm(RULES["nadam"], 0.0, lr=1.0, constants={"beta1": 0.9, "momentum_decay": 1.0})
    momenta, before = [], 1.0
    for _ in range(200):
        form.step(1.0)
        momenta.append(form.carried["mu_product"] / before)
        before = form.carried["mu_product"]
    assert momenta[0] == pytest.approx(0.9 * (1 - 0.96 / 2))
    assert momenta[-1] == pytest.approx(0.9, rel=1e-3)
    assert momenta == sorted(momenta)


@pytest.mark.parametrize("name", ["nadam", "radam"])
@pytest.mark.parametrize("g", [0.0, 3.0])
def test_decay_goes_through_the_gradient_or_shrinks_the_weights_as_the_switch_says(name, g):
    def after(**constants):
        form = PlainForm(RULES[name], 2.0, lr=0.1, weight_decay=0.5, constants=constants)
        form.step(g)
        return form

    coupled, decoupled = after(), after(decoupled_weight_decay=True)
    plain = PlainForm(RULES[name], 2.0, lr=0.1)
    plain.step(g)
    assert decoupled.w == pytest.approx(plain.w - 0.1 * 0.5 * 2.0, rel=1e-15)
    assert decoupled.state == plain.state
    assert coupled.state[0] == pytest.approx(0.1 * (g + 0.5 * 2.0), rel=1e-15)


def test_radam_takes_plain_momentum_steps_until_its_second_moment_is_worth_dividing_by():
    # rho after 5 steps at beta2 = 0.999 is 4.996 (the paper's threshold is 4, PyTorch's 5), after 6 it is 5.994
    form, steps = PlainForm(RULES["radam"], 0.0, lr=1.0), []
    for _ in range(6):
        before = form.w
        form.step(100.0)
        steps.append(before - form.w)
    assert steps[:5] == pytest.approx([100.0] * 5)
    assert steps[5] == pytest.approx(math.sqrt(1.9940 * 3.9940 * 1999 / (1995 * 1997 * 5.9940)), rel=1e-3)


@pytest.mark.parametrize("beta2", [0.0, 1 / 3, 0.6])  # at which parts of the rectification are divisions by zero
def test_radam_whose_second_moment_is_short_takes_momentum_steps_for_ever(beta2):
    form, steps = PlainForm(RULES["radam"], 0.0, lr=1.0, constants={"beta2": beta2}), []
    for _ in range(9):
        before = form.w
        form.step(100.0)
        steps.append(before - form.w)
    assert steps == pytest.approx([100.0] * 9)


def test_adagrad_starts_from_the_sum_it_is_given():
    form = PlainForm(RULES["adagrad"], 1.0, lr=1.0, constants={"initial_accumulator_value": 3.0, "eps": 1e-300})
    assert form.step(1.0) == 1.0 - 1.0 / math.sqrt(3.0 + 1.0)
    assert form.step(2.0) == pytest.approx(0.5 - 2.0 / math.sqrt(4.0 + 4.0), rel=1e-15)


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
