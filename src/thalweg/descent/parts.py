"""How the loss of a task's batches is made of their parts' losses; see `landscape/reduction.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from thalweg.descent.rehearsal import Rehearsal
from thalweg.landscape.loss_contracts import LossCall
from thalweg.landscape.objective import loss_and_weight
from thalweg.landscape.reduction import Reduction, compare_parts, measure_reduction
from thalweg.records.task import Task
from thalweg.sampling import Source, count_examples
from thalweg.sampling.opening import in_parts
from thalweg.sampling.sources import seed_all

SIZES = [3, 5]  # examples of two unequal parts, so that a mean of the parts' means shows


def training_reduction(
    task: Task, model: nn.Module, rehearsal: Rehearsal, batch: Any, train: Source, device: torch.device
) -> Reduction:
    """Find the reduction of a task's training loss, from the rehearsed batch or, of its own `step`, from some examples.

    The model is in training mode, and is left so.
    """
    if task.step is None:
        assert task.loss is not None
        stated = _stated_by_calls(rehearsal.calls)
        return measure_reduction(task.loss, rehearsal.output, rehearsal.target, count_examples(batch), stated)
    model.eval()  # without dropout, and without batch normalisation, which makes examples depend on each other
    try:
        return function_reduction(task.step, model, train, device)
    finally:
        model.train()


def _stated_by_calls(calls: Sequence[LossCall]) -> Reduction | None:
    """Give what the one loss on classes that was called says of itself, whoever called it: a lambda, say."""
    called = [call for call in calls if call.name in ("cross_entropy", "nll_loss")]
    if len(called) != 1 or called[0].target.is_floating_point():
        return None
    options = called[0].options
    return Reduction("targets", options.get("ignore_index", -100), options.get("weight"))


def function_reduction(
    function: Callable[[nn.Module, Any], Any], model: nn.Module, source: Source, device: torch.device
) -> Reduction:
    """Find the reduction of a task's own `step` or `evaluate`: "unknown" for a stream, or where it fails on a part."""
    losses = list[tuple[float, Any]]()
    try:
        whole, parts = in_parts(source, [sum(SIZES)], device), in_parts(source, SIZES, device)
        for number, batch in enumerate([*(whole or []), *(whole or []), *(parts or [])]):
            seed_all(number)  # other random numbers each time, so that it shows where the loss depends on them
            loss, weight = loss_and_weight(function(model, batch), "step")
            losses.append((float(loss.detach()), weight))
    except Exception:
        return Reduction("unknown")
    if not losses:
        return Reduction("unknown")
    (first, _), (second, _), *rest = losses
    return compare_parts([first, second], [loss for loss, _ in rest], [weight for _, weight in rest], SIZES)
