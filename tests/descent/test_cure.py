"""What the loop does when a step goes wrong."""

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small import blobs, classes, kinds, network, plan, same_bits, started, walk, weights
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

import thalweg as tw
from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.records.step_figures import StepFigures
from thalweg.sampling import Draw
from thalweg.watch import monitor
from thalweg.watch.cause import Cause, each_step
from thalweg.watch.replay import Batch
from thalweg.watch.window import Window


class Items(Dataset[Any]):
    """Examples by index, some of them spoilt after the data were looked at."""

    def __init__(self, bad: tuple[int, ...] = (), count: int = 96) -> None:
        self.x, self.y = blobs(count)
        self.bad = bad

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return (self.x[index] * (math.nan if index in self.bad else 1.0), self.y[index])


class Endless(IterableDataset[Any]):
    def __init__(self, bad: tuple[int, ...]) -> None:
        self.x, self.y = blobs()
        self.bad = bad

    def __iter__(self) -> Iterator[Any]:
        for i in range(10**9):
            yield self.x[i % 96] * (math.nan if i in self.bad else 1.0), self.y[i % 96]


def finite(run: tw.Run) -> bool:
    return bool(torch.isfinite(weights(run.model)).all())


@pytest.mark.parametrize("watch", [True, False])
def test_a_bad_example_in_a_dataset_leaves_its_batch_out_and_is_named(watch: bool) -> None:
    run = tw.train(classes(data=Items(bad=(70,))), plan(steps=12, watch=watch))
    told = [event for event in run.events if event.kind == ("bad-data" if watch else "nonfinite")]
    assert len(told) == 2  # one an epoch
    assert "training examples 70" in told[0].message
    assert finite(run)
    assert run.summary["cures"]["rate_factor"] == 1.0
    assert len(run.history["loss"]) == 13
    assert [d.examples for d in run.diagnoses] == ([(70,)] * 2 if watch else [])


def test_rows_that_are_spoilt_by_chance_three_times_in_a_row_end_no_run() -> None:
    """With nearly half of the batches bad, three in a row come now and then; the data are to blame, not the descent."""
    run = tw.train(classes(data=Items(bad=(40, 50, 60, 70, 81, 90))), plan(steps=120, batch_size=8))
    places = [(e.data["epoch"], e.data["batch"]) for e in run.events if e.kind == "bad-data"]
    steps = [12 * epoch + batch for epoch, batch in places]
    assert any({n, n + 1, n + 2} <= set(steps) for n in steps)
    assert finite(run)


def test_data_that_are_mostly_spoilt_end_the_run_with_their_rows() -> None:
    task = classes(data=Items(bad=tuple(range(33, 96))))
    with pytest.raises(tw.NonFiniteError, match="10 batches in a row"):
        tw.train(task, plan(shuffle=False, batch_size=4, steps=300))


def test_spoilt_training_examples_stay_out_of_the_figures_that_stand_in_for_validation() -> None:
    run = tw.train(classes(data=Items(bad=(70,)), validation=None, metrics={}), plan(steps=12))
    clean = tw.train(classes(data=Items(), validation=None, metrics={}), plan(steps=12))
    assert run.metrics["loss"] == pytest.approx(clean.metrics["loss"], rel=0.2)


def test_spoilt_validation_data_are_refused_with_their_rows() -> None:
    with pytest.raises(
        tw.DataError, match=r"`validation` has NaN or infinity in rows 70, 71, and the loss is not finite there\. Drop"
    ):
        tw.train(classes(validation=Items(bad=(70, 71))), plan(steps=12))


