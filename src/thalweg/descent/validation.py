"""Validation: the loss and the metrics over a whole set, in evaluation mode; the model is left as it was."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.descent.metrics import as_number, call_metric, join_all
from thalweg.descent.out_of_memory import out_of_memory, release
from thalweg.descent.precision import autocast
from thalweg.descent.problem import Problem
from thalweg.descent.process_state import rng_lock
from thalweg.descent.user_errors import naming_errors
from thalweg.errors import DataError, TaskError, few
from thalweg.landscape.objective import Objective
from thalweg.records.task import StreamingMetric
from thalweg.sampling import Source, StreamSource, iterate_once, mix
from thalweg.sampling.reading import describe_error
from thalweg.sampling.sources import leaves, nonfinite_rows, seed_all, to_device, tree_map

LARGEST_BATCH = 1024  # examples per validation batch; a DataLoader or stream has its own batches
_VALIDATION = 3  # mixed into the seeds of validations, so that they differ from those of the steps
MOST_BATCHES = 100_000  # a stream that gives more is endless
SAMPLE = 4096  # training examples that are measured where there are no validation data


@contextmanager
def evaluating(model: nn.Module, objective: Objective) -> Generator[None]:
    """Within, the model, and a loss that is a module, are in evaluation mode; afterwards as they were.

    Gradients are disabled, unless model or loss take some themselves. A loss may keep buffers that change whenever it is called,
    in evaluation mode too: they are restored.
    """
    loss = objective.task.loss
    roots = [model, loss] if isinstance(loss, nn.Module) else [model]
    modes = [(module, module.training) for root in roots for module in root.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in objective.loss_buffers.values()]
    for root in roots:
        root.eval()
    try:
        with objective.gradient_mode():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for buffer, before in buffers:
            buffer.copy_(before)


def validate(
    problem: Problem,
    model: nn.Module,
    precision: str = "float32",
    micro: int = LARGEST_BATCH,
    seed: int = 0,
    training_size: int | None = None,
) -> dict[str, float]:
    """Give {"loss": …, metric: …} over the validation set, or only the loss over first training examples where there is none.

    A model that draws random numbers draws the same in every validation.

    Arguments:
        problem: gives data, loss and metrics. Data that came with a loader are measured in the loader's own batches.
        model: is put into evaluation mode, and left as it was.
        precision: as the plan's.
        micro: examples per batch of other data; memory that runs out halves it, and the loader's batches, where the loss of a
            batch follows from those of its parts.
        seed: of what model and data draw.
        training_size: examples per batch in training, which are used where another size would have another loss.

    Raises DataError where the loss is not finite because of NaN in the data, or the data do not end, TaskError where a metric
    fails or memory runs out.
    """
    reduction = problem.validation_objective.reduction
    if training_size is not None and not reduction.splits_exactly:
        micro = min(micro, training_size)
    own = True
    while True:
        try:
            return _validate(problem, model, precision, micro, own, seed, training_size or micro)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            if micro <= 1 or reduction.depends_on_size or isinstance(_data(problem), StreamSource):
                raise TaskError(
                    f"Memory ran out in validation ({describe_error(error)}). Give a validation loader with smaller batches."
                ) from error
        release(problem.device)
        own, micro = False, micro // 2


def _data(problem: Problem) -> Source:
    return problem.train if problem.validation is None else problem.validation


def _validate(
    problem: Problem, model: nn.Module, precision: str, micro: int, own: bool, seed: int, nominal: int
) -> dict[str, float]:
    metrics = problem.task.metrics if problem.validation is not None else {}
    streaming = {name: metric for name, metric in metrics.items() if isinstance(metric, StreamingMetric)}
    for name, metric in streaming.items():
        call_metric(name, metric.reset)
    weighted_loss, weights, examples = 0.0, 0.0, 0
    pairs: list[tuple[Any, Any]] = []  # (outputs, targets) of every batch, for metrics over the whole set
    batches = _batches(problem, micro, own)
    with evaluating(model, problem.validation_objective):
        for number in itertools.count():
            # Drawing a batch is seeded too: a data set may augment at random. The lock keeps other threads from drawing between.
            with rng_lock, autocast(precision, problem.device):
                seed_all(mix(seed, _VALIDATION, number))
                drawn = next(batches, None)
                if drawn is None:
                    break
                batch, size = drawn
                loss, weight, pair = _measure(problem, model, batch, bool(metrics))
                good_rows = None if torch.isfinite(loss) else _without_nonfinite(problem, model, batch, size, examples)
                examples += size
                if good_rows is not None:
                    batch, size = good_rows
                    if not size:
                        continue
                    loss, weight, pair = _measure(problem, model, batch, bool(metrics))
            weight = problem.validation_objective.weight(batch, size) if weight is None else float(weight)
            if weight:  # where the loss ignores all targets of a batch, it has no mean
                weighted_loss, weights = weighted_loss + float(loss) * weight, weights + weight
            if pair is not None:
                for name, metric in streaming.items():
                    call_metric(name, metric.update, *pair)
                if len(streaming) < len(metrics):
                    pairs.append(pair)
    if problem.validation_objective.reduction.kind == "sum" and examples:
        weights = examples / min(nominal, examples)  # a sum over as many examples as a batch of training has
    figures = {"loss": weighted_loss / weights if weights else float("nan")}
    outputs, targets = join_all("outputs", [o for o, _ in pairs]), join_all("targets", [t for _, t in pairs])
    for name, metric in metrics.items():
        figures[name] = as_number(name, _compute(name, metric, outputs, targets))
    return figures


def _without_nonfinite(problem: Problem, model: nn.Module, batch: Any, size: int, first: int) -> tuple[Any, int] | None:
    """Give a batch and its size without the rows that hold NaN or infinity, where the loss is not finite because of them.

    Of training examples, which are measured where there are no validation data, they are left out, as steps skip them. None where
    they are not the reason. Raises DataError with the rows, counted from `first`, for validation data.
    """
    rows = nonfinite_rows(batch)
    if not rows or problem.takes_nonfinite:
        return None
    rest = None
    if len(rows) < size:
        rest = _without_rows(batch, rows)
        try:
            if not torch.isfinite(_measure(problem, model, rest, False)[0]):
                return None
        except TaskError:  # this batch cannot be cut
            rest = None
    if problem.validation is not None:
        raise DataError(
            f"`validation` has NaN or infinity in rows {few([first + row for row in rows])}, and the loss is not finite there."
            f" Drop or fill them, or give a loss that leaves them out."
        )
    return (batch, 0) if rest is None else (rest, size - len(rows))


def _without_rows(batch: Any, rows: list[int]) -> Any:
    count = max(len(leaf) for leaf in leaves(batch) if leaf.ndim)
    good_rows = torch.tensor([row for row in range(count) if row not in set(rows)])

    def take(leaf: Any) -> Any:
        has_rows = isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == count
        return leaf.index_select(0, good_rows.to(leaf.device)) if has_rows else leaf

    return tree_map(take, batch)


def _compute(name: str, metric: Any, outputs: Any, targets: Any) -> Any:
    if isinstance(metric, StreamingMetric):
        return call_metric(name, metric.compute)
    return call_metric(name, metric, outputs, targets)


def _measure(problem: Problem, model: nn.Module, batch: Any, with_outputs: bool) -> tuple[Tensor, Any, Any]:
    """Give a batch's mean loss, its weight where the task gives one, and (outputs, targets) where they are asked for.

    Raises TaskError where the model or the loss fails.
    """
    task = problem.task
    own = "`evaluate`" if task.evaluate is not None else "`step`" if task.step is not None else "The model or the loss"
    with naming_errors(own, "in validation"):
        loss, weight, pair = _evaluated(problem, model, batch, with_outputs)
    return loss.detach(), weight, tree_map(_detached, pair)


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _evaluated(problem: Problem, model: nn.Module, batch: Any, with_outputs: bool) -> tuple[Tensor, Any, Any]:
    objective, task = problem.validation_objective, problem.validation_objective.task
    if not with_outputs:
        return *objective.evaluate(model, batch), None
    output, target = objective.outputs(model, batch)
    half = torch.is_autocast_enabled(problem.device.type)
    pair = (tree_map(_in_float32, output) if half else output), target
    if task.evaluate is None and task.step is None and task.loss is not None:
        return task.loss(output, target), None, pair
    return *objective.evaluate(model, batch), pair


def _in_float32(value: Any) -> Any:
    # A metric may do what half precision does not allow, such as .numpy() with bfloat16.
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16) else value


def _batches(problem: Problem, micro: int, own: bool) -> Iterator[tuple[Any, int]]:
    remaining = SAMPLE if problem.validation is None else None
    for number, (batch, size) in enumerate(iterate_once(_data(problem), micro, own=own)):
        if number == MOST_BATCHES:
            raise DataError(
                f"`validation` has given {number:,} batches and does not end. Give data that end, or a part of the stream"
                f" (itertools.islice)."
            )
        yield to_device(batch, problem.device), size
        if remaining is not None:
            remaining -= size
            if remaining <= 0:
                return
