"""What a finished history is said to show, on runs that were trained to show it, over seeds."""

import re

import numpy as np
import pytest

import thalweg as tw
from thalweg import schedule
from thalweg.examples import digits
from thalweg.watch.finished import FinishedHistory

LINEAR = schedule.linear(warmup=0.1)


def few(count=200, wrong=0.3):
    """Some of the digits, a share of whose labels is drawn at random: learning them by heart does harm."""
    task, random = digits.task(hidden=64), np.random.default_rng(0)
    x, labels = (a[:count] for a in task.data)
    is_wrong = random.random(count) < wrong
    labels = np.where(is_wrong, random.integers(0, 10, count), labels)
    return tw.Task(model=task.model, loss=task.loss, data=(x, labels), validation=task.validation, metrics=task.metrics)


def names(run):
    return [found.name for found in tw.diagnose(run)]


OVERFITTING = {
    "few examples": (few, tw.Plan(learning_rate=0.01, schedule=LINEAR), 60),
    "at a constant rate": (few, tw.Plan(learning_rate=0.01), 100),
    "by momentum": (few, tw.Plan(rule="momentum", learning_rate=0.1, schedule=LINEAR), 100),
}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("case", OVERFITTING)
def test_overfitting_is_said_and_a_run_of_the_steps_that_were_enough_is_no_worse(case, seed):
    make, plan, epochs = OVERFITTING[case]
    run = tw.train(make(), plan, epochs=epochs, seed=seed)
    assert "overfitting" in names(run)
    worsened = FinishedHistory.of(run).worsened()
    assert worsened.reason == "overfitting"
    assert worsened.last_training < worsened.training
    shorter = tw.train(make(), plan, steps=worsened.step, seed=seed)
    assert shorter.metrics["loss"] < worsened.last_fifth


NOT_OVERFITTING = {
    "as many examples as there are": (digits.task, tw.Plan(learning_rate=3e-3, schedule=LINEAR), 3),
    "momentum at 30": (digits.task, tw.Plan(rule="momentum", learning_rate=30.0, watch=False), 20),
    "steps that swing": (digits.task, tw.Plan(rule="momentum", learning_rate=1.0), 6),
    "descent that swings": (digits.task, tw.Plan(rule="gradient_descent", learning_rate=3.0), 6),
    "a few steps at a high rate": (digits.task, tw.Plan(learning_rate=0.03), 1),
}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("case", NOT_OVERFITTING)
def test_overfitting_is_not_said_of_other_runs(case, seed):
    make, plan, epochs = NOT_OVERFITTING[case]
    assert "overfitting" not in names(tw.train(make(), plan, epochs=epochs, seed=seed))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_training_loss_that_rose_with_the_validation_loss_is_steps_too_long_and_a_lower_rate_is_better(seed):
    # The rate grows until the steps are too long. At a constant rate at the edge the last bits decide when the loss rises.
    rises = schedule.constant(warmup=0.95)
    plan = tw.Plan(rule="gradient_descent", learning_rate=3.0, schedule=rises, batch_size=256, watch=False)
    run = tw.train(digits.task(), plan, epochs=30, seed=seed)
    assert "learning-rate-too-high" in names(run)
    assert FinishedHistory.of(run).worsened().reason == "steps too long"
    lower = tw.train(digits.task(), plan.replace(learning_rate=0.3), epochs=30, seed=seed)
    assert lower.metrics["loss"] < 0.6 * run.metrics["loss"]
    assert "learning-rate-too-high" not in names(lower)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("rule", "rate", "epochs"), [("adamw", 3e-5, 6), ("momentum", 1e-3, 6), ("adamw", 1e-5, 12)])
def test_steps_that_are_far_too_short_are_said_to_be_and_tenfold_ones_are_better(rule, rate, epochs, seed):
    plan = tw.Plan(rule=rule, learning_rate=rate, schedule=LINEAR, watch=False)
    run = tw.train(digits.task(), plan, epochs=epochs, seed=seed)
    assert names(run) == ["learning-rate-too-low"]
    tenfold = tw.train(digits.task(), plan.replace(learning_rate=10 * rate), epochs=epochs, seed=seed)
    assert tenfold.metrics["loss"] < 0.95 * run.metrics["loss"]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_wild_run_is_told_that_its_rate_was_too_high_and_learns_at_the_rate_it_is_told(seed):
    from thalweg.see.advice import next_steps

    plan = tw.Plan(rule="momentum", learning_rate=30.0)
    run = tw.train(digits.task(), plan, epochs=20, seed=seed)
    text = "\n".join(next_steps(run))
    assert "The rate of 30 was too high for this descent" in text
    rate = float(re.findall(r"Plan anew with that: `learning_rate=([\d.]+)`", text)[0])
    assert run.metrics["accuracy"] > 0.5  # after all that was spent on the way to that rate
    told = tw.train(digits.task(), plan.replace(learning_rate=rate), epochs=20, seed=seed)
    assert told.metrics["accuracy"] > 0.9


def steps_and_losses(steps, before, after, validation):
    """A history whose criterion was best at its middle: losses before and after that, and the late validation loss."""
    random = np.random.default_rng(0)
    loss = np.where(np.arange(steps) < steps // 2, before, after) * np.exp(0.2 * random.standard_normal(steps))
    row = np.full(steps, np.nan)
    row[np.linspace(0, steps - 1, 7).astype(int)] = [2.0, 1.0, 0.8, 0.5, validation, validation, validation]
    columns = {"step": np.arange(1.0, steps + 1), "loss": loss, "validation/loss": row}
    return FinishedHistory(columns, steps=steps, validated=True, initial={"loss": 2.0}, final={"loss": 0.5})


@pytest.mark.parametrize("steps", [40, 400, 4000])
@pytest.mark.parametrize(
    ("before", "after", "validation", "reason"),
    [
        (0.5, 0.1, 0.8, "overfitting"),
        (0.01, 0.01, 0.8, "overfitting"),  # known by heart all along
        (0.5, 0.55, 0.8, ""),  # rose, within the noise of few steps
        (0.5, 1.5, 0.8, "steps too long"),
        (2.0, 1.0, 0.8, ""),  # fell, but lies above the validation loss
        (0.6, 0.6, 0.8, ""),
    ],
)
def test_the_reason_why_a_criterion_worsened_needs_clear_figures(steps, before, after, validation, reason):
    found = steps_and_losses(steps, before, after, validation).worsened()
    assert found.step == steps // 2
    if (before, after) == (0.5, 0.55) and steps == 4000:
        reason = "steps too long"  # many steps make it clear
    assert found.reason == reason


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_history_without_training_losses_gives_no_reason(mode):
    seen = steps_and_losses(400, 1.0, 1.0, 0.8)
    columns = {name: values for name, values in seen.columns.items() if name != "loss"}
    sign = -1 if mode == "max" else 1
    columns["validation/score"] = sign * columns["validation/loss"]
    assert FinishedHistory(columns, select="score", mode=mode, steps=400, validated=True).worsened().reason == ""