class Kick(nn.Module):
    """Turns one step's gradient, not its loss, enormous."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.inner, self.at = network(), at
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(x)
        if self.training:
            self.calls += 1
            if int(self.calls) == self.at:
                out = out + 1e9 * (out - out.detach())
        return out


@pytest.mark.parametrize("at", [19, 20, 21])
def test_a_state_that_blew_up_at_the_step_of_a_snapshot_is_not_kept_as_one(at: int) -> None:
    run = tw.train(classes(model=lambda: Kick(at)), plan(rule="gradient_descent", learning_rate=0.3, steps=60))
    back = [event for event in run.events if event.kind == "rollback"]
    assert [event.data["to"] for event in back] == [20 if at == 21 else 10]
    assert run.history["validation/loss"][-1] < 0.9  # 1.1 at the start


def test_a_bad_batch_of_a_stream_is_left_out_and_its_rows_are_named() -> None:
    run = tw.train(classes(data=Endless(bad=(37, 41))), plan(batch_size=16, steps=8))
    (told,) = [event for event in run.events if event.kind == "bad-data"]
    assert "rows of the batch 5, 9" in told.message
    assert "batch 3" in told.message
    assert finite(run)


def test_leaving_a_batch_out_is_as_if_it_had_not_been() -> None:
    """With batch normalisation, whose running statistics the forward pass has already spoilt."""
    task = classes(model=lambda: network(nn.BatchNorm1d(12)), data=Items(bad=(70,)))
    run = tw.train(task, plan(steps=14, snapshot_every=5))
    assert "bad-data" in kinds(run)
    bad = [tuple(e.data[k] for k in ("epoch", "batch")) for e in run.events if e.kind == "bad-data"]
    descent, recorder = started(classes(model=task.model, data=Items()), run.plan)
    descent.skipped_batches = bad
    walk(descent, recorder)
    assert descent.best_weights is not None
    state = run.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in descent.best_weights.model.items())


def test_without_a_snapshot_spoilt_running_statistics_are_an_error() -> None:
    task = classes(model=lambda: network(nn.BatchNorm1d(12)), data=Items(bad=(70,)))
    with pytest.raises(tw.NonFiniteError, match="running statistics"):
        tw.train(task, plan(snapshot_every=0))


class Poison(nn.Module):
    """Gives NaN, infinity, or a gradient that is not finite, from one training step on (or in one step)."""

    def __init__(self, steps: range, how: str) -> None:
        super().__init__()
        self.inner, self.steps, self.how = network(), steps, how
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(x)
        if not self.training:
            return out
        self.calls += 1
        if int(self.calls) not in self.steps:
            return out
        if self.how == "gradient":
            return out + torch.sqrt(out.sum() * 0.0)  # the value is zero, the slope infinite times zero
        return out * (math.nan if self.how == "nan" else math.inf)


@pytest.mark.parametrize("how", ["nan", "inf", "gradient"])
@pytest.mark.parametrize("rule", ["gradient_descent", "momentum", "adamw"])
def test_a_gradient_that_is_not_finite_reaches_neither_weights_nor_state(how: str, rule: str) -> None:
    task = classes(model=lambda: Poison(range(6, 99), how))
    descent, recorder = started(task, plan(rule=rule, ema=0.9, watch=False))
    walk(descent, recorder, until=5)
    before = weights(descent.model), descent.state_dict()["optimizer"]
    kept = {name: {k: v.clone() for k, v in entry.items()} for name, entry in before[1].items()}
    with pytest.raises(tw.NonFiniteError, match="3 batches in a row"):
        walk(descent, recorder)
    assert torch.equal(weights(descent.model), before[0])
    after = descent.state_dict()["optimizer"]
    assert all(torch.equal(after[n][k], v) for n, entry in kept.items() for k, v in entry.items())


def test_a_loss_that_is_not_finite_moves_nothing_even_where_its_gradient_is() -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target) + (math.inf if output.requires_grad and bool(seen) else 0.0)

    seen: list[int] = []
    descent, recorder = started(classes(loss=loss), plan(watch=False))
    walk(descent, recorder, until=3)
    before = weights(descent.model)
    seen.append(1)
    with pytest.raises(tw.NonFiniteError):
        walk(descent, recorder)
    assert torch.equal(weights(descent.model), before)


@pytest.mark.parametrize("how", ["nan", "gradient"])
def test_persistent_nan_ends_in_an_error_that_says_where(how: str) -> None:
    with pytest.raises(tw.NonFiniteError, match="Step 6"):
        tw.train(classes(model=lambda: Poison(range(6, 10**6), how)), plan())


def test_a_batch_that_fails_at_healthy_weights_too_is_left_out_without_touching_the_rate() -> None:
    x, y = blobs()
    y = y.float()
    y[50] = -1.0  # finite, but its logarithm is not

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (output.mean(1) - (target + 0.5).log()).square().mean()

    run = tw.train(tw.Task(model=network, loss=loss, data=Hidden(x, y)), plan(steps=12))
    told = [event for event in run.events if event.kind == "loss-overflow"]
    assert told
    assert "the batch is at fault, not the rate" in told[0].message
    assert run.summary["cures"]["rate_factor"] == 1.0
    assert "rollback" not in kinds(run)
    assert finite(run)


class Hidden(Dataset[Any]):
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


def parabola(count: int = 64) -> tw.Task:
    """A well-posed regression on which a rate above about 1 diverges."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 4, generator=generator)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5], [3.0]]) + 0.1 * torch.randn(count, 1, generator=generator)
    return tw.Task(model=lambda: nn.Linear(4, 1), loss=F.mse_loss, data=(x, y), validation=(x, y))


