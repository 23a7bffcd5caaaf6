"""What cures change of a run: from where on it holds, what it comes to, and that a resumed run has it too."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small import blobs, classes, network, plan, same_bits, started, walk, weights
from torch import nn

import thalweg as tw
from thalweg.descent.averages import averaged
from thalweg.descent.cure import leave_batch_out
from thalweg.descent.gradient import compute_gradient, draw
from thalweg.descent.state import Descent
from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.records.step_figures import StepFigures
from thalweg.watch import monitor
from thalweg.watch.cause import Cause, each_step
from thalweg.watch.window import Window

RATE = 1e-2


def cured_at(step: int, cure: Cure, examples: Sequence[int] = (), *, severity: str = "warning") -> Cause:
    """A cause that asks for a cure once, at this step of a run at its first rate; it has no state of its own."""

    def question(window: Window) -> Diagnosis | None:
        if window.step != step or window.rate != RATE:
            return None
        return Diagnosis("odd", "It is odd.", severity, step, name="odd", cure=cure, examples=tuple(examples))  # pyright: ignore[reportArgumentType]

    return Cause("odd", "a test", during=each_step(question))


@pytest.fixture
def cure(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let all runs be cured so."""
    return lambda *of, **how: monkeypatch.setattr(monitor, "all_causes", lambda: (cured_at(*of, **how),))


def made(**knobs: object) -> tw.Plan:
    return plan(**{"learning_rate": RATE, "schedule": "constant", "steps": 60, **knobs})


def bare() -> nn.Module:
    return network(nn.BatchNorm1d(12), nn.Dropout(0.2))


CURES = {
    "begin again": Cure("Begin again.", begin_again=True, rate_factor=2.0),
    "several batches": Cure("More.", accumulate=4),
    "average": Cure("Average.", ema=0.9),
    "leave out": Cure("Leave out.", leave_out=True),
}


@pytest.mark.parametrize("name", CURES)
@pytest.mark.parametrize("stop_at", [6, 13, 17, 34])
def test_a_cured_run_goes_on_bit_for_bit(tmp_path: Path, cure: Callable[..., None], name: str, stop_at: int) -> None:
    def stop(model: nn.Module, figures: StepFigures) -> None:
        if figures.step >= stop_at and not stopped:
            stopped.append(figures.step)
            raise KeyboardInterrupt

    stopped: list[int] = []
    cure(12, CURES[name], (3, 5))
    whole = tw.train(classes(model=bare), made())
    assert whole.diagnoses[0].step == 12
    with pytest.raises(tw.Interrupted):
        tw.train(classes(model=bare), made(), out=tmp_path / "run", on_step=stop)
    resumed = tw.resume(tmp_path / "run", classes(model=bare))
    assert same_bits(whole.model, resumed.model)
    assert whole.metrics == resumed.metrics
    assert whole.history["step"].tolist() == resumed.history["step"].tolist()


@pytest.mark.parametrize("rule", ["sgd", "adamw", "schedule_free_adamw", "muon"])
def test_a_run_that_began_again_is_the_one_with_the_cure_from_the_start(cure: Callable[..., None], rule: str) -> None:
    cure(12, CURES["begin again"])
    run = tw.train(classes(model=bare), made(rule=rule))
    (event,) = [event for event in run.events if event.kind == "rollback"]
    assert "from step 12 to step 0" in event.message
    cure(99, CURES["begin again"])
    other = tw.train(classes(model=bare), made(rule=rule, learning_rate=2 * RATE))
    assert same_bits(run.model, other.model)
    assert run.history["loss"].tolist()[1:] == other.history["loss"].tolist()[1:]
    assert run.metrics == other.metrics


def test_what_was_best_before_a_run_began_again_is_not_kept(cure: Callable[..., None]) -> None:
    """Noisy labels: each validation is worse than the one before, so what was undone is better than all that comes."""
    torch.manual_seed(0)
    x, y = torch.randn(96, 4), torch.randint(3, (96,))
    task = classes(data=(x, y), validation=(torch.randn(60, 4), torch.randint(3, (60,))))
    knobs = {"rule": "adamw", "patience": 4, "validate_every": 3}
    again = Cure("Begin again.", begin_again=True, rate_factor=30.0)
    cure(12, again)
    run = tw.train(task, made(**knobs))
    assert any(event.kind == "rollback" for event in run.events)
    cure(99, again)
    other = tw.train(task, made(**knobs, learning_rate=30 * RATE))
    assert same_bits(run.model, other.model)
    assert run.metrics == other.metrics
    assert run.history["step"].tolist() == other.history["step"].tolist()


