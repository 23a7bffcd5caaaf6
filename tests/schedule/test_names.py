"""A schedule's lengths and options by other libraries' names are answered with the words that are used here."""

import inspect

import pytest
import torch
from torch import nn

import thalweg.schedule as schedules
from thalweg.errors import ScheduleError
from thalweg.schedule import SHAPES, Schedule
from thalweg.schedule.names import WORDS


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (
            lambda: schedules.cosine(T_max=5),
            r"^`schedule\.cosine` takes no 'T_max'\. It is called 'total' here\. It takes",
        ),
        (lambda: schedules.linear(num_warmup_steps=5), r"It is called 'warmup' here\."),
        (lambda: schedules.cosine(eta_min=1e-5), r"It is called 'final' here, a share of the peak learning rate\."),
        (lambda: schedules.plateau(min_lr=1e-5), r"It is called 'minimum' here, a share of the peak learning rate\."),
        (lambda: schedules.step(step_size=5), r"It is called 'every' here\."),
        (lambda: schedules.one_cycle(pct_start=0.3), r"It is called 'rise' here\."),
        (lambda: schedules.cosine_restarts(T_0=3), r"It is called 'period' here\."),
        (lambda: schedules.wsd(dekay=0.1), r"Did you mean 'decay'\?"),
        (lambda: schedules.sequence(totl=3), r"Did you mean 'total'\?"),
        (lambda: Schedule("cosine", T_max=3), r"^`schedule\.Schedule` takes no 'T_max'\. It is called 'total' here\."),
        (lambda: Schedule("cosine", options={"eta_min": 0}), r"It is called 'final' here"),
        (
            lambda: schedules.cosine(100, 10, 0.1),
            r"takes total and warmup without a name\. Name the rest, such as final=0\.1",
        ),
        (lambda: schedules.cosine(optimizer(), 100), r"made without an optimiser, .*schedule\.cosine\(…\)\.attach\("),
        (lambda: schedules.cosine(100).attach("adam"), r"^`optimizer` is a str\. Give the torch\.optim\.Optimizer"),
        (lambda: schedules.cosine().attach(optimizer(), max_steps=3), r"It is called 'total_steps' here\."),
    ],
)
def test_what_no_schedule_takes_is_refused_in_a_sentence(call, told):
    with pytest.raises(ScheduleError, match=told):
        call()


def optimizer():
    return torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)


def test_every_word_that_is_given_is_one_that_is_taken():
    makers = [schedules.sequence, *(getattr(schedules, name) for name in SHAPES), Schedule.attach]
    assert set(WORDS) <= {name for maker in makers for name in inspect.signature(maker).parameters}
