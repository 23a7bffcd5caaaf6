import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from thalweg.landscape.initial_figures import (
    Scale,
    alike,
    ample,
    compares,
    constant_loss,
    extent,
    goal,
    measure_initial,
    out_of_reach,
    repeats,
    scales,
)
from thalweg.landscape.objective import Objective
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


def test_class_weights_weigh_in_the_constant_predictors_loss():
    weights = torch.tensor([1.0, 9.0, 0.0, 2.0])
    loss = nn.CrossEntropyLoss(weight=weights)
    shares = weights / weights.sum()  # of what counts: the labels are there equally often
    best = float(loss(shares.clamp_min(1e-9).log().expand(200, 4), Y))
    assert constant_loss(objective(loss), X, Y)[0] == pytest.approx(best, rel=1e-4)


def test_figures_of_a_plain_tbefore_training():
    model = nn.Linear(4, 4)
    start = measure_initial(objective(), model, (X, Y), (X.roll(1, 0), Y))
    assert start.loss == pytest.approx(float(F.cross_entropy(model(X), Y).detach()))
    assert set(start.gradients) == {"weight", "bias"}
    assert start.without_gradient == ()
    assert start.reaction > 0.1
    figures = X.mean(), X.std(), X.min(), X.max()
    assert start.scale == {"inputs": tuple(pytest.approx(float(figure)) for figure in figures)}
    assert start.compares == "class scores"
    assert start.classes == 4
    assert start.output_range == extent(model(X))
    assert not start.output_sum_to_one
    assert model.weight.grad is None


def test_an_output_that_ignores_its_input_does_not_react():
    class Deaf(nn.Module):
        def __init__(self):
            super().__init__()
            self.b = nn.Parameter(torch.ones(4))

        def forward(self, x):
            return self.b.expand(len(x), 4)

    assert measure_initial(objective(), Deaf(), (X, Y), (X.roll(1, 0), Y)).reaction == 0.0


def test_columns_are_compared():
    wide = X * torch.tensor([1.0, 1e4, 1.0, 1.0]) + torch.tensor([0.0, 0.0, 0.0, 50.0])
    start = measure_initial(objective(), nn.Linear(4, 4), (wide, Y))
    assert 5e3 < start.column_spread < 2e4
    assert start.column_offset[0] == 3
    assert start.column_offset[1] == pytest.approx(50, rel=0.2)


def test_a_column_that_is_nearly_always_the_same_is_not_far_away():
    rare = X.clone()
    rare[:, 1] = -1.0
    rare[7, 1] = -0.9
    assert measure_initial(objective(), nn.Linear(4, 4), (rare, Y)).column_offset[1] < 2


def test_probabilities_and_their_logarithms_are_recognised():
    start = measure_initial(objective(), nn.Sequential(nn.Linear(4, 4), nn.Softmax(1)), (X, Y))
    assert start.output_sum_to_one
    assert start.output_log_sum > 1
    logs = measure_initial(objective(F.nll_loss), nn.Sequential(nn.Linear(4, 4), nn.LogSoftmax(1)), (X, Y))
    assert logs.output_log_sum == pytest.approx(0.0, abs=1e-5)
    assert logs.compares == "log-probabilities"


class Remembering(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, output, target):
        self.seen += 1
        return F.mse_loss(output, target)


@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        (nn.NLLLoss(), "log-probabilities"),
        (nn.CrossEntropyLoss(), "class scores"),
        (F.binary_cross_entropy_with_logits, "binary scores"),
        (nn.MSELoss(), "distance"),
        (F.l1_loss, "distance"),
        (nn.HuberLoss(), "distance"),
        (lambda output, target: (output - target).square().mean().sqrt(), "distance"),
        (lambda output, target: ((output - target) / target).abs().mean(), ""),  # relative: scale does not matter
        (F.poisson_nll_loss, ""),
        (F.binary_cross_entropy, ""),
        (F.kl_div, ""),
        (Remembering(), ""),
    ],
)
def test_what_a_loss_compares_is_known_or_tried(loss, kind):
    assert compares(Task(model=lambda: nn.Linear(4, 4), loss=loss, data=(X, X)), X, X.sigmoid()) == kind
    assert not isinstance(loss, Remembering) or loss.seen == 0


