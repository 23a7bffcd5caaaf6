import copy
import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import LRScheduler

import thalweg.schedule as schedules
from thalweg.errors import ScheduleError


def optimizer_with(*rates, kind=torch.optim.AdamW):
    return kind([{"params": [torch.nn.Parameter(torch.ones(2))], "lr": rate} for rate in rates])


def update(optimizer):
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def rates(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def rates_of_steps(optimizer, attached, steps):
    seen = []
    for _ in range(steps):
        seen.append(rates(optimizer))
        update(optimizer)
        attached.step()
    return seen


def test_it_is_one_of_torchs_schedulers():
    attached = schedules.linear(total=2000, warmup=100).attach(optimizer_with(0.1))
    assert isinstance(attached, LRScheduler)
    assert attached.get_last_lr() == [0.1 / 101]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_every_group_follows_the_factor_from_its_own_peak(kind):
    schedule = schedules.cosine(total=20, warmup=4)
    optimizer = optimizer_with(0.1, 3.0, kind=kind)
    seen = rates_of_steps(optimizer, schedule.attach(optimizer), 25)
    assert seen == [[0.1 * schedule.factor(s), 3.0 * schedule.factor(s)] for s in range(25)]


def test_a_rate_that_is_a_tensor_is_filled_in_place():
    rate = torch.tensor(0.5)
    optimizer = optimizer_with(rate, kind=torch.optim.AdamW)
    attached = schedules.linear(total=4).attach(optimizer)
    assert [row[0] for row in rates_of_steps(optimizer, attached, 5)] == [0.5, 0.375, 0.25, 0.125, 0.0]
    assert optimizer.param_groups[0]["lr"] is rate


@settings(max_examples=30)
@given(st.integers(0, 12), st.booleans())
def test_saved_and_loaded_it_goes_on_as_if_uninterrupted(cut, through_torch):
    schedule = schedules.sequence(schedules.cosine_restarts(6, 2, period=2), schedules.linear(5))
    whole = optimizer_with(0.1, 0.7)
    expected = rates_of_steps(whole, schedule.attach(whole), 12)

    first = optimizer_with(0.1, 0.7)
    attached = schedule.attach(first)
    rates_of_steps(first, attached, cut)
    saved = {"optimizer": first.state_dict(), "schedule": attached.state_dict()}
    if through_torch:
        buffer = io.BytesIO()
        torch.save(saved, buffer)
        buffer.seek(0)
        saved = torch.load(buffer, weights_only=True)

    second = optimizer_with(0.1, 0.7)
    resumed = schedules.constant().attach(second)
    second.load_state_dict(saved["optimizer"])
    resumed.load_state_dict(saved["schedule"])
    assert resumed.state_dict() == saved["schedule"]
    assert rates_of_steps(second, resumed, 12 - cut) == expected[cut:]


def test_loading_alone_sets_the_rates():
    first = optimizer_with(0.1)
    attached = schedules.linear(total=10).attach(first)
    rates_of_steps(first, attached, 5)
    second = optimizer_with(0.1)
    schedules.linear(total=10).attach(second).load_state_dict(attached.state_dict())
    assert rates(second) == rates(first) == [0.05]


def test_a_state_shares_nothing_with_the_schedule():
    optimizer = optimizer_with(torch.tensor(0.5))
    attached = schedules.linear(total=10).attach(optimizer)
    saved = attached.state_dict()
    saved["base_lrs"][0].fill_(9.0)
    assert attached.base_lrs[0] == 0.5


@pytest.mark.parametrize("state", [{}, {"last_epoch": 3, "base_lrs": [0.1]}])
def test_a_state_of_something_else_is_refused(state):
    with pytest.raises(ScheduleError, match="no state of a thalweg schedule"):
        schedules.linear(total=10).attach(optimizer_with(0.1)).load_state_dict(state)


def test_the_state_of_another_number_of_groups_is_refused():
    saved = schedules.linear(total=10).attach(optimizer_with(0.1, 0.2)).state_dict()
    attached = schedules.linear(total=10).attach(optimizer_with(0.1))
    with pytest.raises(ScheduleError, match="2 parameter groups, this optimizer has 1"):
        attached.load_state_dict(saved)


class TestPlateau:
    def test_step_takes_the_metric(self):
        optimizer = optimizer_with(0.1)
        attached = schedules.plateau(patience=0, factor=0.5).attach(optimizer)
        seen = []
        for metric in (1.0, torch.tensor(1.0), 0.5, 0.7, float("nan")):
            update(optimizer)
            attached.step(metric)
            seen.append(rates(optimizer)[0])
        assert seen == pytest.approx([0.1, 0.05, 0.05, 0.025, 0.0125])

    def test_steps_without_a_metric_only_warm_up(self):
        optimizer = optimizer_with(1.0)
        attached = schedules.plateau(warmup=3, patience=0).attach(optimizer)
        assert [row[0] for row in rates_of_steps(optimizer, attached, 6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]

    def test_its_state_is_saved_with_it(self):
        first = optimizer_with(1.0)
        attached = schedules.plateau(patience=1).attach(first)
        for metric in (1.0, 2.0):
            update(first)
            attached.step(metric)
        second = optimizer_with(1.0)
        resumed = schedules.plateau(patience=1).attach(second)
        resumed.load_state_dict(attached.state_dict())
        update(second)
        resumed.step(2.0)
        assert rates(second) == [0.1]

    def test_a_metric_that_the_schedule_does_not_use_is_refused(self):
        attached = schedules.linear(total=10).attach(optimizer_with(0.1))
        with pytest.raises(ScheduleError, match="uses no metric"):
            attached.step(0.5)


def test_a_group_added_later_joins_with_its_own_peak():
    optimizer = optimizer_with(1.0)
    attached = schedules.linear(total=10).attach(optimizer)
    rates_of_steps(optimizer, attached, 2)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.5})
    update(optimizer)
    attached.step()
    assert rates(optimizer) == pytest.approx([0.7, 0.35])


def test_open_lengths_are_settled_when_it_is_attached():
    optimizer = optimizer_with(1.0)
    attached = schedules.linear(warmup="1 epoch").attach(optimizer, total_steps=8, steps_per_epoch=4)
    assert attached.schedule == schedules.linear(total=8, warmup=4)


def test_an_open_length_is_asked_for_before_anything_is_changed():
    optimizer = optimizer_with(1.0)
    with pytest.raises(ScheduleError, match="attach"):
        schedules.linear().attach(optimizer)
    assert "initial_lr" not in optimizer.param_groups[0]


def test_it_lives_in_torchs_sequential_scheduler():
    optimizer = optimizer_with(1.0)
    first, second = schedules.linear(total=4).attach(optimizer), schedules.cosine(total=4).attach(optimizer)
    both = torch.optim.lr_scheduler.SequentialLR(optimizer, [first, second], [3])
    expected = [schedules.linear(total=4).factor(s) for s in range(3)]
    expected += [schedules.cosine(total=4).factor(s) for s in range(4)]
    assert [row[0] for row in rates_of_steps(optimizer, both, 7)] == expected


def test_it_can_be_copied_with_its_optimizer():
    optimizer = optimizer_with(1.0)
    attached = schedules.linear(total=10).attach(optimizer)
    twin = copy.deepcopy(attached)
    assert twin.schedule == attached.schedule
    assert pickle.loads(pickle.dumps(twin.state_dict())) == attached.state_dict()


def test_too_early_a_step_is_warned_of_as_torch_does():
    attached = schedules.linear(total=10).attach(optimizer_with(0.1))
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        attached.step()
