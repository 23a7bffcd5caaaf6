"""What a descent gives: the best weights or the last ones, and an end where patience ends."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small import classes, kinds, network, plan, started, walk, weights
from torch import Tensor, nn

import thalweg as tw
from thalweg.descent import selection
from thalweg.descent.recorder import Recorder


def scripted(values: list[float], monkeypatch: pytest.MonkeyPatch, averages: list[float] | None = None) -> None:
    """Let validations give these losses one after another; `averages` those of the averaged weights."""
    left, others = iter(values), iter(averages or [])
    turns: list[int] = []

    def measure(descent: Any) -> dict[str, float]:
        turns.append(descent.step)
        second = averages is not None and descent.step > 0 and turns.count(descent.step) == 2
        return {"loss": next(others if second else left)}

    monkeypatch.setattr(selection, "measure", measure)


def test_best_weights_are_those_of_the_best_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted([5, 4, 2, 3, 6], monkeypatch)
    run = tw.train(classes(metrics={}), plan(steps=20, validate_every=5))
    assert run.summary["weights"] == {"step": 10, "averaged": False}
    assert run.metrics == {"loss": 2}
    descent, recorder = started(classes(metrics={}), plan(steps=20, validate_every=100))
    scripted([0] * 9, monkeypatch)
    walk(descent, recorder, until=10)
    assert torch.equal(weights(run.model), weights(descent.model))


def test_last_weights_are_the_last_whatever_validated_better(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted([1, 2, 3, 4, 5, 5], monkeypatch)
    run = tw.train(classes(metrics={}), plan(steps=20, validate_every=5, keep="last"))
    assert run.summary["weights"] == {"step": 20, "averaged": False}
    assert run.metrics == {"loss": 5}


def test_averaged_weights_are_given_where_they_validate_better(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted([5, 4, 3], monkeypatch, averages=[4.5, 2])
    run = tw.train(classes(metrics={}), plan(steps=10, validate_every=5, ema=0.9))
    assert run.summary["weights"] == {"step": 10, "averaged": True}
    assert run.history["ema/loss"][5] == 4.5


def test_averages_are_validated_beside_the_weights_and_leave_them_alone() -> None:
    one = tw.train(classes(), plan(ema=0.9, validate_every=3, keep="last", steps=29))
    other = tw.train(classes(), plan(validate_every=3, keep="last", steps=29))
    assert one.history["loss"].tolist()[1:] == other.history["loss"].tolist()[1:]
    seen = one.history["ema/loss"]
    assert (~torch.isnan(torch.tensor(seen))).sum() == 10
    assert math.isfinite(seen[3])
    assert seen[3] != one.history["validation/loss"][3]


def test_average_of_the_weights_is_the_bias_corrected_mean() -> None:
    descent, recorder = started(classes(), plan(ema=0.8, keep="last"))
    seen = list[Tensor]()
    for step in range(1, 9):
        walk(descent, recorder, until=step)
        seen.append(weights(descent.model))
    shares = torch.tensor([0.8 ** (7 - k) for k in range(8)], dtype=torch.float64)
    mean = (shares[:, None] * torch.stack(seen)).sum(0) / shares.sum()
    with descent.optimizer.averaged():
        assert torch.allclose(weights(descent.model), mean, rtol=1e-5, atol=1e-6)
    assert torch.equal(weights(descent.model), seen[-1])


@pytest.mark.parametrize("keep", ["best", "last"])
def test_patience_counts_validations_without_a_better_one(keep: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted([5, 4, 6, 3, 3.5, 3.1, 9, 9], monkeypatch)
    run = tw.train(classes(metrics={}), plan(validate_every=2, patience=2, keep=keep))
    assert run.history["step"][-1] == 10
    assert run.summary["stopped_early"]
    assert "early_stop" in kinds(run)
    assert run.summary["weights"]["step"] == (6 if keep == "best" else 10)


def test_patience_has_training_figures_where_there_is_no_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted([5, 4, 3, 2, 1, 0.5, 0.2], monkeypatch)
    run = tw.train(classes(metrics={}, validation=None), plan(steps=10, validate_every=2, patience=2))
    assert not run.summary["stopped_early"]


def test_a_run_stopped_early_stays_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted([5, 4, 6, 7, 0, 0, 0, 0, 0], monkeypatch)
    finish = Recorder.finish

    def killed(self: Recorder, *rest: Any) -> None:
        raise SystemExit

    monkeypatch.setattr(Recorder, "finish", killed)
    made = plan(validate_every=5, patience=2, checkpoint_seconds=0, snapshot_every=0)
    with pytest.raises(SystemExit):
        tw.train(classes(metrics={}), made, out=tmp_path / "r")
    monkeypatch.setattr(Recorder, "finish", finish)
    run = tw.resume(tmp_path / "r", classes(metrics={}))
    assert run.history["step"][-1] == 15


def test_the_criterion_may_be_a_metric_to_be_raised() -> None:
    task = classes(select="accuracy", mode="max")
    run = tw.train(task, plan(validate_every=5))
    seen = run.history["validation/accuracy"]
    assert run.metrics["accuracy"] == torch.tensor(seen).nan_to_num(0).max()
    assert tw.train(task, plan(keep="last", ema=0.9)).metrics["accuracy"] > 0.5


def test_a_figure_that_is_no_number_is_never_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted([math.nan, math.nan, 3, math.nan, math.inf], monkeypatch)
    run = tw.train(classes(metrics={}), plan(steps=20, validate_every=5))
    assert run.metrics == {"loss": 3}


@pytest.mark.parametrize("mode", ["min", "max"])
def test_reduce_on_plateau_looks_at_the_validations(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [5, 4, 4.1, 4.2, 3, 3.5, 3.6]
    sign = 1 if mode == "min" else -1
    left = iter(values)
    monkeypatch.setattr(selection, "measure", lambda *_: {"loss": 0.0, "accuracy": sign * next(left)})
    task = classes(select="accuracy", mode=mode)
    schedule = tw.schedule.plateau(factor=0.5, patience=1)
    run = tw.train(task, plan(validate_every=5, schedule=schedule, learning_rate=0.1))
    assert run.history["learning_rate"][1:].tolist() == pytest.approx([0.1] * 15 + [0.05] * 15)


def test_validation_leaves_modes_and_random_states_alone() -> None:
    model = network(nn.BatchNorm1d(12), nn.Dropout(0.5))
    model[2].eval()

    def drawing(m: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(m(batch[0]) + torch.randn(()), batch[1])

    one = tw.train(classes(model=model, evaluate=drawing), plan(validate_every=1, keep="last"))
    other = tw.train(classes(model=model, evaluate=drawing), plan(validate_every=30, keep="last"))
    assert one.history["loss"].tolist()[1:] == other.history["loss"].tolist()[1:]
    assert torch.equal(weights(one.model), weights(other.model))
    descent, recorder = started(classes(model=model), plan())
    walk(descent, recorder, until=3)
    assert [m.training for m in descent.model.modules()] == [m.training for m in model.modules()]


class Annealed(nn.Module):
    """Its loss has a term that comes in over the first steps."""

    def __init__(self, buffer: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        if buffer:
            self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        else:
            self.calls = 0


def annealed(length: int) -> Any:
    def step(model: Any, batch: Any) -> Tensor:
        if model.training:
            model.calls += 1
        term = min(1.0, float(model.calls) / length) if length else 1.0
        return F.cross_entropy(model.layer(batch[0]), batch[1]) + term * (model.layer.weight - 2).square().mean()

    return step


@pytest.mark.parametrize("buffer", [False, True])
def test_that_the_best_weights_are_the_best_only_by_an_earlier_loss_is_said(buffer: bool) -> None:
    def told(length: int) -> list[str]:
        task = classes(model=lambda: Annealed(buffer), loss=None, step=annealed(length), metrics={})
        run = tw.train(task, plan(steps=60, validate_every=5, watch=False), progress=Silent())
        assert run.metrics == tw.evaluate(run)
        return [event.message for event in run.events if "do not compare" in event.message]

    assert "The best weights are those of step 0, with a loss of" in told(60)[0]
    assert told(0) == []


class Silent:
    """A display that shows nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def test_no_validation_is_taken_twice_where_nothing_but_weights_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    real = selection.measure
    monkeypatch.setattr(selection, "measure", lambda descent: steps.append(descent.step) or real(descent))
    tw.train(
        classes(model=lambda: network(nn.BatchNorm1d(12))),
        plan(steps=20, validate_every=5, learning_rate=0.5),
        progress=False,
    )
    assert steps == [0, 5, 10, 15, 20]


def test_a_last_measurement_that_fails_ends_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(selection, "_measure_again", fail)
    task = classes(model=Annealed, loss=None, step=annealed(60), metrics={})
    run = tw.train(task, plan(steps=60, validate_every=5, watch=False), progress=False)
    assert len(run.history["loss"]) == 61
