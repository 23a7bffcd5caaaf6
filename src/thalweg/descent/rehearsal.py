"""The rehearsal of a task: one batch through model and loss before training, so that errors name what does not fit."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from thalweg.descent.argument_order import is_mistaken, order_advice, target_first
from thalweg.descent.metrics import spreads
from thalweg.descent.model_call import call_advice
from thalweg.descent.user_errors import advice_on, is_dtype_mismatch, naming_errors
from thalweg.errors import DataError, TaskError, few
from thalweg.landscape.first_nonfinite import first_nonfinite
from thalweg.landscape.loss_calls import LossCalls
from thalweg.landscape.loss_contracts import LossCall, misfits
from thalweg.landscape.loss_terms import without_gradient
from thalweg.landscape.objective import Casts, Objective, describe, losses_of
from thalweg.records.task import Task
from thalweg.sampling.sources import leaves, nonfinite_rows

VALIDATION = " of `validation`"  # after a row's number in messages
Parts = tuple[tuple[Any, ...], dict[str, Any], Any]  # a batch as `Objective.split` gives it


class Rehearsal(NamedTuple):
    """What a first batch gave: the loss, output and target (None under a `step` of the task's own), the casts it needs, which of
    PyTorch's losses were called, the terms of the loss by name, and whether it is their sum."""

    loss: Tensor
    output: Any
    target: Any
    casts: Casts
    calls: tuple[LossCall, ...] = ()
    terms: Mapping[str, Tensor] = {}
    is_sum: bool = False

    @property
    def notes(self) -> list[str]:
        """What is to be said of the loss's terms."""
        names = without_gradient(self.terms) if self.is_sum else []
        if not names:
            return []
        return [
            f"Of the terms that `step` returns {few(names, 3, '`')} had no gradient at first: nothing is trained by it as long as"
            f" that is so."
        ]


def rehearse(
    task: Task,
    model: nn.Module,
    batch: Any,
    given: Casts | None = None,
    *,
    training: bool = True,
    where: str = "first training batch",
    data: str = "",
    nonfinite: str | None = None,
) -> Rehearsal:
    """Run one batch through model and loss, and refuse what does not fit.

    The model's buffers, such as running averages, may change: give one that is thrown away afterwards.

    Arguments:
        given: casts that are known to be needed; what else inputs or target need is found out.
        training: whether a gradient is to be taken; else the batch is only evaluated.
        where: names the batch in messages.
        data: words after a row's number in messages; see `VALIDATION`.
        nonfinite: where the data hold NaN or infinity, in words, for the message where the loss is not finite.

    Raises TaskError or DataError that names what does not fit and what to do.
    """
    if training and not any(p.requires_grad for p in model.parameters()):
        raise TaskError(_untrainable(model))
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    given = given or Casts()
    floats = given._replace(floats=dtype)
    first_error: _DtypeMismatchError | None = None
    for casts in (given, floats, floats._replace(integers=torch.int64), floats._replace(integers=dtype)):
        try:
            rehearsal = _run(task, casts, model, batch, training, where, data)
        except _DtypeMismatchError as error:
            first_error = first_error or error
        else:
            _check_meaning(rehearsal)
            _check_loss(rehearsal.loss, training)
            if training or nonfinite is not None:
                try:
                    _check_loss_is_finite(rehearsal, batch, where, nonfinite)
                except NonFiniteLossError as error:
                    found = first_nonfinite(model, partial(_run, task, casts, model, batch, training, where, data))
                    raise NonFiniteLossError(f"{error} {found}") from None
            return rehearsal
    raise TaskError(str(first_error)) from first_error


def _check_meaning(rehearsal: Rehearsal) -> None:
    """Refuse a loss that is not finite for targets that it does not take; others are looked at in all data, `check_targets`."""
    if isinstance(rehearsal.loss, Tensor) and not torch.isfinite(rehearsal.loss.detach()).all():
        for call in rehearsal.calls:
            for misfit in misfits(call):
                if misfit.certain:
                    raise DataError(misfit.message)


def _untrainable(model: nn.Module) -> str:
    """Say why nothing of a model can be trained."""
    if any(True for _ in model.parameters()):
        return (
            "The model has no trainable parameter: all are frozen. Set requires_grad on those that are to be trained."
        )
    return "The model has no parameter, so there is nothing to train. Give it layers that have some, made in __init__."


class NothingCountsError(DataError):
    """Every target of a batch is one that the loss leaves out: it tells nothing about the others."""


class NonFiniteLossError(TaskError):
    """The loss of the batch is not finite, though all its numbers are."""


class _DtypeMismatchError(Exception):
    """The model refused its inputs for their dtype: another cast may do."""


def _run(task: Task, casts: Casts, model: nn.Module, batch: Any, training: bool, where: str, data: str) -> Rehearsal:
    """Run one batch with these casts, and find the one that its target needs."""
    own = task.step if training else task.evaluate or task.step
    if own is None:
        return _run_model_and_loss(Objective(task, casts), model, batch, where, data)
    function = "step" if own is task.step else "evaluate"
    with naming_errors(f"`{function}`", f"on the {where}"), LossCalls(data) as noted:
        loss, weight, terms, is_sum = losses_of(own(model, batch), function)
    _check_weight(weight, function, training)
    if training:
        _check_no_own_backward(model)
    return Rehearsal(loss, None, None, casts, noted.settle(loss), terms, is_sum)


def _check_no_own_backward(model: nn.Module) -> None:
    """Refuse a `step` that leaves gradients: the loop's own would be added to them."""
    if any(p.grad is not None and p.grad.any() for p in model.parameters()):
        raise TaskError(
            "`step` called backward(), and left gradients to which that of the loss it returns is added. Return the loss alone:"
            " gradient and optimizer step are done for it (torch.autograd.grad gives gradients for a loss that needs them)."
        )


def _run_model_and_loss(objective: Objective, model: nn.Module, batch: Any, where: str, data: str) -> Rehearsal:
    task, parts = objective.task, objective.split(batch)
    try:
        with naming_errors(
            "The model", f"on the {where} ({_describe(parts)})", advice=lambda e: _model_hint(e, model, parts)
        ):
            output, target = objective.outputs(model, batch)
    except TaskError as error:
        if is_dtype_mismatch(error.__cause__):
            raise _DtypeMismatchError(str(error)) from error
        raise
    shapes = f"on the {where}: the model gives {describe(output)}, the target is {describe(target)}"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with naming_errors("The loss", shapes, advice=lambda e: _loss_hint(e, output, target)):
            loss, dtype, calls = _loss_and_target_dtype(task, output, target, data)
    casts = objective.cast_inputs
    if dtype is not None:
        casts, target = casts._replace(target=dtype), target.to(dtype)
    _check_broadcast(task, output, target, [str(w.message) for w in caught])
    _check_order(task, output, target)
    return Rehearsal(loss, output, target, casts, calls)


def _loss_and_target_dtype(
    task: Task, output: Any, target: Any, data: str
) -> tuple[Any, torch.dtype | None, tuple[LossCall, ...]]:
    """Give the loss, the dtype to which the target had to be cast for it (None: it was right as it is), and what was called."""
    first_error: Exception | None = None
    for dtype in _target_dtypes(output, target):
        try:
            with LossCalls(data) as noted:
                loss = cast(Any, task.loss)(output, target if dtype is None else target.to(dtype))
            return loss, dtype, noted.settle(loss)
        except Exception as error:
            first_error = first_error or error
    assert first_error is not None
    if target_first(task.loss):
        raise TaskError(_order_text(task)) from first_error
    raise first_error


def _target_dtypes(output: Any, target: Any) -> list[torch.dtype | None]:
    """List the dtypes to try for the target, in order; None leaves it as it is."""
    if not isinstance(target, Tensor) or not isinstance(output, Tensor) or target.is_complex():
        return [None]
    if target.is_floating_point():
        differ = output.is_floating_point() and output.dtype != target.dtype
        return [output.dtype if differ and torch.float64 in (output.dtype, target.dtype) else None]
    # Losses on classes want int64; those that compare output and target, such as binary cross-entropy, the output's floats.
    choices: list[torch.dtype | None] = [None]
    if target.dtype != torch.int64:
        choices.append(torch.int64)
    if target.numel() == output.numel() and output.is_floating_point():  # the loss may give both one shape
        choices.append(output.dtype)
    return choices


def _model_hint(error: Exception, model: nn.Module, parts: Parts) -> str:
    text, known = str(error), call_advice(error, model, *parts[:2])
    if known:
        return known
    integers = [leaf for leaf in leaves(parts[:2]) if not leaf.is_floating_point() and leaf.numel()]
    if "index out of range" in text and integers:
        largest, least = max(int(leaf.max()) for leaf in integers), min(int(leaf.min()) for leaf in integers)
        return f"Inputs run from {least} to {largest}: an embedding needs {largest + 1} rows, and none below 0."
    if isinstance(error, RuntimeError | ValueError | IndexError):  # what PyTorch raises for shapes and values
        return advice_on(error) or "Compare these shapes with what the model's first layers take."
    return advice_on(error)


_FIT = "Make the model's last layer, the targets and the loss fit each other."


def _loss_hint(error: Exception, output: Any, target: Any) -> str:
    known = advice_on(error)
    if known:
        return known
    if isinstance(error, TypeError) and "positional argument" in str(error):
        return "It is called as loss(output, target)."
    if not isinstance(error, IndexError | RuntimeError | ValueError | TypeError | AttributeError):
        return ""  # not what PyTorch raises for shapes and values
    if not isinstance(target, Tensor):
        return "Targets must be numbers: code labels as 0, 1, 2, …"
    if not isinstance(output, Tensor):
        return _part_hint(output) if isinstance(error, TypeError | AttributeError) else _FIT
    if output.numel() == target.numel() and output.shape != target.shape:
        return f"Give both the same shape: {_same_shape(output, target)}."
    masks = _mask_hint(output, target)
    if masks:
        return masks
    sizes_differ = "size" in str(error) and "batch_size" not in str(error)
    labels = target.ndim == 1 and not target.is_floating_point() and output.ndim == 2 and len(output) == len(target)
    if sizes_differ and labels:
        return "For class numbers use cross_entropy, whose model has one output for each class."
    return _FIT if isinstance(error, IndexError | RuntimeError | ValueError) else ""


def _mask_hint(output: Tensor, target: Tensor) -> str:
    """Say what gives scores (N, classes, height, width) and masks of class numbers the same places."""
    if output.ndim < 3 or target.is_floating_point() or output.shape[1] < 2:
        return ""
    if target.ndim == output.ndim and target.shape[1] == 1:
        return "Masks of class numbers have no dimension of channels: y.squeeze(1)."
    if target.ndim == output.ndim - 1 and output.shape[2:] != target.shape[1:] and len(output) == len(target):
        return (
            f"The scores have {tuple(output.shape[2:])} places and the targets {tuple(target.shape[1:])}: give the model's"
            f" outputs the targets' size (F.interpolate(output, size=y.shape[1:])), or the targets the outputs'."
        )
    return ""


def _part_hint(output: Any) -> str:
    """Say how a loss gets at the scores in what a model gives beside them."""
    if output is None:
        return "End the model's forward with a return."
    if isinstance(output, Mapping):
        names = [key for key, value in cast("Mapping[Any, Any]", output).items() if isinstance(value, Tensor)]
        part = f"[{names[0]!r}]" if names else "[...]"
    elif isinstance(output, tuple | list):
        part = "[0]"
    else:
        names = [name for name, value in getattr(output, "__dict__", {}).items() if isinstance(value, Tensor)]
        part = f".{names[0]}" if names else ".logits"
    return f"Choose what the loss is to compare: loss=lambda output, y: loss(output{part}, y)."


def _same_shape(output: Tensor, target: Tensor) -> str:
    """Say what gives outputs and targets the same shape."""
    if (*target.shape, 1) == output.shape:
        return "y[:, None], or output.squeeze(1)" if output.ndim == 2 else "y[..., None], or output.squeeze(-1)"
    if (*output.shape, 1) == target.shape:
        return "y.squeeze(1), or output[:, None]" if target.ndim == 2 else "y.squeeze(-1), or output[..., None]"
    return "output.reshape(y.shape)"


def _describe(parts: Parts) -> str:
    arguments, keywords, _ = parts
    shown = [describe(part) for part in arguments] + [f"{key}={describe(part)}" for key, part in keywords.items()]
    return "inputs " + ", ".join(shown)


def _check_broadcast(task: Task, output: Any, target: Any, warned: list[str]) -> None:
    """Refuse a loss that broadcasts outputs against targets, which averages over all pairs of them.

    PyTorch's own losses warn of it (`warned`); others are tried out.
    """
    if not isinstance(output, Tensor) or not isinstance(target, Tensor) or output.shape == target.shape:
        return
    if any("target size" in text for text in warned) or spreads(cast(Any, task.loss), output, target):
        raise DataError(
            f"The model gives {tuple(output.shape)} but the target is {tuple(target.shape)}, and the loss spreads one over the"
            f" other: it compares every output with every target. Give both the same shape ({_same_shape(output, target)})."
        )


def _check_order(task: Task, output: Any, target: Any) -> None:
    """Refuse a loss that takes the target first, where that makes a difference."""
    if is_mistaken(task.loss, cast(Any, task.loss), output, target):
        raise TaskError(_order_text(task))


def _order_text(task: Task) -> str:
    return f"The loss would be given the output for the target. {order_advice(task.loss, 'loss')}"


def _check_weight(weight: Any, function: str, training: bool) -> None:
    if weight is None:
        return
    try:
        value = float(weight.detach() if isinstance(weight, Tensor) else weight)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TaskError(
            f"`{function}` returned the weight {describe(weight)}, but (loss, weight) has one number as its weight, such as a"
            f" count of tokens. Return the loss alone where the second is something else."
        ) from error
    if isinstance(weight, Tensor) and weight.requires_grad:
        raise TaskError(
            f"`{function}` returned two tensors that have gradients, but the second of (loss, weight) is a count, such as one of"
            f" tokens, and nothing is trained by it. Of two losses return the sum (losses with an optimiser each, as a GAN has,"
            f" are not what thalweg trains); of loss and outputs the loss alone; of a weight its weight.detach()."
        )
    if value == 0 and not training:
        return  # a batch that does not count in the mean over the validation data
    if value == 0:
        raise NothingCountsError(
            f"`{function}` returned the weight 0 for the first batch, so nothing in it counts. Shuffle the data, or leave out"
            f" examples without a target."
        )
    if not (math.isfinite(value) and value > 0):
        raise TaskError(
            f"`{function}` returned the weight {value:g} for the first batch. It must be above zero and finite."
        )


def _check_loss(loss: Any, training: bool) -> None:
    if isinstance(loss, Mapping):
        raise TaskError(
            "The loss is a dict. Return the sum of its terms; or give step(model, batch), which may return them by name."
        )
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
    if training:
        _check_gradient(loss)


def _check_gradient(loss: Tensor) -> None:
    if not loss.requires_grad:
        raise TaskError(
            "The loss has no gradient: nothing that can be trained leads to it. Look for .detach(), .item(), .data,"
            " torch.no_grad() or an argmax between the parameters and the loss."
        )


def _check_loss_is_finite(rehearsal: Rehearsal, batch: Any, where: str, nonfinite: str | None) -> None:
    loss = rehearsal.loss
    if torch.isfinite(loss.detach()).all():
        return
    rows = nonfinite_rows(batch)
    if rows:
        found = nonfinite or f"The {where} has NaN or infinity in rows {few(rows)}"
        infinite = next((leaf.dtype for leaf in leaves(batch) if leaf.is_floating_point() and leaf.isinf().any()), None)
        end = (
            ""
            if infinite is None
            else f": {str(infinite).removeprefix('torch.')} ends at {torch.finfo(infinite).max:.2g}"
        )
        raise DataError(
            f"{found}, and the loss is {float(loss.detach())} there. Drop or fill them (or scale what is too large{end}),"
            f" or give a loss that leaves them out."
        )
    for call in rehearsal.calls:
        if (ignored := call.ignored_throughout) is not None:
            raise NothingCountsError(
                f"The loss is {float(loss.detach())} on the {where}: all its targets are {ignored}, which {call.name} leaves out"
                f" (ignore_index), so it has no mean. Leave out examples without a target, or shuffle the data."
            )
    lost = [name for name, value in rehearsal.terms.items() if not torch.isfinite(value.detach()).all()]
    of = f" (of its terms {few(lost, 3, '`')})" if lost and len(lost) < len(rehearsal.terms) else ""
    raise NonFiniteLossError(
        f"The loss is {float(loss.detach())}{of} at the very start, before any step. Look for log(0), division by zero (by"
        f" the sum of an empty mask, say), weights that are not finite, and outputs that overflow."
    )


def check_gradient_is_finite(loss: Tensor, model: nn.Module, nonfinite: str) -> None:
    """Refuse NaN or infinity in the data that a loss leaves out and its gradient does not. Raises DataError."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    if not all(bool(torch.isfinite(g.to_dense()).all()) for g in gradients if g is not None):
        raise DataError(
            f"{nonfinite}. The loss is finite there, but its gradient is not: a NaN times zero is NaN. Replace them before"
            f" anything is computed of them (torch.nan_to_num, or choose by a mask: output[mask], target[mask])."
        )


def wants_gradient(error: BaseException) -> bool:
    """Tell whether an error says that gradients were disabled where model or loss take one themselves."""
    text = f"{error} {error.__cause__}"
    return any(words in text for words in ("does not require grad", "does not have a grad_fn", "require a gradient"))