@pytest.mark.parametrize("rate", [3.0, 300.0, 1e6])
@pytest.mark.parametrize("rule", ["gradient_descent", "momentum"])
@pytest.mark.parametrize("seed", range(3))
def test_divergence_is_noticed_and_cured(rate: float, rule: str, seed: int) -> None:
    made = plan(rule=rule, learning_rate=rate, steps=300, snapshot_every=20, seed=seed, schedule=tw.schedule.linear())
    run = tw.train(parabola(), made)
    assert run.metrics["loss"] < 0.1  # 14 where nothing is learnt, 0.01 at best
    assert run.summary["cures"]["rate_factor"] < 1.0
    assert {"learning-rate-too-high", "rollback"} & set(kinds(run))
    assert run.history["validation/loss"][-1] < 0.1


@pytest.mark.parametrize("seed", range(3))
def test_with_the_watch_off_the_same_descent_is_lost(seed: int) -> None:
    made = plan(
        rule="gradient_descent", learning_rate=3.0, steps=300, watch=False, seed=seed, schedule=tw.schedule.linear()
    )
    try:
        run = tw.train(parabola(), made)
    except tw.DivergedError:
        return
    assert not run.metrics["loss"] < 100


def test_cures_that_do_not_help_end_in_an_error() -> None:
    x, y = blobs()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (output.square().mean() + 1) * (1000.0 ** len(calls)) if calls.append(1) is None else output.mean()

    calls: list[int] = []
    with pytest.raises(tw.DivergedError, match=r"did not help|not finite"):
        tw.train(tw.Task(model=network, loss=loss, data=(x, y)), plan(steps=200))


