"""Metrics: called with the outputs and targets of the validation set, and tried on a batch before anything is paid for."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode

from thalweg.descent.argument_order import is_mistaken, order_advice
from thalweg.descent.user_errors import advice_on, naming_errors
from thalweg.errors import TaskError
from thalweg.landscape.objective import Objective, describe
from thalweg.records.task import Metric, StreamingMetric
from thalweg.sampling import ItemSource, Source, StreamSource, TensorSource, iterate_once
from thalweg.sampling.opening import FIRST_BATCH_SIZE, first_batch
from thalweg.sampling.sources import leaves, rebuilt, to_device, tree_map

Pair = tuple[Any, Any]  # outputs and targets
MOST_EXAMPLES = 65_536  # on which a metric that fails on a first batch is tried before it is refused
BATCH = 1024
FEW_BATCHES = 4
_ALWAYS = (TypeError, AttributeError, NameError, ImportError)  # errors that no other data would mend


def call_metric(name: str, call: Any, *given: Any) -> Any:
    """Call a metric or one of its methods with (outputs, targets), with a table of averaged figures, or with nothing.

    What overflows, as the exponential of a large loss does, is infinite. Raises TaskError where it fails otherwise.
    """
    on = ""
    if len(given) == 2:
        on = f"on outputs {describe(given[0])} and targets {describe(given[1])}"
    elif given:
        on = f"on the figures {', '.join(given[0])} (without `loss`, a metric is a function of the averaged figures)"
    with naming_errors(f"Metric '{name}'", on, advice=lambda error: _advice(error, name, call, given)):
        try:
            return call(*given)
        except OverflowError:
            return math.inf


def _advice(error: Exception, name: str, call: Any, given: tuple[Any, ...]) -> str:
    if len(given) != 2:
        return advice_on(error)
    if isinstance(error, TypeError) and "positional argument" in str(error):
        return "It is called with (outputs, targets)."
    scores = _scores_advice(*given) if isinstance(error, ValueError | RuntimeError | TypeError) else ""
    return " ".join(filter(None, [order_advice(call, name), advice_on(error) or scores]))


def _scores_advice(outputs: Any, targets: Any) -> str:
    """Say how scores become classes, for a metric that compares classes."""
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        return ""
    if targets.is_floating_point():
        shares = outputs.shape == targets.shape and outputs.ndim > 1 and outputs.shape[1] > 1
        shares = shares and bool((targets.sum(1) - 1).abs().max() < 1e-4)
        return "Targets are probabilities of all classes: targets.argmax(1) are the classes." if shares else ""
    if outputs.ndim == targets.ndim + 1 and outputs.shape[1] > 1:
        return "The outputs are scores of all classes: outputs.argmax(1) are the classes, outputs.softmax(1) probabilities."
    if outputs.numel() == targets.numel() and outputs.is_floating_point():
        return "The outputs are scores: (outputs > 0) are the classes of a logit, outputs.sigmoid() its probability."
    return ""


def as_number(name: str, value: Any) -> float:
    """Give a metric's figure as a number. Raises TaskError where it is none, or several."""
    tensors = leaves(value)
    try:
        if isinstance(value, np.ndarray) and value.size == 1:
            return float(value.item())
        return float(tensors[0]) if len(tensors) == 1 and tensors[0].numel() == 1 else float(value)
    except (OverflowError, TypeError, ValueError, RuntimeError) as error:
        given = "nothing" if value is None else f"a {type(value).__name__}"
        shape = getattr(value, "shape", None)
        given += f" of shape {tuple(shape)}" if shape is not None and not isinstance(value, type) else ""
        raise TaskError(
            f"Metric '{name}' gave {given}, but it must give one number. Return a mean, say, and make several metrics of several"
            f" figures."
        ) from error


def measure(name: str, metric: Metric, pairs: Iterable[Pair]) -> float:
    """Give a metric's figure over some batches. Raises TaskError where it fails or gives no number."""
    if isinstance(metric, StreamingMetric):
        call_metric(name, metric.reset)
        for pair in pairs:
            call_metric(name, metric.update, *pair)
        return as_number(name, call_metric(name, metric.compute))
    outputs, targets = zip(*pairs, strict=True)
    joined = join_all("outputs", list(outputs)), join_all("targets", list(targets))
    return as_number(name, call_metric(name, metric, *joined))


def join_all(what: str, parts: list[Any]) -> Any:
    """Join the outputs or the targets of all batches. Raises TaskError where they differ in shape, or have no rows."""
    try:
        return join(parts)
    except (RuntimeError, KeyError, IndexError, TypeError) as error:
        reason = str(error) if isinstance(error, TypeError) else f"they differ in shape: {error}"
        raise TaskError(
            f"The {what} of the validation batches cannot be joined for a metric over the whole set ({reason})."
            f" Give metrics with reset, update and compute, which see batch by batch."
        ) from error


