"""Validation: the loss and the metrics over a whole set, in evaluation mode; the model is left as it was."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from thalweg.descent.metrics import as_number, call_metric, detached, join_all
from thalweg.descent.out_of_memory import out_of_memory, release
from thalweg.descent.precision import autocast
from thalweg.descent.problem import Problem
from thalweg.descent.process_state import preserve_process_state, rng_lock
from thalweg.descent.user_errors import naming_errors
from thalweg.errors import DataError, TaskError, few
from thalweg.landscape.loss_calls import LossCalls
from thalweg.landscape.objective import Objective
from thalweg.landscape.own_copy import in_turn
from thalweg.landscape.put_back import buffers_put_back
from thalweg.records.task import Metric, StreamingMetric, Task
from thalweg.sampling import Source, StreamSource, hold, iterate_once, mix
from thalweg.sampling.reading import describe_error
from thalweg.sampling.sources import leaves, nonfinite_rows, seed_all, to_device, tree_map

LARGEST_BATCH = 1024  # examples per validation batch; a DataLoader or stream has its own batches
_VALIDATION = 3  # mixed into the seeds of validations, so that they differ from those of the steps
MOST_BATCHES = 100_000  # a stream that gives more is endless
ERROR_PARTS = 64  # that a standard error is measured from
SAMPLE = 4096  # training examples that are measured where there are no validation data


@contextmanager
def in_evaluation_mode(*roots: nn.Module) -> Generator[None]:
    """Within, modules and all in them are in evaluation mode; afterwards each is in the mode it was in."""
    modes = [(module, module.training) for root in roots for module in root.modules()]
    for root in roots:
        root.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def evaluating(model: nn.Module, objective: Objective) -> Generator[None]:
    """Within, the model, and a loss that is a module, are in evaluation mode; afterwards as they were.

    Gradients are disabled, unless model or loss take some themselves. Buffers may change in evaluation mode too, of a loss that
    counts its calls or a model that `evaluate` puts into training mode for its losses: they are restored.
    """
    loss = objective.task.loss
    roots = [model, loss] if isinstance(loss, nn.Module) else [model]
    with (
        buffers_put_back(model, objective.loss_buffers.values()),
        in_evaluation_mode(*roots),
        objective.gradient_mode(),
    ):
        yield


def validate(
    problem: Problem,
    model: nn.Module,
    precision: str = "float32",
    micro: int = LARGEST_BATCH,
    seed: int = 0,
    training_size: int | None = None,
) -> dict[str, float]:
    """Give {"loss": …, metric: …} over the validation set, or only the loss over first training examples where there is none.

    Those of a stream were read before training (`hold_sample`): nobody but training touches its loader.

    A model that draws random numbers draws the same in every validation.

    Arguments:
        problem: gives data, loss and metrics. Data that came with a loader are measured in the loader's own batches.
        model: is put into evaluation mode, and left as it was.
        precision: as the plan's.
        micro: examples per batch of other data; memory that runs out halves it, and the loader's batches, where the loss of a
            batch follows from those of its parts.
        seed: of what model and data draw.
        training_size: examples of a training loss (see the function), used where another size would have another loss.

    Raises DataError where the loss is not finite because of NaN in the data, or the data do not end, TaskError where a metric
    fails or memory runs out.
    """
    reduction = problem.validation_objective.reduction
    micro, own = _batch_size(problem, micro, training_size), True
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


def training_size(problem: Problem, batch_size: int, accumulate: int) -> int:
    """Give the examples of a training loss: a sum's are all of a step's, those of a loss that compares examples are of a part."""
    summed = problem.validation_objective.reduction.kind == "sum"
    return batch_size if summed else math.ceil(batch_size / accumulate)


def hold_sample(problem: Problem, training_size: int) -> None:
    """Read what `validate` measures where there are no validation data and those of training are a stream."""
    if problem.validation is None and isinstance(problem.train, StreamSource):
        with preserve_process_state(), rng_lock:
            hold(problem.train, _batch_size(problem, LARGEST_BATCH, training_size), SAMPLE)


def _batch_size(problem: Problem, micro: int, training_size: int | None) -> int:
    """Give the examples per batch of a validation: those of training where another size has another loss."""
    if training_size is None or problem.validation_objective.reduction.splits_exactly:
        return micro
    return min(micro, training_size)


def _data(problem: Problem) -> Source:
    return problem.train if problem.validation is None else problem.validation


class _Measured(NamedTuple):
    """What one batch gave: its mean loss, the weight of that in the mean over all, (outputs, targets) where there are metrics of
    them, and the figures of the task's own `evaluate`."""

    loss: float
    weight: float
    pair: Any
    figures: Mapping[str, Any]


