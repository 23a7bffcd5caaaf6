"""A call that does not fit a verb, a record or a method is refused in a sentence, never by a TypeError."""

import pytest

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
            r"^`fit` takes task without a name\. Name the rest, such as epochs=20\. It takes epochs, steps, seconds, effort",
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
