"""The objective: the loss as a function of a model and a batch."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from thalweg.errors import DataError, TaskError
from thalweg.records.task import StepResult, Task

ONE_EXAMPLE_ERROR = (
    "Expected more than 1 value per channel"  # what PyTorch's batch normalisation says of a single example
)
ONE_EXAMPLE_HINT = " Batch normalisation needs two examples per batch: set drop_last, or another batch_size."
_CLASS_LOSSES = (nn.functional.cross_entropy, nn.functional.nll_loss)
_TARGET_KEYS = ("target", "targets", "label", "labels", "y")


class Casts(NamedTuple):
    """Dtypes to which a batch's floating-point inputs, integer inputs and target are cast; None leaves them as they are."""

    floats: torch.dtype | None = None
    integers: torch.dtype | None = None
    target: torch.dtype | None = None


class Objective:
    """The loss of a task as a function of a model and a batch.

    Arguments:
        task: gives the loss function, or its own `step` and `evaluate`.
        cast_inputs: dtypes that the model and the loss need: images stored as bytes, say, become floats for a model that
            computes on floats.
    """

    def __init__(self, task: Task, cast_inputs: Casts | None = None) -> None:
        self.task = task
        self.cast_inputs = cast_inputs or Casts()
        self._casts = self.cast_inputs != Casts()

    def with_own_loss(self, device: torch.device) -> Objective:
        """Give an objective whose loss, where it is a module, is a copy on the device: a loss may have buffers, as a model does.

        A module that cannot be copied is used as it is.
        """
        loss = self.task.loss
        if not isinstance(loss, nn.Module):
            return self
        # Weights that are on the device already, such as those of a perceptual loss, are shared and not copied.
        shared = {id(p): p for p in loss.parameters() if p.device.type == device.type}
        try:
            copied = copy.deepcopy(loss, cast("dict[int, Any]", shared))
        except Exception:
            return self
        return Objective(
            replace(self.task, loss=copied if device.type == "cpu" else copied.to(device)), self.cast_inputs
        )

    @property
    def loss_buffers(self) -> dict[str, Tensor]:
        """The buffers of a loss that is a module; calling it may change them."""
        return dict(self.task.loss.named_buffers()) if isinstance(self.task.loss, nn.Module) else {}

    def divisor(self, batch: Any, size: int) -> float:
        """Give what the loss of a batch of `size` examples was divided by to be a mean.

        For cross-entropy and negative log-likelihood that is the number of targets that are not ignored, or the sum of their
        class weights; 0 where all are ignored. Else it is `size`. The mean over several batches is the average of their means
        weighted with it.
        """
        loss = self.task.loss
        if not _is_class_loss(self.task) or self.task.step is not None:
            return float(size)
        target = self.split(batch)[2]
        if not isinstance(target, Tensor) or target.is_floating_point() or target.is_complex():
            return float(size)
        counts = target != getattr(loss, "ignore_index", -100)
        weight = getattr(loss, "weight", None)
        if not isinstance(weight, Tensor):
            return float(counts.sum())
        return float(weight[target[counts].long()].sum())

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, float | Tensor | None]:
        """Give the batch's mean loss, and its weight where the task's own step returns one (else None: see `divisor`).

        Raises DataError for a label the model has no output for, TaskError for one example under batch normalisation.
        """
        if self.task.step is not None:
            return loss_and_weight(self.task.step(model, batch), "step")
        output = target = None
        try:
            output, target = self.outputs(model, batch)
            return cast(Any, self.task.loss)(output, target), None
        except (IndexError, RuntimeError, ValueError) as error:
            if ONE_EXAMPLE_ERROR in str(error):
                raise TaskError(f"{error}.{ONE_EXAMPLE_HINT}") from error
            check_labels(self.task, output, target, where=" of this batch")
            raise

    def outputs(self, model: nn.Module, batch: Any) -> tuple[Any, Any]:
        """Give the model's output and the target."""
        arguments, keywords, target = self.split(batch)
        if self.cast_inputs.target is not None and isinstance(target, Tensor):
            target = target.to(self.cast_inputs.target)
        return model(*arguments, **keywords), target

    def evaluate(self, model: nn.Module, batch: Any) -> tuple[Tensor, float | Tensor | None, Mapping[str, Any]]:
        """Give the loss for validation, its weight as `loss` does, and the figures that the task's own function returns."""
        own = self.task.evaluate or self.task.step
        if own is None:
            return *self.loss(model, batch), {}
        function, result = "step" if self.task.evaluate is None else "evaluate", own(model, batch)
        return *loss_and_weight(result, function), figures_of(result, function)

    def split(self, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
        """Cut a batch into the model's positional and keyword arguments and the target."""
        if type(batch) is tuple and len(batch) == 2 and type(batch[0]) is Tensor:  # the usual (x, y)
            return (self._cast(batch[0]),), {}, batch[1]
        if isinstance(batch, Mapping):
            return self._split_mapping(cast("Mapping[str, Any]", batch))
        if isinstance(batch, Tensor):
            return (self._cast(batch),), {}, batch
        parts = tuple(cast("tuple[Any, ...]", batch))
        if len(parts) == 1:
            return (self._cast(parts[0]),), {}, parts[0]
        inputs, target = parts[:-1], parts[-1]
        if len(inputs) == 1 and isinstance(inputs[0], Mapping):
            return (), {key: self._cast(value) for key, value in inputs[0].items()}, target
        if len(inputs) == 1 and isinstance(inputs[0], tuple):
            inputs = cast("tuple[Any, ...]", inputs[0])
        return tuple(self._cast(part) for part in inputs), {}, target

    def _split_mapping(self, batch: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
        targets = [key for key in batch if key in _TARGET_KEYS]
        if len(targets) != 1:
            raise TaskError(
                f"A batch is a mapping with the keys {list(batch)}, and which is the target is not clear."
                f" Call exactly one of them {' or '.join(_TARGET_KEYS)}, or give `step`."
            )
        return (), {key: self._cast(value) for key, value in batch.items() if key != targets[0]}, batch[targets[0]]

    def _cast(self, value: Any) -> Any:
        if not self._casts or not isinstance(value, Tensor) or value.is_complex():
            return value
        dtype = self.cast_inputs.floats if value.is_floating_point() else self.cast_inputs.integers
        return value if dtype is None else value.to(dtype)


def loss_and_weight(result: StepResult, function: str) -> tuple[Tensor, float | Tensor | None]:
    """Read what a task's `step` or `evaluate` returned.

    Raises TaskError where it is neither a loss nor (loss, weight) nor (loss, weight, figures).
    """
    if isinstance(result, Tensor):
        return result, None
    if isinstance(result, tuple) and len(result) in (2, 3) and isinstance(result[0], Tensor):
        return result[0], result[1]
    raise TaskError(
        f"`{function}` returned a {type(result).__name__}. It returns the loss, or (loss, weight), both scalars, and for"
        f" validation a table of further figures as a third; several losses with an optimiser each (a GAN, say) are not what"
        f" thalweg trains."
    )


def figures_of(result: StepResult, function: str) -> Mapping[str, Any]:
    """Give the figures of (loss, weight, figures), none for another result. Raises TaskError where they are no table of them."""
    figures = result[2] if isinstance(result, tuple) and len(result) == 3 else {}
    if not isinstance(figures, Mapping) or any(
        not isinstance(n, str) or n == "loss" or "/" in n for n in cast("Mapping[Any, Any]", figures)
    ):
        raise TaskError(
            f"`{function}` returned {figures!r:.80} as the third of (loss, weight, figures). Give a table of numbers by names,"
            f" such as {{'accuracy': 0.5}}; 'loss' is taken and '/' separates columns."
        )
    return figures


def describe(value: Any) -> str:
    """Describe a value for a message: a tensor's shape and dtype, else its type.

    >>> describe(torch.zeros(2, 3))
    '(2, 3) float32'
    """
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__


def _is_class_loss(task: Task) -> bool:
    return task.loss in _CLASS_LOSSES or isinstance(task.loss, nn.CrossEntropyLoss | nn.NLLLoss)


def class_count(task: Task, output: Any) -> int | None:
    """Give the number of classes where the loss is PyTorch's cross-entropy or negative log-likelihood, else None."""
    if not _is_class_loss(task) or not isinstance(output, Tensor) or output.ndim < 1:
        return None
    return output.shape[1] if output.ndim > 1 else output.shape[0]


def check_labels(task: Task, output: Any, target: Any, *, where: str = "") -> None:
    """Refuse class labels that the model has no output for, and targets of another form than class numbers.

    Raises DataError; of a label it names the first such row, followed by `where`.
    """
    classes = class_count(task, output)
    if classes is None or not isinstance(target, Tensor):
        return
    if target.is_floating_point():
        _check_probabilities(output, target)
        return
    if output.ndim == 2 and target.ndim == 2 and target.shape[1] == 1:
        raise DataError(
            f"The targets are {describe(target)}, but class numbers have one dimension. Give y without the trailing dimension"
            f" of 1: y.squeeze(1), or y[:, 0]."
        )
    ignored = getattr(task.loss, "ignore_index", -100)
    wrong = ((target < 0) | (target >= classes)) & (target != ignored)
    if wrong.any():
        row = int(wrong.reshape(len(target), -1).any(1).nonzero()[0])
        raise DataError(_wrong_label(int(target[wrong][0]), f"row {row}{where}", classes))


def _check_probabilities(output: Tensor, target: Tensor) -> None:
    if target.shape != output.shape:
        raise DataError(
            f"The targets are {describe(target)}, but this loss wants class numbers (int64), or probabilities of the"
            f" output's shape {tuple(output.shape)}. Give y as integers, without a trailing dimension of 1."
        )


def _wrong_label(label: int, where: str, classes: int) -> str:
    remedy = f"Give the model {label + 1} outputs or check the labels." if label > 0 else "Number the classes from 0."
    return (
        f"The target is {label} in {where}, but the model has {classes} output{'s' * (classes != 1)}: labels run from"
        f" 0 to {classes - 1}. {remedy}"
    )
