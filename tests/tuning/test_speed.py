"""The knobs of speed: which are tried, on what evidence they are taken, and that what they must not change stays."""

from __future__ import annotations

import math
import os
import signal
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from images import convolutions, images, plan, task  # pyright: ignore[reportMissingImports]
from small import classes  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import thalweg as tw
from thalweg.descent import settle as settling
from thalweg.descent.problem import Problem, open_task
from thalweg.descent.settle import settle
from thalweg.descent.timing import StepTime, TimedDescent
from thalweg.records.plan import Plan
from thalweg.records.request import Request
from thalweg.tuning import comparison, compiling, half_precision, loader_workers, memory_format, speed
from thalweg.tuning.comparison import Compared, Finding, Trial, compare
from thalweg.tuning.half_precision import Pair, judged
from thalweg.tuning.tune import start_plan
from thalweg.verbs import estimate

X, Y = images()


class Images(Dataset[Any]):
    """Images one by one, each after some thinking."""

    def __init__(self, thinks: float = 0.0) -> None:
        self.thinks = thinks

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        end = time.perf_counter() + self.thinks
        while time.perf_counter() < end:
            pass
        return X[index], Y[index]


class Counting(Images):
    """A data set that notes what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.asked += 1
        return super().__getitem__(index)


class Elsewhere(Images):
    """A data set that gives other examples in another process."""

    def __init__(self) -> None:
        super().__init__()
        self.process = os.getpid()

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = super().__getitem__(index)
        return (x if os.getpid() == self.process else x + 1), y


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(zip(X, Y, strict=True))


class Viewing(nn.Module):
    """A model that relies on the order in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.last = nn.Conv2d(3, 4, 3), nn.Linear(144, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.convolution(x).view(len(x), -1))


class Raw(Viewing):
    """A model that reads its features as they lie in memory."""

    def forward(self, x: Tensor) -> Tensor:
        features = self.convolution(x)
        return self.last(features.as_strided((len(x), 144), (144, 1)))


def trial(made: tw.Task, total: float = 1e6, per_step: float = 0.01, **knobs: Any) -> Trial:
    problem = open_task(made)
    return Trial(problem, settle(problem, plan(**knobs), Request()), per_step, total, lambda _: None)


def taking(monkeypatch: pytest.MonkeyPatch, ratio: float) -> None:
    """Let a step with the change take this share of its time, whatever the clock says."""

    def compared(trial: Trial, changed: tw.Plan) -> Compared:
        compare(trial, changed)  # what fails, fails here
        return Compared(1.0, ratio, ratio)

    for module in (memory_format, half_precision, compiling):
        monkeypatch.setattr(module, "compare", compared)
    monkeypatch.setattr(comparison, "ROUNDS", 1)
    monkeypatch.setattr(comparison, "BLOCK", 1)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    taking(monkeypatch, 0.5)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    taking(monkeypatch, 0.99)


def test_two_plans_are_timed_in_turn_and_without_a_trace() -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    compared = compare(trial(task()), plan(memory_format="channels_last"))
    assert compared.without > 0
    assert compared.changed > 0
    assert compared.ratio > 0
    assert torch.equal(state, torch.get_rng_state())
    assert threads == torch.get_num_threads()


# Memory format


@pytest.mark.usefixtures("fast")
def test_channels_last_are_taken_where_they_are_faster() -> None:
    found = memory_format.choose(trial(task()))
    assert found is not None
    assert found.value == "channels_last"
    assert found.reason == "a step takes 0.50 of its time with channels last"
    assert found.figures == {"memory_format": ["contiguous", "channels_last"], "seconds_per_step": [1.0, 0.5]}


