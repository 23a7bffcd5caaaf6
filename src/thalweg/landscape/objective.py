"""The objective: the loss as a function of a model and a batch."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from thalweg.errors import DataError, TaskError, ThalwegError
from thalweg.records.task import StepResult, Task
from thalweg.sampling.sources import leaves, spoilt_rows

LONELY = "Expected more than 1 value per channel"
LONELY_HINT = " Batch normalisation needs two examples a batch: set drop_last, or another batch_size."
_DTYPE_WORDS = ("dtype", "scalar type", "Byte", "Input type")
_CLASS_LOSSES = (nn.functional.cross_entropy, nn.functional.nll_loss)
_TARGET_KEYS = ("target", "targets", "label", "labels", "y")


class Casts(NamedTuple):
    """Dtypes to which a batch's floating inputs, whole-number inputs and target are cast first; None leaves them."""

    floats: torch.dtype | None = None
    whole: torch.dtype | None = None
    target: torch.dtype | None = None


class Objective:
    """Gives loss, weight, outputs and targets of a task's batches.

    Arguments:
        task: whose loss it is.
        cast_inputs: what a batch needs for this model and loss: images kept as bytes, say, become floats for a model that
            computes on floats.
    """

    def __init__(self, task: Task, cast_inputs: Casts | None = None) -> None:
        self.task = task
        self.cast_inputs = cast_inputs or Casts()
        self._casts = self.cast_inputs != Casts()

    def private(self, device: torch.device) -> Objective:
        """Give an objective whose loss, where it is a module, is a copy on the device: it may keep state, as the model does."""
        loss = self.task.loss
        if not isinstance(loss, nn.Module):
            return self
        # Frozen weights, such as a perceptual loss has, need no copy where they are.
        shared = {id(p): p for p in loss.parameters() if p.device.type == device.type}
        try:
            copied = copy.deepcopy(loss, cast("dict[int, Any]", shared))
        except Exception:
            return self
        return Objective(
            replace(self.task, loss=copied if device.type == "cpu" else copied.to(device)), self.cast_inputs
        )

    @property
    def memory(self) -> dict[str, Tensor]:
        """The loss's own buffers, which its calls may change."""
        return dict(self.task.loss.named_buffers()) if isinstance(self.task.loss, nn.Module) else {}

    def counted(self, batch: Any, size: int) -> float:
        """Give what a batch's mean loss is a mean over: targets that count (and their class weights) where that is known.

        So means of parts make the mean of the whole, whatever is ignored; 0 where nothing counts.
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
        """Give the batch's mean loss, and its weight where the task's own step says one (else None: count examples).

        Raises DataError for a label the model has no output for, TaskError for one example under batch normalisation.
        """
        if self.task.step is not None:
            return weighted(self.task.step(model, batch), "step")
        output = target = None
        try:
            output, target = self.outputs(model, batch)
            return cast(Any, self.task.loss)(output, target), None
        except (IndexError, RuntimeError, ValueError) as error:
            if LONELY in str(error):
                raise TaskError(f"{error}.{LONELY_HINT}") from error
            check_labels(self.task, output, target, of=" of this batch")
            raise

    def outputs(self, model: nn.Module, batch: Any) -> tuple[Any, Any]:
        """Give the model's output and the target."""
        arguments, keywords, target = self.split(batch)
        if self.cast_inputs.target is not None and isinstance(target, Tensor):
            target = target.to(self.cast_inputs.target)
        return model(*arguments, **keywords), target

    def evaluate(self, model: nn.Module, batch: Any) -> tuple[Tensor, float | Tensor | None]:
        """Give the loss for validation."""
        if self.task.evaluate is not None:
            return weighted(self.task.evaluate(model, batch), "evaluate")
        return self.loss(model, batch)

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
        named = [key for key in batch if key in _TARGET_KEYS]
        if len(named) != 1:
            raise TaskError(
                f"A batch is a mapping with the keys {list(batch)}, and which is the target is not clear."
                f" Call exactly one of them {' or '.join(_TARGET_KEYS)}, or give `step`."
            )
        return (), {key: self._cast(value) for key, value in batch.items() if key != named[0]}, batch[named[0]]

    def _cast(self, value: Any) -> Any:
        if not self._casts or not isinstance(value, Tensor) or value.is_complex():
            return value
        dtype = self.cast_inputs.floats if value.is_floating_point() else self.cast_inputs.whole
        return value if dtype is None else value.to(dtype)


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

    Gives the objective back, with `cast_inputs` set where inputs or target need another dtype.

    Raises TaskError or DataError that names what does not fit and what to do.
    """
    if training and not any(p.requires_grad for p in model.parameters()):
        raise TaskError(untrainable(model))
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    given = objective.cast_inputs
    refused: _DtypeMismatchError | None = None
    floats = given._replace(floats=dtype)
    for casts in (given, floats, floats._replace(whole=torch.int64), floats._replace(whole=dtype)):
        try:
            loss, objective = _try(Objective(objective.task, casts), model, batch, training)
        except _DtypeMismatchError as error:
            refused = refused or error
        else:
            _check_loss(loss, training, batch)
            return objective
    raise TaskError(str(refused)) from refused


def untrainable(model: nn.Module) -> str:
    """Say why nothing of a model can be trained."""
    if any(True for _ in model.parameters()):
        return (
            "The model has no trainable parameter: all are frozen. Set requires_grad on those that are to be trained."
        )
    return "The model has no parameter, so there is nothing to train. Give it layers that have some, made in __init__."


class _DtypeMismatchError(Exception):
    pass


def _try(objective: Objective, model: nn.Module, batch: Any, training: bool) -> tuple[Any, Objective]:
    where = "first training batch" if training else "first validation batch"
    task = objective.task
    own = task.step if training else task.evaluate or task.step
    if own is not None:
        who = "step" if own is task.step else "evaluate"
        loss, weight = _translate(lambda: weighted(own(model, batch), who), f"`{who}` failed on the {where}")
        _check_weight(weight, who)
        return loss, objective
    parts = objective.split(batch)
    output, target = _translate(
        lambda: objective.outputs(model, batch),
        f"The model failed on the {where} ({_describe(parts)})",
        lambda text: _model_hint(text, parts),
        first=True,
    )
    check_labels(task, output, target)
    told = f"The loss failed on the {where}: the model gives {shape(output)}, the target is {shape(target)}"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loss, dtype = _translate(lambda: _loss_at(task, output, target), told, lambda _: _loss_hint(output, target))
    if dtype is not None:
        objective = Objective(task, objective.cast_inputs._replace(target=dtype))
        target = target.to(dtype)
    _check_broadcast(task, output, target, [str(w.message) for w in caught])
    return loss, objective


def _loss_at(task: Task, output: Any, target: Any) -> tuple[Any, torch.dtype | None]:
    """Give the loss and the dtype to which the target had to be cast for it."""
    error: Exception | None = None
    for dtype in _target_dtypes(output, target):
        try:
            return cast(Any, task.loss)(output, target if dtype is None else target.to(dtype)), dtype
        except Exception as raised:
            error = error or raised
    assert error is not None
    raise error


def _target_dtypes(output: Any, target: Any) -> list[torch.dtype | None]:
    if not isinstance(target, Tensor) or not isinstance(output, Tensor) or target.is_complex():
        return [None]
    if target.is_floating_point():
        unlike = output.is_floating_point() and output.dtype != target.dtype
        return [output.dtype if unlike and torch.float64 in (output.dtype, target.dtype) else None]
    # Losses on classes want int64; those that compare output and target, such as binary cross-entropy, the output's floats.
    choices: list[torch.dtype | None] = [None]
    if target.dtype != torch.int64:
        choices.append(torch.int64)
    if target.shape == output.shape and output.is_floating_point():
        choices.append(output.dtype)
    return choices


def _translate(run: Any, told: str, hint: Callable[[str], str] = lambda _: "", *, first: bool = False) -> Any:
    try:
        return run()
    except ThalwegError:
        raise
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:
        text = (str(error).strip().splitlines() or [""])[0].rstrip(".")
        if isinstance(error, MemoryError) or "allocate memory" in text or "out of memory" in text:
            raise
        message = f"{told}: {type(error).__name__}{': ' if text else ''}{text}.{hint(text)}"
        if first and isinstance(error, RuntimeError) and any(word in text for word in _DTYPE_WORDS):
            raise _DtypeMismatchError(message) from error
        raise TaskError(message) from error


def _model_hint(text: str, parts: tuple[tuple[Any, ...], dict[str, Any], Any]) -> str:
    whole = [leaf for leaf in leaves(parts[:2]) if not leaf.is_floating_point() and leaf.numel()]
    if "index out of range" in text and whole:
        largest, least = max(int(leaf.max()) for leaf in whole), min(int(leaf.min()) for leaf in whole)
        return f" Inputs run from {least} to {largest}: an embedding needs {largest + 1} rows, and none below 0."
    if LONELY in text:
        return LONELY_HINT
    return " Compare these shapes with what the model's first layers take."


def _loss_hint(output: Any, target: Any) -> str:
    if not isinstance(target, Tensor):
        return " Targets must be numbers: code labels as 0, 1, 2, …"
    if isinstance(output, Tensor) and output.numel() == target.numel() and output.shape != target.shape:
        return " Give both the same shape: y[:, None], or output.squeeze(1)."
    return " Make the model's last layer, the targets and the loss fit each other."


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


def _is_class_loss(task: Task) -> bool:
    return task.loss in _CLASS_LOSSES or isinstance(task.loss, nn.CrossEntropyLoss | nn.NLLLoss)


def class_count(task: Task, output: Any) -> int | None:
    """Give the number of classes where the loss is PyTorch's cross-entropy or negative log-likelihood, else None."""
    if not _is_class_loss(task) or not isinstance(output, Tensor) or output.ndim < 1:
        return None
    return output.shape[1] if output.ndim > 1 else output.shape[0]


