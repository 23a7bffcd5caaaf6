"""What the user's code and PyTorch raise is told in one sentence that names place, step, line and cause."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from thalweg.descent.problem import open_task
from thalweg.descent.user_errors import naming_errors
from thalweg.errors import DataError, TaskError
from thalweg.records.task import Task

generator = torch.Generator().manual_seed(0)
X = torch.randn(8, 6, generator=generator)
Y = torch.arange(8) % 3


class Own(nn.Module):
    """A linear layer, and something done with its outputs."""

    def __init__(self):
        super().__init__()
        self.layer, self.state = nn.Linear(6, 3), torch.zeros(3)

    def forward(self, x):
        return self.change(self.layer(x))

    def change(self, x):
        return x


class Recurrent(Own):
    def change(self, x):
        self.state = (x + self.state).tanh()
        return self.state


class InPlace(Own):
    def change(self, x):
        y = x.sigmoid()
        y += 1
        return y


class Pruned(Own):
    def change(self, x):
        self.layer.weight *= 0.5
        return self.layer.weight.sum() + x


class Numpy(Own):
    def change(self, x):
        return torch.from_numpy(x.numpy())


class Elsewhere(Own):
    def change(self, x):
        return x + torch.zeros(3, device="meta")


class Doubles(Own):
    def change(self, x):
        return x @ torch.eye(3, dtype=torch.float64)


class Detached(Own):
    def change(self, x):
        self.state = (x + self.state).tanh()
        before, self.state = self.state, self.state.detach()
        return before


FAILING: dict[str, tuple[type[nn.Module], str]] = {
    "a hidden state that is kept": (
        Recurrent,
        r"^The backward pass failed on a second training batch: RuntimeError: Trying to backward through the graph a second time"
        r".*a hidden state, needs \.detach\(\)\.$",
    ),
    "a change in place": (
        InPlace,
        r"^The backward pass failed on the first training batch: RuntimeError: one of the variables .* x = x \+ y instead of",
    ),
    "a parameter changed in place": (
        Pruned,
        r"^The model failed on the first .* \(test_user_errors\.py, line \d+\)\. A parameter is changed in place",
    ),
    "numpy in forward": (Numpy, r"Can't call numpy\(\) on Tensor.*Use PyTorch's functions instead of numpy's"),
    "a constant on another device": (Elsewhere, r"The model failed on .* belong on the input's device: torch\.zeros\("),
    "a constant of another dtype": (
        Doubles,
        r"The model failed on .*dtype.* in the input's dtype \(dtype=x\.dtype\)\.$",
    ),
}


@pytest.mark.parametrize("case", FAILING)
def test_what_fails_in_the_model_or_its_gradient_is_one_sentence_with_the_cause(case):
    model, told = FAILING[case]
    with pytest.raises(TaskError, match=told) as raised:
        open_task(Task(model=model, loss=F.cross_entropy, data=(X, Y)), "cpu")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600


def test_a_state_that_is_kept_without_its_graph_passes():
    problem = open_task(Task(model=Detached, loss=F.cross_entropy, data=(X, Y)), "cpu")
    assert problem.without_gradient == ()


def test_a_loss_that_keeps_its_average_attached_fails_in_the_second_batch():
    class Smoothed(nn.Module):
        average: Any = 0.0

        def forward(self, output, target):
            self.average = 0.9 * self.average + 0.1 * F.cross_entropy(output, target).square()
            return self.average

    with pytest.raises(TaskError, match=r"The backward pass failed on a second training batch: .*\.detach\(\)"):
        open_task(Task(model=Own, loss=Smoothed(), data=(X, Y)), "cpu")


def test_place_step_and_line_are_named():
    told = r"^The model or the loss failed in step 12: KeyError: 'no such key' \(test_user_errors\.py, line \d+\)\.$"
    with pytest.raises(TaskError, match=told) as raised, naming_errors("The model or the loss", step=12):
        raise KeyError("no such key")
    assert isinstance(raised.value.__cause__, KeyError)


@pytest.mark.parametrize(
    "error",
    [
        DataError("the data"),
        TaskError("the task"),
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        KeyboardInterrupt(),
    ],
)
def test_our_own_errors_memory_and_interruptions_pass_unchanged(error):
    with pytest.raises(type(error)) as raised, naming_errors("The loss"):
        raise error
    assert raised.value is error


def test_an_error_of_thousands_of_characters_is_cut():
    with pytest.raises(TaskError, match=r"word … \(test_user_errors") as raised, naming_errors("The loss"):
        raise RuntimeError("word " * 3000)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("\"cdist\" not implemented for 'Half'", "set precision='float32'"),
        ("torch.nn.BCELoss are unsafe to autocast.\nMany models", "binary_cross_entropy_with_logits"),
        ("Expected hidden[0] size (1, 32, 8), got [1, 16, 8]", "start anew, or set drop_last"),
        ("grad can be implicitly created only for scalar outputs", r"call \.mean\(\)"),
        ("Expected all tensors to be on the same device, but found cuda:0 and cpu!", "register_buffer"),
        ("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()", r"Call \.cpu\(\) first"),
    ],
)
def test_well_known_errors_of_pytorch_come_with_what_to_do(text, advice):
    with pytest.raises(TaskError, match=advice), naming_errors("The loss"):
        raise RuntimeError(text)
