import pytest
import torch
import torch.nn.functional as F
from torch import nn

import thalweg as tw
from thalweg.descent.constant_predictor import constant_predictor_loss
from thalweg.descent.problem import open_task
from thalweg.errors import DivergedError, PlanError

generator = torch.Generator().manual_seed(0)
X = torch.randn(300, 5, generator=generator)
Y = (X[:, :3] + 0.3 * torch.randn(300, 3, generator=generator)).argmax(1)
NOISE = torch.randn(300, 3, generator=generator)


def task(*middle, **parts):
    def model():
        return nn.Sequential(nn.Linear(5, 8), *middle, nn.Linear(8, 3))

    return tw.Task(**{"model": model, "loss": F.cross_entropy, "data": (X, Y), "validation": (X[:99], Y[:99]), **parts})


def tuned(made, said=None):
    return tw.tune(made, steps=60, effort=2.0, progress=False, say=lambda text: said is None or said.append(text))


def test_a_criterion_that_is_the_same_throughout_is_said():
    said = []
    plan = tuned(
        task(nn.ReLU(), metrics={"accuracy": lambda outputs, targets: torch.tensor(0.25)}, select="accuracy"), said
    )
    sentence = "ccuracy was 0.25 with every candidate, so it could not choose between them"
    assert sentence in plan.why("learning_rate").reason
    assert any(sentence in text for text in said)
    assert "select another criterion, such as the loss" in plan.why("learning_rate").reason
    assert "with every candidate" not in tuned(task(nn.ReLU())).why("learning_rate").reason


def test_a_loss_that_is_the_same_throughout_is_not_advised_instead_of_itself():
    reason = tuned(task(nn.ReLU(), loss=lambda outputs, targets: 0 * outputs.sum())).why("learning_rate").reason
    assert "loss was 0 with every candidate" in reason
    assert "such as the loss" not in reason


def test_a_task_that_learns_nothing_is_compared_with_the_constant_prediction():
    said = []
    noise = task(nn.ReLU(), loss=F.mse_loss, data=(X[:200], NOISE[:200]), validation=(X[200:], NOISE[200:]))
    plan = tuned(noise, said)
    variance = float(NOISE[200:].double().var(0, correction=0).mean())
    assert (
        f"no candidate did clearly better than predicting the mean ({variance:.4g})" in plan.why("learning_rate").reason
    )
    assert any("No candidate did clearly better" in text for text in said)
    assert "predicting" not in tuned(task(nn.ReLU())).why("learning_rate").reason


class FallsOver(nn.Module):
    """Is finite at first, and not once its weight has moved."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return x + self.weight / (self.weight.detach() == 0)


class Root(nn.Module):
    def forward(self, x):
        return x + torch.sqrt((x * 0).square())


class OverflowsLater(nn.Module):
    """Is finite in training, and in evaluation until its weight has moved."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        x = x + self.weight
        return x if self.training else x / (self.weight.detach() == 0)


@pytest.mark.parametrize(
    ("middle", "parts", "sentence"),
    [
        (
            (FallsOver(),),
            {},
            "the loss is not finite after 1 step. The first output that is not finite is that of `1` (FallsOver)",
        ),
        ((Root(),), {}, "the loss is finite, but the gradient of `0.weight` is not finite on the first batch."),
        (
            (OverflowsLater(),),
            {},
            "The training loss is finite, but 'loss' is nan in validation: see that it can be measured.",
        ),
    ],
)
def test_where_no_rate_trains_the_place_is_named(middle, parts, sentence):
    with pytest.raises(DivergedError) as error:
        tuned(task(*middle, **parts))
    assert sentence in str(error.value)


def test_a_loss_that_is_nan_at_the_start_names_the_module():
    class Log(nn.Module):
        def forward(self, x):
            return torch.log(x)

    with pytest.raises(tw.TaskError, match=r"before any step\..*that of `1` \(Log\)\."):
        tuned(task(Log()))


def test_a_budget_shorter_than_a_step_is_refused_or_said():
    with pytest.raises(PlanError, match=r"`epochs` is 0\.001, which is less than one step: an epoch has \d+ steps\."):
        tw.tune(task(nn.ReLU()), epochs=0.001, effort=1, progress=False)
    plan = tw.tune(task(nn.ReLU()), seconds=1e-7, effort=1, progress=False)
    assert plan.steps == 1
    assert plan.why("steps").reason.endswith("which is less than one step: one is taken")


def test_the_constants_loss_is_that_of_the_closed_form():
    made = task(nn.ReLU())
    known = constant_predictor_loss(open_task(made, "cpu"))
    shares = torch.bincount(Y[:99]).double() / 99
    assert known is not None
    assert known[0] == pytest.approx(float(-(shares * shares.log()).sum()))
    assert constant_predictor_loss(open_task(task(nn.ReLU(), loss=lambda o, t: F.cross_entropy(o, t)), "cpu")) is None
