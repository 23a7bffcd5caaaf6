"""Names that people know from elsewhere are answered with the one word that is used here, wherever they are given."""

import copy
import inspect
import pickle
from dataclasses import fields

import pytest
import torch.nn.functional as F
from torch import nn

import thalweg as tw
from thalweg.records.knob import knobs
from thalweg.records.names import ARGUMENTS, KNOBS, right_word

TYPED = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "bs": "batch_size",
    "optimizer": "rule",
    "lr_scheduler": "schedule",
    "max_grad_norm": "clip_norm",
    "gradient_accumulation_steps": "accumulate",
    "num_workers": "workers",
    "warmup_steps": "schedule.warmup",
    "random_state": "seed",
}


@pytest.mark.parametrize("typed", [*TYPED])
def test_a_knob_by_another_name_is_answered_with_the_right_one(typed):
    told = rf"It is called '{TYPED[typed]}' here\."
    name = typed
    for make in (
        lambda: tw.Plan(**{name: 1}),
        lambda: tw.Plan().replace(**{name: 1}),
        lambda: tw.Plan.from_dict({name: 1}),
        lambda: tw.fit(task(), steps=1, fixed={name: 1}),
    ):
        with pytest.raises(tw.PlanError, match=told):
            make()


def task(**parts):
    return tw.Task(**{"model": lambda: nn.Linear(4, 2), "loss": F.mse_loss, "data": [[1.0]], **parts})


@pytest.mark.parametrize(
    ("typed", "word"),
    [("criterion", "loss"), ("net", "model"), ("train_data", "data"), ("val", "validation"), ("monitor", "select")],
)
def test_a_part_of_a_task_by_another_name_is_answered_with_the_right_one(typed, word):
    with pytest.raises(
        tw.TaskError, match=rf"A task takes no '{typed}'\. It is called '{word}' here\. It takes model, loss"
    ):
        task(**{typed: 1})


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (
            lambda: tw.Group(learning_rate=0.1),
            r"A group takes no 'learning_rate'\. It is called 'learning_rate_factor' here",
        ),
        (lambda: tw.Group(wd=0.1), r"It is called 'weight_decay_factor' here"),
        (
            lambda: tw.fit(None, lr=0.1),
            r"`fit` takes no 'lr'\. It is a knob of the plan: fixed=\{'learning_rate': …\}\.",
        ),
        (
            lambda: tw.tune(None, batch_size=8),
            r"`tune` takes no 'batch_size'\. It is a knob .*fixed=\{'batch_size': …\}",
        ),
        (lambda: tw.fit(None, warmup=8), r"`fit` takes no 'warmup'\. It is a knob .*fixed=\{'schedule': …\}"),
        (
            lambda: tw.train(None, None, optimizer="sgd"),
            r"`train` takes no 'optimizer'\. It is .*plan\.replace\(rule=…\)",
        ),
        (lambda: tw.fit(None, max_epochs=3), r"`fit` takes no 'max_epochs'\. It is called 'epochs' here\."),
        (lambda: tw.fit(None, output_dir="runs/x"), r"It is called 'out' here\."),
        (lambda: tw.fit(None, verbose=True), r"It is called 'progress' here\."),
        (lambda: tw.fit(None, callbacks=[]), r"It is called 'on_step' here\."),
        (lambda: tw.fit(None, efort=2), r"`fit` takes no 'efort'\. Did you mean 'effort'\? It takes task, epochs"),
        (lambda: tw.report(None, nothing=3), r"`report` takes no 'nothing'\. It takes run, path"),
        (lambda: tw.check(None, lr=3), r"`check` takes no 'lr'\. It takes task, device, seed"),
        (
            lambda: tw.fit(task(), steps=1, fixed={"epochs": 3}),
            r"'epochs', which .* It is the budget: give it as epochs=…",
        ),
        (
            lambda: tw.fit(task(), steps=1, fixed={"momentum": 0.9, "rule": "momentum"}),
            r"It is a constant of the rule: constants=\{'momentum': …\}",
        ),
    ],
)
def test_what_nobody_takes_is_refused_in_a_sentence(call, told):
    with pytest.raises(tw.ThalwegError, match=told):
        call()


def test_every_word_that_is_given_is_one_that_is_taken():
    verbs = [tw.check, tw.diagnose, tw.evaluate, tw.fit, tw.report, tw.resume, tw.train, tw.tune]
    taken = {name for verb in verbs for name in inspect.signature(verb).parameters}
    taken |= {f.name for record in (tw.Plan, tw.Group, tw.Task) for f in fields(record)}
    assert {word.partition(".")[0] for word in ARGUMENTS} <= taken
    assert {word.partition(".")[0] for word in KNOBS} <= taken
    own = [name for others in KNOBS.values() for name in others]
    assert len(own) == len(set(own))
    assert not set(own) & set(knobs(tw.Plan))


def test_records_stay_what_dataclasses_are():
    plan = tw.Plan(batch_size=8, groups={"a": tw.Group(0.5)})
    assert copy.deepcopy(plan) == pickle.loads(pickle.dumps(plan)) == plan
    assert "learning_rate" in inspect.signature(tw.Plan).parameters
    assert tw.Group(0.5, 0.0).weight_decay_factor == 0.0
    assert right_word("learning_rate", ["learning_rate"]) is None


@pytest.mark.parametrize("factory", [nn.Linear, lambda width: nn.Linear(width, 2), nn.Linear(4, 2).forward])
def test_a_factory_that_needs_arguments_is_refused_when_the_task_is_made(factory):
    with pytest.raises(tw.TaskError, match="needs arguments"):
        task(model=factory)
