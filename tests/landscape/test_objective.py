import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from thalweg.errors import DataError, TaskError
from thalweg.landscape.objective import (
    Objective,
    check_labels,
    class_count,
    describe,
    losses_of,
    with_weights_cast,
)
from thalweg.records.task import Task

N = 8
generator = torch.Generator().manual_seed(0)
X = torch.randn(N, 6, generator=generator)
Y = torch.arange(N) % 3


def classifier() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 3), nn.Linear(2, 3)

    def forward(self, a, b):
        return self.a(a) + self.b(b)


def objective(loss: Any = F.cross_entropy, **more: Any) -> Objective:
    return Objective(Task(model=classifier, loss=loss, data=(X, Y), **more))


def squared(output, target):
    return ((output - target) ** 2).mean()


def own_step(step: Any, **more: Any) -> Objective:
    return Objective(Task(model=classifier, step=step, data=(X, Y), **more))


@pytest.mark.parametrize(
    "batch",
    [
        (X, X[:, :2], Y),
        ((X, X[:, :2]), Y),
        ({"a": X, "b": X[:, :2]}, Y),
        {"a": X, "b": X[:, :2], "label": Y},
        {"b": X[:, :2], "a": X, "targets": Y},
        [X, X[:, :2], Y],
    ],
)
def test_a_batch_is_cut_into_inputs_and_target_however_it_is_nested(batch):
    model = Two()
    loss, weight = objective().loss(model, batch)
    assert torch.equal(loss, F.cross_entropy(model(X, X[:, :2]), Y))
    assert weight is None


def test_one_tensor_is_its_own_target():
    model = nn.Linear(6, 6)
    for batch in (X, (X,), [X]):
        assert torch.equal(objective(F.mse_loss).loss(model, batch)[0], F.mse_loss(model(X), X))


def test_a_mapping_without_a_clear_target_is_refused():
    for batch in ({"a": X, "b": Y}, {"a": X, "y": Y, "label": Y}):
        with pytest.raises(
            TaskError, match=r"the keys \['a'.*Call exactly one of them target or targets .* or give `step`"
        ):
            objective().split(batch)


def test_ignored_and_per_pixel_labels_pass():
    pixels = torch.zeros(N, 2, 2, dtype=torch.long)
    pixels[3, 1, 0] = -7
    task = Task(model=classifier, loss=nn.CrossEntropyLoss(ignore_index=-7), data=(X, Y))
    check_labels(task, torch.zeros(N, 3, 2, 2), pixels)
    pixels[4, 0, 1] = 3
    with pytest.raises(DataError, match="in row 4,"):
        check_labels(task, torch.zeros(N, 3, 2, 2), pixels)


def test_a_label_that_shows_up_later_is_named_too():
    with pytest.raises(DataError, match=r"The target is 7 in row 2 of this batch, but the model has 3 outputs"):
        objective().loss(classifier(), (X, torch.where(torch.arange(N) == 2, 7, Y)))


def test_a_single_example_under_batch_normalisation_is_refused():
    model = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))
    with pytest.raises(TaskError, match=r"Expected more than 1 value.*set drop_last=True, in your DataLoader"):
        objective().loss(model, (X[:1], Y[:1]))


def test_the_loss_of_a_step_of_ones_own_is_divided_by_the_examples_whatever_its_batches_are():
    assert own_step(lambda m, b: m(b["x"]).sum(), loss=F.cross_entropy).weight({"x": X}, 7) == 7.0


def test_classes_are_counted_where_the_loss_is_known():
    assert class_count(objective().task, torch.zeros(N, 5)) == 5
    assert class_count(objective(nn.NLLLoss()).task, torch.zeros(N, 4, 2)) == 4
    assert class_count(objective(squared).task, torch.zeros(N, 5)) is None


def test_weighted_reads_pairs():
    assert losses_of(X.sum(), "step")[:2] == (X.sum(), None)
    assert losses_of((X.sum(), 2), "step")[:2] == (X.sum(), 2)


def test_shapes_are_told_shortly():
    assert describe(Y) == "(8,) int64"
    assert describe({"a": 1}) == "dict"


class Focal(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.CrossEntropyLoss(weight=torch.ones(3, dtype=torch.float64), reduction="none")
        self.register_buffer("alpha", torch.ones((), dtype=torch.float64))  # not PyTorch's: perhaps so on purpose

    def forward(self, output, target):
        loss = self.inner(output, target)
        return ((1 - (-loss).exp()) ** 2 * loss).mean()


@pytest.mark.parametrize(
    ("loss", "output", "target"),
    [
        (nn.CrossEntropyLoss(weight=torch.ones(3).double()), torch.randn(N, 3, generator=generator), Y),
        (nn.NLLLoss(weight=torch.ones(3).double()), torch.randn(N, 3, generator=generator), Y),
        (nn.BCEWithLogitsLoss(pos_weight=torch.ones(3).double()), X[:, :3], (X[:, 3:] > 0).float()),
        (nn.MultiMarginLoss(weight=torch.ones(3).double()), X[:, :3], Y),
        (Focal(), torch.randn(N, 3, generator=generator), Y),
    ],
)
def test_weights_of_a_loss_are_cast_to_the_models_dtype_in_a_copy(loss, output, target):
    task, notes = with_weights_cast(objective(loss).task, torch.float32)
    assert task.loss(output, target).dtype == torch.float32
    (note,) = notes
    assert "is float64 and was cast to the model's torch.float32." in note
    assert {b.dtype for b in loss.buffers()} == {torch.float64}
    assert with_weights_cast(task, torch.float32) == (task, [])


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss", "binary_cross_entropy_with_logits"])
def test_weights_of_a_partial_are_cast_too(name):
    given = "pos_weight" if name.startswith("binary") else "weight"
    loss = functools.partial(getattr(F, name), **{given: torch.ones(3).double()}, reduction="sum")
    task, (note,) = with_weights_cast(objective(loss).task, torch.float32)
    assert note == f"`{given}` of {name} is float64 and was cast to the model's torch.float32."
    assert task.loss.keywords[given].dtype == torch.float32
    assert task.loss.keywords["reduction"] == "sum"
    assert loss.keywords[given].dtype == torch.float64
    assert with_weights_cast(task, torch.float32) == (task, [])


def test_weights_of_a_loss_are_cast_up_for_a_model_in_double_precision():
    loss = nn.CrossEntropyLoss(weight=torch.ones(3))
    task, notes = with_weights_cast(objective(loss).task, torch.float64)
    assert task.loss(torch.randn(N, 3, generator=generator).double(), Y).dtype == torch.float64
    assert len(notes) == 1


@pytest.mark.parametrize(
    "loss", [F.cross_entropy, nn.CrossEntropyLoss(), nn.CrossEntropyLoss(weight=torch.ones(3)), nn.MSELoss()]
)
def test_a_loss_whose_weights_fit_is_left_as_it_is(loss):
    task = objective(loss).task
    assert with_weights_cast(task, torch.float32) == (task, [])
    assert with_weights_cast(task, torch.bfloat16) == (task, [])  # such a model may give float32