def test_a_few_examples_are_held_to_what_inputs_tell():
    assert goal(0.7, 0.7) < 0.7
    assert ample(0.7, 0.7) < goal(0.7, 0.7)
    assert goal(40.0, 0.7) == 10.0  # fell far
    assert goal(-5.0, None) < -5.0
    assert goal(1.0, 0.0) < 1.0  # all labels alike


def test_scales_are_taken_over_batches_where_there_are_numbers():
    made = objective(F.mse_loss)
    assert scales(made, [(X[:50], Y[:50]), (X[50:], Y[50:])])["inputs"].mean == pytest.approx(float(X.mean()))
    assert list(scales(made, [(Y, 3 * X)])) == ["targets"]
    assert scales(made, [(X[:1, :1], Y[:1])]) == {}
    assert scales(made, [(Y, Y)], "distance")["targets"].mean == pytest.approx(1.5)  # whole numbers are numbers here
    assert Scale(3.0, 4.0, 0.0, 1.0).size == 5.0


def test_targets_beyond_the_bounds_are_counted():
    assert out_of_reach([X], (0.0, None)) == pytest.approx(float((X < 0).float().mean()))
    assert out_of_reach([X.abs(), -X.abs()], (None, 0.0)) == 0.5
    assert out_of_reach([X], (None, None)) is None
    assert out_of_reach([Y], (0.0, 1.0)) is None


def test_rows_that_repeat_are_found_in_all_their_parts():
    found = repeats([X, Y[:, None]], [X[[5, 7, 9]], torch.stack((Y[5:6], Y[7:8] + 1, Y[9:10]))])
    assert (found.found, found.compared, found.twins_in_training) == (2, 3, 0.0)
    assert found.rows == ((0, 5), (2, 9))
    assert repeats([X], [X + 1e-3]).found == 0


def test_twins_in_training_are_counted():
    assert repeats([torch.cat((X, X[:50]))], [X[60:]]).twins_in_training == pytest.approx(100 / 250)


def test_of_many_rows_some_are_looked_at():
    many = torch.arange(300_000)[:, None].expand(-1, 2)
    found = repeats([many], [many[::2]])
    assert found.compared == 2_000
    assert 0 < found.found <= 2_000


def test_other_kinds_of_rows_are_not_compared():
    assert repeats([X], [X[:, :2]]) is None
    assert repeats([X], [X.double()]) is None
    assert repeats([X, Y], [X]) is None
    assert repeats([X[:, :0]], [X[:, :0]]) is None


def test_a_step_of_ones_own_is_measured_as_far_as_it_can_be():
    made = Objective(Task(model=lambda: nn.Linear(4, 4), step=lambda m, b: m(b[0]).square().mean(), data=(X, Y)))
    start = measure_initial(made, nn.Linear(4, 4), (X, Y))
    assert start.reaction is None
    assert start.constant_loss is None
    assert start.gradients["weight"] > 0


def test_targets_are_alike_only_where_all_are():
    assert alike([torch.ones(30), torch.ones(4)]) is True
    assert alike([torch.ones(30), torch.tensor([1.0, 2.0])]) is False
    assert alike([torch.ones(19)]) is None
    assert alike([]) is None
    assert alike([["cat"]]) is None


def test_gradients_of_complex_weights_have_their_size_and_warn_of_nothing():
    model = nn.Linear(2, 1, bias=False, dtype=torch.complex64)
    x = torch.tensor([[1j, 1.0]])
    task = Task(model=model, loss=lambda o, t: (o - t).abs().square().sum(), data=(x, torch.tensor([[1j]])))
    with torch.no_grad():
        model.weight.zero_()
    figures = measure_initial(Objective(task), model, (x, torch.tensor([[1j]])))
    assert figures.gradients["weight"] == pytest.approx(2.0)  # |2 (Wx - t) conj(x)| of both weights
