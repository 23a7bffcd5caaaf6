"""Validation: the loss and the metrics over a whole set, in evaluation mode; the model is left as it was."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.descent.out_of_memory import out_of_memory, release
from thalweg.descent.precision import autocast
from thalweg.descent.problem import Problem
from thalweg.descent.process_state import rng_lock
from thalweg.errors import DataError, TaskError, few
from thalweg.landscape.objective import Objective, describe
from thalweg.records.task import StreamingMetric
from thalweg.sampling import iterate_once, mix
from thalweg.sampling.sources import leaves, nonfinite_rows, seed_all, to_device, tree_map

LARGEST_BATCH = 1024  # examples per validation batch; a DataLoader or stream has its own batches
_VALIDATION = 3  # mixed into the seeds of validations, so that they differ from those of the steps
MOST_BATCHES = 100_000  # a stream that gives more is endless
SAMPLE = 4096  # training examples that are measured where there are no validation data


@contextmanager
def evaluating(model: nn.Module, objective: Objective) -> Generator[None]:
    """Within, the model, and a loss that is a module, are in evaluation mode without gradients; afterwards as they were.

    A loss may keep buffers that change whenever it is called, in evaluation mode too: they are restored.
    """
    loss = objective.task.loss
    roots = [model, loss] if isinstance(loss, nn.Module) else [model]
    modes = [(module, module.training) for root in roots for module in root.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in objective.loss_buffers.values()]
    for root in roots:
        root.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for buffer, before in buffers:
            buffer.copy_(before)


def validate(
    problem: Problem, model: nn.Module, precision: str = "float32", micro: int = LARGEST_BATCH, seed: int = 0
) -> dict[str, float]:
    """Give {"loss": …, metric: …} over the validation set, or only the loss over first training examples where there is none.

    A model that draws random numbers draws the same in every validation. Out of memory halves the batches of `micro` examples.

    Raises DataError where the validation data hold NaN or do not end, TaskError where a metric fails.
    """
    try:
        return _validate(problem, model, precision, micro, seed)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error) or micro <= 1:
            raise
    release(problem.device)
    return validate(problem, model, precision, micro // 2, seed)


def _validate(problem: Problem, model: nn.Module, precision: str, micro: int, seed: int) -> dict[str, float]:
    metrics = problem.task.metrics if problem.validation is not None else {}
    streaming = {name: metric for name, metric in metrics.items() if isinstance(metric, StreamingMetric)}
    for name, metric in streaming.items():
        _call_metric(name, metric.reset)
    weighted_loss, weights, examples = 0.0, 0.0, 0
    sums: dict[str, list[float]] = {}  # of the figures that the task's own `evaluate` gives: weighted sum, and weight
    with_outputs = bool(metrics) and problem.task.loss is not None
    pairs: list[tuple[Any, Any]] = []  # (outputs, targets) of every batch, for metrics over the whole set
    batches = _batches(problem, micro)
    with evaluating(model, problem.validation_objective):
        for number in itertools.count():
            # Drawing a batch is seeded too: a data set may augment at random. The lock keeps other threads from drawing between.
            with rng_lock, autocast(precision, problem.device):
                seed_all(mix(seed, _VALIDATION, number))
                drawn = next(batches, None)
                if drawn is None:
                    break
                batch, size = drawn
                loss, weight, pair, own = _measure(problem, model, batch, with_outputs)
                examples += size
                bad_rows = [] if torch.isfinite(loss) else nonfinite_rows(batch)
                if bad_rows:
                    _refuse_nonfinite(problem, [examples - size + row for row in bad_rows])
                    size -= len(bad_rows)
                    if not size:
                        continue
                    batch = _without_rows(batch, bad_rows)
                    loss, weight, pair, own = _measure(problem, model, batch, with_outputs)
            weight = problem.validation_objective.divisor(batch, size) if weight is None else float(weight)
            if weight:  # where the loss ignores all targets of a batch, it has no mean
                weighted_loss, weights = weighted_loss + float(loss) * weight, weights + weight
            for name, value in own.items() if weight else ():
                total = sums.setdefault(name, [0.0, 0.0])
                total[0], total[1] = total[0] + _as_float(name, value) * weight, total[1] + weight
            if pair is not None:
                for name, metric in streaming.items():
                    _call_metric(name, metric.update, *pair)
                if len(streaming) < len(metrics):
                    pairs.append(pair)
    figures = {"loss": weighted_loss / weights if weights else float("nan")}
    figures |= {name: total / weight for name, (total, weight) in sums.items()}
    if not with_outputs:
        return figures | {name: _as_float(name, _call_metric(name, m, dict(figures))) for name, m in metrics.items()}
    outputs, targets = _join_all("outputs", [o for o, _ in pairs]), _join_all("targets", [t for _, t in pairs])
    for name, metric in metrics.items():
        figures[name] = _as_float(name, _compute(name, metric, outputs, targets))
    return figures


def _refuse_nonfinite(problem: Problem, rows: list[int]) -> None:
    """Refuse validation data with NaN or infinity. Raises DataError with the rows.

    Of training examples, which are measured where there are no validation data, such rows are only left out, as steps skip them.
    """
    if problem.validation is not None:
        raise DataError(f"`validation` has NaN or infinity in rows {few(rows)}. Drop or fill them.")


def _without_rows(batch: Any, rows: list[int]) -> Any:
    count = max(len(leaf) for leaf in leaves(batch) if leaf.ndim)
    good_rows = torch.tensor([row for row in range(count) if row not in set(rows)])

    def take(leaf: Any) -> Any:
        has_rows = isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == count
        return leaf.index_select(0, good_rows.to(leaf.device)) if has_rows else leaf

    return tree_map(take, batch)


def _compute(name: str, metric: Any, outputs: Any, targets: Any) -> Any:
    if isinstance(metric, StreamingMetric):
        return _call_metric(name, metric.compute)
    return _call_metric(name, metric, outputs, targets)


def _call_metric(name: str, call: Any, *given: Any) -> Any:
    """Call a metric, or one of its methods, with (outputs, targets), a table of figures, or nothing.

    Raises TaskError where it fails.
    """
    try:
        return call(*given)
    except Exception as error:
        on = f" on outputs {describe(given[0])} and targets {describe(given[1])}" if len(given) == 2 else ""
        if len(given) == 1:
            on = f" on the figures {', '.join(given[0])} (without `loss`, a metric is a function of the averaged figures)"
        raise TaskError(f"Metric '{name}' failed{on}: {type(error).__name__}: {error}.") from error


def _measure(
    problem: Problem, model: nn.Module, batch: Any, with_outputs: bool
) -> tuple[Tensor, Any, Any, Mapping[str, Any]]:
    """Give a batch's mean loss, its weight where the task gives one, (outputs, targets) where they are asked for, and the figures
    that the task's own `evaluate` or `step` gives.
    """
    objective, task = problem.validation_objective, problem.validation_objective.task
    if not with_outputs:
        loss, weight, figures = objective.evaluate(model, batch)
        return loss, weight, None, figures
    output, target = objective.outputs(model, batch)
    half = torch.is_autocast_enabled(problem.device.type)
    pair = (tree_map(_in_float32, output) if half else output), target
    if task.evaluate is None and task.step is None and task.loss is not None:
        return task.loss(output, target), None, pair, {}
    loss, weight, figures = objective.evaluate(model, batch)
    return loss, weight, pair, figures


def _in_float32(value: Any) -> Any:
    # A metric may do what half precision does not allow, such as .numpy() with bfloat16.
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16) else value


def _batches(problem: Problem, micro: int) -> Iterator[tuple[Any, int]]:
    source = problem.train if problem.validation is None else problem.validation
    remaining = SAMPLE if problem.validation is None else None
    for number, (batch, size) in enumerate(iterate_once(source, micro)):
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


def _join_all(what: str, parts: list[Any]) -> Any:
    try:
        return _join(parts)
    except (RuntimeError, KeyError, IndexError) as error:
        raise TaskError(
            f"The {what} of the validation batches differ in shape ({error}), so they cannot be joined for a metric over the"
            f" whole set. Give metrics with reset, update and compute, which see batch by batch."
        ) from error


def _join(parts: list[Any]) -> Any:
    """Concatenate tensors, or whatever nest of tensors a model gives, leaf by leaf."""
    if not parts:
        return None
    if isinstance(parts[0], Tensor):
        return torch.cat([part.reshape(1) if part.ndim == 0 else part for part in parts])
    if isinstance(parts[0], dict):
        return {key: _join([part[key] for part in parts]) for key in parts[0]}
    if isinstance(parts[0], tuple):
        joined = [_join([part[i] for part in parts]) for i in range(len(parts[0]))]
        return type(parts[0])(*joined) if hasattr(parts[0], "_fields") else tuple(joined)
    if is_dataclass(parts[0]) and not isinstance(parts[0], type):
        named = [f.name for f in fields(parts[0])]
        return replace(parts[0], **{name: _join([getattr(part, name) for part in parts]) for name in named})
    return [item for part in parts for item in (part if isinstance(part, list) else [part])]


def _as_float(name: str, value: Any) -> float:
    tensors = leaves(value)
    try:
        return float(tensors[0]) if len(tensors) == 1 and tensors[0].numel() == 1 else float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TaskError(f"Metric '{name}' gave a {type(value).__name__}, but it must give one number.") from error
