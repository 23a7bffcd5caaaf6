import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import thalweg.schedule as schedules

POSITIVE = st.lists(st.floats(0.01, 10), min_size=1, max_size=60)


def reduced(schedule, metrics):
    state, seen = schedule.initial_state(), []
    for metric in metrics:
        state = schedule.observe(state, metric)
        seen.append(schedule.factor(0, state))
    return seen


def reduced_by_torch(metrics, minimum=0.0, **options):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, min_lr=minimum, eps=0.0, **options)
    seen = []
    for metric in metrics:
        scheduler.step(metric)
        seen.append(optimizer.param_groups[0]["lr"])
    return seen


@given(
    metrics=POSITIVE,
    mode=st.sampled_from(["min", "max"]),
    threshold_mode=st.sampled_from(["rel", "abs"]),
    patience=st.integers(0, 4),
    cooldown=st.integers(0, 3),
    factor=st.sampled_from([0.1, 0.5, 0.9]),
    threshold=st.sampled_from([0.0, 0.015625, 0.25]),
    minimum=st.sampled_from([0.0, 0.2]),
)
def test_it_reduces_where_pytorch_does(metrics, minimum, **options):
    assert reduced(schedules.plateau(minimum=minimum, **options), metrics) == reduced_by_torch(
        metrics, minimum, **options
    )


def test_unlike_pytorch_an_improving_negative_metric_counts_as_better():
    improving = [-1.0, -1.05, -1.1025, -1.2]
    worsening = [-1.0, -0.95, -0.93, -0.92]
    ours = schedules.plateau(patience=0, threshold=0.01)
    assert reduced(ours, improving) == [1.0] * 4
    assert reduced(ours, worsening)[-1] < 1
    assert reduced_by_torch(worsening, patience=0, threshold=0.1)[1] == 1.0  # its test is the wrong way round


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_metric_that_is_not_finite_is_never_the_best(bad, mode):
    schedule = schedules.plateau(patience=1, factor=0.5, mode=mode)
    assert reduced(schedule, [bad, bad, bad]) == [1.0, 0.5, 0.5]
    assert "best" not in schedule.observe(schedule.initial_state(), bad)
    assert schedule.observe(schedule.observe(schedule.initial_state(), bad), 3.0)["best"] == 3.0


def test_the_state_is_a_few_plain_finite_numbers():
    schedule = schedules.plateau(patience=0)
    state = schedule.initial_state()
    for metric in (math.inf, torch.tensor(2.0), 3.0):
        assert all(type(value) in (int, float) and math.isfinite(value) for value in state.values())
        state = schedule.observe(state, metric)


def test_observing_leaves_the_old_state_alone():
    schedule = schedules.plateau(patience=0)
    before = schedule.initial_state()
    schedule.observe(before, 1.0)
    assert before == schedule.initial_state()


def test_torch_agrees_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reduced_by_torch([1.0, 1.0], patience=0) == [1.0, 0.1]