class _Totals:
    """Adds up the batches of a validation."""

    def __init__(self, task: Task, metrics: Mapping[str, Metric]) -> None:
        self.metrics = metrics
        self.of_outputs = bool(metrics) and task.loss is not None
        self.examples, self.loss, self.weight = 0, 0.0, 0.0
        self.parts = list[tuple[float, float]]()  # loss and weight of each batch
        self.sums: dict[str, list[float]] = {}  # of the task's own figures: weighted sum, and weight
        self.pairs: list[tuple[Any, Any]] = []  # (outputs, targets) of every batch, for metrics over the whole set
        self.failed = set[str]()  # metrics that refused outputs of a model that has diverged
        self.streaming = {name: m for name, m in metrics.items() if isinstance(m, StreamingMetric)}
        for name, metric in self.streaming.items():
            call_metric(name, metric.reset)

    def add(self, measured: _Measured) -> None:
        """Add a batch; one whose targets the loss ignores, all of them, has no mean."""
        if measured.weight:
            self.loss += measured.loss * measured.weight
            self.weight += measured.weight
            self.parts.append((measured.loss, measured.weight))
            for name, value in measured.figures.items():
                total = self.sums.setdefault(name, [0.0, 0.0])
                total[0] += as_number(name, value) * measured.weight
                total[1] += measured.weight
        if measured.pair is not None:
            for name, metric in self.streaming.items():
                self._try(name, measured.loss, metric.update, *measured.pair)
            if len(self.streaming) < len(self.metrics):
                self.pairs.append(measured.pair)

    def figures(self, batch_size: int | None) -> dict[str, float]:
        """Give loss and metrics; `batch_size`: examples of a training batch, where the loss is their sum; else None."""
        weight = self.weight if batch_size is None else self.examples / max(1, min(batch_size, self.examples))
        figures = {"loss": self.loss / weight if weight else float("nan")}
        figures |= {name: total / weight for name, (total, weight) in self.sums.items()}
        averages = dict(figures)
        outputs, targets = zip(*self.pairs, strict=True) if self.pairs else ((), ())
        joined = join_all("outputs", list(outputs)), join_all("targets", list(targets))
        for name, metric in self.metrics.items():
            if name in self.streaming:
                value = self._try(name, figures["loss"], self.streaming[name].compute)
            else:
                value = self._try(name, figures["loss"], metric, *(joined if self.of_outputs else (averages,)))
            figures[name] = math.nan if name in self.failed else as_number(name, value)
        return figures

    def _try(self, name: str, loss: float, call: Any, *given: Any) -> Any:
        """Call a metric; where the loss is no number either, one that fails is left out, so that the run can go back and on."""
        try:
            return call_metric(name, call, *given)
        except TaskError:
            if math.isfinite(loss):
                raise
            self.failed.add(name)
            return None


def _validate(
    problem: Problem, model: nn.Module, precision: str, micro: int, own: bool, seed: int, nominal: int
) -> dict[str, float]:
    metrics = problem.validation_objective.task.metrics if problem.validation is not None else {}
    with in_turn(problem.task.metrics if metrics else {}, metrics):
        return _validate_in_turn(problem, model, precision, micro, own, seed, nominal, metrics)


def _validate_in_turn(
    problem: Problem,
    model: nn.Module,
    precision: str,
    micro: int,
    own: bool,
    seed: int,
    nominal: int,
    metrics: Mapping[str, Metric],
) -> dict[str, float]:
    # Metrics too may draw random numbers, and are called under the lock for the same reason.
    with rng_lock:
        totals = _Totals(problem.task, metrics)
    _add_all(problem, model, precision, validation_batches(problem, micro, own), seed, totals)
    with rng_lock:
        seed_all(mix(seed, _VALIDATION))
        return totals.figures(nominal if problem.validation_objective.reduction.kind == "sum" else None)


def part_losses(
    problem: Problem, model: nn.Module, precision: str = "float32", seed: int = 0
) -> list[tuple[float, float]]:
    """Give loss and weight of up to 64 parts of the validation examples, the same parts each time.

    Nothing where the loss of a part is not defined (a sum, a loss that compares examples), and where there are no validation
    data, or they are a stream.
    """
    reduction, source = problem.validation_objective.reduction, problem.validation
    if source is None or isinstance(source, StreamSource) or not reduction.splits_exactly or reduction.kind == "sum":
        return []
    with rng_lock:
        totals = _Totals(problem.task, {})
    parts = iterate_once(source, max(1, math.ceil(len(source) / ERROR_PARTS)), own=False, shuffle=True)
    batches = ((to_device(batch, problem.device), size) for batch, size in parts)
    _add_all(problem, model, precision, batches, seed, totals)
    return totals.parts