class Filling(nn.Module):
    """A loss that rises by itself for a while, as that of a queue which fills or of a term that comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = nn.Linear(4, 1), 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
        return self.layer(x)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(self(x), y) + 200 * min(1.0, self.seen / 40)


def filling() -> tw.Task:
    x, y = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(64, 1)
    return tw.Task(model=Filling, step=lambda model, batch: model.loss(*batch), data=(x, y), validation=(x, y))


def test_a_loss_that_rises_by_itself_ends_no_run_and_lowers_no_rate(tmp_path: Path) -> None:
    made = plan(steps=80, learning_rate=0.01, keep="last")
    with pytest.warns(UserWarning, match="it is not the steps that raise it"):
        run = tw.train(filling(), made, out=tmp_path / "run", progress=False)
    alone = tw.train(filling(), made.replace(watch=False), progress=False)
    assert same_bits(run.model, alone.model)
    assert run.summary["cures"]["rate_factor"] == 1.0
    assert "diverging" not in {diagnosis.symptom for diagnosis in run.diagnoses}
    assert tw.resume(tmp_path / "run", filling(), changes={"steps": 90}, progress=False).summary["status"] == "finished"


def test_that_a_loss_rises_by_itself_is_known_where_the_run_goes_on(tmp_path: Path) -> None:
    def stop(model: nn.Module, figures: StepFigures) -> None:
        if figures.step == 30:
            raise KeyboardInterrupt

    made = plan(steps=80, learning_rate=0.01, keep="last")
    with pytest.warns(UserWarning, match="it is not the steps"), pytest.raises(tw.Interrupted):
        tw.train(filling(), made, out=tmp_path / "run", progress=False, on_step=stop)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed = tw.resume(tmp_path / "run", filling(), progress=False)
    alone = tw.train(filling(), made.replace(watch=False), progress=False)
    assert same_bits(resumed.model, alone.model)


def test_divergence_without_snapshots_says_that_there_is_no_way_back() -> None:
    with pytest.raises(tw.DivergedError, match="Snapshots are off"):
        tw.train(parabola(), plan(rule="gradient_descent", learning_rate=1e4, steps=50, snapshot_every=0))


def test_what_is_walked_anew_after_going_back_replaces_what_was_recorded() -> None:
    run = tw.train(parabola(), plan(rule="gradient_descent", learning_rate=3.0, steps=60))
    steps = run.history["step"]
    assert steps.tolist() == list(range(61))
    assert math.isfinite(run.history["loss"][1:].max())


def test_rows_that_hold_nan_are_found_across_micro_batches() -> None:
    bad = torch.zeros(3, 2)
    bad[1, 0] = math.inf
    drawn = Draw([(torch.zeros(3, 2), torch.zeros(3)), (bad, torch.zeros(3))], [3, 3], None)
    assert Batch(drawn, 0, 0).nonfinite_rows() == [4]
    assert (
        Batch(Draw([torch.full((2, 2), 3e38)], [2], None), 0, 0).nonfinite_rows() == []
    )  # the sum overflows, no element does


def test_float16_overflow_halves_the_loss_scale_and_goes_on() -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return 100 * F.cross_entropy(output.float(), target)

    run = tw.train(classes(loss=loss), plan(precision="float16", steps=20))
    assert any("loss scale" in event.message for event in run.events)
    assert run.summary["cures"]["rate_factor"] == 1.0
    assert run.metrics["loss"] < run.summary["start"]["loss"]


def test_divergence_is_noticed_in_float16_too() -> None:
    schedule = tw.schedule.linear()
    made = plan(rule="gradient_descent", learning_rate=30.0, steps=100, precision="float16", schedule=schedule)
    run = tw.train(parabola(), made)
    assert "rollback" in kinds(run)
    assert run.metrics["loss"] < 1


def test_a_run_that_went_back_ends_with_the_same_bits_again() -> None:
    made = plan(rule="momentum", learning_rate=3.0, steps=60)
    one, other = tw.train(parabola(), made), tw.train(parabola(), made)
    assert "rollback" in kinds(one)
    assert same_bits(one.model, other.model)


def test_a_cure_may_go_back_without_clipping(monkeypatch: pytest.MonkeyPatch) -> None:
    def once(window: Window) -> Diagnosis | None:
        if window.step != 30 or fired:
            return None
        fired.append(30)
        return Diagnosis("odd", "it is odd.", step=30, cure=Cure("Go back.", rollback=True, rate_factor=0.5))

    fired: list[int] = []
    odd = Cause("odd", "a test", during=each_step(once))
    monkeypatch.setattr(monitor, "all_causes", lambda: (odd,))
    run = tw.train(parabola(), plan(learning_rate=0.01, steps=60))
    (back,) = [event for event in run.events if event.kind == "rollback"]
    assert back.message.endswith("with a rate of 0.005.")
    assert run.summary["cures"] == {"rate_factor": 0.5, "clip_norm": None}


def odd_batch(step: int, times: int = 1) -> Cause:
    """A cause that wants the batch of a step left out so many times, though its gradient is finite."""
    left = iter(range(times))

    def question(window: Any) -> Diagnosis | None:
        odd = window.step == step and next(left, None) is not None
        return Diagnosis("odd", "this batch is odd.", "critical", window.step) if odd else None

    cure = Cure("Leave this batch out.", skip_batch=True)
    return Cause("odd-batch", "a test", during=each_step(question), cure=lambda window, attempt: cure)


def test_a_batch_that_has_moved_the_weights_is_left_out_from_the_snapshot_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from thalweg.watch import monitor

    monkeypatch.setattr(monitor, "all_causes", lambda: (odd_batch(14),))
    run = tw.train(classes(), plan(steps=20))
    (event,) = [event for event in run.events if event.kind == "odd-batch"]
    assert event.message.endswith("was left out. This batch is odd.")
    assert event.superseded
    assert run.history["step"][-1] == 20
    monkeypatch.setattr(monitor, "all_causes", lambda: ())
    descent, recorder = started(classes(), plan(steps=20))
    descent.skipped_batches = [(event.data["epoch"], event.data["batch"])]
    walk(descent, recorder)
    assert torch.equal(weights(run.model), weights(descent.model))  # as if the batch had not been there
    assert run.diagnoses[0].name == "odd-batch"


def test_without_a_snapshot_a_step_on_an_odd_batch_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    from thalweg.watch import monitor

    monkeypatch.setattr(monitor, "all_causes", lambda: (odd_batch(14),))
    run = tw.train(classes(), plan(steps=20, snapshot_every=0))
    assert [event.kind for event in run.events] == ["odd-batch"]
    assert len(run.history["loss"]) == 21


def test_batches_that_are_all_odd_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from thalweg.watch import monitor

    monkeypatch.setattr(monitor, "all_causes", lambda: (odd_batch(14, times=99),))
    with pytest.raises(tw.DivergedError, match=r"batches in a row were left out.*This batch is odd"):
        tw.train(classes(), plan(steps=20))
