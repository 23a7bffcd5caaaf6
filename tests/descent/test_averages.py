"""What is judged and given where weights are averaged: of schedule-free rules the average alone, an EMA beside the weights."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small import blobs, classes, kinds, network, plan, same_bits, started, walk, weights
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import thalweg as tw
from thalweg.descent import averages, selection
from thalweg.descent.recorder import Recorder
from thalweg.errors import PlanError

AVERAGES = [
    {"rule": "schedule_free_adamw"},
    {"rule": "schedule_free_sgd", "learning_rate": 0.3},
    {"rule": "adamw", "ema": 0.9},
]
FREE = AVERAGES[0]


def normed() -> nn.Module:
    return nn.Sequential(
        nn.Dropout(0.1), spectral_norm(nn.Linear(4, 12)), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 3)
    )


def task(**changes: Any) -> tw.Task:
    return classes(**{"model": normed, **changes})


def statistics(descent: Any) -> Tensor:
    """The average's own."""
    with averages.averaged(descent):
        return descent.model[2].running_mean.clone()


def held_out_loss(model: nn.Module) -> float:
    x, y = blobs(60, seed=1)
    with torch.no_grad():
        return float(F.cross_entropy(model.eval()(x), y))


@pytest.mark.parametrize("knobs", AVERAGES[:2])
@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize("model", [network, normed])
def test_a_schedule_free_run_gives_the_average_and_its_figures(model: Any, keep: Any, knobs: dict[str, Any]) -> None:
    run = tw.train(task(model=model), plan(**knobs, keep=keep, validate_every=5))
    assert run.summary["weights"]["averaged"]
    assert held_out_loss(run.model) == pytest.approx(run.metrics["loss"], rel=1e-6)
    step = run.summary["weights"]["step"]
    assert keep == "best" or step == 30
    assert run.history["validation/loss"][run.history["step"] == step][0] == run.metrics["loss"]
    assert not [name for name in run.history if name.startswith("ema/")]
    descent, recorder = started(task(model=model), plan(**knobs, keep=keep, validate_every=5))
    walk(descent, recorder, until=step)
    assert not torch.equal(weights(run.model), weights(descent.model))
    with descent.optimizer.averaged():
        assert torch.equal(weights(run.model), weights(descent.model))


def test_the_weights_that_a_schedule_free_rule_walks_with_are_never_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[tuple[int, bool]]()
    measure = selection.measure

    def watched(descent: Any) -> dict[str, float]:
        seen.append((descent.step, descent.optimizer._averaged))
        return measure(descent)

    monkeypatch.setattr(selection, "measure", watched)
    tw.train(task(), plan(**FREE, validate_every=10))
    assert seen == [(0, False), (10, True), (20, True), (30, True)]
    seen.clear()
    tw.train(task(validation=None, metrics={}), plan(**FREE, validate_every=15))
    assert all(average for step, average in seen if step)


@pytest.mark.parametrize("knobs", AVERAGES)
def test_a_killed_run_is_resumed_bitwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, knobs: dict[str, Any]
) -> None:
    made = plan(**knobs, validate_every=4, checkpoint_seconds=0, snapshot_every=0)
    whole = tw.train(task(), made, out=tmp_path / "whole")
    record = Recorder.step

    def dying(self: Recorder, figures: Any, *rest: Any) -> None:
        if figures.step == 18:
            raise SystemExit
        record(self, figures, *rest)

    monkeypatch.setattr(Recorder, "step", dying)
    with pytest.raises(SystemExit):
        tw.train(task(), made, out=tmp_path / "killed")
    monkeypatch.setattr(Recorder, "step", record)
    resumed = tw.resume(tmp_path / "killed", task())
    assert "resume" in kinds(resumed)
    assert same_bits(whole.model, resumed.model)
    assert same_bits(whole.model, tw.Run.open(tmp_path / "killed", task()).model)
    for name in (name for name in whole.history if name != "seconds"):
        assert whole.history[name].tolist() == pytest.approx(resumed.history[name].tolist(), rel=0, nan_ok=True), name


@pytest.mark.parametrize("knobs", AVERAGES)
@pytest.mark.parametrize("kind", ["arrays", "items", "stream", "own step"])
def test_validating_leaves_the_way_bitwise_as_it_is(kind: str, knobs: dict[str, Any]) -> None:
    class Noisy(torch.utils.data.Dataset[Any]):
        def __getitem__(self, index: int) -> Any:
            x, y = blobs()
            return x[index] + 0.1 * torch.randn(4), y[index]

        def __len__(self) -> int:
            return 96

    class Stream(IterableDataset[Any]):
        """One that a second pass beside the first would disturb: its place is its own."""

        def __iter__(self) -> Any:
            self.place = 0
            x, y = blobs()
            while self.place < 96:
                self.place += 1
                yield x[self.place - 1], y[self.place - 1]

    def step(model: nn.Module, batch: Any) -> Tensor:
        x = batch[0].requires_grad_()
        loss = F.cross_entropy(model(x), batch[1])
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        return loss + slope.square().sum()

    data = {
        "arrays": {},
        "items": {"data": DataLoader(Noisy(), batch_size=16, shuffle=True)},
        "stream": {"data": Stream()},
        "own step": {
            "step": step,
            "evaluate": lambda m, b: F.cross_entropy(m(b[0]), b[1]),
            "loss": None,
            "metrics": {},
        },
    }[kind]
    digests = []
    for every in (1, 30):
        descent, recorder = started(task(**data), plan(**knobs, validate_every=every, keep="last"))
        walk(descent, recorder)
        digests.append(descent.digest())
        assert math.isfinite(descent.last_validation["loss"])
    assert digests[0] == digests[1]


