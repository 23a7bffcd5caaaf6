"""Memory that grows from step to step is said, and other memory is not."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import thalweg as tw
from thalweg.descent import loop
from thalweg.records.diagnosis import Diagnosis
from thalweg.records.step_figures import StepFigures
from thalweg.watch.causes.growing_memory import GrowingMemory, summarise
from thalweg.watch.window import Window

MB = 10**6
Use = Callable[[int], float]  # reading -> bytes


def asked(use: Use, readings: int = 200, every: int = 50, whose: str = "the process") -> list[Diagnosis]:
    """Give what the cause finds where memory is read every so many steps, and at no other."""
    detector, window, found = GrowingMemory(), Window(), list[Diagnosis]()
    for number in range(readings):
        for step, memory in ((every * number, {whose: int(use(number))}), (every * number + 1, dict[str, int]())):
            window.push(StepFigures(step, 1.0, 0.1, 1.0, memory=memory))
            diagnosis = detector.observe(window)
            found += [] if diagnosis is None else [diagnosis]
    return found


def noisy(use: Use, spread: float = 20 * MB) -> Use:
    chance = random.Random(0)
    return lambda number: use(number) + chance.uniform(0, spread)


@pytest.mark.parametrize("whose", ["the process", "the accelerator"])
def test_memory_that_grows_by_as_much_again_and_again_is_said_once(whose: str) -> None:
    found = asked(lambda n: 500 * MB + 10 * MB * n, whose=whose)
    assert len(found) == 1
    assert found[0].severity == "warning"
    assert found[0].cause.startswith(f"{whose} holds ")
    assert found[0].evidence["bytes a step"]["value"] == pytest.approx(200_000, rel=0.1)
    assert " kB a step, to " in summarise(found[0].evidence)


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(noisy(lambda n: 500 * MB + 10 * MB * n), id="noisy"),
        pytest.param(lambda n: 500 * MB + 3 * MB * n, id="slowly"),
        pytest.param(lambda n: 500 * MB + (100 * MB * (n // 5)), id="in stairs"),
        pytest.param(lambda n: 500 * MB + 10 * MB * n + 200 * MB * (n % 7 == 0), id="with peaks"),
        pytest.param(lambda n: 500 * MB + 300 * MB * (1 - math.exp(-n / 3)) + 10 * MB * n, id="after a warm-up"),
    ],
)
def test_growth_is_found_through_what_else_memory_does(use: Use) -> None:
    assert len(asked(use)) == 1


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda _: 500 * MB, id="level"),
        pytest.param(noisy(lambda _: 500 * MB, 300 * MB), id="noisy"),
        pytest.param(lambda n: 500 * MB + 400 * MB * (1 - math.exp(-n / 5)), id="levels off"),
        pytest.param(lambda n: 500 * MB + 400 * MB * (1 - math.exp(-n / 40)), id="levels off slowly"),
        pytest.param(lambda n: 500 * MB + 100 * MB * math.log1p(n), id="as a logarithm"),
        pytest.param(lambda n: 500 * MB + 800 * MB * (n > 40), id="one step up"),
        pytest.param(lambda n: 500 * MB + 10 * MB * (n % 30), id="up and down"),
        pytest.param(lambda n: 900 * MB - 2 * MB * n, id="down"),
        pytest.param(lambda n: 500 * MB + 50_000 * n, id="what is recorded of steps"),
        pytest.param(lambda n: 40_000 * MB + 8 * MB * n, id="little of much"),
    ],
)
def test_other_memory_is_not_said(use: Use) -> None:
    assert not asked(use, readings=100)


def test_a_run_that_went_back_begins_to_compare_anew() -> None:
    detector, window = GrowingMemory(), Window()
    for step in [*range(0, 700, 50), *range(300, 900, 50)]:
        window.push(StepFigures(step, 1.0, 0.1, 1.0, memory={"the process": 10 * MB * step}))
        assert detector.observe(window) is None


def test_its_state_holds_nothing_of_this_process() -> None:
    assert GrowingMemory().state_dict() == {}


# In runs


@pytest.fixture(autouse=True)
def read_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "MEMORY_EVERY", 5)


class Leaks(nn.Module):
    """Keeps something of every step in training."""

    def __init__(self, kept: list[Tensor]) -> None:
        super().__init__()
        self.scores, self.kept = nn.Linear(4, 2), kept

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.kept.append(x[:1])
        return self.scores(x)


def trained(steps: int = 300, model: Callable[[], nn.Module] = lambda: nn.Linear(4, 2), **parts: Any) -> tw.Run:
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    usual: dict[str, Any] = {"loss": nn.functional.cross_entropy, "data": (x, (x[:, 0] > 0).long())}
    task = tw.Task(model=model, **{**usual, **parts})
    return tw.train(task, tw.Plan(learning_rate=1e-3, batch_size=8, steps=steps))


def accused(run: tw.Run) -> list[Diagnosis]:
    return [one for one in run.diagnoses if one.name == "growing-memory"]


def test_a_model_that_keeps_something_of_every_step_is_noticed_and_trained_to_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = list[Tensor]()
    monkeypatch.setattr(loop, "memory_in_use", lambda _: {"the process": 500 * MB + 2 * MB * len(kept)})
    run = trained(model=lambda: Leaks(kept))
    (found,) = accused(run)
    assert found.evidence["bytes a step"]["value"] == pytest.approx(2 * MB, rel=0.1)
    assert run.summary["status"] == "finished"
    assert [event.kind for event in run.events].count("growing-memory") == 1


def test_a_healthy_run_is_not_accused() -> None:
    assert not accused(trained(600))


class Cached(Dataset[tuple[Tensor, int]]):
    """Keeps each example once it was read."""

    def __init__(self) -> None:
        self.read = dict[int, Tensor]()

    def __len__(self) -> int:
        return 2400

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.read.setdefault(index, torch.ones(4)), index % 2


def test_a_data_set_that_keeps_its_examples_in_a_first_pass_is_not_accused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Cached()
    monkeypatch.setattr(loop, "memory_in_use", lambda _: {"the process": 500 * MB + MB * len(data.read)})
    run = trained(500, data=data)
    assert run.plan.steps_per_epoch == 300
    assert not accused(run)
