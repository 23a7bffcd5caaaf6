"""A run's own copies are those of the user's objects as they hang together."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import thalweg as tw
from thalweg.landscape.own_copy import own_copies, own_copy


class Tracker:
    def __init__(self):
        self.losses = []


class Loss:
    def __init__(self, tracker):
        self.tracker = tracker

    def __call__(self, output, target):
        self.tracker.losses.append(1.0)
        return F.mse_loss(output, target)


class ModuleLoss(nn.Module, Loss):
    def __init__(self, tracker):
        super().__init__()
        self.tracker = tracker

    forward = Loss.__call__


class Calls:
    def __init__(self, tracker):
        self.tracker = tracker

    def __call__(self, output, target):
        return float(len(self.tracker.losses))


@pytest.mark.parametrize("kind", [Loss, ModuleLoss])
def test_a_metric_sees_what_the_loss_of_its_run_notes_and_the_users_own_stays_as_it_was(kind):
    tracker, data = Tracker(), (torch.randn(12, 2), torch.randn(12, 1))
    task = tw.Task(lambda: nn.Linear(2, 1), kind(tracker), data, data, metrics={"calls": Calls(tracker)}, mode="min")
    made = tw.Plan(learning_rate=0.01, batch_size=4, steps=6, validate_every=3)
    figures = [dict(tw.train(task, made, progress=False).metrics) for _ in range(2)]
    assert figures[0]["calls"] > 3
    assert figures[0] == figures[1]
    assert tracker.losses == []


def test_what_cannot_be_copied_leaves_the_others_copied():
    tracker = Tracker()
    locked = Loss(tracker)
    locked.lock = threading.Lock()
    own = own_copies({"locked": locked, "calls": Calls(tracker), "again": Calls(tracker)})
    assert own["locked"] is locked
    assert own["calls"].tracker is own["again"].tracker is not tracker
    layer = nn.Linear(2, 2)
    assert own_copy(layer).weight is layer.weight
