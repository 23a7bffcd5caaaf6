"""Validation: the loss and the metrics over a whole set, in evaluation mode, without a trace on the model."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.descent.ambient import alone
from thalweg.descent.out_of_memory import out_of_memory, release
from thalweg.descent.precision import autocast
from thalweg.descent.problem import Problem, to_device
from thalweg.errors import DataError, TaskError, few
from thalweg.landscape.objective import Objective, shape
from thalweg.records.task import StreamingMetric
from thalweg.sampling import mix, once
from thalweg.sampling.sources import leaves, nonfinite_rows, seed_all, tree_map

LARGEST = 1024  # examples a validation batch, where the data are indexed
_VALIDATION = 3  # keeps the random numbers of validations apart from those of the steps
MOST_BATCHES = 100_000  # a stream that gives more is endless
SAMPLE = 4096  # training examples that stand in where there are no validation data


@contextmanager
def evaluating(model: nn.Module, objective: Objective) -> Generator[None]:
    """Evaluation mode without gradients, the loss's too where it is a module; afterwards all is as it was."""
    loss = objective.task.loss
    parts = [model, loss] if isinstance(loss, nn.Module) else [model]
    modes = [(module, module.training) for part in parts for module in part.modules()]
    memory = {name: (buffer, buffer.clone()) for name, buffer in objective.loss_buffers.items()}
    for part in parts:
        part.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for buffer, before in memory.values():
            buffer.copy_(before)


def validate(
    problem: Problem, model: nn.Module, precision: str = "float32", micro: int = LARGEST, seed: int = 0
) -> dict[str, float]:
    """Give {"loss": …, metric: …} over the validation set, or over first training examples where there is none.

    A model that draws random numbers draws the same in every validation. Out of memory halves the batches.
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
    totals, weights, first = 0.0, 0.0, 0
    seen: list[tuple[Any, Any]] = []
    streaming = {name: metric for name, metric in metrics.items() if isinstance(metric, StreamingMetric)}
    for name, metric in streaming.items():
        _told(name, metric.reset)
    batches = _batches(problem, micro)
    with evaluating(model, problem.validation_objective):
        for number in itertools.count():
            with alone, autocast(precision, problem.device):
                seed_all(mix(seed, _VALIDATION, number))
                drawn = next(batches, None)
                if drawn is None:
                    break
                batch, size = drawn
                loss, weight, pair = _measure(problem, model, batch, bool(metrics))
                first, spoilt = first + size, [] if torch.isfinite(loss) else nonfinite_rows(batch)
                if spoilt:
                    _refuse(problem, [first - size + row for row in spoilt])
                    size -= len(spoilt)
                    if not size:
                        continue
                    batch = _without(batch, spoilt)
                    loss, weight, pair = _measure(problem, model, batch, bool(metrics))
            share = problem.validation_objective.divisor(batch, size) if weight is None else float(weight)
            if share:  # a batch without a target that counts has no mean
                totals, weights = totals + float(loss) * share, weights + share
            if pair is not None:
                for name, metric in streaming.items():
                    _told(name, metric.update, *pair)
                if len(streaming) < len(metrics):
                    seen.append(pair)
    figures = {"loss": totals / weights if weights else float("nan")}
    outputs, targets = _whole("outputs", [o for o, _ in seen]), _whole("targets", [t for _, t in seen])
    for name, metric in metrics.items():
        figures[name] = _number(name, _compute(name, metric, outputs, targets))
    return figures


def _refuse(problem: Problem, rows: list[int]) -> None:
    """Refuse validation data with NaN or infinity. Training examples that stand in only lose such rows, as steps leave them out.

    Raises DataError with the rows.
    """
    if problem.validation is not None:
        raise DataError(f"`validation` has NaN or infinity in rows {few(rows)}. Drop or fill them.")


def _without(batch: Any, rows: list[int]) -> Any:
    count = max(len(leaf) for leaf in leaves(batch) if leaf.ndim)
    kept = torch.tensor([row for row in range(count) if row not in set(rows)])

    def take(leaf: Any) -> Any:
        whole = isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == count
        return leaf.index_select(0, kept.to(leaf.device)) if whole else leaf

    return tree_map(take, batch)


def _compute(name: str, metric: Any, outputs: Any, targets: Any) -> Any:
    return _told(name, metric.compute) if isinstance(metric, StreamingMetric) else _told(name, metric, outputs, targets)


def _told(name: str, call: Any, *seen: Any) -> Any:
    try:
        return call(*seen)
    except Exception as error:
        on = f" on outputs {shape(seen[0])} and targets {shape(seen[1])}" if seen else ""
        raise TaskError(f"Metric '{name}' failed{on}: {type(error).__name__}: {error}.") from error


def _measure(problem: Problem, model: nn.Module, batch: Any, outputs: bool) -> tuple[Tensor, Any, Any]:
    objective, task = problem.validation_objective, problem.validation_objective.task
    if not outputs:
        return *objective.evaluate(model, batch), None
    output, target = objective.outputs(model, batch)
    half = torch.is_autocast_enabled(problem.device.type)
    pair = (tree_map(_widened, output) if half else output), target
    if task.evaluate is None and task.step is None and task.loss is not None:
        return task.loss(output, target), None, pair
    return *objective.evaluate(model, batch), pair


def _widened(value: Any) -> Any:
    # What a person's metric does with outputs, such as .numpy(), may not know of half precision.
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16) else value


def _batches(problem: Problem, micro: int) -> Iterator[tuple[Any, int]]:
    source = problem.train if problem.validation is None else problem.validation
    left = SAMPLE if problem.validation is None else None
    for number, (batch, size) in enumerate(once(source, micro)):
        if number == MOST_BATCHES:
            raise DataError(
                f"`validation` has given {number:,} batches and does not end. Give data that end, or a part of the stream"
                f" (itertools.islice)."
            )
        yield to_device(batch, problem.device), size
        if left is not None:
            left -= size
            if left <= 0:
                return


def _whole(what: str, parts: list[Any]) -> Any:
    try:
        return _join(parts)
    except (RuntimeError, KeyError, IndexError) as error:
        raise TaskError(
            f"The {what} of the validation batches differ in shape ({error}), so no metric can have them whole. Give metrics"
            f" with reset, update and compute, which see batch by batch."
        ) from error


def _join(parts: list[Any]) -> Any:
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


def _number(name: str, value: Any) -> float:
    found = leaves(value)
    try:
        return float(found[0]) if len(found) == 1 and found[0].numel() == 1 else float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TaskError(f"Metric '{name}' gave a {type(value).__name__}, but it must give one number.") from error
