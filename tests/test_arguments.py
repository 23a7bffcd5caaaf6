"""A call that does not fit a verb, a record or a method is refused in a sentence, never by a TypeError."""

import pytest
import torch

import thalweg as tw
from thalweg.arguments import check_calls
from thalweg.records.run import Run

RUN = Run(plan=tw.Plan(), history={}, metrics={})


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (
            lambda: tw.fit(None, 20),
            tw.ArgumentError,
            r"^`fit` takes task without a name\. Name the rest, such as epochs=20\. It takes epochs, steps, seconds, pays, most",
        ),
        (lambda: tw.train(None, None, 20, epochs=3), tw.ArgumentError, r"such as steps=20\. It takes steps, seconds"),
        (lambda: tw.tune(None, 20, "quick"), tw.ArgumentError, r"such as epochs=20\."),
        (lambda: tw.check(None, object(), 1), tw.ArgumentError, r"such as device=…\. It takes device, seed, say\."),
        (lambda: tw.report("a", "b", "c"), tw.ArgumentError, r"^`report` takes 2 arguments at most, and was given 3\."),
        (lambda: tw.fit(), tw.ArgumentError, r"^`fit` needs `task`\. Give a thalweg\.Task"),
        (
            lambda: tw.train(None, epochs=2),
            tw.ArgumentError,
            r"^`train` needs `plan`\. Give a thalweg\.Plan\(learning_",
        ),
        (lambda: tw.check(None, task=None), tw.ArgumentError, r"^`check` is given `task` twice, with and without"),
        (lambda: tw.Task(loss=print), tw.TaskError, r"^A task needs `model`\. Give an nn\.Module"),
        (lambda: tw.Group(1.0, 1.0, None, 3), tw.PlanError, r"^A group takes 3 arguments at most, and was given 4\."),
        (lambda: RUN.predict(), tw.ArgumentError, r"^`predict` needs `inputs`\."),
        (lambda: RUN.predict([1.0], 64), tw.ArgumentError, r"^`predict` takes inputs .* such as batch_size=64\."),
        (lambda: RUN.predict([1.0], device="cpu"), tw.ArgumentError, r"^`predict` takes no 'device'\."),
    ],
)
def test_a_call_that_does_not_fit_is_refused_in_a_sentence(call, error, told):
    with pytest.raises(error, match=told):
        call()


def test_a_type_error_within_the_function_passes_as_it_is():
    def broken():
        raise TypeError("mine")

    with pytest.raises(TypeError, match="mine"):
        check_calls(broken, "it", tw.ArgumentError, lambda *_: tw.ArgumentError())()


HUGE = 10**5000  # which Python does not write in digits


class Mute:
    """A value that cannot be shown."""

    def __repr__(self):
        raise RuntimeError("no words")

    __str__ = __repr__


TASK = tw.Task(lambda: torch.nn.Linear(2, 1), torch.nn.functional.mse_loss, (torch.ones(8, 2), torch.ones(8, 1)))
PLAN = tw.Plan(learning_rate=0.1)


@pytest.mark.parametrize("value", [HUGE, [HUGE], Mute()], ids=["huge", "a list of it", "mute"])
@pytest.mark.parametrize(
    "call",
    [
        lambda value: tw.train(TASK, PLAN, steps=value),
        lambda value: tw.train(TASK, PLAN, steps=2, seed=value),
        lambda value: tw.train(TASK, PLAN, steps=2, out=value),
        lambda value: tw.train(TASK, PLAN, steps=2, device=value),
        lambda value: tw.train(TASK, PLAN, steps=2, progress=value),
        lambda value: tw.train(TASK, PLAN, steps=2, on_step=value),
        lambda value: tw.fit(TASK, steps=2, effort=value),
        lambda value: tw.fit(TASK, steps=2, memory=value),
        lambda value: tw.fit(TASK, steps=2, storage=value),
        lambda value: tw.fit(TASK, steps=2, say=value),
        lambda value: tw.fit(TASK, steps=2, fixed={"batch_size": value}),
        lambda value: tw.tune(TASK, join=value),
        lambda value: tw.Plan(learning_rate=value),
        lambda value: tw.Plan(rule=value),
        lambda value: tw.Plan(schedule=value),
        lambda value: tw.Plan(constants={"beta1": value}),
        lambda value: tw.Plan(groups=value),
        lambda value: tw.schedule.linear(total=10, warmup=value),
        lambda value: tw.optim.AdamW([torch.ones(2, requires_grad=True)], lr=value),
        lambda value: tw.optim.AdamW([torch.ones(2, requires_grad=True)], clip_norm=value),
        lambda value: tw.Task(TASK.model, TASK.loss, TASK.data, mode=value),
        lambda value: tw.Task(TASK.model, TASK.loss, TASK.data, select=value),
        lambda value: tw.Task(TASK.model, TASK.loss, TASK.data, name=value),
    ],
)
def test_a_value_that_cannot_be_written_out_is_refused_in_a_sentence(call, value):
    with pytest.raises(tw.ThalwegError) as caught:
        call(value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("data", [([HUGE, 1], [1, 2]), (torch.ones(2, 2), [HUGE, 1])])
def test_data_with_a_number_beyond_all_floats_are_refused(data):
    with pytest.raises(tw.DataError, match="an int of about 5,000 digits in row 0"):
        tw.check(tw.Task(TASK.model, TASK.loss, data))


def test_a_metric_that_gives_a_number_beyond_all_floats_is_refused():
    task = tw.Task(
        TASK.model, TASK.loss, TASK.data, validation=TASK.data, metrics={"a": lambda output, y: HUGE}, mode="min"
    )
    with pytest.raises(tw.TaskError, match="it must give one number"):
        tw.train(task, PLAN, steps=2)