@pytest.mark.usefixtures("slow")
def test_channels_last_are_left_where_they_are_not() -> None:
    found = memory_format.choose(trial(task()))
    assert found is not None
    assert found.value == "contiguous"
    assert "not at least 5 % faster" in found.reason


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(
    ("model", "words"), [(Viewing, "does not compute with channels last"), (Raw, "another loss, by")]
)
def test_a_model_that_relies_on_the_order_in_memory_is_left(model: type[nn.Module], words: str) -> None:
    found = memory_format.choose(trial(task(model=model)))
    assert found is not None
    assert found.value == "contiguous"
    assert words in found.reason


@pytest.mark.usefixtures("fast")
def test_dropout_whose_noise_follows_the_order_is_no_other_loss() -> None:
    found = memory_format.choose(trial(task(model=lambda: convolutions(nn.Dropout(0.5)))))
    assert found is not None
    assert found.value == "channels_last"


def test_models_without_images_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_format, "compare", None)
    sound = task(
        model=lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2)),
        data=(X[..., 0], Y),
        validation=None,
    )
    assert memory_format.choose(trial(sound)) is None
    assert memory_format.choose(trial(classes())) is None


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("data", [Stream(), DataLoader(Images(), batch_size=8), Images()])
def test_any_kind_of_data_is_timed_and_goes_on_where_it_was(data: Any) -> None:
    found = memory_format.choose(trial(task(data=data), batch_size=8))
    assert found is not None
    assert found.value == "channels_last"


# Loader workers


def test_data_in_memory_and_loaders_have_no_workers_to_choose() -> None:
    for data in ((X, Y), Stream(), DataLoader(Images(), batch_size=8)):
        assert loader_workers.choose(trial(task(data=data), batch_size=8)) is None


def test_where_loading_costs_nothing_no_workers_are_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_workers, "_loading_seconds", lambda trial: 0.0004)
    found = loader_workers.choose(trial(task(data=Images())))
    assert found == Finding(0, "loading takes 4% of a step")


@pytest.mark.parametrize(("seconds", "count"), [([1.0, 0.4], 2), ([1.0, 0.97], 0)])
def test_workers_are_taken_where_a_step_is_faster(
    seconds: list[float], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter(seconds)
    monkeypatch.setattr(loader_workers, "usable_cores", lambda: 2)
    monkeypatch.setattr(loader_workers, "_loading_seconds", lambda trial: 0.008)
    monkeypatch.setattr(loader_workers, "_mean_seconds", lambda *_: next(times))
    found = loader_workers.choose(trial(task(data=Images())))
    assert found is not None
    assert found.value == count
    assert found.figures["workers"] == [0, 2]
    assert found.figures["seconds_per_step"] == seconds


def test_time_that_loading_takes_is_measured() -> None:
    slow_data = trial(task(data=Images(0.0005)))
    assert loader_workers._loading_seconds(slow_data) > 0.009
    assert loader_workers._mean_seconds(slow_data, slow_data.plan, 1) > 0.009


@pytest.mark.parametrize("data", [Counting(), Elsewhere()])
def test_no_workers_where_they_would_give_others_or_the_data_change(
    data: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_workers, "_loading_seconds", lambda trial: 0.008)
    found = loader_workers.choose(trial(task(data=data)))
    assert found is not None
    assert found.value == 0
    assert "examples differ in workers, or the data set changes as it is read" in found.reason


def test_no_workers_where_they_would_run_the_script_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_workers, "_loading_seconds", lambda trial: 0.008)
    monkeypatch.setattr(loader_workers.multiprocessing, "get_start_method", lambda: "spawn")
    found = loader_workers.choose(trial(task(data=Images())))
    assert found is not None
    assert found.value == 0
    assert "runs your script again" in found.reason


def test_the_number_of_workers_changes_no_bit() -> None:
    one, other = (tw.train(task(data=Images()), plan(workers=n)) for n in (0, 2))
    assert all(map(torch.equal, one.model.state_dict().values(), other.model.state_dict().values()))


# Precision


@pytest.fixture
def fast_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_precision, "has_fast_bfloat16", lambda device: True)


