"""The task that the tests of the search share, and what makes two of its runs the same."""

import os
import signal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import thalweg as tw

X = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)
SEARCH = {"steps": 60, "effort": 4.0, "fixed": {"batch_size": 16}, "seed": 3}


def model():
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3))


def task(**changes):
    return tw.Task(
        **{"model": model, "loss": F.cross_entropy, "data": (X, Y), "validation": (X[:50], Y[:50]), **changes}
    )


MANY = torch.randn(2000, 5, generator=torch.Generator().manual_seed(7))
STEPS = "THALWEG_TESTS_STEPS"  # of the environment: a file with a mark for each step left until this process is killed


def task_of_open_length(**changes):
    """Give a task with so many validation examples that longer runs are seen to be better."""
    return task(validation=(MANY, MANY[:, :3].argmax(1)), **changes)


def killing_loss(output, target):
    path = os.environ.get(STEPS)  # a file, as what a loss carries in memory is kept with the run
    if path is not None and output.requires_grad and os.path.exists(path):
        os.truncate(path, os.path.getsize(path) - 1)
        if not os.path.getsize(path):
            os.kill(os.getpid(), signal.SIGKILL)
    return F.cross_entropy(output, target)


def marking_loss(path, stopped_at=None):
    """Give a loss that marks each step in a file, where it is there; with so many marks the process is asked to stop."""
    path = str(path)  # a file, as what a loss carries in memory is put back after every run

    def loss(output, target):
        if output.requires_grad and os.path.exists(path):
            with open(path, "a") as file:
                file.write(".")
            if os.path.getsize(path) == stopped_at:
                os.kill(os.getpid(), signal.SIGTERM)
        return F.cross_entropy(output, target)

    return loss


def same(one, other):
    """Whether two runs are the same, but for the seconds that they took."""
    plans = [run.plan.to_dict() for run in (one, other)]
    for plan in plans:
        plan["evidence"]["learning_rate"]["figures"].pop("seconds")
    assert plans[0] == plans[1]
    assert one.metrics == other.metrics
    for a, b in zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for name in one.history.keys() - {"seconds"}:
        np.testing.assert_array_equal(one.history[name], other.history[name])
