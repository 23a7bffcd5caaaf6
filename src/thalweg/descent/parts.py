"""How the loss of a task's batches is made of their parts' losses; see `landscape/reduction.py`."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from thalweg.descent.rehearsal import Rehearsal
from thalweg.landscape.loss_calls import LossCalls
from thalweg.landscape.loss_contracts import LossCall
from thalweg.landscape.objective import Objective, losses_of
from thalweg.landscape.reduction import (
    Reduction,
    called_reduction,
    called_weight,
    compare_parts,
    extremes_of,
    is_class_loss,
    measure_reduction,
)
from thalweg.records.task import Task
from thalweg.sampling import ItemSource, Source, StreamSource, TensorSource, count_examples
from thalweg.sampling.opening import first_batch, in_parts, spread_batch
from thalweg.sampling.sources import leaves, seed_all, tree_map

Unchanged = Callable[[], AbstractContextManager[Any]]

SETS = 4  # of as many examples as a batch has, on which is tried what a few show
SIZES = [3, 5]  # examples of two unequal parts, so that a mean of the parts' means shows
NOISE = 0.1  # standard deviation of what moves weights


class _Measured(NamedTuple):
    """A batch's loss, the weight that the function returned, and the one that its calls of PyTorch's losses have."""

    loss: float
    weight: Any
    called: float | None


def training_reduction(
    task: Task,
    model: nn.Module,
    rehearsal: Rehearsal,
    batch: Any,
    train: Source,
    device: torch.device,
    validation: Source | None = None,
    unchanged: Unchanged = nullcontext,
) -> Reduction:
    """Find the reduction of a task's training loss: from the rehearsed batch or, of its own `step`, from some examples.

    So too where the outputs of a batch cannot be cut into those of its examples. The model is in training mode, and is left so.
    Targets of the validation data, of which the loss will be called too, are looked at. `unchanged`: see `function_reduction`.
    """
    function: Callable[[nn.Module, Any], Any] | None = task.step
    found: Reduction | None = None
    if function is None:
        assert task.loss is not None
        stated = _stated_by_calls(rehearsal.calls)
        extremes = extremes_of([rehearsal.target, *_targets(task, train, device), *_targets(task, validation, device)])
        found = measure_reduction(
            task.loss, rehearsal.output, rehearsal.target, count_examples(batch), stated, extremes
        )
        # What a function of the user's own gives PyTorch's loss on classes may be less than all: rows without some label, say.
        if found.kind not in ("unknown", "batch") and (stated is None or is_class_loss(task.loss)):
            return found
        function = Objective(task, rehearsal.casts).loss
    model.eval()  # without dropout, and without batch normalisation, which makes examples depend on each other
    try:
        whole = function_reduction(function, model, train, device, count_examples(batch), unchanged)
    finally:
        model.train()
    if found is None or found.kind == "unknown" or whole.kind == "calls":
        return whole
    # That examples look like a plain mean says nothing against a condition that leaves none of them out.
    return found if found.kind != "batch" or (found.chosen and whole.kind == "examples") else whole


def _targets(task: Task, source: Source | None, device: torch.device) -> Iterator[Any]:
    """Give the targets of all data in memory; of those that are read one by one some, from all over; of a stream none."""
    if isinstance(source, TensorSource):
        yield Objective(task).split(source.nest)[2]
    elif isinstance(source, ItemSource):
        with suppress(Exception):  # an example that cannot be read is told where it is needed
            yield Objective(task).split(spread_batch(source, device))[2]


def _stated_by_calls(calls: Sequence[LossCall]) -> Reduction | None:
    """Give what the one loss on classes that was called says of itself, whoever called it: a lambda, say."""
    found = called_reduction([call for call in calls if call.options.get("reduction") == "mean"])
    return None if found is None else found[0]


def function_reduction(
    function: Callable[[nn.Module, Any], Any],
    model: nn.Module,
    source: Source,
    device: torch.device,
    most: int = sum(SIZES),
    unchanged: Unchanged = nullcontext,
) -> Reduction:
    """Find the reduction of a task's own `step` or `evaluate`: "unknown" where it fails on a part.

    Of a stream it is that of the rows of a first batch; "unknown" where that cannot be cut. What a few examples show is tried on
    some sets of `most`, as many as memory holds: so a mean over targets that a condition chooses shows where one is left out.

    `unchanged`: after which what the user's code carries is as before. With it is tried whether a loss that moves with each call
    (weights of groups that follow their losses, say) would be no mean if it stood still. Where it would be one it stays
    "unknown", as each part moves it.
    """
    examples = _rows(source, device) if isinstance(source, StreamSource) else source
    if examples is None or len(examples) < sum(SIZES):
        return Reduction("unknown")

    def measured(*parts: Sequence[int], within: Unchanged = nullcontext, alike: bool = False) -> list[_Measured]:
        results: list[_Measured] = []
        for number, batch in enumerate(in_parts(examples, parts, device)):
            # Other random numbers each time, so that it shows where the loss depends on them.
            seed_all(0 if alike else number)
            with within(), LossCalls() as noted:
                loss, weight = losses_of(function(model, batch), "step")[:2]
            results.append(_Measured(float(loss.detach()), weight, called_weight(noted.calls)))
        return results

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a part makes the user's code warn of says nothing of training
        found = _measure(len(examples), measured)
        if found.kind == "unknown":
            with _moved_weights(model):
                found = _measure(len(examples), measured)
                if found.kind == "unknown" and unchanged is not nullcontext and _moves_on(len(examples), measured):
                    still = _measure(len(examples), functools.partial(measured, within=unchanged))
                    found = still if still.depends_on_size else found
        if not found.splits_exactly:
            return found
        for more in _measure_more(min(most, len(examples)), len(examples), measured):
            if more.depends_on_size or (found.kind, more.kind) == ("examples", "calls"):
                return more
        return found


def _rows(stream: StreamSource, device: torch.device) -> TensorSource | None:
    """Give the rows of a stream's first batch as examples; None where it does not consist of tensors of one length."""
    batch, others = first_batch(stream, device), list[Any]()
    tree_map(lambda leaf: None if isinstance(leaf, Tensor) and leaf.ndim else others.append(leaf), batch)
    if others or len({len(leaf) for leaf in leaves(batch)}) != 1:
        return None
    return TensorSource(batch)