@pytest.mark.usefixtures("fast", "fast_bfloat16")
def test_bfloat16_is_taken_where_pairs_of_runs_end_alike() -> None:
    found = half_precision.choose(trial(task(), total=36.0))
    assert found is not None
    assert found.figures["steps"] == 45
    assert len(found.figures["float32_losses"]) == len(found.figures["bfloat16_losses"]) == 2
    pairs = [
        Pair(*p, 10.0) for p in zip(found.figures["float32_losses"], found.figures["bfloat16_losses"], strict=True)
    ]
    assert (found.value == "bfloat16") == (judged(pairs) == "")
    assert "takes 0.50 of its time in bfloat16" in found.reason


@pytest.mark.usefixtures("slow", "fast_bfloat16")
def test_no_pair_is_trained_where_bfloat16_is_no_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_precision, "_paired", None)
    found = half_precision.choose(trial(task(), total=36.0))
    assert found is not None
    assert found.value == "float32"
    assert "not worth rounding" in found.reason


@pytest.mark.usefixtures("fast", "fast_bfloat16")
@pytest.mark.parametrize(
    ("changes", "total"),
    [
        ({}, 20.0),  # a run too short for pairs
        ({"loss": F.mse_loss, "data": (X, X.mean((2, 3))[:, :2])}, 1e6),
        ({"loss": lambda outputs, targets: outputs.square().mean()}, 1e6),
        ({"model": lambda: convolutions().double()}, 1e6),
    ],
)
def test_no_bfloat16_for_short_runs_real_targets_unknown_losses_and_other_dtypes(
    changes: dict[str, Any], total: float
) -> None:
    assert half_precision.choose(trial(task(validation=None, **changes), total=total)) is None


@pytest.mark.usefixtures("fast")
def test_no_bfloat16_on_a_machine_that_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_precision, "has_fast_bfloat16", lambda device: False)
    assert half_precision.choose(trial(task(), total=36.0)) is None


