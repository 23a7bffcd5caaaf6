"""The loop: what a person hands over is descended, to its end or to where patience ends."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small import blobs, classes, network, plan, same_bits, started, walk, weights
from torch import Tensor, nn

import thalweg as tw
from thalweg.descent import loop
from thalweg.descent.recorder import NoProgress
from thalweg.descent.train import train_plan
from thalweg.records.step_figures import StepFigures


def bare(task: tw.Task, made: tw.Plan, make: Any) -> nn.Module:
    """Walk the same batches in a loop written by hand."""
    descent, _ = started(task, made)
    model, optimizer = descent.model, make(descent.model.parameters())
    for _ in range(made.steps or 0):
        (x, y), *_ = descent.batches.draw().parts
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), made.clip_norm or math.inf)
        torch.nn.utils.clip_grad_value_(model.parameters(), made.clip_value or math.inf)
        optimizer.step()
    return model


def in_float64() -> tw.Task:
    x, y = blobs()
    return classes(model=lambda: network().double(), data=(x.double(), y), validation=None, metrics={})


@pytest.mark.parametrize(
    ("knobs", "make"),
    [
        ({"rule": "adamw", "weight_decay": 0.0}, lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.0)),
        ({"rule": "momentum"}, lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9)),
        ({"rule": "gradient_descent", "clip_norm": 0.1}, lambda p: torch.optim.SGD(p, 1e-2)),
        ({"rule": "adam", "clip_norm": 0.05}, lambda p: torch.optim.Adam(p, 1e-2)),
        ({"rule": "gradient_descent", "clip_value": 0.01}, lambda p: torch.optim.SGD(p, 1e-2)),
        ({"rule": "momentum", "accumulate": 3}, lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9)),
    ],
)
def test_the_loop_is_the_one_written_by_hand(knobs: dict[str, Any], make: Any) -> None:
    made = plan(keep="last", watch=False, **knobs)
    ours = tw.train(in_float64(), made)
    theirs = bare(in_float64(), made.replace(accumulate=1), make)
    assert torch.allclose(weights(ours.model), weights(theirs), rtol=1e-10, atol=1e-12)


def test_figures_of_each_step_are_recorded() -> None:
    run = tw.train(classes(), plan(clip_norm=0.2, schedule=tw.schedule.linear(warmup=3)))
    history = run.history
    assert history["step"].tolist() == list(range(31))
    assert history["clip_scale"][1:] == pytest.approx(
        [min(1.0, 0.2 / (n + 1e-6)) for n in history["gradient_norm"][1:]]
    )
    rates = [1e-2 * run.plan.schedule.resolve(30, 6).factor(s) for s in range(30)]
    assert history["learning_rate"][1:] == pytest.approx(rates)
    assert set(history["examples"][1:]) == {16.0}
    assert run.metrics["loss"] < run.summary["start"]["loss"]


@pytest.mark.parametrize(
    ("budget", "steps"), [({"steps": 7}, 7), ({"epochs": 2}, 12), ({"epochs": 0.5}, 3), ({"epochs": 0.2}, 1)]
)
def test_budgets_become_steps(budget: dict[str, Any], steps: int) -> None:
    run = tw.train(classes(), tw.Plan(batch_size=16), **budget)
    assert (run.plan.steps, run.history["step"][-1]) == (steps, steps)


def test_seconds_become_steps_once_and_are_said_in_the_plan() -> None:
    run = tw.train(classes(), tw.Plan(batch_size=16), seconds=0.05)
    assert run.plan.steps == run.history["step"][-1] >= 1
    assert run.plan.why("steps").source == "measured"
    assert run.plan.why("steps").figures["seconds"] == 0.05


@pytest.mark.parametrize(
    "budget", [{}, {"steps": 0}, {"epochs": -1}, {"seconds": 0}, {"steps": 3, "epochs": 1}, {"steps": 2.5}]
)
def test_budgets_that_cannot_be_are_refused(budget: dict[str, Any]) -> None:
    with pytest.raises(tw.PlanError):
        tw.train(classes(), tw.Plan(batch_size=16), **budget)


def test_no_seed_is_like_another_and_each_is_like_itself() -> None:
    one, again, other = (tw.train(classes(), plan(seed=seed)) for seed in (1, 1, 2))
    assert same_bits(one.model, again.model)
    assert not torch.equal(weights(one.model), weights(other.model))


@settings(max_examples=15)
@given(cut=st.integers(1, 29), seed=st.integers(0, 3))
def test_walking_in_two_stretches_is_walking_in_one(cut: int, seed: int) -> None:
    made = plan(seed=seed, ema=0.9, validate_every=7, schedule=tw.schedule.plateau(patience=0))
    whole, recorder = started(classes(model=lambda: network(nn.Dropout(0.2))), made)
    walk(whole, recorder)
    parts, recorder = started(classes(model=lambda: network(nn.Dropout(0.2))), made)
    walk(parts, recorder, until=cut)
    walk(parts, recorder)
    assert parts.digest() == whole.digest()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_learns(precision: str) -> None:
    run = tw.train(classes(), plan(precision=precision, steps=60))
    assert run.metrics["accuracy"] > 0.7
    assert all(p.dtype == torch.float32 for p in run.model.parameters())


def test_frozen_weights_stay_and_tied_ones_stay_one() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
            self.second.weight = self.first.weight
            self.first.bias.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.second(self.first(x).tanh()).tanh())

    start = Tied()
    run = tw.train(classes(model=start), plan(ema=0.5))
    assert isinstance(run.model, Tied)
    assert run.model.second.weight is run.model.first.weight
    assert torch.equal(run.model.first.bias, start.first.bias)
    assert not torch.equal(run.model.first.weight, start.first.weight)


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.Tanh(), nn.LazyLinear(3))


@pytest.mark.parametrize("model", [lazy, lambda: lazy().double(), lambda: network().double()])
def test_lazy_and_double_precision_models_learn(model: Any) -> None:
    run = tw.train(classes(model=model), plan())
    assert run.metrics["loss"] < run.summary["start"]["loss"]


def test_a_loss_may_be_a_module() -> None:
    by_module = tw.train(classes(loss=nn.CrossEntropyLoss()), plan())
    assert same_bits(by_module.model, tw.train(classes(), plan()).model)


def test_batches_may_be_dicts() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, features: Tensor) -> Tensor:
            return self.inner(features)

    def named(data: tuple[Tensor, Tensor]) -> Mapping[str, Tensor]:
        return {"features": data[0], "labels": data[1]}

    task = classes(model=Named, data=named(blobs()), validation=named(blobs(60, 1)))
    assert tw.train(task, plan()).metrics == tw.train(classes(), plan()).metrics


def test_a_step_of_ones_own_learns_and_its_validation_is_weighted() -> None:
    def step(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        return F.cross_entropy(model(batch[0]), batch[1]), len(batch[0])

    own = tw.train(classes(loss=None, metrics={}, step=step), plan())
    assert same_bits(own.model, tw.train(classes(), plan()).model)


def test_the_factor_of_a_group_multiplies_its_rate() -> None:
    frozen = {"0.*": tw.Group(learning_rate_factor=0.0)}
    descent, recorder = started(classes(), plan(groups=frozen, keep="last"))
    before = [p.detach().clone() for p in descent.model.parameters()]
    walk(descent, recorder)
    moved = [not torch.equal(a, b) for a, b in zip(before, descent.model.parameters(), strict=True)]
    assert moved == [False, False, True, True]


def test_progress_hears_every_step_and_every_end() -> None:
    class Listening(NoProgress):
        def __init__(self) -> None:
            self.heard: list[str] = []

        def begin(self, plan: tw.Plan, step: int, validation: bool) -> None:
            self.heard.append("begin")

        def step(self, figures: StepFigures) -> None:
            self.heard.append("step")

        def validated(self, step: int, figures: Mapping[str, float]) -> None:
            self.heard.append("validated")

        def end(self) -> None:
            self.heard.append("end")

    listener = Listening()
    tw.train(classes(), plan(steps=4, validate_every=2), progress=listener)
    assert listener.heard == ["begin", "validated", "step", "step", "validated", "step", "step", "validated", "end"]


def test_train_plan_asks_for_a_budget() -> None:
    from thalweg.descent.problem import open_task

    with pytest.raises(tw.PlanError, match="budget"):
        train_plan(open_task(classes()), tw.Plan())


@pytest.mark.parametrize("budget", [{"epochs": "3"}, {"steps": [3]}, {"seconds": True}])
def test_a_budget_that_is_no_number_is_refused(budget: dict[str, object]) -> None:
    with pytest.raises(tw.PlanError, match="must be a number above zero"):
        tw.train(classes(), tw.Plan(), **budget)


def test_a_metric_that_fails_is_named() -> None:
    def broken(outputs: Tensor, targets: Tensor) -> float:
        return outputs.no_such_thing

    with pytest.raises(tw.TaskError, match=r"Metric 'broken' failed on outputs \(.*AttributeError"):
        tw.train(classes(metrics={"broken": broken}), tw.Plan(), steps=2)


@pytest.mark.parametrize("waits", [True, False])
def test_a_first_step_that_compiles_is_announced(waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class Listening(NoProgress):
        def event(self, step: int, kind: str, message: str) -> None:
            told.append(message)

    monkeypatch.setattr(loop, "compiles_first_step", lambda device: waits)
    tw.train(classes(), plan(steps=2), progress=Listening())
    assert [message for message in told if "compiles" in message] == [loop.COMPILES] * waits