def standard_error(problem: Problem, model: nn.Module, precision: str = "float32", seed: int = 0) -> float:
    """Give the standard error of the validation loss over the examples, from the spread of the losses of their parts.

    NaN where these are not defined (see `part_losses`).
    """
    parts = part_losses(problem, model, precision, seed)
    count, total = len(parts), sum(weight for _, weight in parts)
    if count < 2 or not total:
        return math.nan
    mean = sum(loss * weight for loss, weight in parts) / total
    squares = sum((weight * (loss - mean)) ** 2 for loss, weight in parts)
    return math.sqrt(squares * count / (count - 1)) / total


def _add_all(
    problem: Problem,
    model: nn.Module,
    precision: str,
    batches: Iterator[tuple[Any, int]],
    seed: int,
    totals: _Totals,
) -> None:
    """Measure the batches, and add them up."""
    with evaluating(model, problem.validation_objective):
        for number in itertools.count():
            # Drawing a batch is seeded too: a data set may augment at random. The lock keeps other threads from drawing between.
            with rng_lock:
                seed_all(mix(seed, _VALIDATION, number))
                with autocast(precision, problem.device):
                    drawn = next(batches, None)
                    measured = None if drawn is None else _measure_finite(problem, model, *drawn, totals)
                if measured is not None:
                    totals.add(measured)
            if drawn is None:
                break


def _measure_finite(problem: Problem, model: nn.Module, batch: Any, size: int, totals: _Totals) -> _Measured | None:
    """Measure a batch without the rows whose NaN make the loss NaN; None where none is left, or none has a target that counts.

    Raises as `_without_nonfinite`.
    """
    measured = _measure(problem, model, batch, size, totals.of_outputs)
    first = totals.examples
    totals.examples += size
    if math.isfinite(measured.loss):
        return measured
    with LossCalls() as noted:  # only here, since looking at targets costs time
        _measure(problem, model, batch, size, False)
    if any(call.ignored_throughout is not None for call in noted.calls):
        return None
    rest = _without_nonfinite(problem, model, batch, size, first)
    if rest is None:
        return measured
    return _measure(problem, model, *rest, totals.of_outputs) if rest[1] else None


def _without_nonfinite(problem: Problem, model: nn.Module, batch: Any, size: int, first: int) -> tuple[Any, int] | None:
    """Give a batch and its size without the rows that hold NaN or infinity, where the loss is not finite because of them.

    Of training examples, which are measured or held out where there are no validation data, they are left out, as steps skip
    them. None where they are not the reason. Raises DataError with the rows, counted from `first`, for validation data.
    """
    rows = nonfinite_rows(batch)
    if not rows or problem.takes_nonfinite:
        return None
    rest = None
    if len(rows) < size:
        rest = _without_rows(batch, rows)
        try:
            if not math.isfinite(_measure(problem, model, rest, size - len(rows), False).loss):
                return None
        except TaskError:  # this batch cannot be cut
            rest = None
    if problem.validation is not None and not problem.held_out.share:
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


def _measure(problem: Problem, model: nn.Module, batch: Any, size: int, with_outputs: bool) -> _Measured:
    """Measure a batch. Raises TaskError where the model or the loss fails."""
    task = problem.task
    own = "`evaluate`" if task.evaluate is not None else "`step`" if task.step is not None else "The model or the loss"
    objective = problem.validation_objective
    with naming_errors(own, "in validation"), objective.noting() as noted:
        loss, weight, pair, figures = _evaluate(problem, model, batch, with_outputs)
    return _Measured(float(loss.detach()), objective.weight_of(weight, batch, size, noted), detached(pair), figures)


def _evaluate(
    problem: Problem, model: nn.Module, batch: Any, with_outputs: bool
) -> tuple[Tensor, Any, Any, Mapping[str, Any]]:
    """Give loss, weight, (outputs, targets) where they are asked for, and the figures of the task's own function."""
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


def validation_batches(problem: Problem, micro: int, own: bool) -> Iterator[tuple[Any, int]]:
    """Give the batches that are validated on, on the device, each with its number of examples; `own`: the user's loader's."""
    if problem.validation is None and isinstance(problem.train, StreamSource):
        for batch, size in hold(problem.train, micro, SAMPLE):
            yield to_device(_copied(batch), problem.device), size
        return
    remaining = SAMPLE if problem.validation is None else None
    # Training shuffles. In order examples may be of one class in each batch: another loss, where they are compared.
    mixed = problem.validation is None and not problem.validation_objective.reduction.splits_exactly
    for number, (batch, size) in enumerate(iterate_once(_data(problem), micro, own=own, shuffle=mixed)):
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


def _copied(batch: Any) -> Any:
    """Give a copy, since a model may change its input in place; what cannot be copied is given itself."""
    try:
        return copy.deepcopy(batch)
    except Exception:
        return batch
