"""What theory says of a rule in a bowl, against what its equation does."""

import itertools
import math
import re

import numpy as np
import pytest
import scipy.linalg

from thalweg.errors import RuleError
from thalweg.rules import RULES, rule
from thalweg.rules.maths import maximum, sign, sqrt, where
from thalweg.rules.plain_form import PlainForm
from thalweg.rules.rule import matrix_rule
from thalweg.theory.stable_edge import Edge, convergence_rate, linearise, stable_edge, temperature, variance

RATES = [1e-6, 1e-3, 0.1, 1.0, 30.0]
MOMENTA = [0.0, 0.3, 0.9, 0.999]
EDGES = {
    "gradient_descent": ("", lambda b: 2),
    "momentum": ("momentum", lambda b: 2 + 2 * b),
    "nesterov": ("momentum", lambda b: (2 + 2 * b) / (1 + 2 * b)),
    "adam": ("beta1", lambda b: (2 + 2 * b) / (1 - b)),
    "adamw": ("beta1", lambda b: (2 + 2 * b) / (1 - b)),
    "adamax": ("beta1", lambda b: (2 + 2 * b) / (1 - b)),
    "radam": ("beta1", lambda b: (2 + 2 * b) / (1 - b)),
    "rmsprop": ("momentum", lambda b: 2 + 2 * b),
    "adagrad": ("", lambda b: 2),
    "adadelta": ("", lambda b: 2),
    "nadam": ("beta1", lambda b: (2 + 2 * b) / ((1 + 2 * b) * (1 - b))),
}


def tiny_eps(name, **constants):
    return {**constants, **({"eps": 1e-12} if "eps" in RULES[name].constants else {})}


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("lr", RATES)
def test_the_stable_edge_is_the_closed_form(name, lr):
    constant, times_rate = EDGES[name]
    for b in MOMENTA:
        edge = stable_edge(name, tiny_eps(name, **({constant: b} if constant else {})), lr=lr)
        assert edge.curvature == pytest.approx(times_rate(b) / lr, rel=2e-9)
        assert edge.reason == ""


def test_switches_that_are_on_do_not_move_the_edge():
    for constants in ({"amsgrad": True}, {"amsgrad": False}):
        assert stable_edge("adamw", constants, lr=0.01).curvature == pytest.approx(3800, rel=1e-7)
    assert stable_edge("rmsprop", {"centered": True, "momentum": 0.5}, lr=0.1).curvature == pytest.approx(30, rel=1e-7)


def test_scales_are_found_in_the_mirror():
    assert linearise("adamw", {"amsgrad": True}, lr=1.0).scales == ("v", "largest")
    linear = linearise("rmsprop", {"centered": True, "momentum": 0.5}, lr=1.0)
    assert (linear.names, linear.scales) == (("w", "mean", "velocity"), ("v",))
    assert linearise("adadelta", lr=1.0).scales == ("v", "u")
    assert linearise("nesterov", lr=1.0).scales == ()


@pytest.mark.parametrize("name", RULES)
def test_every_rule_has_an_edge_or_a_reason(name):
    edge = stable_edge(name, lr=0.01)
    assert (edge.curvature is not None and 0 < edge.curvature < math.inf) != bool(edge.reason)


def distance_after(name, curvature, constants, steps, **held):
    """Descend from 1 in a bowl, by the rule itself, its scales set back to 1 before every step, and give where it ends."""
    form = PlainForm(RULES[name], 1.0, lr=0.1, constants=constants)
    places = [place for place, state in enumerate(RULES[name].state) if state.name in held]
    for _ in range(steps):
        for place in places:
            form.state[place] = 1.0
        form.step(curvature * form.w)
    return abs(form.w)


