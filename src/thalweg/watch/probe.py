"""A probe: rare measurements around the step that was just taken, which causes ask for where figures do not decide."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from thalweg.errors import ThalwegError, error_text
from thalweg.landscape.normalisation import Normalisation
from thalweg.landscape.unit_activity import Layer
from thalweg.sampling.sources import leaves
from thalweg.watch.replay import Batch, Replay


class ExampleLosses(NamedTuple):
    """The loss of each example of the step's batch, at weights from before it.

    `usual` are losses of other examples at the same weights, which may be none; `examples` the indices of the batch's into the
    training data, as they came; empty where they are not known.
    """

    losses: Tensor
    usual: Tensor
    examples: Sequence[int] = ()


class FixedAnswer(NamedTuple):
    """The loss of a batch with the model's output replaced by its mean over the batch, and that with its own output."""

    loss: float
    of_model: float


class NotMeasuredError(Exception):
    """A measurement that cannot be made here; the message says what it would need."""


@contextmanager
def measured_or_not() -> Generator[None]:
    """Within, an error of the user's code, which is called once more than the training does, becomes a NotMeasuredError."""
    try:
        yield
    except (NotMeasuredError, ThalwegError):
        raise
    except Exception as error:
        raise NotMeasuredError(f"the loss once more, which failed: {error_text(error)}") from error


def along(
    parameters: Sequence[Tensor], start: Sequence[Tensor], end: Sequence[Tensor], loss: Callable[[], float]
) -> Callable[[float], float]:
    """Give a loss as a function of a multiple of an update: 0 is at its start, 1 at its end. Weights are as before afterwards.

    Far from the weights that are trained code may refuse what it is given: a distribution a scale of zero, a decomposition a
    matrix that is not positive. That is no fault of the training, which never goes there: such a place counts as infinitely high.

    Arguments:
        parameters: the weights, and `start` and `end` their values at both.
        loss: computes it at the weights of the moment.

    Raises NotMeasuredError where the code fails at the start, or memory runs out.

    >>> weight = torch.zeros(1)
    >>> loss_at = along([weight], [torch.tensor([9.0])], [torch.tensor([8.0])], lambda: math.log(weight))
    >>> round(loss_at(8), 3), loss_at(10), weight.item()
    (0.0, inf, 0.0)
    """
    now = [parameter.detach().clone() for parameter in parameters]

    def loss_at(multiple: float) -> float:
        try:
            write(parameters, [torch.lerp(one, two, multiple) for one, two in zip(start, end, strict=True)])
            return loss()
        except (NotMeasuredError, ThalwegError):
            raise
        except Exception as error:
            if multiple == 0.0 or isinstance(error, MemoryError | torch.OutOfMemoryError):
                raise NotMeasuredError(f"the loss once more, which failed: {error_text(error)}") from error
            return math.inf
        finally:
            write(parameters, now)

    return loss_at


def write(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy values into tensors, without a trace in autograd."""
    with torch.no_grad():
        for tensor, value in zip(tensors, values, strict=True):
            tensor.copy_(value)


class Probe:
    """Measures on the batch of the last step. Nothing that the training depends on is changed by it.

    This one measures nothing; those of a descent and of a person's own loop do what they can. Every method raises
    NotMeasuredError where it cannot.
    """

    def measuring(self) -> AbstractContextManager[object]:
        """Within, several measurements in a row take less time."""
        return nullcontext()

    def batch(self) -> Batch:
        """Give the examples of the step."""
        raise NotMeasuredError("the examples of the batch")

    def loss_along(self) -> Callable[[float], float]:
        """Give the loss of the step's batch as a function of a multiple of the update: 0 is before the step, 1 after it."""
        raise NotMeasuredError("the loss of the batch along the update")

    def others_along(self) -> Callable[[float], float]:
        """Give the loss of the step's batch along the update of the step before, which was not made for it: 0 is before that
        step, 1 after it."""
        raise NotMeasuredError("the loss along the update of the step before")

    def unit_activity(self, *, at_snapshot: bool = False) -> tuple[Layer, ...]:
        """Give what the units of each activation function do on the batch, now or at the last snapshot's weights."""
        raise NotMeasuredError("what the units give")

    def example_losses(self) -> ExampleLosses:
        """Give the loss of each example."""
        raise NotMeasuredError("the loss of each example")

    def zero_output_loss(self) -> float:
        """Give the loss of the batch where the model gives zeros."""
        raise NotMeasuredError("the loss of an output of zero")

    def output_size(self) -> float:
        """Give the root mean square of the model's output on the batch, at the last snapshot's weights."""
        raise NotMeasuredError("the size of the outputs")

    def second_moment_memory(self) -> float:
        """Give over how many steps the rule averages squared gradients; 0 where it does not."""
        raise NotMeasuredError("the rule's running means")

    def loss_at_snapshot(self) -> float:
        """Give the loss of the step's batch at the last snapshot's weights, which tells a loss that rises by itself.

        A descent tells that otherwise: it goes back, and sees whether the loss rises again where hardly any weight moves.
        """
        raise NotMeasuredError("the loss at weights from before")

    def gradient_at_snapshot(self) -> float:
        """Give the norm of the gradient of the step's batch at the last snapshot's weights."""
        raise NotMeasuredError("the gradient at weights from before")

    def normalisations(self) -> tuple[Normalisation, ...]:
        """Give what normalisations and attentions are given on the batch."""
        raise NotMeasuredError("what normalisations are given")

    def first_nonfinite(self) -> str:
        """Say which module's output is the first that is not finite, on this batch."""
        raise NotMeasuredError("which module gave it first")

    def nonfinite_term(self) -> str:
        """Say of which terms of the loss the gradient is not finite, on this batch, where the loss itself is."""
        raise NotMeasuredError("which term's gradient it is")

    def fixed_answer(self) -> FixedAnswer:
        """Give the loss of the batch where the model says the same of every example, and that of its own answers."""
        raise NotMeasuredError("the loss of one fixed answer for all examples")

    def constant_loss(self) -> float:
        """Give the former alone."""
        raise NotMeasuredError("the loss of one fixed answer for all examples")

    def replay(self) -> Replay:
        """Give a replay from the last snapshot, to which the training must return afterwards."""
        raise NotMeasuredError("the batch at weights from before")


def root_mean_square(output: object) -> float:
    """Give it of a tensor, or of all tensors of real numbers in a nest. Raises NotMeasuredError where there are none."""
    real = [one.detach().double().flatten() for one in leaves(output) if one.is_floating_point() and one.numel()]
    if not real:
        raise NotMeasuredError("a model that gives a tensor of real numbers")
    return float(torch.cat(real).square().mean().sqrt())
