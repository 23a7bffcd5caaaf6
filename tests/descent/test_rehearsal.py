"""The rehearsal: what does not fit is named with its shapes and a remedy, and dtypes are cast where that is enough."""

import math
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from thalweg.descent import rehearsal
from thalweg.errors import DataError, TaskError
from thalweg.landscape.objective import Casts, Objective
from thalweg.records.task import Task

N = 8
generator = torch.Generator().manual_seed(0)
X = torch.randn(N, 6, generator=generator)
IMAGES = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) % 3


def classifier() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def line() -> nn.Module:
    return nn.Linear(6, 1)


def objective(loss: Any = F.cross_entropy, **more: Any) -> Objective:
    return Objective(Task(model=classifier, loss=loss, data=(X, Y), **more))


def rehearse(one: Objective, model: nn.Module, batch: Any, *, training: bool = True) -> Objective:
    """Rehearse an objective's task, and give the objective with the casts that were found."""
    return Objective(one.task, rehearsal.rehearse(one.task, model, batch, one.cast_inputs, training=training).casts)


def squared(output, target):
    return ((output - target) ** 2).mean()


@pytest.mark.parametrize(
    ("model", "loss", "batch", "casts"),
    [
        (classifier, F.cross_entropy, (X, Y), Casts()),
        (classifier, F.cross_entropy, (X.double(), Y), Casts(floats=torch.float32)),
        (classifier, F.cross_entropy, (X.half(), Y), Casts(floats=torch.float32)),
        (lambda: classifier().double(), F.cross_entropy, (X, Y), Casts(floats=torch.float64)),
        (classifier, F.cross_entropy, (X.byte(), Y), Casts(torch.float32, torch.float32)),
        (classifier, F.cross_entropy, (X > 0, Y), Casts(torch.float32, torch.float32)),
        (classifier, F.cross_entropy, (X, Y.int()), Casts(target=torch.int64)),
        (classifier, F.cross_entropy, (X, Y > 0), Casts(target=torch.int64)),
        (classifier, lambda o, t: F.nll_loss(o.log_softmax(1), t), (X, Y.short()), Casts(target=torch.int64)),
        (line, F.binary_cross_entropy_with_logits, (X, Y[:, None] > 0), Casts(target=torch.float32)),
        (line, nn.BCEWithLogitsLoss(), (X, (Y[:, None] > 0).long()), Casts(target=torch.float32)),
        (
            line,
            lambda o, t: F.binary_cross_entropy_with_logits(o.squeeze(1), t),
            (X, Y > 0),
            Casts(target=torch.float32),
        ),
        (
            line,
            lambda o, t: F.binary_cross_entropy_with_logits(o[:, 0], t),
            (X, (Y > 0).int()),
            Casts(target=torch.float32),
        ),
        (line, squared, (X, Y[:, None] > 0), Casts(target=torch.int64)),  # floats less flags are not defined
        (line, F.mse_loss, (X, X[:, :1].double()), Casts(target=torch.float32)),
        (lambda: line().double(), F.mse_loss, (X, X[:, :1]), Casts(floats=torch.float64, target=torch.float64)),
        (
            lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 3)),
            F.cross_entropy,
            (torch.zeros(N, 1, 6, 6, dtype=torch.uint8), Y),
            Casts(torch.float32, torch.float32),
        ),
        (
            lambda: nn.Sequential(nn.Embedding(9, 2), nn.Flatten(), nn.Linear(12, 3)),
            F.cross_entropy,
            (X.byte() % 9, Y),
            Casts(torch.float32, torch.int64),
        ),
    ],
)
def test_inputs_and_targets_of_another_dtype_are_cast_where_the_model_or_the_loss_needs_it(model, loss, batch, casts):
    made = model()
    found = rehearse(objective(loss), made, batch)
    assert found.cast_inputs == casts
    value, _ = found.loss(made, batch)
    value.backward()
    assert math.isfinite(float(value.detach()))
    rehearse(found, made, batch, training=False)  # validation goes through the same casts


