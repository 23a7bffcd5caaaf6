"""Weights that come into play after the first step: unfrozen ones are trained, of others it is said that nobody trains them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import blobs, plan
from torch import nn

import thalweg as tw
from thalweg.errors import Interrupted


class Staged(nn.Module):
    """Its body is frozen; the model itself may thaw it."""

    def __init__(self, at=None):
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.body.requires_grad_(False)
        self.calls, self.at = 0, at

    def forward(self, x):
        self.calls += self.training
        if self.calls == self.at:
            self.body.requires_grad_(True)
        return self.head(self.body(x).tanh())


def task(model=Staged, **parts):
    return tw.Task(model, **{"loss": F.cross_entropy, "data": blobs(), "validation": blobs(30, seed=1), **parts})


def thawing(step):
    def on_step(model, figures):
        if figures.step == step:
            model.body.requires_grad_(True)

    return on_step


def initial():
    return tw.train(task(), plan(steps=2, keep="last"), progress=False).model.body.weight


def test_a_layer_that_a_callback_unfreezes_is_trained_from_then_on_and_the_run_says_so():
    made = plan(steps=20, keep="last", validate_every=10)
    run = tw.train(task(), made, progress=False, on_step=thawing(7))
    assert not torch.equal(run.model.body.weight, initial())
    told = [event for event in run.events if "frozen when the run began" in event.message]
    assert [event.step for event in told] == [7]
    assert "`body.weight`, `body.bias` were" in told[0].message


def test_a_layer_that_the_model_unfreezes_is_trained_from_then_on_whoever_looks_on_and_validates():
    def train(every, **look):
        return tw.train(
            task(lambda: Staged(at=7)), plan(steps=20, keep="last", validate_every=every), progress=False, **look
        )

    run, watched, validated = train(10), train(10, on_step=lambda model, figures: None), train(3)
    assert [event.step for event in run.events if "frozen when the run began" in event.message] == [7]
    assert not torch.equal(run.model.body.weight, initial())
    assert run.history["loss"][1:].tolist() == watched.history["loss"][1:].tolist()
    assert run.history["loss"][1:].tolist() == validated.history["loss"][1:].tolist()


@pytest.mark.parametrize("stop", [6, 8, 12])
@pytest.mark.parametrize("by", ["callback", "model"])
def test_a_run_that_unfreezes_resumes_to_the_same_bits(by, stop, tmp_path):
    model, made = Staged if by == "callback" else (lambda: Staged(at=7)), plan(steps=20, keep="last", validate_every=10)
    thaw = thawing(7 if by == "callback" else -1)

    def stopping(model, figures):
        thaw(model, figures)
        if figures.step == stop:
            raise KeyboardInterrupt

    whole = tw.train(task(model), made, progress=False, on_step=thaw)
    with pytest.raises(Interrupted):
        tw.train(task(model), made, out=tmp_path / "run", progress=False, on_step=stopping)
    resumed = tw.resume(tmp_path / "run", task(model), progress=False, on_step=thaw)
    assert torch.equal(whole.model.body.weight, resumed.model.body.weight)
    assert np.array_equal(whole.history["loss"], resumed.history["loss"], equal_nan=True)


class Growing(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.calls, self.extra = nn.Linear(4, 3), 0, None

    def forward(self, x):
        self.calls += self.training
        if self.calls == 4:
            self.extra = nn.Linear(3, 3)
        output = self.head(x)
        return output if self.extra is None else self.extra(output)


def replacing(model, figures):
    if figures.step == 4:
        model[0].weight = nn.Parameter(model[0].weight.detach().clone())


def test_a_layer_made_or_put_in_anothers_place_is_said_to_be_trained_by_nobody():
    made = plan(steps=15, validate_every=5)
    with pytest.warns(UserWarning, match="nobody trains it"):
        grown = tw.train(task(Growing), made, progress=False)
    with pytest.warns(UserWarning, match="nobody trains it"):
        replaced = tw.train(task(lambda: nn.Sequential(nn.Linear(4, 3))), made, progress=False, on_step=replacing)
    for run, name in ((grown, "`extra.weight`, `extra.bias` came to be"), (replaced, "`0.weight` came to be")):
        told = [event for event in run.events if event.kind == "warning"]
        assert len(told) == 1
        assert told[0].step == 5
        assert name in told[0].message


def test_weights_elsewhere_that_come_to_be_used_are_named():
    head, calls = nn.Linear(3, 3), [0]

    def step(model, batch):
        calls[0] += 1
        output = model(batch[0])
        return F.cross_entropy(head(output) if calls[0] > 6 else output, batch[1])

    run = tw.train(
        task(lambda: nn.Linear(4, 3), loss=None, step=step), plan(steps=15, validate_every=5), progress=False
    )
    told = [event for event in run.events if "nobody trains it" in event.message]
    assert [event.step for event in told] == [10]
    assert "`step:head.weight`" in told[0].message
    assert head.weight.grad is None


def test_a_frozen_model_that_stays_so_is_told_nothing():
    run = tw.train(task(), plan(steps=15, validate_every=5), progress=False)
    assert [event for event in run.events if event.kind in ("warning", "note")] == []


class Adapted(nn.Module):
    """A layer around another, with a low-rank sum beside it."""

    def __init__(self, base):
        super().__init__()
        self.base, self.rank, self.calls = base, 2, 0
        self.down, self.up = (
            nn.Parameter(torch.ones(2, base.in_features)),
            nn.Parameter(torch.zeros(base.out_features, 2)),
        )

    def forward(self, x):
        self.calls += 1
        return self.base(x) + x @ self.down.t() @ self.up.t()


class Adapting(nn.Module):
    """Wraps its body after some steps, or where it is validated."""

    def __init__(self, in_validation=False):
        super().__init__()
        self.body, self.head, self.calls, self.in_validation = nn.Linear(4, 8), nn.Linear(8, 3), 0, in_validation

    def forward(self, x):
        self.calls += self.training
        due = not self.training if self.in_validation else self.calls > 7
        if due and not isinstance(self.body, Adapted):
            self.body = Adapted(self.body)
        return self.head(self.body(x).tanh())


def test_a_layer_that_wraps_another_keeps_all_that_both_have():
    run = tw.train(task(Adapting), plan(steps=20, keep="last", validate_every=5), progress=False)
    body = run.model.body
    assert (body.rank, body.base.training, body.base.in_features) == (2, False, 4)
    assert any("nobody trains" in event.message for event in run.events)


def test_a_layer_that_is_wrapped_in_a_validation_is_the_bare_one_again_after_it():
    seen = []
    run = tw.train(
        task(lambda: Adapting(True)),
        plan(steps=20, keep="last", validate_every=5),
        progress=False,
        on_step=lambda model, figures: seen.append(type(model.body)),
    )
    assert {*seen, type(run.model.body)} == {nn.Linear}


def test_weights_that_the_users_own_code_trains_are_left_to_it():
    def adversarial(by_hand):
        torch.manual_seed(1)
        judge = nn.Linear(3, 1)
        optimizer = None if by_hand else torch.optim.SGD(judge.parameters(), lr=0.1)

        def step(model, batch):
            output = model(batch[0])
            if model.training:
                with torch.enable_grad():
                    F.softplus(judge(output.detach())).mean().backward()  # adds up from step to step
                if optimizer is not None:
                    optimizer.step()
                else:
                    with torch.no_grad():
                        judge.weight -= 0.1 * judge.weight.grad
                        judge.bias -= 0.1 * judge.bias.grad
            return F.cross_entropy(output, batch[1]) - F.linear(output, judge.weight.detach()).mean()

        return tw.Task(lambda: nn.Linear(4, 3), step=step, data=blobs(), validation=blobs(30, seed=1))

    for by_hand in (True, False):
        runs = [
            tw.train(adversarial(by_hand), plan(steps=12, keep="last", validate_every=every), progress=False)
            for every in (2, 6)
        ]
        assert not any("nobody trains" in event.message for run in runs for event in run.events)
        assert torch.equal(runs[0].model.weight, runs[1].model.weight)