@pytest.mark.parametrize("name", ["gradient_descent", "momentum", "nesterov"])
def test_descents_converge_just_below_the_edge_and_diverge_just_above(name):
    edge = stable_edge(name, lr=0.1).curvature
    assert distance_after(name, edge * 0.999, {}, 20_000) < 1e-3
    assert distance_after(name, edge * 1.001, {}, 20_000) > 1e3


def test_adam_itself_turns_at_the_edge_while_its_scale_stands_still():
    constants = {"beta2": 1 - 1e-12}  # so slow that v stays at what is put into it
    step = RULES["adam"].equation
    late = {"correction1": 1.0, "correction2": 1.0}
    for share, converges in ((0.99, True), (1.01, False)):
        w, m = 1e-4, 0.0
        for _ in range(2_000):
            w, m, *_ = step(w, 380 * share * w, m, 1.0, 0.0, lr=0.1, **constants, **late)
        assert (abs(w) < 1e-4) == converges


def test_a_rule_of_signs_has_no_edge_and_says_why():
    edge = stable_edge("lion", lr=0.1)
    assert edge.curvature is None
    assert "neither converges nor diverges" in edge.reason
    assert [distance_after("lion", curvature, {}, 3_000) < 2 for curvature in (0.1, 10.0, 1e6)] == [True] * 3
    with pytest.raises(RuleError, match="neither converges nor diverges"):
        temperature("lion", lr=0.1, curvature=1.0, noise=1.0)


@rule(source="here 2026", state=["m"])
def masked(w, g, m, *, lr):
    """Move half as far where momentum and gradient differ."""
    m = 0.9 * m + 0.1 * g
    return w - lr * where(m * g > 0, m, 0.5 * m), m


@rule(source="here 2026")
def sided(w, g, *, lr):
    """Never go below zero."""
    return maximum(w - lr * g, 0.0)


@rule(source="here 2026")
def divided(w, g, *, lr):
    """Divide by the gradient at hand."""
    return w - lr * g / sqrt(g * g)


@rule(source="here 2026")
def reversed_descent(w, g, *, lr):
    """Climb."""
    return w + lr * g


@rule(source="here 2026")
def asleep(w, g, *, lr):
    """Stay, nearly."""
    return w - 1e-30 * lr * g


@rule(source="here 2026", state=["m"])
def signed_memory(w, g, m, *, lr):
    """Add up signs."""
    m = 0.5 * m + sign(g)
    return w - lr * m, m


@matrix_rule(source="here 2026")
def square(w, g, *, lr):
    """Step by a matrix."""
    return w - lr * (g @ g)


@rule(source="here 2026", sums=lambda w, g: (g * g,), decide=lambda sums, numbers: {"size": sums[0]})
def shared(w, g, *, lr, size):
    """Divide by a size that all weights share."""
    return w - lr * g / size


@pytest.mark.parametrize(
    ("made", "curvature", "reason"),
    [
        (masked, None, "not a linear function"),
        (sided, None, "It moves differently to the left and to the right of the minimum: w is"),
        (divided, None, "not a finite number where the gradient is 0"),
        (signed_memory, None, "as long close to the minimum as far from it"),
        (square, None, "the whole matrix"),
        (shared, None, "sums over all weights"),
        (reversed_descent, 0.0, "diverges in every bowl"),
        (asleep, math.inf, "No curvature makes it diverge"),
    ],
)
def test_where_there_is_no_edge_the_reason_is_told(made, curvature, reason):
    edge = stable_edge(made, lr=0.1)
    assert edge.curvature == curvature
    assert re.search(reason, edge.reason)


def test_bad_questions_are_errors():
    with pytest.raises(RuleError, match="no update rule"):
        stable_edge("adm", lr=0.1)
    with pytest.raises(RuleError, match="momentum of momentum"):
        stable_edge("momentum", {"momentum": 1.0}, lr=0.1)
    for lr in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(RuleError, match="lr must be a number above 0"):
            stable_edge("adam", lr=lr)