def join(parts: list[Any]) -> Any:
    """Concatenate tensors and lists, or whatever nest of them a model gives, leaf by leaf; what is equal in all stays as it is.

    Raises TypeError for several objects of another kind.
    """
    if not parts:
        return None
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat([part.reshape(1) if part.ndim == 0 else part for part in parts])
    if is_dataclass(first) and not isinstance(first, type):
        return rebuilt(first, {f.name: join([getattr(part, f.name) for part in parts]) for f in fields(first)})
    if isinstance(first, Mapping):
        keys = cast("Mapping[Any, Any]", first)
        return rebuilt(keys, {key: join([part[key] for part in parts]) for key in keys})
    if isinstance(first, tuple) and not isinstance(first, PackedSequence):
        joined = [join([part[i] for part in parts]) for i in range(len(cast("tuple[Any, ...]", first)))]
        return type(first)(*joined) if hasattr(first, "_fields") else tuple(joined)
    if isinstance(first, list):
        return [item for part in parts for item in part]
    if first is None or isinstance(first, str | int | float):
        return first if all(part == first for part in parts) else parts
    if len(parts) == 1:
        return first
    raise TypeError(f"a {type(first).__name__} is one object for a whole batch")


def rehearse_metrics(
    metrics: Mapping[str, Metric],
    objective: Objective,
    model: nn.Module,
    validation: Source,
    device: torch.device,
    count: int,
) -> None:
    """Try each metric on a first validation batch of `count` examples; afterwards those that keep a state are reset.

    A metric may need more than a few examples (both classes, say): one that fails is tried again on more of the set, and
    refused only where it fails there too. The model is in evaluation mode, and is thrown away.

    Raises TaskError for a metric that fails, gives no number, changes what it is given, or spreads outputs over targets.
    """
    if not metrics:
        return
    with objective.gradient_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a metric warns of, the first validation says again
        pair = _outputs(objective, model, first_batch(validation, device, count))
        if not all(isinstance(metric, StreamingMetric) for metric in metrics.values()):
            _check_joined(objective, model, validation, device)
        for name, metric in metrics.items():
            try:
                own = tree_map(_clone, pair)
                if _works(name, metric, own, lambda: _more_pairs(objective, model, validation, device)):
                    _check_unchanged(name, own, pair)
                    _check_order(name, metric, pair)
                    _check_spread(name, metric, pair)
            finally:
                if isinstance(metric, StreamingMetric):
                    call_metric(name, metric.reset)


def _check_joined(objective: Objective, model: nn.Module, validation: Source, device: torch.device) -> None:
    """Join outputs and targets of a few batches, which may differ in shape (padded texts, say) or have no rows to join.

    Data without a user's loader may come in several batches however few they are, as where memory runs out.
    """
    theirs = isinstance(validation, StreamSource) or (isinstance(validation, ItemSource) and validation.own_batches)
    batches = islice(iterate_once(validation, BATCH if theirs else FIRST_BATCH_SIZE), FEW_BATCHES)
    pairs = [_outputs(objective, model, to_device(batch, device)) for batch, _ in batches]
    if isinstance(validation, TensorSource):
        pairs += pairs[-1:]
    join_all("outputs", [outputs for outputs, _ in pairs])
    join_all("targets", [targets for _, targets in pairs])


def rehearse_figure_metrics(metrics: Mapping[str, Metric], objective: Objective, model: nn.Module, batch: Any) -> None:
    """Try each metric of a task without `loss`, which is a function of averaged figures, on those of one batch.

    The model is in evaluation mode. Raises TaskError for a metric that fails or gives no number.
    """
    if not metrics:
        return
    with objective.gradient_mode():
        loss, _, own = objective.evaluate(model, batch)
    figures = {"loss": float(loss.detach())} | {name: as_number(name, value) for name, value in own.items()}
    for name, metric in metrics.items():
        as_number(name, call_metric(name, metric, dict(figures)))


def _outputs(objective: Objective, model: nn.Module, batch: Any) -> Pair:
    with naming_errors("The model", "on a validation batch, for the metrics"):
        return detached(objective.outputs(model, batch))


def detached(nest: Any) -> Any:
    """Give a nest of outputs and targets without their gradients."""
    return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, nest)


def _works(name: str, metric: Metric, pair: Pair, more_pairs: Callable[[], tuple[list[Pair], bool]]) -> bool:
    """Tell whether a metric works on a first batch. Raises TaskError where it does neither there nor on more of the set."""
    try:
        _figure(name, metric, pair)
    except TaskError as error:
        if isinstance(error.__cause__, _ALWAYS):
            raise
        pairs, is_whole = more_pairs()
        try:
            measure(name, metric, pairs)
        except TaskError:
            if is_whole:
                raise
        return False
    return True


