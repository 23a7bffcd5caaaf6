"""The batch size: what is measured of each candidate, and which is chosen for a budget."""

from __future__ import annotations

import math
import os
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import thalweg as tw
from thalweg.descent.memory_use import Room
from thalweg.descent.problem import open_task
from thalweg.examples import digits
from thalweg.landscape.noise_scale import NoiseScale
from thalweg.records.request import Request
from thalweg.tuning import batch_size, memory
from thalweg.tuning.batch_size import FEWEST_STEPS, Measured, Measurements, candidates, choose
from thalweg.tuning.memory import MEMORY, Memory, Trial
from thalweg.tuning.tune import start_plan


def found(*speeds: float | None, first: int = 8, noise: NoiseScale | float | None = None) -> Measurements:
    """Make candidates of doubling sizes with these examples per second; None: memory does not hold it."""
    sizes = [first * 2**k for k in range(len(speeds))]
    rows = tuple(Measured(size, size / s if s else None, 1e6 * size) for size, s in zip(sizes, speeds, strict=True))
    scale = NoiseScale(noise, noise / 2, noise * 2) if isinstance(noise, float | int) else noise
    return Measurements(rows, None, scale)


def chosen(measured: Measurements, count: int | None = 10**6, **budget: Any) -> int:
    return choose(measured, Request(**budget), count)[0]


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(1, [1]), (5, [5]), (20, [8]), (100, [8, 16]), (700, [8, 16, 32, 64, 128])],
)
def test_candidates_are_powers_of_two_that_leave_several_steps_an_epoch(count: int, sizes: list[int]) -> None:
    assert candidates(count) == sizes


def test_candidates_go_far_where_there_are_many_examples() -> None:
    assert candidates(10**9) == candidates(None) == [2**k for k in range(3, 17)]


# Choosing


@pytest.mark.parametrize(("examples", "size"), [(100, 8), (80_000, 16), (160_000, 32), (320_000, 64), (10**9, 128)])
def test_of_epochs_the_largest_that_leaves_enough_updates_is_chosen(examples: int, size: int) -> None:
    assert chosen(found(1e8, 2e8, 4e8, 8e8, 16e8), count=examples, epochs=1) == size


def test_of_epochs_none_is_chosen_whose_gradients_would_hardly_be_noisy() -> None:
    fast = found(*[1e9] * 8, noise=10.0)  # at most 20, which may grow fourfold
    assert chosen(fast, count=10**9, epochs=1) == 64
    assert chosen(found(*[1e9] * 8, noise=NoiseScale(math.inf, 5.0, math.inf)), count=10**9, epochs=1) == 1024


def test_a_small_batch_must_not_make_a_long_run_several_times_as_long() -> None:
    measured = found(1e3, 2e3, 4e3, 5e3, 5.5e3)
    assert chosen(measured, count=2_900, epochs=1) == 8  # under three seconds
    assert chosen(measured, count=5_900, epochs=1) == 8  # 16 would leave less than 500 updates
    assert chosen(measured, count=8_100, epochs=1) == 16  # 32 would leave less than 500 updates
    assert chosen(measured, count=39_000, epochs=1) == 32  # 64 is not half as fast again
    size, why = choose(measured, Request(epochs=1), 39_000)
    assert (size, why.reason) == (32, "smaller ones make the run 1.5 times as long or longer")


@pytest.mark.parametrize(("noise", "size"), [(1.0, 16), (20.0, 16), (100.0, 32), (1e6, 128)])
def test_of_time_the_least_to_a_target_is_chosen(noise: float, size: int) -> None:
    measured = found(1000.0, 1600.0, 2200.0, 2600.0, 2800.0, noise=noise)
    scale = max(noise, batch_size.NOISE_FLOOR)
    times = {one.batch_size: (1 + scale / one.batch_size) * (one.seconds or 0) for one in measured.candidates}
    assert (
        chosen(measured, seconds=10) == chosen(measured, None, steps=100) == min(times, key=lambda b: times[b]) == size
    )


def test_a_batch_that_is_as_fast_a_step_as_a_smaller_one_is_always_better() -> None:
    assert chosen(found(100.0, 200.0, 400.0, noise=1.0), seconds=10) == 32


@pytest.mark.parametrize("noise", [None, NoiseScale(math.inf, 3.0, math.inf)])
def test_without_a_noise_scale_the_smallest_that_is_half_as_fast_is_chosen(noise: NoiseScale | None) -> None:
    size, why = choose(found(100, 390, 800, 700, noise=noise), Request(steps=9), None)
    assert size == 32
    assert "at least half as fast" in why.reason


def test_sizes_that_memory_does_not_hold_are_left() -> None:
    assert chosen(found(100, 200, None), count=10**9, epochs=100) == 16


