"""What is said of longer runs holds: longer runs are trained. And where it is not said, they are not worth it."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import thalweg as tw
from thalweg import schedule
from thalweg.examples import digits
from thalweg.records.plan import Evidence
from thalweg.see import longer_run
from thalweg.see.advice import next_steps
from thalweg.watch.finished import FinishedHistory


def with_wrong_labels(share=0.2):
    """The digits, a share of whose labels is drawn at random: some of the loss stays for good."""
    task, random = digits.task(hidden=64), np.random.default_rng(0)
    pairs = []
    for x, labels in (task.data, task.validation):
        wrong = random.random(len(labels)) < share
        pairs.append((x, np.where(wrong, random.integers(0, 10, len(labels)), labels)))
    return tw.Task(model=task.model, loss=task.loss, data=pairs[0], validation=pairs[1])


def few():
    task = digits.task(hidden=64)
    return tw.Task(model=task.model, loss=task.loss, data=tuple(a[:200] for a in task.data), validation=task.validation)


def ill_conditioned():
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(-1.5, 0.5, 20)
    x = torch.randn(1300, 20, generator=generator) * scale
    y = x @ (torch.randn(20, 1, generator=generator) / scale[:, None]) + 0.5 * torch.randn(1300, 1, generator=generator)
    return tw.Task(
        model=lambda: nn.Linear(20, 1), loss=F.mse_loss, data=(x[:1000], y[:1000]), validation=(x[1000:], y[1000:])
    )


def asks_for_more(run):
    return "twice the budget" in "\n".join(next_steps(run))


CONSTANT = tw.Plan(learning_rate=3e-3, schedule=schedule.constant())
TASKS = {"digits": digits.task, "wrong labels": with_wrong_labels, "few": few, "ill-conditioned": ill_conditioned}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("task", "rule", "rate", "epochs"),
    [("digits", "adamw", 3e-3, 2), ("few", "adamw", 3e-3, 8), ("ill-conditioned", "momentum", 0.01, 6)],
)
def test_a_longer_run_at_a_constant_rate_ends_lower_where_it_is_advised(task, rule, rate, epochs, seed):
    plan = CONSTANT.replace(rule=rule, learning_rate=rate)
    run, longer = (tw.train(TASKS[task](), plan, epochs=n * epochs, seed=seed) for n in (1, 2))
    assert asks_for_more(run)
    assert longer.metrics["loss"] < 0.95 * run.metrics["loss"]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("task", "epochs"),
    [("wrong labels", 24), ("few", 40)],
)
def test_a_longer_run_at_a_constant_rate_does_not_end_lower_where_it_is_not_advised(task, epochs, seed):
    run, longer = (tw.train(TASKS[task](), CONSTANT, epochs=n * epochs, seed=seed) for n in (1, 2))
    assert not asks_for_more(run)
    assert longer.metrics["loss"] > 0.95 * run.metrics["loss"]


@pytest.mark.heavy
@pytest.mark.effort_in_seconds
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("task", "epochs", "is_advised"),
    [
        ("digits", 1, True),
        ("few", 2, None),  # by the search's luck
        ("ill-conditioned", 1, True),
        ("wrong labels", 4, False),
        ("ill-conditioned", 12, False),
    ],
)
def test_a_longer_run_with_a_search_ends_lower_where_it_is_advised(task, epochs, is_advised, seed):
    run = tw.fit(TASKS[task](), epochs=epochs, seed=seed, fixed={"batch_size": 32})
    assert is_advised in (None, asks_for_more(run))
    longer = tw.fit(TASKS[task](), epochs=2 * epochs, seed=seed, fixed={"batch_size": 32})
    if asks_for_more(run):
        assert longer.metrics["loss"] < 0.95 * run.metrics["loss"]
    elif is_advised is not None:
        assert longer.metrics["loss"] > 0.95 * run.metrics["loss"]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_schedule_that_falls_to_zero_does_not_ask_for_a_longer_run_by_itself(seed):
    plan = tw.Plan(learning_rate=0.03, schedule=schedule.linear(warmup=0.1), batch_size=32)
    run = tw.train(digits.task(), plan, epochs=6, seed=seed)
    steps, losses = FinishedHistory.of(run).criterion()
    assert losses[-1] < 0.8 * losses[steps <= steps[-1] / 2].min()  # much of it was gained at the end
    assert not asks_for_more(run)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_where_the_training_examples_are_known_by_heart_more_of_them_end_lower_and_a_longer_run_does_not(seed):
    plan = tw.Plan(learning_rate=3e-3, schedule=schedule.linear(warmup=0.1))
    run, longer = (tw.train(few(), plan, epochs=n * 60, seed=seed) for n in (1, 2))
    assert FinishedHistory.of(run).memorised()
    assert longer.metrics["loss"] > 0.9 * run.metrics["loss"]
    more = tw.train(digits.task(hidden=64), plan, steps=run.plan.steps, seed=seed)
    assert more.metrics["loss"] < 0.6 * run.metrics["loss"]


def history_of(run):
    return longer_run.lengths(run, FinishedHistory.of(run))


def test_a_run_that_is_not_finished_is_compared_with_nothing():
    run = tw.train(digits.task(), CONSTANT, epochs=2)
    assert history_of(run) is not None
    assert history_of(dataclasses.replace(run, summary={**run.summary, "status": "interrupted"})) is None


def test_a_criterion_without_a_known_best_value_is_compared_with_nothing():
    def likelihood(model, batch):
        x, y = batch
        return (model(x) - y).square().mean() - 100

    task = ill_conditioned()
    run = tw.train(
        tw.Task(model=task.model, step=likelihood, data=task.data, validation=task.validation), CONSTANT, epochs=3
    )
    assert history_of(run) is None


@pytest.mark.parametrize(
    ("steps", "scores", "pays"),
    [
        ([20, 40], [2.0, 1.0], True),  # 60 steps, as in the run that follows: 0.5
        ([20], [0.65], True),
        ([20], [0.55], False),  # too little
        ([5], [0.9], False),  # 0.15 expected: too little, from so far away
        ([5], [1.5], True),
    ],
)
def test_lengths_that_are_far_apart_must_promise_more(steps, scores, pays):
    run = tw.train(digits.task(), CONSTANT, steps=60)
    figures = {"learning_rates": [0.2] * len(steps), "steps": steps, "scores": scores}
    plan = run.plan.replace(evidence={"learning_rate": Evidence("searched", "", figures)})
    found = history_of(dataclasses.replace(run, plan=plan, metrics={**run.metrics, "loss": 0.5}))
    assert found.pays == pays