@pytest.mark.usefixtures("fast", "fast_bfloat16")
def test_a_model_that_fails_in_bfloat16_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    class Exact(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = convolutions()

        def forward(self, x: Tensor) -> Tensor:
            outputs = self.inner(x)
            return outputs + torch.from_numpy(outputs.detach().numpy())

    found = half_precision.choose(trial(task(model=Exact), total=36.0))
    assert found is not None
    assert found.value == "float32"
    assert "does not compute in bfloat16" in found.reason


def by_format(monkeypatch: pytest.MonkeyPatch, ratios: dict[str, float]) -> None:
    """Let a step in bfloat16 take this share of its time in each memory format, and pairs of runs end alike."""

    def compare_by_format(trial: Trial, changed: tw.Plan) -> Compared:
        compare(trial, changed)
        assert changed.precision == "bfloat16"
        ratio = ratios[changed.memory_format]
        return Compared(1.0, ratio, ratio)

    monkeypatch.setattr(half_precision, "compare", compare_by_format)
    monkeypatch.setattr(half_precision, "_trained", lambda problem, plan: (2.0, 0.5))


@pytest.mark.usefixtures("fast", "fast_bfloat16")
@pytest.mark.parametrize(
    ("ratios", "before", "after", "words"),
    [
        ({"contiguous": 0.9, "channels_last": 0.5}, "contiguous", "channels_last", "bfloat16 with channels last"),
        ({"contiguous": 0.5, "channels_last": 0.9}, "channels_last", "contiguous", "bfloat16 without channels last"),
        ({"contiguous": 0.5, "channels_last": 0.49}, "contiguous", "contiguous", "0.50 of its time in bfloat16,"),
    ],
)
def test_bfloat16_brings_the_memory_format_along_with_which_it_pays(
    ratios: dict[str, float], before: str, after: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_format(monkeypatch, ratios)
    found = half_precision.choose(trial(task(), total=36.0, memory_format=before))
    assert found is not None
    assert found.value == "bfloat16"
    assert words in found.reason
    assert {name: one.value for name, one in found.beside.items()} == (
        {} if after == before else {"memory_format": after}
    )
    start = open_task(task())
    monkeypatch.setattr(speed, "CHOICES", {"precision": half_precision.choose})
    monkeypatch.setattr(speed, "time_steps", lambda *_, **__: StepTime(0.01, True))
    timed = settle(start, plan(steps=3600, memory_format=before), Request())
    chosen = speed.with_speed(start, Request(steps=3600, effort=1), timed, lambda per_step: 36.0)
    assert (chosen.precision, chosen.memory_format) == ("bfloat16", after)
    assert (chosen.why("memory_format").source == "measured") == (after != before)


@pytest.mark.usefixtures("fast", "fast_bfloat16")
@pytest.mark.parametrize("made", [{"model": Viewing}, {"model": Raw}, {"fixed": True}])
def test_bfloat16_brings_no_memory_format_along_that_is_decided_or_does_not_serve(
    made: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_format(monkeypatch, {"contiguous": 0.8, "channels_last": 0.5})
    is_fixed = made.pop("fixed", False)
    tried = replace(trial(task(**made), total=36.0), fixed={"memory_format"} if is_fixed else ())
    found = half_precision.choose(tried)
    assert found is not None
    assert (found.value, found.beside) == ("bfloat16", {})
    assert "takes 0.80 of its time" in found.reason


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([(0.5, 0.5, 2.0), (0.6, 0.6, 2.0)], ""),
        ([(0.5, 0.4, 2.0), (0.5, 0.5, 2.0)], ""),
        ([(0.5, 0.505, 2.0), (0.52, 0.525, 2.0)], ""),  # 1 % worse, and seeds lie 3 % apart
        ([(0.5, 0.505, 2.0), (0.501, 0.506, 2.0)], "1.0 % worse"),  # but these are alike
        ([(0.5, 0.55, 2.0), (0.9, 0.99, 2.0)], "10.0 % worse"),  # no spread excuses a tenth
        ([(0.5, 0.5, 2.0)], "no time"),
        ([(0.5, math.nan, 2.0), (0.5, 0.5, 2.0)], "finite"),
        ([(1.9, 1.9, 2.0), (1.9, 1.9, 2.0)], "learnt too little"),
        ([(0.0, 0.0, 2.0), (0.0, 0.0, 2.0)], "zero or less"),
    ],
)
def test_pairs_are_judged_by_how_far_seeds_lie_apart(pairs: list[Any], words: str) -> None:
    found = judged([Pair(*pair) for pair in pairs])
    assert (found == "") if not words else (words in found)


def test_an_interruption_in_a_paired_run_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            signal.raise_signal(signal.SIGINT)
        return F.cross_entropy(outputs, targets)

    with pytest.raises(KeyboardInterrupt):
        half_precision._paired(trial(task(loss=loss)), plan(precision="bfloat16"), 4)


# Compiling


@pytest.mark.usefixtures("fast")
def test_compiling_is_not_tried_in_short_runs_or_for_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "tried_in_child", None)
    assert compiling.choose(trial(task(), total=100.0)) is None
    assert compiling.choose(trial(task(data=Stream()), total=1e6, batch_size=8)) is None
    monkeypatch.setattr(compiling, "can_fork", lambda device: False)
    assert compiling.choose(trial(task(), total=1e6)) is None


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(
    ("tried", "total", "value", "words"),
    [
        (compiling.Tried(10.0, 0.5), 1000.0, True, "which pays in 16 min 40 s"),
        (compiling.Tried(100.0, 0.9), 900.0, False, "which does not pay in 15 min"),
        (compiling.Tried(10.0, 1.2), 1000.0, False, "takes 1.20 of its time, and compiling 10 s, which does not pay"),
        (compiling.Tried(failure="no compiler"), 1000.0, False, "does not serve here: no compiler"),
    ],
)
def test_compiling_is_taken_where_it_saves_more_than_it_costs(
    tried: compiling.Tried, total: float, value: bool, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(compiling, "tried_in_child", lambda *_: tried)
    found = compiling.choose(trial(classes(), total=total))
    assert found is not None
    assert found.value is value
    assert words in found.reason


def test_a_trial_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "tried", lambda problem, plan: time.sleep(60))
    started = time.monotonic()
    found = compiling.tried_in_child(open_task(classes()), plan(compile=True), 0.2)
    assert found.failure == "it was not done within 0.2 s"
    assert time.monotonic() - started < 30