def test_a_loss_with_buffers_is_at_its_beginning_too_where_a_run_begins_again(cure: Callable[..., None]) -> None:
    class Counting(nn.Module):
        calls: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return F.cross_entropy(outputs, targets) / (1 + 0.01 * self.calls)

    cure(12, CURES["begin again"])
    run = tw.train(classes(loss=Counting(), metrics={}, validation=None), made(rule="sgd"))
    assert any(event.kind == "rollback" for event in run.events)
    cure(99, CURES["begin again"])
    other = tw.train(classes(loss=Counting(), metrics={}, validation=None), made(rule="sgd", learning_rate=2 * RATE))
    assert same_bits(run.model, other.model)
    assert run.history["loss"].tolist()[1:] == other.history["loss"].tolist()[1:]


def test_a_beginning_that_cannot_be_made_again_lets_the_cure_hold_from_there(cure: Callable[..., None]) -> None:
    def maker() -> nn.Module:
        if trains:
            raise MemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return network()

    trains: list[int] = []
    cure(12, CURES["begin again"])
    run = tw.train(classes(model=maker), made(), on_step=lambda model, figures: trains.append(figures.step))
    assert trains == list(range(1, 61))
    assert run.history["learning_rate"].tolist()[12:14] == [RATE, 2 * RATE]
    assert any("could not be made once more" in event.message for event in run.events if event.kind == "note")


def test_a_rate_that_comes_down_from_its_height_keeps_the_warm_up_of_the_schedule(cure: Callable[..., None]) -> None:
    schedule = tw.schedule.step(warmup=6, milestones=[8], gamma=0.001)

    def question(window: Window) -> Diagnosis | None:
        if window.step != 12 or asked:
            return None
        asked.append(1)
        again = Cure("Begin again.", begin_again=True, anneal=0.7)
        return Diagnosis("odd", "It is odd.", "warning", 12, name="odd", cure=again)

    asked: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monitor, "all_causes", lambda: (Cause("odd", "a test", during=each_step(question)),))
        run = tw.train(classes(), made(schedule=schedule))
    (event,) = [event for event in run.events if event.kind == "rollback"]
    assert "at least 0.7 of its height" in event.message
    rates = run.history["learning_rate"].tolist()[1:]
    assert rates[:6] == pytest.approx([RATE * (n + 1) / 7 for n in range(6)])
    assert rates[6:8] == pytest.approx([RATE, RATE])
    assert rates[20] == pytest.approx(0.7 * RATE * (60 - 20) / (60 - 6))


def test_a_run_that_begins_again_counts_failures_anew() -> None:
    watching = monitor.Monitor(total=60)
    watching.attempts, watching.failed_at = 3, 40
    watching.began_again(1.0)
    assert watching._attempts_at(5) == 0  # pyright: ignore[reportPrivateUsage]


def test_a_run_does_not_begin_again_where_that_costs_much_or_cannot_be(cure: Callable[..., None]) -> None:
    def counting(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        seen.append(1)
        return F.cross_entropy(model(batch[0]), batch[1]) * (1 + 0 * len(seen))

    def begun_again(run: tw.Run) -> bool:
        return any(event.kind == "rollback" for event in run.events)

    cure(30, CURES["begin again"])
    late = tw.train(classes(), made())
    assert not begun_again(late)
    assert late.summary["cures"]["rate_factor"] == 2.0  # the cure holds from there
    cure(12, CURES["begin again"])
    assert not begun_again(tw.train(classes(), made(snapshot_every=0)))
    seen: list[int] = []
    assert not begun_again(tw.train(classes(loss=None, step=counting, metrics={}), made()))
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*blobs()), batch_size=16, sampler=iter(list(range(96)) * 9)
    )
    assert not begun_again(tw.train(classes(data=loader), made(steps=40)))


