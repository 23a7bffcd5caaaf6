"""The trunk of runs of an open length: a finished run is bit for bit that of its plan from its start, whatever cures do."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

import thalweg as tw
from thalweg.descent import loop
from thalweg.descent.problem import Problem, open_task
from thalweg.descent.settle import settle
from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.records.request import Request
from thalweg.tuning.candidate import Candidate
from thalweg.tuning.trunk import Trunk
from thalweg.watch import monitor
from thalweg.watch.cause import Cause, each_step
from thalweg.watch.window import Window

RATE = 1e-2


def task() -> tw.Task:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(96, 4, generator=generator), torch.arange(96) % 3
    return tw.Task(lambda: torch.nn.Linear(4, 3), data=(x, y), validation=(x[:30], y[:30]), loss=F.cross_entropy)


def opened(**knobs: object) -> tuple[Problem, tw.Plan]:
    problem = open_task(task())
    knobs = {"learning_rate": RATE, "batch_size": 4, "snapshot_every": 10, **knobs}
    return problem, settle(problem, tw.Plan(**knobs), Request())  # pyright: ignore[reportArgumentType]


@pytest.fixture
def cure(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Cure], None]:
    """Let all runs be cured so at a step of their first rate."""

    def set_cure(step: int, cure: Cure) -> None:
        def question(window: Window) -> Diagnosis | None:
            if window.step != step or window.rate != RATE:
                return None
            return Diagnosis("odd", "It is odd.", "warning", step, name="odd", cure=cure)

        monkeypatch.setattr(monitor, "all_causes", lambda: (Cause("odd", "a test", during=each_step(question)),))

    return set_cure


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many batches were stepped on."""
    seen, take_step = list[int](), loop.take_step

    def counting(descent, loss):  # pyright: ignore[reportMissingParameterType, reportUnknownParameterType]
        seen.extend([1] * len(descent.last_positions))
        return take_step(descent, loss)

    monkeypatch.setattr(loop, "take_step", counting)
    return seen


SCHEDULES = {"wsd": tw.schedule.wsd(warmup=1, decay=1), "constant": tw.schedule.constant()}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("at", "what"), [(25, Cure("Begin again.", begin_again=True, rate_factor=2.0)), (12, Cure("More.", accumulate=4))]
)
def test_a_finished_run_is_that_of_its_plan_also_where_cures_go_by_the_length(
    cure: Callable[[int, Cure], None], taken: list[int], at: int, what: Cure, schedule: str
) -> None:
    cure(at, what)
    problem, plan = opened(schedule=SCHEDULES[schedule], steps=57)
    trunk = Trunk(problem, plan, 480)
    outcome = trunk.judge(57)
    run = trunk.finished_run(57)
    assert run.step == 57
    assert run.suspended is not None
    assert run.suspended.is_over
    assert run.suspended.best is not None
    assert outcome.steps_paid == len(taken)
    whole = tw.train(task(), plan)
    kept = run.suspended.best.model
    assert all(torch.equal(kept[name], value) for name, value in whole.model.state_dict().items())


def test_steps_that_are_taken_once_more_are_paid(cure: Callable[[int, Cure], None], taken: list[int]) -> None:
    cure(28, Cure("Begin again.", begin_again=True, rate_factor=2.0))
    problem, plan = opened(steps=100, schedule="constant")
    candidate = Candidate(problem, plan)
    candidate.advance(30)
    candidate.advance(40)
    assert candidate.step == 40
    assert candidate.steps_paid == len(taken) == 68
