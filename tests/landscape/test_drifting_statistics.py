"""Frozen layers whose statistics a training step moves are named, and no others: as trained models show."""

import pytest
import torch
from torch import nn

import thalweg as tw
from thalweg.landscape.drifting_statistics import drifting_statistics

X = torch.randn(120, 4, generator=torch.Generator().manual_seed(0)) * 5 + 3
Y = (X[:, 0] > 3).long()


class Tuned(nn.Module):
    """A trunk and a head; `keep`: its own `train` keeps the trunk in evaluation mode."""

    def __init__(self, trunk, keep=False):
        super().__init__()
        self.trunk, self.head, self.keep = trunk, nn.LazyLinear(2), keep

    def forward(self, x):
        return self.head(self.trunk(x).flatten(1))

    def train(self, mode=True):
        super().train(mode)
        if self.keep:
            self.trunk.eval()
        return self


def frozen(*layers):
    return nn.Sequential(nn.Linear(4, 8), *layers, nn.ReLU()).requires_grad_(False)


def only_the_layer_is_frozen():
    trunk = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    trunk[1].requires_grad_(False)
    return trunk


def evaluating(trunk):
    return trunk.eval()


def trained_by_own_step(model, batch):
    model.trunk.eval()
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


CASES = {
    "a frozen trunk": (lambda: Tuned(frozen(nn.BatchNorm1d(8))), None, ("trunk.1",)),
    "without weights of its own": (lambda: Tuned(frozen(nn.BatchNorm1d(8, affine=False))), None, ("trunk.1",)),
    "by the mean of all batches": (lambda: Tuned(frozen(nn.BatchNorm1d(8, momentum=None))), None, ("trunk.1",)),
    "of instances": (
        lambda: Tuned(frozen(nn.Unflatten(1, (8, 1)), nn.Upsample(3), nn.InstanceNorm1d(8, track_running_stats=True))),
        None,
        ("trunk.3",),
    ),
    "the layer alone": (lambda: Tuned(only_the_layer_is_frozen()), None, ("trunk.1",)),
    "in evaluation mode": (lambda: Tuned(evaluating(frozen(nn.BatchNorm1d(8)))), None, ()),
    "kept by the model's own train": (lambda: Tuned(frozen(nn.BatchNorm1d(8)), keep=True), None, ()),
    "kept by the step": (lambda: Tuned(frozen(nn.BatchNorm1d(8))), trained_by_own_step, ()),
    "trained": (lambda: Tuned(frozen(nn.BatchNorm1d(8)).requires_grad_(True)), None, ()),
    "without statistics": (lambda: Tuned(frozen(nn.LayerNorm(8))), None, ()),
    "of the batch alone": (lambda: Tuned(frozen(nn.BatchNorm1d(8, track_running_stats=False))), None, ()),
}


@pytest.mark.parametrize("case", CASES)
def test_statistics_that_drift_are_said_before_and_after_training_and_only_those(case):
    make, step, names = CASES[case]
    task = tw.Task(model=make, loss=None if step else nn.functional.cross_entropy, step=step, data=(X, Y))
    found = [d for d in tw.check(task) if d.symptom == "frozen statistics move"]
    assert [tuple(d.evidence["layers"]) for d in found] == ([names] if names else [])
    run = tw.train(task, tw.Plan(learning_rate=0.01, keep="last"), steps=4)
    assert tuple(run.summary["drifting_statistics"]) == names
    assert ("drifting-statistics" in [d.name for d in tw.diagnose(run)]) == bool(names)
    before, after = dict(make().named_buffers()), dict(run.model.named_buffers())
    moved = {n.rpartition(".")[0] for n in before if "running" in n and not torch.equal(before[n], after[n])}
    assert moved == set(names) or case == "trained"


def test_the_cure_is_tried_and_works():
    def make():
        model = Tuned(frozen(nn.BatchNorm1d(8)))
        model.trunk.eval()
        return model

    task = tw.Task(model=make, loss=nn.functional.cross_entropy, data=(X, Y))
    assert "frozen statistics move" not in [d.symptom for d in tw.check(task)]


def test_what_was_found_before_training_is_said_once():
    task = tw.Task(model=CASES["a frozen trunk"][0], loss=nn.functional.cross_entropy, data=(X, Y))
    run = tw.fit(task, steps=4, effort=1)
    assert [d.name for d in tw.diagnose(run)].count("drifting-statistics") == 1


def test_many_layers_are_named_in_part():
    def make():
        return Tuned(frozen(*(layer for _ in range(6) for layer in (nn.Linear(8, 8), nn.BatchNorm1d(8)))))

    task = tw.Task(model=make, loss=nn.functional.cross_entropy, data=(X, Y))
    (found,) = [d for d in tw.check(task) if d.symptom == "frozen statistics move"]
    assert "6 frozen normalisation layers (trunk.2, trunk.4, trunk.6, trunk.8 and 2 more)" in found.cause


def test_a_model_that_is_one_frozen_layer_is_named_by_nothing():
    assert drifting_statistics(nn.BatchNorm1d(3).requires_grad_(False)) == ("",)
