"""The noise of a run as a temperature and as a noise scale: derived from its history, in figures and words."""

import numpy as np
import pytest

from thalweg import rules
from thalweg.records.run import HistoryColumns
from thalweg.see import noise
from thalweg.see.report import render
from thalweg.theory import temperature, temperature_gain


@pytest.mark.parametrize(
    ("rule", "constants", "gain", "scaled"),
    [
        ("gradient_descent", {}, 1.0, False),
        ("momentum", {"momentum": 0.9}, 10.0, False),
        ("momentum", {"momentum": 0.5}, 2.0, False),
        ("nesterov", {"momentum": 0.9}, 10.0, False),
        ("adamw", {}, 1.0, True),
        ("rmsprop", {}, 1.0, True),
        ("lion", {}, None, False),
        ("muon", {}, None, False),
    ],
)
def test_the_temperature_is_rate_over_batch_times_what_the_rule_makes_of_it(make_run, rule, constants, gain, scaled):
    run = make_run(plan={"rule": rule, "constants": constants})
    found = noise.temperature(run)
    rates = run.history["learning_rate"][1:]
    assert found.values == pytest.approx((gain or 1.0) * rates / 32, rel=1e-4)
    assert (found.gain is None, found.scaled) == (gain is None, scaled)


def test_the_gain_is_that_of_the_exact_temperature_in_any_shallow_bowl():
    for name in rules.names():
        try:
            gain = temperature_gain(name)
        except rules.RuleError:
            continue
        exact = temperature(name, lr=3e-4, curvature=1e-3, noise=2.0)
        assert exact == pytest.approx(gain * 3e-4 * 4 / 2, rel=2e-2), name


def test_a_report_says_and_draws_the_temperature(make_run):
    html = render(make_run(plan={"rule": "momentum", "constants": {"momentum": 0.9}}))
    assert "The noise, as a temperature" in html
    assert "rate / (batch × (1 − momentum))" in html
    assert "Under momentum past gradients add up: 10 times as hot." in html
    assert "Here it fell to" in html
    html = render(make_run(plan={"rule": "adamw"}))
    assert "the temperature goes with rate / √batch" in html


def test_a_constant_rate_stays_hot(make_run):
    run = make_run()
    figures = dict(run.history)
    figures["learning_rate"] = np.where(figures["step"] > 0, 0.01, np.nan)
    assert "stayed about the same" in noise.summary(make_run(history=HistoryColumns(figures)))


def test_a_step_on_all_examples_has_no_noise(make_run):
    run = make_run(plan={"batch_size": 1000}, summary={"examples": 1000})
    assert noise.is_without_noise(run)
    assert "the temperature is zero" in noise.summary(run)
    assert noise.temperature_chart(run) == ""


def with_scale(make_run, scale, *, trace=300.0, size=32, spread=0.05, every=10):
    """A run whose gradients have this noise scale, about."""
    run, random = make_run(), np.random.default_rng(0)
    figures = dict(run.history)
    steps = figures["step"]
    told = (steps > 0) & (steps % every == 0)
    for name, value in (("noise/squared_gradient", trace / scale), ("noise/trace", trace)):
        error = spread * trace / size if name.endswith("gradient") else spread * trace
        figures[name] = np.where(told, value + error * random.standard_normal(len(steps)), np.nan)
    return make_run(plan={"batch_size": size}, history=HistoryColumns(figures))


@pytest.mark.parametrize(
    ("scale", "told"),
    [
        (300.0, "are far smaller: a step gets about"),
        (32.0, "are near it: neither noise nor examples are wasted."),
        (4.0, "are far larger: most of their examples tell what the others do."),
        (1e7, "how much larger cannot be told of gradients so noisy as those of 32 examples."),
    ],
)
def test_the_noise_scale_is_said_beside_the_batch(make_run, scale, told):
    run = with_scale(make_run, scale, spread=0.02)
    assert told in noise.scale_text(run)
    assert "interval of 90 %" in noise.scale_chart(run)
    assert noise.scale_text(run) in render(run).replace("&#x27;", "'")


def test_the_estimate_in_the_text_is_the_true_one(make_run):
    (*_, last) = noise.stretches(with_scale(make_run, 100.0, spread=0.01))
    assert last.scale.low <= 100.0 <= last.scale.high
    assert last.scale.value == pytest.approx(100.0, rel=0.2)


def test_a_long_run_whose_batches_could_not_be_cut_says_why_there_is_no_scale(make_run):
    told = "The gradient noise scale was not measured"
    assert told in render(make_run(2000))
    assert told not in render(make_run(2000, plan={"watch": False}))
    assert told not in render(make_run(400))


def test_a_run_without_measurements_has_a_temperature_and_no_scale(make_run):
    run = make_run()
    assert noise.stretches(run) == []
    assert (noise.scale_text(run), noise.scale_chart(run)) == ("", "")