def test_several_batches_make_up_one_step_from_then_on(cure: Callable[..., None]) -> None:
    cure(12, CURES["several batches"])
    task = classes(metrics={}, validation=None)
    run = tw.train(task, made(rule="sgd", steps=30, snapshot_every=10))
    # 6 batches make an epoch: no step goes beyond its end, a snapshot's step or the end of the run.
    assert run.history["step"].tolist()[12:] == [12, 16, 18, 20, 24, 28, 30]
    descent, recorder = started(task, made(rule="sgd", steps=30, watch=False))
    walk(descent, recorder, until=12)
    x, y = blobs()
    for count in (4, 2, 2, 4, 4, 2):
        batches = [descent.batches.draw().indices for _ in range(count)]
        descent.model.zero_grad()
        for rows in batches:
            assert rows is not None
            (F.cross_entropy(descent.model(x[rows]), y[rows]) / count).backward()
        with torch.no_grad():
            for parameter in descent.model.parameters():
                parameter -= RATE * parameter.grad
    assert torch.allclose(weights(run.model), weights(descent.model), atol=1e-6)


def test_no_step_of_several_batches_goes_beyond_an_epoch_where_a_batch_was_left_out(cure: Callable[..., None]) -> None:
    cure(12, CURES["several batches"])
    descent, recorder = started(classes(), made(steps=40, snapshot_every=0))
    descent.skipped_batches = [(2, 1)]
    seen: list[list[tuple[int, int]]] = []
    accepted = recorder.step

    def note(figures: StepFigures, *, taken: bool = True) -> None:
        accepted(figures, taken=taken)
        seen.append(list(descent.last_positions))

    recorder.step = note
    walk(descent, recorder)
    assert [(2, 0), (2, 2), (2, 3), (2, 4)] in seen
    assert [(3, 0), (3, 1), (3, 2), (3, 3)] in seen
    assert all(len({epoch for epoch, _ in positions}) == 1 for positions in seen)


@pytest.mark.parametrize("knobs", [{"batch_size": 96}, {"snapshot_every": 1}])
def test_where_no_step_can_be_made_of_several_batches_that_is_said(
    cure: Callable[..., None], knobs: dict[str, int]
) -> None:
    cure(12, CURES["several batches"])
    run = tw.train(classes(), made(**knobs))
    assert run.history["step"].tolist() == list(range(61))
    (found,) = run.diagnoses
    assert found.cure is not None
    assert "No step is made of several here" in found.cure.action
    assert "accumulate" not in run.summary["cures"]


def test_several_batches_of_a_loss_that_is_a_sum_are_averaged(cure: Callable[..., None]) -> None:
    def step(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"fit": F.cross_entropy(model(batch[0]), batch[1], reduction="sum")}

    cure(12, CURES["several batches"])
    task = classes(loss=None, step=step, metrics={}, validation=None)
    knobs = {"rule": "sgd", "steps": 20, "snapshot_every": 0, "learning_rate": RATE}
    run = tw.train(task, made(**knobs))
    descent, recorder = started(task, made(**knobs, watch=False))
    walk(descent, recorder, until=12)
    x, y = blobs()
    losses = [F.cross_entropy(descent.model(x[r]), y[r], reduction="sum") for r in _next_rows(descent, 4)]
    mean = torch.stack(losses).mean()
    value = pytest.approx(mean.item(), rel=1e-6)
    assert run.history["loss"][13] == value
    assert run.history["term/fit"][13] == value
    descent.model.zero_grad()
    mean.backward()
    norm = sum(float(p.grad.square().sum()) for p in descent.model.parameters() if p.grad is not None) ** 0.5
    assert run.history["gradient_norm"][13] == pytest.approx(norm, rel=1e-5)


def _next_rows(descent: Descent, count: int) -> list[torch.Tensor]:
    rows = [descent.batches.draw().indices for _ in range(count)]
    return [one for one in rows if one is not None]


@pytest.mark.parametrize("by", ["data", "loss"])
def test_of_several_batches_that_make_up_a_step_only_the_bad_ones_are_left_out(
    cure: Callable[..., None], by: str
) -> None:
    """Two bad batches, in steps of several batches, are two bad batches: the run goes on, and no good one is lost."""

    class Overflowing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network(nn.BatchNorm1d(12))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.net(x)
            return out * math.inf if self.training and bool((x[:, 0] > 50).any()) else out

    x, y = blobs(960)
    x[[20 * 16 + 1, 25 * 16 + 1]] = torch.tensor([math.nan if by == "data" else 60.0, 0, 0, 0])
    drawn: list[tuple[int, int]] = []
    cure(8, CURES["several batches"])
    data = list(zip(x, y, strict=True)) if by == "data" else (x, y)
    task = classes(model=Overflowing, data=data, metrics={}, validation=blobs(60, seed=1))
    descent, recorder = started(task, made(rule="sgd", steps=58, snapshot_every=50, shuffle=False))
    accepted = recorder.step

    def note(figures: StepFigures, *, taken: bool = True) -> None:
        accepted(figures, taken=taken)
        if taken:
            drawn.extend(descent.last_positions)

    recorder.step = note
    walk(descent, recorder)
    assert descent.skipped_batches == [(0, 20), (0, 25)]
    assert {(0, n) for n in range(60)} - set(drawn) <= {(0, 20), (0, 25)}


