import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from thalweg.landscape.objective import Objective
from thalweg.landscape.start import alike, constant_loss, measure_start
from thalweg.records.task import Task

X = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(200) % 4


def objective(loss=F.cross_entropy):
    return Objective(Task(model=lambda: nn.Linear(4, 4), loss=loss, data=(X, Y)))


def test_the_constant_predictors_loss_is_the_entropy_or_the_variance():
    assert constant_loss(objective(), X, Y) == (pytest.approx(math.log(4)), "entropy of the labels")
    halves = (torch.arange(200) < 50).long()
    entropy = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    assert constant_loss(objective(nn.CrossEntropyLoss()), X, halves)[0] == pytest.approx(entropy)
    assert constant_loss(objective(F.mse_loss), X, X)[0] == pytest.approx(float(X.var(0, correction=0).mean()))
    assert constant_loss(objective(F.l1_loss), X, X) is None
    assert constant_loss(objective(nn.CrossEntropyLoss(ignore_index=0)), X, Y)[0] == pytest.approx(math.log(3))


def test_the_best_constant_is_never_worse_than_any_other():
    scores = torch.randn(4, generator=torch.Generator().manual_seed(1))
    assert F.cross_entropy(scores.expand(200, 4), Y) >= constant_loss(objective(), X, Y)[0] - 1e-6


def test_figures_of_a_plain_task():
    model = nn.Linear(4, 4)
    start = measure_start(objective(), model, (X, Y))
    assert start.loss == pytest.approx(float(F.cross_entropy(model(X), Y).detach()))
    assert set(start.gradients) == {"weight", "bias"}
    assert start.idle == ()
    assert start.reaction > 0.1
    assert start.scale["inputs"] == (pytest.approx(float(X.mean())), pytest.approx(float(X.std())))
    assert not start.output_sum_to_one
    assert model.weight.grad is None


def test_an_output_that_ignores_its_input_does_not_react():
    class Deaf(nn.Module):
        def __init__(self):
            super().__init__()
            self.b = nn.Parameter(torch.ones(4))

        def forward(self, x):
            return self.b.expand(len(x), 4)

    assert measure_start(objective(), Deaf(), (X, Y)).reaction == 0.0


def test_columns_are_compared():
    wide = X * torch.tensor([1.0, 1e4, 1.0, 1.0]) + torch.tensor([0.0, 0.0, 0.0, 50.0])
    start = measure_start(objective(), nn.Linear(4, 4), (wide, Y))
    assert 5e3 < start.column_spread < 2e4
    assert start.column_offset[0] == 3
    assert start.column_offset[1] == pytest.approx(50, rel=0.2)


def test_probabilities_are_recognised():
    assert measure_start(objective(), nn.Sequential(nn.Linear(4, 4), nn.Softmax(1)), (X, Y)).output_sum_to_one


def test_a_step_of_ones_own_is_measured_as_far_as_it_can_be():
    made = Objective(Task(model=lambda: nn.Linear(4, 4), step=lambda m, b: m(b[0]).square().mean(), data=(X, Y)))
    start = measure_start(made, nn.Linear(4, 4), (X, Y))
    assert start.reaction is None
    assert start.constant_loss is None
    assert start.gradients["weight"] > 0


def test_targets_are_alike_only_where_all_are():
    assert alike([torch.ones(30), torch.ones(4)]) is True
    assert alike([torch.ones(30), torch.tensor([1.0, 2.0])]) is False
    assert alike([torch.ones(19)]) is None
    assert alike([]) is None
    assert alike([["cat"]]) is None