def test_where_memory_never_suffices_the_smallest_is_cut_into_parts() -> None:
    size, why = choose(found(None), Request(epochs=1), 100)
    assert size == 8
    assert "memory does not hold the smallest" in why.reason


def test_a_size_that_fails_between_others_is_left_and_named() -> None:
    rows = found(100, 200, 400).candidates
    broken = rows[1]._replace(seconds=None, error="shapes differ")
    measured = Measurements((rows[0], broken, rows[2]))
    size, why = choose(measured, Request(epochs=1), 10**6)
    assert size == 32
    assert why.figures["failed"] == {"16": "shapes differ"}


# Evidence


def test_the_evidence_shows_what_was_measured() -> None:
    parts = {"weights": (3e6, 0.0), "activations": (0.0, 2e3)}
    line = Memory(3e6, 2e3, 0.0, parts, (), Room(10**9, "what is free on this machine"), 8e8, "measured in children")
    measured = found(100.0, 200.0, noise=NoiseScale(12.34, 8.0, 20.04))._replace(memory=line)
    _, why = choose(measured, Request(epochs=1), 100)
    assert why.source == "measured"
    assert why.figures == {
        "batch_sizes": [8, 16],
        "examples_per_second": [100, 200],
        "megabytes": [8.0, 16.0],
        "memory": "measured in children",
        "fixed_megabytes": {"weights": 3.0},
        "kilobytes_per_example": {"activations": 2.0},
        "memory_limit_megabytes": 800.0,
        "memory_limit": "what is free on this machine",
        "noise_scale": [12.3, 8.0, 20.0],
    }
    plan = tw.Plan(batch_size=8, evidence={"batch_size": why})
    assert tw.Plan.from_dict(plan.to_dict()).why("batch_size") == why


def test_of_a_noise_scale_with_no_upper_end_the_bound_is_told() -> None:
    unbounded = NoiseScale(math.inf, 340.0, math.inf)
    assert choose(found(1.0, 2.0, noise=unbounded), Request(steps=1), None)[1].figures["noise_scale_above"] == 340.0


# Measuring


def measured(task: tw.Task, **budget: Any) -> Measurements:
    request = Request(**budget)
    return batch_size.measure(open_task(task), tw.Plan(learning_rate=1e-2), request)


def blobs(count: int = 600) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(0))
    return x, (x.sum(1) > 0).long()


class Small(nn.Module):
    def __init__(self, refused: tuple[int, ...] = (), error: str = "shapes differ") -> None:
        super().__init__()
        self.scores, self.refused, self.error = nn.Linear(4, 2), refused, error

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) in self.refused:
            raise RuntimeError(self.error)
        return self.scores(x)


def task(model: Any = Small, **parts: Any) -> tw.Task:
    usual: dict[str, Any] = {"loss": F.cross_entropy, "data": blobs()}
    return tw.Task(model=model, **{**usual, **parts})


def test_times_memory_and_noise_are_measured() -> None:
    made = measured(task(), epochs=1)
    assert [one.batch_size for one in made.candidates][:3] == [8, 16, 32]
    assert all(one.seconds and one.bytes for one in made.candidates)
    assert made.memory is not None


def test_a_size_that_fails_is_no_ceiling() -> None:
    made = measured(task(lambda: Small((16,))), epochs=1)
    assert [one.batch_size for one in made.candidates if one.seconds][:2] == [8, 32]
    assert "shapes differ" in made.candidates[1].error


def test_where_every_size_fails_the_error_is_raised() -> None:
    with pytest.raises(tw.TaskError, match="shapes differ"):
        measured(task(lambda: Small((8, 16, 64)), data=blobs(90)), epochs=1)


def test_memory_that_runs_out_here_is_a_ceiling() -> None:
    made = measured(task(lambda: Small((32,), "out of memory")), epochs=1)
    assert [one.batch_size for one in made.candidates] == [8, 16, 32]
    assert made.candidates[-1].seconds is None
    assert not made.candidates[-1].error


def test_no_size_is_timed_that_memory_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Memory(0.0, 1e6, 0.0, {}, (), Room(100, "what is free"), 40e6, "as told")
    monkeypatch.setattr(batch_size, "measure_memory", lambda *_, **__: line)
    made = measured(task(lambda: Small((64, 128))), epochs=1)
    assert [(one.batch_size, one.seconds is None) for one in made.candidates] == [
        (8, False),
        (16, False),
        (32, False),
        (64, True),
    ]


def test_a_loss_that_compares_examples_has_no_noise_scale() -> None:
    def contrast(output: Tensor, target: Tensor) -> Tensor:
        alike = output @ output.T
        return F.cross_entropy(alike, torch.arange(len(output))) + 0.0 * target.sum()

    assert measured(task(loss=contrast), steps=100).noise is None