def check_labels(task: Task, output: Any, target: Any, *, of: str = "") -> None:
    """Refuse class labels that the model has no output for.

    Raises DataError that names the first such row; `of` is said behind it.
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
    if output.ndim == 2 and target.ndim == 2 and target.shape[1] == 1:
        raise DataError(
            f"The targets are {shape(target)}, but class numbers have one dimension. Give y without the trailing dimension"
            f" of 1: y.squeeze(1), or y[:, 0]."
        )
    ignored = getattr(task.loss, "ignore_index", -100)
    wrong = ((target < 0) | (target >= classes)) & (target != ignored)
    if wrong.any():
        row = int(wrong.reshape(len(target), -1).any(1).nonzero()[0])
        value = int(target[wrong][0])
        remedy = (
            f"Give the model {value + 1} outputs or check the labels." if value > 0 else "Number the classes from 0."
        )
        raise DataError(
            f"The target is {value} in row {row}{of}, but the model has {classes} output{'s' * (classes != 1)}: labels run from"
            f" 0 to {classes - 1}."
            f" {remedy}"
        )


def _check_broadcast(task: Task, output: Any, target: Any, warned: list[str]) -> None:
    if not isinstance(output, Tensor) or not isinstance(target, Tensor) or output.shape == target.shape:
        return
    if any("target size" in text for text in warned) or _spreads(task, output, target):
        raise DataError(
            f"The model gives {tuple(output.shape)} but the target is {tuple(target.shape)}, and the loss spreads one over the"
            f" other: it compares every output with every target. Give both the same shape (y[:, None], or output.squeeze(1))."
        )


def _spreads(task: Task, output: Tensor, target: Tensor) -> bool:
    """Tell whether it makes no difference which target belongs to which output, until both have the same shape."""
    if output.numel() != target.numel() or len(output) < 3 or not output.is_floating_point():
        return False
    guess = torch.linspace(0.1, 0.9, output.numel()).square().reshape(output.shape).to(output)
    shaped = target.reshape(output.shape)

    def heeds(targets: Tensor) -> bool:
        losses = [float(cast(Any, task.loss)(guess, t)) for t in (targets, targets.roll(1, 0))]
        return not math.isclose(*losses, rel_tol=1e-4)

    try:
        return heeds(shaped) and not heeds(target)
    except Exception:
        return False  # this loss wants the target, or the whole batch, as it is


def _check_weight(weight: Any, who: str) -> None:
    if weight is None:
        return
    try:
        value = float(weight.detach() if isinstance(weight, Tensor) else weight)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TaskError(
            f"`{who}` returned the weight {weight!r}. It is one number, such as a count of tokens."
        ) from error
    if not (math.isfinite(value) and value > 0):
        raise TaskError(f"`{who}` returned the weight {value:g} for the first batch. It must be above zero and finite.")


def _check_loss(loss: Any, training: bool, batch: Any) -> None:
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
    if not training:
        return
    if not loss.requires_grad:
        raise TaskError(
            "The loss has no gradient: nothing that can be trained leads to it. Look for .detach(), .item(), .data,"
            " torch.no_grad() or an argmax between the parameters and the loss."
        )
    if not torch.isfinite(loss.detach()).all():
        rows = spoilt_rows(batch)
        if rows:
            raise DataError(f"The first batch has NaN or infinity in rows {rows[:5]}. Drop or fill them.")
        raise TaskError(
            f"The loss is {float(loss.detach())} at the very start, before any step. Look for log(0), division by zero, or"
            f" weights that are not finite, and for outputs that overflow."
        )
