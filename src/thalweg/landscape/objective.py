"""The objective: the loss as a function of a model and a batch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from thalweg.errors import DataError, TaskError, ThalwegError
from thalweg.records.task import StepResult, Task

_TARGET_KEYS = ("target", "targets", "label", "labels", "y")


class Objective:
    """Gives loss, weight, outputs and targets of a task's batches.

    Arguments:
        task: whose loss it is.
        cast_inputs: dtype to which whole-number inputs are cast first, for a model that computes on floats (images kept as
            bytes, say); None leaves them.
    """

    def __init__(self, task: Task, cast_inputs: torch.dtype | None = None) -> None:
        self.task = task
        self.cast_inputs = cast_inputs

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, float | Tensor | None]:
        """Give the batch's mean loss, and its weight where the task's own step says one (else None: count examples)."""
        if self.task.step is not None:
            return weighted(self.task.step(model, batch), "step")
        output, target = self.outputs(model, batch)
        return cast(Any, self.task.loss)(output, target), None

    def outputs(self, model: nn.Module, batch: Any) -> tuple[Any, Any]:
        """Give the model's output and the target."""
        arguments, keywords, target = self.split(batch)
        return model(*arguments, **keywords), target

    def evaluate(self, model: nn.Module, batch: Any) -> tuple[Tensor, float | Tensor | None]:
        """Give the loss for validation."""
        if self.task.evaluate is not None:
            return weighted(self.task.evaluate(model, batch), "evaluate")
        return self.loss(model, batch)

    def split(self, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
        """Cut a batch into the model's positional and keyword arguments and the target."""
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
        named = [key for key in batch if key in _TARGET_KEYS]
        if len(named) != 1:
            raise TaskError(
                f"A batch is a mapping with the keys {list(batch)}, and which is the target is not clear."
                f" Call exactly one of them {' or '.join(_TARGET_KEYS)}, or give `step`."
            )
        return (), {key: self._cast(value) for key, value in batch.items() if key != named[0]}, batch[named[0]]

    def _cast(self, value: Any) -> Any:
        if self.cast_inputs is None or not isinstance(value, Tensor) or value.is_floating_point():
            return value
        return value.to(self.cast_inputs)


def weighted(result: StepResult, who: str) -> tuple[Tensor, float | Tensor | None]:
    """Read what a task's `step` or `evaluate` returned.

    Raises TaskError where it is neither a loss nor a pair (loss, weight).
    """
    if isinstance(result, Tensor):
        return result, None
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], Tensor):
        return result[0], result[1]
    raise TaskError(
        f"`{who}` returned a {type(result).__name__}. It returns the loss, or (loss, weight), both scalars; several losses"
        f" with an optimiser each (a GAN, say) are not what thalweg trains."
    )


def rehearse(objective: Objective, model: nn.Module, batch: Any, *, training: bool = True) -> Objective:
    """Run one batch through a model that may be spoilt, and say in plain words what does not fit.

    Gives the objective back, with `cast_inputs` set where the model needs floats and the inputs are whole numbers.

    Raises TaskError or DataError that names what does not fit and what to do.
    """
    try:
        loss = _try(objective, model, batch, training)
    except _DtypeMismatchError:
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        objective = Objective(objective.task, cast_inputs=dtype)
        loss = _try(objective, model, batch, training)
    _check_loss(loss)
    return objective


class _DtypeMismatchError(Exception):
    pass


def _try(objective: Objective, model: nn.Module, batch: Any, training: bool) -> Tensor:
    where = "first training batch" if training else "first validation batch"
    task = objective.task
    if task.step is not None:
        run = objective.loss if training else objective.evaluate
        return _translate(lambda: run(model, batch)[0], f"`{'step' if training else 'evaluate'}` failed on the {where}")
    if task.evaluate is not None and not training:
        return _translate(lambda: objective.evaluate(model, batch)[0], f"`evaluate` failed on the {where}")
    parts = objective.split(batch)
    output, target = _translate(
        lambda: objective.outputs(model, batch), f"The model failed on the {where} ({_describe(parts)})", first=True
    )
    check_labels(task, output, target)
    told = f"The loss failed on the {where}: the model gives {shape(output)}, the target is {shape(target)}"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loss = _translate(lambda: cast(Any, task.loss)(output, target), told)
    _check_broadcast(task, output, target, loss, [str(w.message) for w in caught])
    return loss