# Parts of steps


def line(budget: float) -> Memory:
    return Memory(0.0, 1e6, 0.0, {}, (Trial(1000, MEMORY),), Room(int(budget), "what is free"), budget, "as told")


@pytest.mark.parametrize(("budget", "count"), [(120e6, None), (100e6, 2), (30e6, 4), (10e6, 12), (1.0, 100)])
def test_steps_that_memory_does_not_hold_are_cut_so_that_it_does(budget: float, count: int | None) -> None:
    plan = tw.Plan(batch_size=100)
    cut = batch_size.parts(open_task(task()), plan, line(budget))
    assert (None if cut is None else cut[0]) == count
    if cut is not None and budget > 1e6:
        assert line(budget).fits(math.ceil(100 / cut[0]))


def test_batch_normalisation_is_left_two_examples_a_part() -> None:
    normalised = task(lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    cut = batch_size.parts(open_task(normalised), tw.Plan(batch_size=9), line(1.0))
    assert cut is not None
    assert cut[0] == 4


def test_a_given_batch_that_memory_does_not_hold_goes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scores = nn.Linear(4, 2)
            self.parent = os.getpid()

        def forward(self, x: Tensor) -> Tensor:
            assert len(x) <= 128 or os.getpid() != self.parent  # large ones only in a child
            kept = (x[:, :1].expand(-1, 50_000) * self.scores.weight[0, 0]).tanh()
            return self.scores(x) + kept.mean(1, keepdim=True)

    monkeypatch.setattr(memory, "room", lambda _: Room(120_000_000, "what is free in this test"))
    request = Request(steps=3, effort=1, fixed={"batch_size": 512})
    plan = start_plan(open_task(task(Keeps)), request)
    assert plan.batch_size == 512
    assert plan.accumulate >= 4
    assert plan.why("accumulate").source == "measured"
    assert "what is free in this test" in plan.why("accumulate").reason
    alone = start_plan(open_task(task(Keeps)), Request(steps=3, effort=1, fixed={"batch_size": 512, "accumulate": 8}))
    assert alone.accumulate == 8


def test_a_limit_is_given_as_bytes_or_as_text() -> None:
    assert Request(memory="512 MiB").memory_bytes == Request(memory=2**29).memory_bytes == 2**29
    run = tw.fit(task(), steps=3, effort=1, memory="64 GB")
    assert run.plan.why("batch_size").figures["memory_limit"] == "what the limit given leaves"


@pytest.mark.parametrize("value", ["many", "4 XB", "", -1, 0, True, math.inf, math.nan, "1..2 GB", [1]])
def test_a_limit_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(tw.PlanError, match="`memory` is"):
        Request(memory=value)


def test_updates_are_counted_over_the_whole_run() -> None:
    assert chosen(found(*[100.0] * 3), count=16 * FEWEST_STEPS, epochs=1) == 16
    assert chosen(found(*[100.0] * 3), count=16 * FEWEST_STEPS, epochs=2) == 32


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("examples", "epochs", "share"), [(200, 2, 0.95), (60, 5, 0.95), (200, 10, 1.3)])
def test_of_few_examples_the_chosen_batches_are_no_worse_than_32(
    examples: int, epochs: int, share: float, seed: int
) -> None:
    whole: Any = digits.task(hidden=64)
    few = tw.Task(
        model=whole.model, loss=whole.loss, data=tuple(a[:examples] for a in whole.data), validation=whole.validation
    )
    small = tw.fit(few, epochs=epochs, seed=seed, effort=2)
    larger = tw.fit(few, epochs=epochs, seed=seed, effort=2, fixed={"batch_size": 32})
    assert small.plan.batch_size == 8
    assert small.metrics["loss"] < share * larger.metrics["loss"]


def test_what_is_measured_is_what_is_trained_with_the_groups_that_a_rule_leaves_to_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An embedding that Muon would move takes far longer and more memory than by AdamW, which will move it."""
    seen, measure = list[tw.Plan](), batch_size.measure

    def seeing(problem: Any, plan: tw.Plan, request: Request) -> Measurements:
        seen.append(plan)
        return measure(problem, plan, request)

    monkeypatch.setattr(batch_size, "measure", seeing)
    words, classes = torch.arange(120) % 50, torch.arange(120) % 3

    def model() -> nn.Module:
        return nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

    plan = tw.tune(tw.Task(model, nn.functional.cross_entropy, (words, classes)), steps=6, effort=1, progress=False)
    assert plan.rule == "muon"
    assert [one.groups for one in seen] == [plan.groups]
    assert [*plan.groups] == ["0.weight", "3.weight"]