def test_the_average_is_judged_with_statistics_of_its_own() -> None:
    """An EMA that lags far behind: with the weights' statistics it looks useless, with its own it is a fair model."""
    made = plan(rule="adamw", learning_rate=0.05, ema=0.98, steps=60, validate_every=60)
    wide = task(model=lambda: nn.Sequential(nn.Linear(4, 64), nn.BatchNorm1d(64, affine=False), nn.Linear(64, 3)))
    descent, recorder = started(wide, made)
    walk(descent, recorder, until=59)
    with descent.optimizer.averaged():
        with_the_weights_statistics = held_out_loss(descent.model)
        descent.model.train()
    with averages.averaged(descent):
        with_its_own = held_out_loss(descent.model)
        descent.model.train()
    # The truth: batch statistics of the whole training set at the average's own weights.
    with descent.optimizer.averaged(), torch.no_grad():
        features = descent.model[0](blobs()[0])
        x, y = blobs(60, seed=1)
        inner = (descent.model[0](x) - features.mean(0)) / (features.var(0, correction=0) + 1e-5).sqrt()
        truth = float(F.cross_entropy(descent.model[2](inner), y))
    assert with_its_own == pytest.approx(truth, rel=0.1)
    assert abs(with_the_weights_statistics - truth) > 2 * abs(with_its_own - truth)


def test_statistics_of_the_average_are_a_function_of_seed_and_step() -> None:
    found = []
    for every in (1, 30):
        descent, recorder = started(task(), plan(**FREE, validate_every=every))
        walk(descent, recorder, until=11)
        descent.plan = descent.plan.replace(validate_every=30)
        torch.manual_seed(every)
        found.append(statistics(descent))
    assert torch.equal(*found)
    descent.step = 12
    assert not torch.equal(statistics(descent), found[0])


@pytest.mark.parametrize(("every", "passes"), [(1, 10), (12, 12), (30, 24)])
def test_as_many_passes_as_pay(every: int, passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[int]()
    real = averages.recalibrated

    def counted(model: Any, batches: Any, forward: Any) -> Any:
        drawn = list(batches)
        seen.append(len(drawn))
        return real(model, drawn, forward)

    monkeypatch.setattr(averages, "recalibrated", counted)
    tw.train(task(), plan(**FREE, batch_size=4, validate_every=every, steps=30))
    assert set(seen) == {passes}


def test_without_batch_norm_not_one_pass_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(averages, "recalibrated", None)  # would fail if it were called
    tw.train(classes(), plan(**FREE, validate_every=5))
    tw.train(classes(), plan(ema=0.9, validate_every=5))
    tw.train(task(), plan(validate_every=5))


def test_of_a_stream_the_last_batches_of_the_epoch_serve() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(TensorDataset(*blobs()))

    descent, recorder = started(task(data=Stream()), plan(**FREE, batch_size=8, validate_every=30, keep="last"))
    walk(descent, recorder, until=16)
    assert len(descent.batches.recent) == 4  # the epoch has twelve
    resumed, recorder = started(task(data=Stream()), plan(**FREE, batch_size=8, validate_every=30, keep="last"))
    resumed.load_state_dict(descent.state_dict())
    assert torch.equal(statistics(descent), statistics(resumed))


def test_a_batch_with_nan_is_left_out_of_the_statistics() -> None:
    class Spoilt(torch.utils.data.Dataset[Any]):
        def __getitem__(self, index: int) -> Any:
            x, y = blobs()
            return (x[index] * torch.nan if index == 40 else x[index]), y[index]

        def __len__(self) -> int:
            return 96

    run = tw.train(task(data=Spoilt()), plan(**FREE, validate_every=10))
    seen = run.history["validation/loss"][run.history["step"] % 10 == 0]
    assert len(seen) == 4
    assert all(map(math.isfinite, seen))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_half_precision_and_parts_of_a_batch_are_no_obstacle(precision: Any) -> None:
    run = tw.train(task(), plan(**FREE, precision=precision, accumulate=2, validate_every=10))
    assert math.isfinite(run.metrics["loss"])


def test_an_ema_beside_a_rules_own_average_is_refused_by_the_plan() -> None:
    with pytest.raises(PlanError, match=r"schedule_free_adamw averages the weights itself.* Leave `ema` out"):
        plan(**FREE, ema=0.9)
    with pytest.raises(PlanError, match="averages the weights itself"):
        plan(ema=0.9).replace(rule="schedule_free_sgd")


def test_patience_and_plateau_follow_the_average(monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([5.0, 4.0, 6.0, 6.5, 7.0])
    monkeypatch.setattr(selection, "measure", lambda *_: {"loss": next(values)})
    run = tw.train(classes(metrics={}), plan(**FREE, validate_every=5, patience=2))
    assert run.summary["stopped_early"]
    assert run.summary["weights"] == {"step": 5, "averaged": True}
