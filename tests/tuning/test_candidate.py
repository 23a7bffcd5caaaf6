import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import thalweg as tw
from thalweg.descent.loop import descend
from thalweg.descent.problem import open_task
from thalweg.descent.recorder import Recorder
from thalweg.descent.settle import settle
from thalweg.descent.state import Descent
from thalweg.records.request import Request
from thalweg.tuning.candidate import Candidate, cooled_schedule

X = torch.randn(90, 5, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)


class Counting(nn.Module):
    """A model with dropout, batch statistics, and a number of its own that changes what it does."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        return self.layers(x) * (1 + 0.01 * self.calls)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


DATA = {
    "arrays": lambda: (X, Y),
    "loader": lambda: DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True),
    "stream": Stream,
}


def problem_of(data="arrays"):
    return open_task(tw.Task(model=Counting, loss=F.cross_entropy, data=DATA[data](), validation=(X, Y)))


def plan_of(problem, **knobs):
    knobs = {"learning_rate": 0.02, "schedule": "linear", "snapshot_every": 7, **knobs}
    size = {} if isinstance(problem.task.data, DataLoader) else {"batch_size": 16}
    return settle(problem, tw.Plan(**size, **knobs), Request(steps=40))


def straight(problem, plan):
    descent, recorder = Descent(problem, plan), Recorder()
    descend(descent, recorder)
    return descent, recorder.history.columns()


@pytest.mark.parametrize(
    ("data", "knobs"),
    [
        ("arrays", {}),
        ("arrays", {"rule": "momentum", "ema": 0.9, "patience": 50}),
        ("arrays", {"rule": "schedule_free_adamw", "schedule": "constant"}),
        ("arrays", {"keep": "last", "accumulate": 2}),
        ("loader", {}),
        ("stream", {}),
    ],
)
def test_a_candidate_that_was_judged_on_the_way_is_the_run_it_would_have_been(data, knobs):
    problem = problem_of(data)
    plan = plan_of(problem, **knobs)
    whole, columns = straight(problem, plan)
    candidate = Candidate(problem, plan)
    for step in (3, 8, 21, 40):
        candidate.advance(step)
        candidate.cooled(4)
    end = candidate.suspended.resumed(problem)
    assert end.digest() == whole.digest()
    assert (end.best_validation, end.last_validation) == (whole.best_validation, whole.last_validation)
    recorded = candidate.suspended.history.columns()
    assert recorded.keys() == columns.keys()
    for name in columns.keys() - {"seconds"}:
        np.testing.assert_array_equal(recorded[name], columns[name])
    assert candidate.steps_paid == 40 + 3 * 4


def test_candidates_that_take_turns_do_not_touch_each_other():
    problem = problem_of()
    plans = [plan_of(problem, learning_rate=rate) for rate in (0.01, 0.05)]
    candidates = [Candidate(problem, plan) for plan in plans]
    for step, candidate in itertools.product((5, 23, 40), candidates):
        candidate.advance(step)
    for plan, candidate in zip(plans, candidates, strict=True):
        assert candidate.suspended.resumed(problem).digest() == straight(problem, plan)[0].digest()


def test_a_cool_down_at_once_is_a_short_run_of_that_schedule():
    problem = problem_of()
    plan = plan_of(problem)
    candidate = Candidate(problem, plan)
    candidate.advance(10)
    figures = candidate.cooled(6)
    short = plan.replace(steps=16, schedule=cooled_schedule(plan.schedule, 40, 10, 6), validate_every=16)
    by_hand = Descent(problem, plan.replace(validate_every=16))
    descend(by_hand, Recorder(), until=10)
    copied = Descent(problem, short)
    copied.load_state_dict(by_hand.state_dict())
    descend(copied, Recorder())
    assert figures == copied.last_validation


def test_the_cool_down_begins_where_the_schedule_is_and_ends_at_zero():
    schedule = tw.schedule.linear(warmup=4)
    cooled, whole = cooled_schedule(schedule, 40, 10, 5).resolve(15, None), schedule.resolve(40, None)
    assert cooled.factor(10) == pytest.approx(whole.factor(10))
    assert np.diff([cooled.factor(step) for step in range(10, 15)]) == pytest.approx(-whole.factor(10) / 5)
    assert cooled.factor(15) == 0


def test_a_candidate_that_diverges_gives_no_figures():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    problem = open_task(tw.Task(model=lambda: nn.Linear(3, 1), loss=F.mse_loss, data=(x, x[:, :1])))
    plan = plan_of(problem, rule="gradient_descent", learning_rate=1e4, snapshot_every=0)
    candidate = Candidate(problem, plan)
    assert candidate.advance(20) == candidate.cooled(4) == candidate.advance(40) == {}
    assert candidate.failed


@pytest.mark.parametrize("effort", [2.0, 4.0])
@pytest.mark.parametrize("in_folder", [True, False])
def test_what_the_search_has_trained_of_the_winner_is_gone_on_with_and_the_bits_are_those_of_its_plan(
    effort, in_folder, tmp_path
):
    made = problem_of().task
    options = {"steps": 40, "effort": effort, "fixed": {"batch_size": 16}}
    run = tw.fit(made, out=tmp_path / "run" if in_folder else None, **options)
    again = tw.train(made, run.plan)
    assert run.metrics == again.metrics
    for name in again.history.keys() - {"seconds"}:
        np.testing.assert_array_equal(run.history[name], again.history[name])
    assert any("The search has trained" in event.message for event in run.events)
    if in_folder:
        assert tw.Run.open(run.folder, made).metrics == again.metrics


def test_a_callback_sees_every_step_so_for_it_the_winner_is_trained_anew():
    seen = []
    made = problem_of().task
    run = tw.fit(made, steps=40, effort=2.0, on_step=lambda model, figures: seen.append(figures.step))
    assert seen == list(range(1, 41))
    assert run.metrics == tw.train(made, run.plan).metrics