def test_a_trial_that_dies_or_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = open_task(classes())
    monkeypatch.setattr(compiling, "tried", lambda problem, plan: os.kill(os.getpid(), signal.SIGKILL))
    assert compiling.tried_in_child(problem, plan(compile=True), 30.0).failure == "the process that tried it died"

    def fail(problem: Any, plan: Any) -> Any:
        raise KeyError("cxx")

    monkeypatch.setattr(compiling, "tried", fail)
    assert compiling.tried_in_child(problem, plan(compile=True), 30.0).failure == "KeyError: 'cxx'"


def test_what_is_tried_in_a_child_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    found = compiling.tried_in_child(open_task(classes()), plan(compile=True, batch_size=16), 60.0)
    assert not found.failure
    assert found.seconds > 0
    assert found.ratio > 0


def test_a_model_whose_calls_are_never_whole_batches_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0][:5]), batch[1][:5])

    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    found = compiling.tried(open_task(classes(loss=None, step=step, metrics={})), plan(compile=True, batch_size=16))
    assert "full size" in found.failure


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_real_compiler_is_tried() -> None:
    found = compiling.tried_in_child(open_task(classes()), plan(compile=True, batch_size=16), 120.0)
    assert not found.failure
    assert found.seconds > 0.1


# Threads


@pytest.mark.parametrize(
    ("pays_from", "size", "measured_at", "threads"),
    [
        (256, 512, [64, 512], 2),  # one was enough for the batches that it was measured with, and not for those chosen
        (32, 8, [64, 8], 1),
        (256, 8, [64], 1),  # smaller ones need no more
        (32, 512, [64], 2),
        (256, 64, [64], 1),
    ],
)
def test_threads_are_chosen_for_the_batches_of_the_run(
    monkeypatch: pytest.MonkeyPatch, pays_from: int, size: int, measured_at: list[int], threads: int
) -> None:
    sizes = list[int]()

    def compare_threads(problem: Problem, plan: Plan, threads: int) -> Compared:
        assert plan.batch_size is not None
        assert threads == 2
        sizes.append(plan.batch_size)
        seconds = 0.5 if plan.batch_size >= pays_from else 1.5
        return Compared(1.0, seconds, seconds)

    monkeypatch.setattr(speed, "compare_threads", compare_threads)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    problem, request = open_task(classes()), Request(steps=100)
    before = speed.with_threads(problem, request, Plan(batch_size=64))
    chosen = before.replace(batch_size=size, evidence=before.evidence)
    plan = speed.with_threads_for_batches(problem, request, chosen, before)
    assert (sizes, plan.threads) == (measured_at, threads)
    assert plan.why("threads").reason.endswith(f"in steps of {measured_at[-1]} examples")


def test_threads_are_timed_in_turn_and_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[int | None]()

    def take(timed: TimedDescent, count: int, patience: float = math.inf, threads: int | None = None) -> list[float]:
        asked.append(threads)
        taken = timed_steps(timed, count, patience, threads)
        return [0.0005 * (2 if threads == 1 else 1)] * len(taken)

    timed_steps = TimedDescent.take
    monkeypatch.setattr(TimedDescent, "take", take)
    before = torch.get_num_threads(), torch.get_rng_state()
    found = speed.compare_threads(open_task(classes()), plan(threads=None), 2)
    assert found == Compared(0.001, 0.0005, 0.5)
    assert asked == [1, 2] * (1 + comparison.ROUNDS)
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_threads_that_are_decided_stay_for_other_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "compare_threads", None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    request = Request(steps=100, fixed={"threads": 1})
    problem, before = open_task(classes()), Plan(batch_size=64, threads=1)
    chosen = before.replace(batch_size=512)
    assert speed.with_threads_for_batches(problem, request, chosen, before) == chosen


