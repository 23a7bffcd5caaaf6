"""Models that change what they consist of at some calls: looking on changes nothing, and what no checkpoint holds is said."""

import weakref

import pytest
import torch
import torch.nn.functional as F
from small import blobs, plan, weights
from torch import nn
from torch.nn.utils import parametrize, prune

import thalweg as tw
from thalweg.errors import Interrupted


class Symmetric(nn.Module):
    def forward(self, weight):
        return (weight + weight.T) / 2


class Activation(nn.Module):
    def forward(self, x):
        return x.tanh()


class Key:
    pass


def start_units_anew(model):
    with torch.no_grad():
        model.body.weight[:2] = torch.randn(2, 4)


def clamp_silently(model):
    for parameter in model.parameters():
        parameter.data.clamp_(-0.2, 0.2)  # PyTorch counts no change of `.data`


def count_on_a_weight(model):
    model.body.weight.count = getattr(model.body.weight, "count", 0) + 1
    model.factor = 1 + model.body.weight.count / 10


def tie(model):
    model.more.weight = model.body.weight


def hook_in(model):
    model.body.register_forward_hook(lambda module, given, output: output * 1.1)


def hook_into_the_gradient(model):
    model.body.weight.register_hook(lambda gradient: gradient / 2)


def another_forward(model):
    forward = model.body.forward
    model.body.forward = lambda x: forward(x) * 1.1


def another_method(model):
    Activation.forward = lambda self, x: x.relu()


def another_activation(model):
    model.activation = nn.ReLU()


def hold_weakly(model):
    model.held[str(len(model.held))] = model.key
    model.factor = 1 + len(model.held) / 10


KEPT = (start_units_anew, clamp_silently, count_on_a_weight)
NAMED = (tie, hook_in, hook_into_the_gradient, another_forward, another_method, another_activation, hold_weakly)
REFUSED = (
    lambda model: parametrize.register_parametrization(model.body, "weight", Symmetric()),
    lambda model: prune.l1_unstructured(model.body, "weight", amount=0.2),
)


class Changing(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.body, self.more, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.activation, self.calls, self.factor, self.key = Activation(), 0, 1.0, Key()
        self.held, self.change = weakref.WeakValueDictionary(), change

    def forward(self, x):
        self.calls += self.training
        if self.training and self.calls in (
            10,
            13,
            17,
        ):  # the watch looks at the steps before it, which calls the model more often
            self.change(self)
        return self.head(self.more(self.activation(self.body(x)))) * self.factor


@pytest.fixture(autouse=True)
def activation(monkeypatch):
    monkeypatch.setattr(Activation, "forward", Activation.forward)


def train(change, **knobs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Activation, "forward", Activation.forward)
        parts = {name: knobs.pop(name) for name in ("out", "on_step") if name in knobs}
        task = tw.Task(lambda: Changing(change), F.cross_entropy, blobs(), validation=blobs(30))
        return tw.train(task, plan(steps=24, learning_rate=0.1, keep="last", **knobs), progress=False, **parts)


@pytest.mark.parametrize("change", KEPT + NAMED + REFUSED)
def test_looking_on_changes_nothing_of_a_model_that_changes_itself(change):
    looked_on = train(change, validate_every=3, snapshot_every=4)
    alone = train(change, validate_every=24, snapshot_every=0, watch=False)
    assert torch.equal(weights(looked_on.model), weights(alone.model))
    assert looked_on.diagnoses == ()


@pytest.mark.parametrize("change", KEPT + NAMED)
def test_a_model_that_changes_itself_goes_on_to_the_same_bits_or_it_is_said_that_it_may_not(change, tmp_path):
    at = 15

    def stop(model, figures):
        if figures.step == at:
            raise KeyboardInterrupt

    whole = train(change, snapshot_every=4)
    said = [event.message for event in whole.events if "which no checkpoint holds" in event.message]
    assert (bool(said), whole.summary["exact"]) == (change in NAMED, change in KEPT)
    for _ in range(2):  # what the first process has lost the third one says, too
        with pytest.raises(Interrupted):
            train(change, snapshot_every=4, out=tmp_path / "run", on_step=stop)
        at = 20
    resumed = train(change, snapshot_every=4, out=tmp_path / "run")
    if change in KEPT:
        assert torch.equal(weights(resumed.model), weights(whole.model))
    assert resumed.summary["exact"] is (change in KEPT)


@pytest.mark.parametrize("change", REFUSED)
def test_where_weights_get_other_names_a_run_says_so_and_no_other_model_goes_on_with_it(change, tmp_path):
    whole = train(change, out=tmp_path / "run")
    said = [event.message for event in whole.events if event.message.startswith("`model.body` is ")]
    assert len(said) == 1
    assert "no checkpoint holds" in said[0]
    assert whole.summary["exact"] is False


def test_a_gradient_that_is_retained_is_named_before_the_run():
    class Remembering(nn.Linear):
        def forward(self, x):
            self.output = super().forward(x)
            if self.output.requires_grad:
                self.output.retain_grad()
            return self.output

    run = tw.train(tw.Task(lambda: Remembering(4, 3), F.cross_entropy, blobs()), plan(steps=3), progress=False)
    assert any(
        "`model.output.grad` is the gradient of a tensor that was computed" in note for note in run.summary["notes"]
    )