def _figure(name: str, metric: Metric, pair: Pair) -> float:
    """Give a metric's figure of one batch, which it is given itself: `measure` joins batches, which copies them."""
    if isinstance(metric, StreamingMetric):
        return measure(name, metric, [pair])
    return as_number(name, call_metric(name, metric, *pair))


def _more_pairs(
    objective: Objective, model: nn.Module, validation: Source, device: torch.device
) -> tuple[list[Pair], bool]:
    """Give outputs and targets of the validation set, and whether it is the whole: of a very large one a first part will do."""
    pairs: list[Pair] = []
    examples = 0
    for batch, size in iterate_once(validation, BATCH):
        if examples >= MOST_EXAMPLES:
            return pairs, False
        pairs.append(_outputs(objective, model, to_device(batch, device)))
        examples += size
    return pairs, True


def _clone(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _check_unchanged(name: str, used: Pair, before: Pair) -> None:
    for what, after, original in zip(("outputs", "targets"), used, before, strict=True):
        for one, other in zip(leaves(after), leaves(original), strict=False):
            if one.shape != other.shape or not torch.equal(one.nan_to_num(), other.nan_to_num()):
                raise TaskError(
                    f"Metric '{name}' changes the {what} in place, which other metrics are given too. Let it begin with"
                    f" {what} = {what}.clone()."
                )


def _check_order(name: str, metric: Metric, pair: Pair) -> None:
    """Refuse a metric that takes the targets first, where that makes a difference."""
    if is_mistaken(metric, lambda outputs, targets: _figure(name, metric, (outputs, targets)), *pair):
        raise TaskError(f"Metric '{name}' would be given the outputs for the targets. {order_advice(metric, name)}")


def _check_spread(name: str, metric: Metric, pair: Pair) -> None:
    """Refuse a metric that broadcasts outputs against targets, and so compares every output with every target."""
    outputs, targets = pair
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or outputs.shape == targets.shape:
        return

    def figure(outputs: Tensor, targets: Tensor) -> float:
        return _figure(name, metric, (outputs.clone(), targets.clone()))

    if outputs.numel() != targets.numel() and spreads_within(figure, outputs, targets):
        raise TaskError(
            f"Metric '{name}' compares a column of {len(outputs)} rows with the {tuple(targets.shape)} targets, and so every"
            f" output with every target. Give both the same shape in it: outputs.argmax(1) without keepdim, say."
        )
    if spreads(figure, outputs, targets):
        raise TaskError(
            f"Metric '{name}' spreads outputs {tuple(outputs.shape)} over targets {tuple(targets.shape)}: it compares every"
            f" output with every target. Let it begin with outputs = outputs.reshape(targets.shape)."
        )


def spreads(figure: Callable[[Tensor, Tensor], Any], outputs: Tensor, targets: Tensor) -> bool:
    """Tell whether a figure depends on which target belongs to which output only once both have the same shape."""
    if outputs.numel() != targets.numel() or not outputs.ndim or len(outputs) < 3 or not outputs.is_floating_point():
        return False
    positive = ((0.618 * torch.arange(1, outputs.numel() + 1)) % 1.0).clamp(0.1, 0.9).square()  # in no order
    guesses = [guess.reshape(outputs.shape).to(outputs) for guess in (positive, 6 * positive - 1)]
    shaped = targets.reshape(outputs.shape)

    def depends_on_order(targets: Tensor) -> bool:
        return any(_differ([float(figure(guess, targets.roll(by, 0))) for by in (0, 1, 2, 5)]) for guess in guesses)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return depends_on_order(shaped) and not depends_on_order(targets)
    except Exception:
        return False  # it wants the targets, or the whole batch, as they are


def spreads_within(figure: Callable[[Tensor, Tensor], Any], outputs: Tensor, targets: Tensor) -> bool:
    """Tell whether a column, made of the outputs say, is spread over a row within a figure, and the targets' order is lost."""
    if targets.ndim != 1 or len(outputs) != len(targets) or len(targets) < 3:
        return False
    try:
        with _Spread() as seen:
            figures = [float(figure(outputs, targets.roll(by, 0))) for by in (0, 1, 2, 5)]
    except Exception:
        return False  # it wants the targets as they are
    return seen.columns and not _differ(figures)


class _Spread(TorchFunctionMode):
    """Notes whether anything makes a square of a column and a row of one dimension."""

    columns = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.ndim == 2 and len(args) > 1:
            shapes = [tuple(a.shape) for a in args[:2] if isinstance(a, Tensor)]
            n = len(result)
            self.columns |= n > 1 and result.shape == (n, n) and sorted(shapes, key=len) == [(n,), (n, 1)]
        return result


def _differ(figures: list[float]) -> bool:
    finite = [figure for figure in figures if math.isfinite(figure)]
    return any(not math.isclose(finite[0], figure, rel_tol=1e-4) for figure in finite)
