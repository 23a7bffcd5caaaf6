"""Losses and metrics that take the target first are refused where that makes a difference, and the advice works."""

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, mean_absolute_error, r2_score
from torch import nn

import thalweg as tw
from thalweg.descent.problem import open_task
from thalweg.errors import TaskError

generator = torch.Generator().manual_seed(0)
X = torch.randn(40, 4, generator=generator)
LABELS = torch.arange(40) % 3
SHARES = torch.rand(40, 1, generator=generator)


def relative_error(y_true, y_pred):
    return ((y_true - y_pred).abs() / (y_true.abs() + 0.1)).mean()


def squared_error(y_true, y_pred):
    return (y_true - y_pred).square().mean()


def cross_entropy(target, logits):
    return F.cross_entropy(logits, target)


def as_called(y_true, y_pred):
    """Named one way and written for the other."""
    return F.cross_entropy(y_true, y_pred)


class Dice(nn.Module):
    def forward(self, labels, scores, smooth=1.0):
        return 1 - (2 * (labels * scores.sigmoid()).sum() + smooth) / (labels.sum() + scores.sigmoid().sum() + smooth)


class Running:
    def reset(self):
        self.figures = []

    def update(self, target, preds):
        self.figures.append(r2_score(target, preds))

    def compute(self):
        return sum(self.figures) / len(self.figures)


def task(loss: Any = F.mse_loss, y: Any = SHARES, width: int = 1, **metrics: Any) -> tw.Task:
    data = {"data": (X, y), "validation": (X, y)}
    return tw.Task(model=lambda: nn.Linear(4, width), loss=loss, metrics=metrics, **data)


MISTAKEN = {
    "a relative error": (task(relative_error), r"output for the target.*lambda output, target: relative_error\(target, out"),
    "a module": (task(Dice()), r"^The loss would be given .* takes \(labels, scores\).*: loss\(target, output\)\.$"),
    "a loss that fails": (task(cross_entropy, LABELS, 3), r"^The loss would be given .*: cross_entropy\(target, output\)"),
    "scikit-learn's r2": (task(m=r2_score), r"Metric 'm' would be given the outputs for the targets.*: r2_score\(target, output"),
    "a partial": (
        task(m=functools.partial(r2_score, force_finite=False)),
        r"takes \(y_true, y_pred\).*: m\(target, output\)",
    ),
    "a metric with batches": (task(m=Running()), r"Its update takes \(target, preds\).*: exchange the two\.$"),
    "classes of scores": (
        task(F.cross_entropy, LABELS, 3, m=accuracy_score),
        r"accuracy_score\(target, output\)\. .* outputs\.argmax\(1\) are the classes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKEN)
def test_what_takes_the_target_first_is_refused_where_it_matters(case):
    made, told = MISTAKEN[case]
    with pytest.raises(TaskError, match=told):
        open_task(made, "cpu")


RIGHT = {
    "a squared error is the same either way": task(squared_error),
    "so is an absolute one": task(m=mean_absolute_error),
    "names that mislead": task(as_called, LABELS, 3),
    "as advised": task(lambda o, t: relative_error(t, o), m=lambda o, t: r2_score(t, o)),
    "as advised of classes": task(
        lambda o, t: cross_entropy(t, o), LABELS, 3, m=lambda o, t: accuracy_score(t, o.argmax(1))
    ),
}


@pytest.mark.parametrize("case", RIGHT)
def test_what_is_the_same_either_way_or_is_given_as_advised_passes(case):
    open_task(RIGHT[case], "cpu")