def test_several_batches_none_of_which_fails_by_itself_count_as_one_step(cure: Callable[..., None]) -> None:
    cure(8, CURES["several batches"])
    task = classes(data=blobs(960), metrics={}, validation=None)
    descent, recorder = started(task, made(rule="sgd", steps=40, snapshot_every=50))
    walk(descent, recorder, until=20)
    compute_gradient(descent, recorder)
    positions = list(descent.last_positions)
    assert len(positions) == 4
    leave_batch_out(descent, recorder, StepFigures(24, math.nan, RATE, math.nan, skipped=True), None)
    assert descent.skipped_batches == positions
    assert descent.consecutive_skips == 1
    assert descent.load_state_dict(descent.snapshot or {}, rollback=True) == []
    for _ in range(8):
        draw(descent)
    assert descent.consecutive_skips == 1


def test_an_average_of_the_weights_is_validated_from_then_on_and_kept_where_it_is_better(
    cure: Callable[..., None],
) -> None:
    cure(12, CURES["average"])
    run = tw.train(classes(), made(rule="sgd", learning_rate=RATE, validate_every=10))
    averaged = run.history["ema/loss"]
    assert [step for step, value in zip(run.history["step"], averaged, strict=True) if value == value] == [
        20,
        30,
        40,
        50,
        60,
    ]
    assert run.summary["cures"]["ema"] == 0.9
    cure(12, CURES["average"])
    planned = tw.train(classes(), made(rule="sgd", ema=0.99))
    assert "ema" not in planned.summary["cures"]  # the plan's own stays


def test_examples_that_are_left_out_come_no_more(cure: Callable[..., None]) -> None:
    class Noting(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
        def __init__(self) -> None:
            self.x, self.y = blobs()

        def __len__(self) -> int:
            return len(self.x)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            given.append(index)
            return self.x[index], self.y[index]

    given: list[int] = []
    after: list[list[int]] = []

    def note(model: nn.Module, figures: StepFigures) -> None:
        if figures.step > 13:
            after.append(given.copy())
        given.clear()

    cure(12, CURES["leave out"], (3, 5))
    run = tw.train(classes(data=Noting(), metrics={}, validation=blobs(seed=1)), made(), on_step=note)
    seen = {index for batch in after for index in batch}
    assert seen == set(range(96)) - {3, 5}
    assert any("2 training examples are left out from here on: 3, 5." in event.message for event in run.events)


def test_batches_all_of_whose_examples_are_left_out_are_passed(cure: Callable[..., None]) -> None:
    cure(12, CURES["leave out"], (3, 5))
    descent, recorder = started(classes(), made(batch_size=1, steps=200, snapshot_every=0))
    seen: list[int] = []
    accepted = recorder.step

    def note(figures: StepFigures, *, taken: bool = True) -> None:
        accepted(figures, taken=taken)
        assert descent.last_draw is not None
        assert descent.last_draw.indices is not None
        seen.extend(descent.last_draw.indices.tolist())

    recorder.step = note
    walk(descent, recorder)
    assert {3, 5}.isdisjoint(seen[12:])
    assert set(seen[12:]) == set(range(96)) - {3, 5}


def test_batch_statistics_of_an_average_are_of_no_example_that_is_left_out(cure: Callable[..., None]) -> None:
    x, y = blobs()
    x[[3, 5]] = 1e3
    task = classes(model=lambda: network(nn.BatchNorm1d(12)), data=(x, y))
    cure(12, Cure("Leave out.", leave_out=True, ema=0.9), (3, 5))
    descent, recorder = started(task, made(rule="sgd", steps=40, snapshot_every=0))
    walk(descent, recorder)
    with averaged(descent):
        variance = descent.model.get_buffer("1.running_var").max()
    assert variance < 100


def test_no_more_than_a_few_examples_are_left_out(cure: Callable[..., None]) -> None:
    cure(12, CURES["leave out"], range(20))
    run = tw.train(classes(), made())
    assert not any("left out from here" in event.message for event in run.events)
    assert any("No more examples are left out" in event.message for event in run.events)