def heavy_ball_variance(lr, b, curvature, noise):
    return lr * noise**2 * (1 + b) / (curvature * (1 - b) * (2 * (1 + b) - lr * curvature))


def nesterov_variance(lr, b, curvature, noise):
    """From the two-step recursion that remains when the velocity is eliminated."""
    q = 1 - lr * curvature
    spread = 1 + 2 * b + 2 * b**2 - b * q * (1 + 2 * b)
    return lr * noise**2 * spread / (curvature * (1 - b * q) * (1 + q * (1 + 2 * b)))


@pytest.mark.parametrize("share", [1e-4, 0.1, 0.5, 0.95])
def test_the_stationary_variance_is_the_closed_form(share):
    for lr, b in itertools.product([1e-3, 0.1], [0.0, 0.5, 0.9]):
        for name, closed in (("momentum", heavy_ball_variance), ("nesterov", nesterov_variance)):
            curvature = share * stable_edge(name, {"momentum": b}, lr=lr).curvature
            found = variance(name, {"momentum": b}, lr=lr, curvature=curvature, noise=0.7)
            assert found == pytest.approx(closed(lr, b, curvature, 0.7), rel=1e-8)


def test_the_stationary_covariance_is_scipys():
    linear = linearise("rmsprop", {"centered": True, "momentum": 0.9}, lr=0.01)
    solved = scipy.linalg.solve_discrete_lyapunov(
        linear.at(50.0), np.outer(linear.gradient_vector, linear.gradient_vector)
    )
    ours = variance("rmsprop", {"centered": True, "momentum": 0.9}, lr=0.01, curvature=50.0, noise=1.0)
    assert ours == pytest.approx(solved[0, 0], rel=1e-9)


def variance_in_noise(name, constants, lr, curvature, noise, seed):
    """Move 20,000 weights in noise, long enough to forget their start, and give the variance over weights and steps."""
    random = np.random.default_rng(seed)
    form = PlainForm(RULES[name], np.zeros(20_000), lr=lr, constants=constants)
    seen = []
    for step in range(400):
        form.step(curvature * form.w + noise * random.standard_normal(20_000))
        if step >= 200:
            seen.append(np.mean(form.w**2))
    return np.mean(seen)


@pytest.mark.parametrize(
    ("name", "constants", "curvature"),
    [
        ("gradient_descent", {}, 12.0),
        ("momentum", {"momentum": 0.9}, 3.0),
        ("momentum", {"momentum": 0.5}, 25.0),
        ("nesterov", {"momentum": 0.9}, 5.0),
    ],
)
def test_simulated_weights_tremble_as_calculated(name, constants, curvature):
    found = variance_in_noise(name, constants, 0.1, curvature, 0.7, seed=3)
    assert found == pytest.approx(variance(name, constants, lr=0.1, curvature=curvature, noise=0.7), rel=0.01)


def test_noise_is_infinite_beyond_the_edge():
    assert variance("gradient_descent", lr=0.1, curvature=20.1, noise=1.0) == math.inf
    assert temperature("adam", lr=0.1, curvature=381.0, noise=1.0) == math.inf


def test_far_below_the_edge_every_bowl_has_the_same_temperature():
    for b in (0.0, 0.9):
        flat = 0.01 * 0.25 / (2 * (1 - b))
        for curvature in (1e-4, 1e-3):
            found = temperature("momentum", {"momentum": b}, lr=0.01, curvature=curvature, noise=0.5)
            assert found == pytest.approx(flat, rel=1e-4)
    assert temperature("adam", lr=0.01, curvature=1e-3, noise=0.5) == pytest.approx(0.01 * 0.25 / 2, rel=1e-4)


@pytest.mark.parametrize("k", [4.0, 100.0, 1e4])
def test_gradient_descent_reaches_its_best_rate(k):
    assert convergence_rate("gradient_descent", [1.0, k], lr=2 / (1 + k)) == pytest.approx((k - 1) / (k + 1), rel=1e-12)
    for lr in (1.9 / (1 + k), 2.1 / (1 + k)):
        assert convergence_rate("gradient_descent", [1.0, k], lr=lr) > (k - 1) / (k + 1)