def _translate(run: Any, told: str, *, first: bool = False) -> Any:
    try:
        return run()
    except ThalwegError:
        raise
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if (
            first
            and isinstance(error, RuntimeError)
            and any(w in text for w in ("dtype", "expected scalar type", "Byte"))
        ):
            raise _DtypeMismatchError from error
        if isinstance(error, MemoryError) or "allocate memory" in text or "out of memory" in text:
            raise
        raise TaskError(f"{told}: {type(error).__name__}: {text}") from error


def _describe(parts: tuple[tuple[Any, ...], dict[str, Any], Any]) -> str:
    arguments, keywords, _ = parts
    shown = [shape(part) for part in arguments] + [f"{key}={shape(part)}" for key, part in keywords.items()]
    return "inputs " + ", ".join(shown)


def shape(value: Any) -> str:
    """Describe a value for a message: a tensor's shape and dtype, else its type.

    >>> shape(torch.zeros(2, 3))
    '(2, 3) float32'
    """
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__


def class_count(task: Task, output: Any) -> int | None:
    """Give the number of classes where the loss is PyTorch's cross-entropy or negative log-likelihood, else None."""
    functions = (nn.functional.cross_entropy, nn.functional.nll_loss)
    known = task.loss in functions or isinstance(task.loss, nn.CrossEntropyLoss | nn.NLLLoss)
    if not known or not isinstance(output, Tensor) or output.ndim < 1:
        return None
    return output.shape[1] if output.ndim > 1 else output.shape[0]


def check_labels(task: Task, output: Any, target: Any, *, start: int = 0) -> None:
    """Refuse class labels that the model has no output for.

    Raises DataError that names the first such row; `start` is added to it.
    """
    classes = class_count(task, output)
    if classes is None or not isinstance(target, Tensor):
        return
    if target.is_floating_point():
        if target.shape != output.shape:
            raise DataError(
                f"The targets are {shape(target)}, but this loss wants class numbers (int64), or probabilities of the"
                f" output's shape {tuple(output.shape)}. Give y as integers, without a trailing dimension of 1."
            )
        return
    ignored = getattr(task.loss, "ignore_index", -100)
    wrong = ((target < 0) | (target >= classes)) & (target != ignored)
    if wrong.any():
        row = int(wrong.reshape(len(target), -1).any(1).nonzero()[0])
        value = int(target[wrong][0])
        raise DataError(
            f"Targets reach {value} in row {start + row}, but the model has {classes} outputs: labels run from 0 to"
            f" {classes - 1}. Give the model {value + 1} outputs or check the labels."
        )


def _check_broadcast(task: Task, output: Any, target: Any, loss: Tensor, warned: list[str]) -> None:
    if not isinstance(output, Tensor) or not isinstance(target, Tensor) or output.shape == target.shape:
        return
    told = (
        f"The model gives {tuple(output.shape)} but the target is {tuple(target.shape)}, and the loss spreads one over the"
        f" other: it compares every output with every target. Give both the same shape (y[:, None], or output.squeeze(1))."
    )
    if any("target size" in text for text in warned):
        raise DataError(told)
    if output.numel() == target.numel() and output.is_floating_point() and target.is_floating_point():
        reshaped = cast(Any, task.loss)(output, target.reshape(output.shape))
        if isinstance(loss, Tensor) and not torch.allclose(loss, reshaped, equal_nan=True):
            raise DataError(told)


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, Tensor):
        raise TaskError(
            f"The loss is a {type(loss).__name__}, not a tensor. Return the tensor itself, without .item()."
        )
    if loss.numel() != 1:
        raise TaskError(
            f"The loss has the shape {tuple(loss.shape)}, but it must be one number: the mean over the batch."
            f" Use reduction='mean', or call .mean()."
        )
    if loss.is_complex() or not loss.is_floating_point():
        raise TaskError(f"The loss is {loss.dtype}, but gradients need a real floating-point number.")
    if not loss.requires_grad:
        raise TaskError(
            "The loss has no gradient: nothing that can be trained leads to it. Look for .detach(), .item(), .data,"
            " torch.no_grad() or an argmax between the parameters and the loss."
        )
    if not torch.isfinite(loss):
        raise TaskError(
            f"The loss is {float(loss)} at the very start, before any step. Look for log(0), division by zero, or weights"
            f" that are not finite; `thalweg.check(task)` looks closer."
        )