# All of them


def test_what_is_decided_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "CHOICES", dict.fromkeys(speed.CHOICES, lambda trial: Finding(0, "tried")))
    decided = {"memory_format": "contiguous", "workers": 3, "precision": "float32", "compile": False}
    request = Request(steps=1000, effort=1, fixed=decided)
    chosen = start_plan(open_task(classes()), request)
    assert {chosen.why(knob).source for knob in decided} == {"given"}


def test_an_estimate_tries_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "CHOICES", dict.fromkeys(speed.CHOICES, None))
    assert "400 steps" in estimate(classes(), steps=400, effort=1)


def test_measuring_one_knob_takes_two_minutes_at_most() -> None:
    assert trial(classes(), total=1e6).patience == 120
    assert trial(classes(), total=100.0).patience == 5


def test_runs_of_few_steps_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "CHOICES", dict.fromkeys(speed.CHOICES, lambda trial: Finding(0, "tried")))
    chosen = start_plan(open_task(classes()), Request(steps=100, effort=1))
    assert {chosen.why(knob).source for knob in speed.CHOICES} == {"default"}


def test_each_choice_builds_on_those_before_and_stands_in_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, said = list[tuple[str, bool]](), list[str]()

    def choose(trial: Trial) -> Finding:
        seen.append((trial.plan.memory_format, trial.plan.compile))
        return Finding("channels_last", "faster", {"seconds_per_step": [1.0, 0.5]})

    def compile_too(trial: Trial) -> Finding:
        seen.append((trial.plan.memory_format, trial.plan.compile))
        return Finding(True, "faster still")

    monkeypatch.setattr(
        speed, "CHOICES", {"memory_format": choose, "workers": lambda trial: None, "compile": compile_too}
    )
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    chosen = start_plan(open_task(task()), Request(steps=400, effort=1), said.append)
    assert "memory format channels_last: faster" in said
    assert seen == [("contiguous", False), ("channels_last", False)]
    assert (chosen.memory_format, chosen.compile) == ("channels_last", True)
    assert str(chosen.why("memory_format")) == "measured: faster"
    assert chosen.why("memory_format").figures == {"seconds_per_step": [1.0, 0.5]}
    assert tw.Plan.from_dict(chosen.to_dict()) == chosen


def test_a_budget_in_seconds_becomes_as_many_steps_as_there_are_with_the_chosen_knobs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(settling, "time_steps", lambda problem, plan: StepTime(0.01 if plan.compile else 0.02, True))
    monkeypatch.setattr(speed, "CHOICES", {"compile": lambda trial: Finding(True, "faster")})
    chosen = start_plan(open_task(classes()), Request(seconds=20.0, effort=1, fixed={"batch_size": 16}))
    assert (chosen.compile, chosen.steps) == (True, 1800)
    assert chosen.validate_every == 36  # of these steps
    assert chosen.why("compile").reason == "faster"


@pytest.mark.usefixtures("fast")
def test_a_search_runs_with_the_chosen_knobs_and_training_its_plan_gives_the_same_bits() -> None:
    run = tw.fit(task(), steps=240, effort=2, fixed={"batch_size": 20})
    assert run.plan.memory_format == "channels_last"
    assert run.plan.why("memory_format").source == "measured"
    again = tw.train(task(), run.plan)
    assert all(map(torch.equal, run.model.state_dict().values(), again.model.state_dict().values()))
