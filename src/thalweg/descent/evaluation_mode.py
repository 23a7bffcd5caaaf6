"""The rehearsal of validation: a first batch is evaluated as it will be, so that what fails there fails before training."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from thalweg.descent.metrics import rehearse_figure_metrics, rehearse_metrics
from thalweg.descent.out_of_memory import out_of_memory, release
from thalweg.descent.parts import Unchanged, function_reduction
from thalweg.descent.rehearsal import VALIDATION, Rehearsal, rehearse, wants_gradient
from thalweg.descent.target_check import check_targets
from thalweg.errors import DataError, TaskError
from thalweg.landscape.objective import Casts, Objective
from thalweg.landscape.reduction import Reduction
from thalweg.records.task import Task
from thalweg.sampling import Source, StreamSource, TensorSource
from thalweg.sampling.opening import NonFinite, batch_of_rows, find_nonfinite, first_batch


class Evaluation(NamedTuple):
    """What evaluating needs: casts, whether with gradients, and the reduction of the task's own `evaluate` or `step`, if any.

    Further whether the data hold NaN or infinity that the loss takes, and notes.
    """

    casts: Casts
    needs_gradient: bool
    reduction: Reduction | None
    takes_nonfinite: bool
    notes: list[str]


def rehearse_evaluation(
    task: Task,
    model: nn.Module,
    trained: Rehearsal,
    train: Source,
    validation: Source | None,
    device: torch.device,
    count: int,
    unchanged: Unchanged = nullcontext,
) -> Evaluation:
    """Evaluate a first batch as validation will: in evaluation mode, without gradients unless model or loss take some.

    Arguments:
        task: whose loss may be called.
        model: in training mode, in which it is left; its buffers may change.
        trained: the rehearsal of training.
        train, validation: the opened data; without validation data the training data are evaluated. What is held out of the
            training data is looked at with these.
        device: of the model.
        count: examples of the batch, where no user's loader has decided on it.
        unchanged: see `function_reduction`.

    Raises TaskError where that fails; it names `evaluate` where training mode takes the same batch.
    """
    source = train if validation is None else validation
    where = "first training batch, in evaluation mode" if validation is None else "first validation batch"
    is_held_out = not isinstance(validation, StreamSource | None) and validation.rows is not None
    found = None if validation is None or is_held_out else find_nonfinite(validation, "validation")
    model.eval()
    try:
        while True:
            batches = [first_batch(source, device, count)]
            if found is not None:
                batches.append(batch_of_rows(cast(TensorSource, validation), found.rows, count))
            try:
                rehearsal, needs_gradient = _evaluate(
                    task, model, batches, where, "" if validation is None or is_held_out else VALIDATION, found
                )
                break
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                if count <= 1 or isinstance(source, StreamSource):
                    raise TaskError(f"Memory runs out with the {where} ({error}). Give smaller batches.") from error
            release(device)
            count //= 2
        objective = Objective(task, rehearsal.casts, needs_gradient=needs_gradient)
        notes = _other_output(trained, rehearsal)
        if validation is not None and not is_held_out:
            notes += check_targets(objective, model, validation, rehearsal.calls, count, VALIDATION)
        if validation is not None:
            if task.loss is None:
                rehearse_figure_metrics(task.metrics, objective, model, batches[0])
            else:
                rehearse_metrics(task.metrics, objective, model, validation, device, count)
        if found is not None:
            notes.append(f"{found.text}. The loss is finite all the same, so they stay as they are.")
        own = task.evaluate or task.step
        reduction = None if own is None else function_reduction(own, model, source, device, count, unchanged)
        return Evaluation(rehearsal.casts, needs_gradient, reduction, found is not None, notes)
    finally:
        model.train()


def _evaluate(
    task: Task, model: nn.Module, batches: list[object], where: str, data: str, found: NonFinite | None
) -> tuple[Rehearsal, bool]:
    """Evaluate batches without gradients, or with them where that fails for want of one; tell which it was.

    Raises TaskError that names `evaluate` where only evaluation mode fails.
    """
    options: dict[str, Any] = {"where": where, "data": data, "nonfinite": None if found is None else found.text}
    try:
        try:
            with torch.no_grad():
                return _rehearse_all(task, model, batches, options), False
        except TaskError as error:
            if not wants_gradient(error):
                raise
        return _rehearse_all(task, model, batches, options), True
    except DataError:
        raise
    except TaskError as error:
        if task.evaluate is None and _passes_in_training(task, model, batches[0]):
            raise TaskError(
                f"{error} In training mode the same batch passes: where the model gives something else in evaluation mode, say"
                f" how to evaluate it with evaluate(model, batch)."
            ) from error
        raise


def _rehearse_all(task: Task, model: nn.Module, batches: list[object], options: dict[str, Any]) -> Rehearsal:
    """Rehearse all batches, and give the rehearsal of the first."""
    first, *_ = [rehearse(task, model, batch, training=False, **options) for batch in batches]
    return first


def _other_output(trained: Rehearsal, evaluated: Rehearsal) -> list[str]:
    """Say where the model's output is of another kind in evaluation mode, of which the loss then makes what it can."""
    kinds = [_kind(rehearsal.output) for rehearsal in (trained, evaluated)]
    if None in kinds or kinds[0] == kinds[1]:
        return []
    return [
        f"In evaluation mode the model gives {kinds[1]}, in training mode {kinds[0]}. Validation calls the same loss: where it is"
        f" not made for that, give evaluate(model, batch)."
    ]


def _kind(output: Any) -> str | None:
    if isinstance(output, Tensor):
        return f"a tensor of {output.ndim} dimensions"
    if isinstance(output, tuple | list | Mapping):
        return f"a {type(output).__name__} of {len(cast(Any, output))}"
    return None if output is None else f"a {type(output).__name__}"


def _passes_in_training(task: Task, model: nn.Module, batch: object) -> bool:
    try:
        rehearse(task, model.train(), batch)
    except Exception:
        return False
    return True
