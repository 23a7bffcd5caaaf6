"""Validation: the loss and the metrics over a whole set, in evaluation mode, without a trace on the model."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.descent.ambient import alone
from thalweg.descent.memory import out_of_memory, release
from thalweg.descent.precision import autocast
from thalweg.descent.problem import Problem, to_device
from thalweg.errors import DataError, TaskError
from thalweg.landscape.objective import shape
from thalweg.records.task import StreamingMetric
from thalweg.sampling import mix, once
from thalweg.sampling.sources import leaves, seed_all, spoilt_rows, tree_map

LARGEST = 1024  # examples a validation batch, where the data are indexed
_VALIDATION = 3  # keeps the random numbers of validations apart from those of the steps
SAMPLE = 4096  # training examples that stand in where there are no validation data


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """Evaluation mode without gradients; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


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
    for metric in streaming.values():
        metric.reset()
    batches = _batches(problem, micro)
    with evaluating(model):
        for number in itertools.count():
            with alone, autocast(precision, problem.device):
                seed_all(mix(seed, _VALIDATION, number))
                drawn = next(batches, None)
                if drawn is None:
                    break
                batch, size = drawn
                loss, weight, pair = _measure(problem, model, batch, bool(metrics))
                first, spoilt = first + size, [] if torch.isfinite(loss) else spoilt_rows(batch)
                if spoilt:
                    _refuse(problem, [first - size + row for row in spoilt])
                    size -= len(spoilt)
                    if not size:
                        continue
                    loss, weight, pair = _measure(problem, model, _without(batch, spoilt), bool(metrics))
            share = float(size if weight is None else weight)
            totals, weights = totals + float(loss) * share, weights + share
            if pair is not None:
                for metric in streaming.values():
                    metric.update(*pair)
                if len(streaming) < len(metrics):
                    seen.append(pair)
    figures = {"loss": totals / weights if weights else float("nan")}
    outputs, targets = _join([o for o, _ in seen]), _join([t for _, t in seen])
    for name, metric in metrics.items():
        figures[name] = _number(name, _compute(name, metric, outputs, targets))
    return figures


def _refuse(problem: Problem, rows: list[int]) -> None:
    """Refuse validation data with NaN or infinity. Training examples that stand in only lose such rows, as steps leave them out.

    Raises DataError with the rows.
    """
    if problem.validation is not None:
        shown = ", ".join(str(row) for row in rows[:5]) + (", …" if len(rows) > 5 else "")
        raise DataError(f"`validation` has NaN or infinity in rows {shown}. Drop or fill them.")


def _without(batch: Any, rows: list[int]) -> Any:
    count = max(len(leaf) for leaf in leaves(batch) if leaf.ndim)
    kept = torch.tensor([row for row in range(count) if row not in set(rows)])

    def take(leaf: Any) -> Any:
        whole = isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == count
        return leaf.index_select(0, kept.to(leaf.device)) if whole else leaf

    return tree_map(take, batch)


def _compute(name: str, metric: Any, outputs: Any, targets: Any) -> Any:
    try:
        return metric.compute() if isinstance(metric, StreamingMetric) else metric(outputs, targets)
    except Exception as error:
        raise TaskError(
            f"Metric '{name}' failed on outputs {shape(outputs)} and targets {shape(targets)}: {type(error).__name__}: {error}."
        ) from error


def _measure(problem: Problem, model: nn.Module, batch: Any, outputs: bool) -> tuple[Tensor, Any, Any]:
    objective, task = problem.objective, problem.task
    if not outputs:
        return *objective.evaluate(model, batch), None
    output, target = objective.outputs(model, batch)
    if task.evaluate is None and task.step is None and task.loss is not None:
        return task.loss(output, target), None, (output, target)
    return *objective.evaluate(model, batch), (output, target)


def _batches(problem: Problem, micro: int) -> Iterator[tuple[Any, int]]:
    source = problem.train if problem.validation is None else problem.validation
    left = SAMPLE if problem.validation is None else None
    for batch, size in once(source, micro):
        yield to_device(batch, problem.device), size
        if left is not None:
            left -= size
            if left <= 0:
                return


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
    return [item for part in parts for item in (part if isinstance(part, list) else [part])]


def _number(name: str, value: Any) -> float:
    found = leaves(value)
    try:
        return float(found[0]) if len(found) == 1 and found[0].numel() == 1 else float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TaskError(f"Metric '{name}' gave a {type(value).__name__}, but it must give one number.") from error