def test_token_numbers_beside_floats_of_another_width_stay_whole():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.l = nn.Embedding(3, 3), nn.Linear(6, 3)

        def forward(self, ids, x):
            return self.e(ids) + self.l(x)

    found = rehearse(objective(), Mixed(), (Y, X.double(), Y))
    assert found.cast_inputs == Casts(floats=torch.float32)


def test_complex_inputs_are_left_as_they_are():
    class Spectrum(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(6, 3, dtype=torch.complex64))

        def forward(self, x):
            return (x @ self.w).abs()

    assert rehearse(objective(), Spectrum(), (X.to(torch.complex64), Y)).cast_inputs == Casts()


class Reconstruction(nn.Module):
    """Gives what it was given, and a code."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        return self.layer(x).sigmoid(), x[:, :1]


REFUSED = {
    "inputs that do not fit": (
        (classifier, F.cross_entropy, (X[:, :5], Y)),
        r"The model failed on the first training batch \(inputs \(8, 5\) float32\): RuntimeError: mat1 and mat2 shapes"
        r" cannot be multiplied.*Compare these shapes with what the model's first layers take\.",
    ),
    "too many inputs": (
        (classifier, F.cross_entropy, (X, X, Y)),
        r"The model failed on the first training batch \(inputs .*\): TypeError: .*forward\(\) takes 2",
    ),
    "token numbers beyond the embedding": (
        (
            lambda: nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(24, 3)),
            F.cross_entropy,
            (Y[:, None] + 7, Y),
        ),
        r"index out of range.*Inputs run from 7 to 9: an embedding needs 10 rows, and none below 0\.",
    ),
    "one example under batch normalisation": (
        (lambda: nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)), F.cross_entropy, (X[:1], Y[:1])),
        r"Expected more than 1 value per channel.*Batch normalisation needs two examples per batch: set drop_last",
    ),
    "outputs and targets of other widths": (
        (classifier, F.mse_loss, (X, X[:, :4])),
        r"The loss failed on the first training batch: the model gives \(8, 3\) float32, the target is \(8, 4\) float32:"
        r".*Make the model's last layer, the targets and the loss fit each other\.",
    ),
    "a loss that takes the model's tuple apart, given labels for inputs": (
        (Reconstruction, lambda output, target: F.binary_cross_entropy(output[0], target), (X, 0 * Y)),
        r"the model gives tuple, the target is \(8,\) int64: .*size.*Make the model's last layer, the targets and the loss fit",
    ),
    "masks with a dimension of channels": (
        (lambda: nn.Conv2d(1, 2, 1), F.cross_entropy, (IMAGES, (IMAGES > 0).long())),
        r"Masks of class numbers have no dimension of channels: y\.squeeze\(1\)\.$",
    ),
    "masks larger than the scores": (
        (lambda: nn.Conv2d(1, 2, 1, stride=2), F.cross_entropy, (IMAGES, (IMAGES[:, 0] > 0).long())),
        r"scores have \(3, 3\) places and the targets \(6, 6\): .*F\.interpolate\(output, size=y\.shape\[1:\]\)",
    ),
    "images without channels": (
        (lambda: nn.Conv2d(1, 3, 6), F.cross_entropy, (IMAGES[:, 0], Y)),
        r"no dimension of channels: give x\[:, None\]",
    ),
    "images with the channels last": (
        (lambda: nn.Conv2d(3, 3, 6), F.cross_entropy, (IMAGES.expand(-1, 3, -1, -1).permute(0, 2, 3, 1), Y)),
        r"The channels come last, .*x\.permute\(0, 3, 1, 2\)",
    ),
    "grey images for a model of colours": (
        (lambda: nn.Conv2d(3, 3, 6), F.cross_entropy, (IMAGES, Y)),
        r"have 1 channels, and the model takes 3: .*x\.expand\(-1, 3, -1, -1\)",
    ),
    "a flat target under binary cross-entropy": (
        (line, F.binary_cross_entropy_with_logits, (X, Y > 0)),
        r"the model gives \(8, 1\) float32, the target is \(8,\) bool.*Give both the same shape: y\[:, None\]",
    ),
    "a target that is spread over the outputs": (
        (line, F.mse_loss, (X, X[:, 0])),
        r"The model gives \(8, 1\) but the target is \(8,\), and the loss spreads one over the other.*y\[:, None\]",
    ),
    "the same under a loss of one's own": ((line, squared, (X, X[:, 0])), r"the loss spreads one over the other"),
    "the same with whole numbers": ((line, squared, (X, Y)), r"the loss spreads one over the other"),
    "the same in double precision": (
        (line, nn.L1Loss(), (X, X[:, 0].double())),
        r"the loss spreads one over the other",
    ),
    "a label beyond the outputs": (
        (classifier, F.cross_entropy, (X, Y + (torch.arange(N) == 5))),
        r"The target is 3 in row 5, but the model has 3 outputs: labels run from 0 to 2\. Give the model 4 outputs or check",
    ),
    "a label below zero": (
        (classifier, nn.CrossEntropyLoss(), (X, Y - 1)),
        r"The target is -1 in row 0, but the model has 3 outputs: labels run from 0 to 2\. Number the classes from 0\.",
    ),
    "labels in a column": (
        (classifier, F.cross_entropy, (X, Y[:, None])),
        r"The targets are \(8, 1\) int64, but class numbers have one dimension\..*y\.squeeze\(1\)",
    ),
    "labels that are floats": (
        (classifier, F.cross_entropy, (X, Y.float())),
        r"The targets are \(8,\) float32, but this loss wants class numbers \(int64\).*Give y as integers",
    ),
    "labels that are words": (
        (classifier, F.cross_entropy, (X, ("cat",) * N)),
        r"The loss failed .*the target is tuple.*code labels as 0, 1, 2, …",
    ),
    "one loss per example": (
        (classifier, lambda o, t: F.cross_entropy(o, t, reduction="none"), (X, Y)),
        r"The loss has the shape \(8,\), but it must be one number: the mean over the batch\. Use reduction='mean'",
    ),
    "a loss that is a Python number": (
        (classifier, lambda o, t: F.cross_entropy(o, t).item(), (X, Y)),
        r"The loss is a float, not a tensor\. Return the tensor itself, without \.item\(\)\.",
    ),
    "a loss cut off from the model": (
        (classifier, lambda o, t: F.cross_entropy(o.detach(), t), (X, Y)),
        r"The loss has no gradient: nothing that can be trained leads to it\. Look for \.detach\(\)",
    ),
    "a loss that is NaN": (
        (classifier, lambda o, t: F.cross_entropy(o, t) * math.nan, (X, Y)),
        r"The loss is nan at the very start, before any step\. Look for log\(0\), division by zero",
    ),
    "a loss that is infinite": (
        (classifier, lambda o, t: F.cross_entropy(o, t) / 0, (X, Y)),
        r"The loss is inf at the very",
    ),
    "a loss that is a whole number": (
        (classifier, lambda o, t: (o.argmax(1) == t).sum(), (X, Y)),
        r"The loss is torch\.int64, but gradients need a real floating-point number\.",
    ),
    "a loss that fails": (
        (classifier, lambda o, t: 1 / 0, (X, Y)),
        r"The loss failed on the first training batch.*ZeroDivisionError: division by zero \(test_rehearsal\.py, line \d+\)\.$",
    ),
    "a loss of fewer rows": (
        (classifier, lambda o, t: F.cross_entropy(o[1:], t), (X, Y)),
        r"batch_size \(7\) to match target batch_size \(8\).*Make the model's last layer, the targets and the loss fit each",
    ),
    "class numbers for a distance": (
        (classifier, F.mse_loss, (X, Y)),
        r"The loss failed .*For class numbers use cross_entropy, whose model has one output for each class\.$",
    ),
    "a loss of one argument": (
        (classifier, lambda o: o.mean(), (X, Y)),
        r"The loss failed .*takes 1 positional argument.*It is called as loss\(output, target\)\.$",
    ),
    "a frozen model": (
        (lambda: classifier().requires_grad_(False), F.cross_entropy, (X, Y)),
        r"The model has no trainable parameter: all are frozen\. Set requires_grad on those",
    ),
    "a model without parameters": (
        (nn.Identity, F.cross_entropy, (X, Y)),
        r"The model has no parameter, so there is nothing",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_told_with_shapes_and_remedy(case):
    (model, loss, batch), told = REFUSED[case]
    with pytest.raises(TaskError, match=told) as raised:
        rehearse(objective(loss), model(), batch)
    assert "\n" not in str(raised.value)


def test_soft_labels_pass():
    rehearse(objective(), classifier(), (X, torch.full((N, 3), 1 / 3)))


def root_mean_square(output, target):
    return ((output - target) ** 2).mean().sqrt()


@pytest.mark.parametrize("loss", [root_mean_square, lambda o, t: (o - t).abs().max(), F.l1_loss, F.mse_loss])
def test_a_loss_that_spreads_one_shape_over_the_other_is_refused(loss):
    with pytest.raises(DataError, match="spreads one over the other"):
        rehearse(objective(loss), line(), (X, X[:, 0]))
    rehearse(objective(loss), line(), (X, X[:, :1]))


def test_trying_whether_a_loss_spreads_warns_of_nothing():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rehearse(objective(lambda o, t: F.mse_loss(o.flatten(), t)), line(), (X, X[:, 0]))
    assert [str(warning.message) for warning in caught] == []


def test_a_loss_that_spreads_nothing_passes_whatever_the_shapes():
    rehearse(objective(lambda o, t: ((o.squeeze(1) - t) ** 2).mean()), line(), (X, X[:, 0]))
    rehearse(objective(lambda o, t: ((o.squeeze() - t) ** 2).mean()), line(), (X, X[:, 0]))
    rehearse(objective(lambda o, t: F.cross_entropy(o, t)), line(), (X, Y * 0))
    rehearse(objective(lambda o, t: (o.mean() - t.mean()) ** 2), line(), (X, X[:, 0]))  # of the whole batch on purpose


def own_step(step: Any, **more: Any) -> Objective:
    return Objective(Task(model=classifier, step=step, data=(X, Y), **more))


def test_a_step_returns_the_loss_or_a_weighted_one():
    model = classifier()

    def loss(m, batch):
        return F.cross_entropy(m(batch[0]), batch[1])

    for weight in (3, 3.0, torch.tensor(3.0)):
        made = rehearse(own_step(lambda m, b, w=weight: (loss(m, b), w)), model, (X, Y))
        assert float(made.loss(model, (X, Y))[1]) == 3
    assert rehearse(own_step(loss), model, (X, Y)).loss(model, (X, Y))[1] is None


def test_a_step_may_read_what_a_hugging_face_model_returns():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = nn.Linear(6, 3)

        def forward(self, x=None, labels=None):
            return SimpleNamespace(loss=F.cross_entropy(self.l(x), labels))

    made = own_step(lambda model, batch: model(**batch).loss)
    rehearse(made, Model(), {"x": X, "labels": Y})


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (lambda m, b: None, r"`step` returned nothing\. End it with `return loss`\.$"),
        (
            lambda m, b: m(b[0]).mean().item(),
            r"`step` returned a float\. Return the loss as a tensor, without \.item\(\)\.$",
        ),
        (
            lambda m, b: {"total_loss": m(b[0]).mean(), "scores": m(b[0])},
            r"`step` returned a dict whose entry 'scores' has the shape \(8, 3\)",
        ),
        (
            lambda m, b: SimpleNamespace(loss=m(b[0]).mean()),
            r"`step` returned a SimpleNamespace\. Return its loss: outputs\.loss\.$",
        ),
        (
            lambda m, b: [m(b[0]).mean(), m(b[0]).mean()],
            r"`step` returned a list\. It returns the loss, .*\(a GAN, say\) are not what thalweg trains",
        ),
        (lambda m, b: (m(b[0]).mean(), m(b[0])), r"`step` returned the weight \(8, 3\) float32.*Return the loss alone"),
        (
            lambda m, b: (m(b[0]).mean(), -m(b[0]).mean()),
            r"two tensors that have gradients.*return the sum .*as a GAN has",
        ),
        (lambda m, b: (m(b[0]).mean(), m(b[0]).square().sum()), r"the second of \(loss, weight\) is a count"),
        (lambda m, b: (m(b[0]).mean(), m(b[0])[0, 0].exp(), {}), r"of a weight its weight\.detach\(\)"),
        (
            lambda m, b: (m(b[0]).mean(), -1),
            r"`step` returned the weight -1 for the first batch\. It must be above zero",
        ),
        (
            lambda m, b: (m(b[0]).mean(), 0),
            r"`step` returned the weight 0 for the first batch, so nothing in it counts",
        ),
        (lambda m, b: (m(b[0]).mean(), -2.0), r"returned the weight -2 for"),
        (
            lambda m, b: (m(b[0]).mean(), torch.ones(3)),
            r"`step` returned the weight \(3,\) float32, but \(loss, weight\) has one number",
        ),
        (lambda m, b: m.no_such_thing, r"`step` failed on the first training batch: AttributeError"),
        (lambda m, b: m(b[0]), r"The loss has the shape \(8, 3\)"),
    ],
)
def test_a_step_that_returns_something_else_is_told(step, told):
    with pytest.raises(TaskError, match=told):
        rehearse(own_step(step), classifier(), (X, Y))


def left_gradients(model, batch):
    loss = model(batch[0]).square().mean()
    loss.backward(retain_graph=True)
    return loss


def trained_by_itself(model, batch):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loss = model(batch[0]).square().mean()
    loss.backward()
    optimizer.step()
    return loss


def linear_in_the_weights(model, batch):
    loss = model[0](batch[0]).mean()  # its second backward() does not fail
    loss.backward()
    return loss


@pytest.mark.parametrize("step", [left_gradients, trained_by_itself, linear_in_the_weights])
def test_a_step_that_calls_backward_is_refused(step):
    with pytest.raises(
        TaskError,
        match=r"^`step` called backward\(\), and left gradients.*Return the loss alone: gradient and optimizer step",
    ):
        rehearse(own_step(step), classifier(), (X, Y))


def test_a_step_may_take_gradients_that_it_does_not_leave():
    def by_inputs(model, batch):
        x = batch[0].clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return slope.square().mean()

    def adversarial(model, batch):
        x = batch[0].clone().requires_grad_()
        F.cross_entropy(model(x), batch[1]).backward()
        model.zero_grad()
        return F.cross_entropy(model(x.detach() + 0.1 * x.grad.sign()), batch[1])

    rehearse(own_step(by_inputs), classifier(), (X, Y))
    rehearse(own_step(adversarial), classifier(), (X, Y))


def test_evaluate_may_go_without_gradients():
    with torch.no_grad():
        rehearse(
            own_step(lambda m, b: m(b[0]).mean(), evaluate=lambda m, b: m(b[0]).mean().detach()),
            classifier(),
            (X, Y),
            training=False,
        )


def test_memory_running_out_is_not_taken_for_a_misfit():
    def hungry(output, target):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    with pytest.raises(RuntimeError, match="can't allocate"):
        rehearse(objective(hungry), classifier(), (X, Y))