@contextmanager
def _moved_weights(model: nn.Module) -> Generator[None]:
    """Within, the weights are a little off: with a last layer of zeros all examples have one loss."""
    weights = [p for p in model.parameters() if p.requires_grad and p.is_floating_point()]
    before = [p.detach().clone() for p in weights]
    seed_all(0)
    with torch.no_grad():
        for p in weights:
            p.add_(torch.randn_like(p), alpha=NOISE)
    try:
        yield
    finally:
        with torch.no_grad():
            for p, values in zip(weights, before, strict=True):
                p.copy_(values)


def _measure(count: int, measured: Callable[..., list[_Measured]]) -> Reduction:
    try:
        examples = _unlike_examples(count, measured)
        whole, again, *parts = measured(examples, examples, examples[: SIZES[0]], examples[SIZES[0] :])
    except Exception:
        return Reduction("unknown")
    losses, weights, called = zip(*parts, strict=True)
    return compare_parts([whole.loss, again.loss], losses, weights, SIZES, called)


def _moves_on(count: int, measured: Callable[..., list[_Measured]]) -> bool:
    """Tell whether the same examples have another loss the second time, with the same random numbers."""
    examples = torch.linspace(0, count - 1, sum(SIZES)).round().long().tolist()
    try:
        once, again = measured(examples, examples, alike=True)
    except Exception:
        return False
    return math.isfinite(once.loss) and once.loss != again.loss


def _measure_more(most: int, count: int, measured: Callable[..., list[_Measured]]) -> Iterator[Reduction]:
    """Find by two parts of more examples, some sets of them, what a few may hide: that a condition leaves some of them out."""
    if most <= sum(SIZES):
        return
    sets, first = max(1, min(SETS, count // most)), most // 3
    for examples in torch.linspace(0, count - 1, most * sets).round().long().reshape(most, sets).T.tolist():
        try:
            whole, *parts = measured(examples, examples[:first], examples[first:])
        except Exception:
            return
        losses, weights, called = zip(*parts, strict=True)
        yield compare_parts([whole.loss, whole.loss], losses, weights, [first, most - first], called)


def _unlike_examples(count: int, measured: Callable[..., list[_Measured]]) -> list[int]:
    """Give examples from all over the data, which may lie sorted, in the order of their losses.

    So two parts of them have unlike losses, and it shows which weights they have in the mean of the whole. Those without a loss,
    or with one of zero, whose targets may be ignored, come before the last one, so that either part has one that has a loss.
    """
    examples = torch.linspace(0, count - 1, sum(SIZES)).round().long().tolist()
    try:
        losses = [one.loss for one in measured(*([example] for example in examples))]
    except Exception:
        return examples  # this loss takes no single example
    counting = sorted(
        (loss, example) for loss, example in zip(losses, examples, strict=True) if loss and math.isfinite(loss)
    )
    ordered = [example for _, example in counting]
    return [*ordered[:-1], *(example for example in examples if example not in ordered), *ordered[-1:]]
