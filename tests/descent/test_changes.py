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


def test_no_more_than_a_few_examples_are_left_out(cure: Callable[..., None]) -> None:
    cure(12, CURES["leave out"], range(20))
    run = tw.train(classes(), made())
    assert not any("left out from here" in event.message for event in run.events)
    assert any("No more examples are left out" in event.message for event in run.events)