@pytest.mark.parametrize("k", [4.0, 100.0, 1e4])
def test_the_best_momentum_reaches_its_rate_and_none_beats_it(k):
    best = (math.sqrt(k) - 1) / (math.sqrt(k) + 1)
    lr, b = 4 / (1 + math.sqrt(k)) ** 2, best**2
    # A double root: an error of 1e-16 in the matrix is one of 1e-8 in the eigenvalue.
    assert convergence_rate("momentum", [1.0, k], {"momentum": b}, lr=lr) == pytest.approx(best, rel=1e-6)
    for u, v in itertools.product(np.linspace(0.5, 1.5, 21), np.linspace(0.5, 1.5, 21)):
        if b * v < 1:
            assert convergence_rate("momentum", [1.0, k], {"momentum": b * v}, lr=lr * u) > best * (1 - 1e-6)


def test_nesterovs_rates():
    k = 400.0
    plain = (math.sqrt(k) - 1) / (math.sqrt(k) + 1)
    assert convergence_rate("nesterov", [1.0, k], {"momentum": plain}, lr=1 / k) == pytest.approx(
        1 - 1 / math.sqrt(k), rel=1e-6
    )
    root = math.sqrt(3 * k + 1)
    found = convergence_rate("nesterov", [1.0, k], {"momentum": (root - 2) / (root + 2)}, lr=4 / (3 * k + 1))
    assert found == pytest.approx(1 - 2 / root, rel=1e-6)


def test_a_descent_shrinks_by_the_rate():
    rate = convergence_rate("nesterov", [3.0], {"momentum": 0.2}, lr=0.1)
    early, late = (distance_after("nesterov", 3.0, {"momentum": 0.2}, steps) for steps in (40, 60))
    assert (late / early) ** (1 / 20) == pytest.approx(rate, rel=1e-6)


def mean_exit_steps(name, constants, lr, heats, steps, seed):
    """Mean numbers of steps out of the left well of (w² - 1)², whose rim is 1 higher; who gets out starts again.

    The noise of the gradient is such that the descents have the temperatures `heats`.
    """
    random, shape = np.random.default_rng(seed), (len(heats), 500)
    unit = temperature(name, constants, lr=lr, curvature=1e-6, noise=1.0)
    noise = np.sqrt(heats / unit)[:, None]
    form = PlainForm(RULES[name], np.full(shape, -1.0), lr=lr, constants=constants)
    exits = np.zeros(len(heats))
    for _ in range(steps):
        form.step(4 * form.w * (form.w**2 - 1) + noise * random.standard_normal(shape))
        out = form.w > 0.5  # well down the other side: nobody comes back from there soon
        exits += out.sum(1)
        form.w[out] = -1.0
        for state in form.state:
            state[out] = 0.0
    return shape[1] * steps / exits


@pytest.mark.parametrize(
    ("name", "constants", "lr"), [("gradient_descent", {}, 0.01), ("momentum", {"momentum": 0.5}, 0.005)]
)
def test_escape_takes_exponentially_longer_the_colder_it_is(name, constants, lr):
    heats = np.array([0.2, 0.25, 0.33, 0.5])
    times = mean_exit_steps(name, constants, lr, heats, 10_000, seed=7)
    slope = np.polyfit(1 / heats, np.log(times), 1)[0]
    assert 0.9 < slope < 1.1


def test_an_answer_is_a_plain_value():
    edge = stable_edge("momentum", lr=0.1)
    assert isinstance(edge, Edge)
    assert type(edge.curvature) is float
    assert type(variance("momentum", lr=0.1, curvature=1.0, noise=1.0)) is float
    assert type(convergence_rate("momentum", [1.0], lr=0.1)) is float
