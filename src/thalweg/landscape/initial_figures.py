"""Figures of a model before training: its loss against a constant predictor's, gradients, reaction to inputs, data scale."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thalweg.landscape.objective import Objective, class_count
from thalweg.records.task import Task
from thalweg.sampling.sources import leaves, tree_map

TELLING = 20  # targets: fewer may well be alike by chance
RATES = (3e-3, 3e-2, 0.3)  # of the trial fit: one that serves most models, and two for those that have far to go
FITTED = 0.98  # of the constant predictor's loss: below it is only what inputs tell, and a few can be learnt by heart
AMPLE = 0.7  # of it: the trial need not go on
FELL = 0.25  # of the loss at the start: what fell so far went somewhere, wherever it stands
MOVED = 0.02  # of the start, to be taken away where no such loss is known (it may be all noise, or negative)
LOOKED, KEPT = 2_000, 200_000  # rows of validation and of training that are compared
KEPT_BYTES = 2**28
BLOCK = 1_024  # rows hashed at once

Compares = Literal["log-probabilities", "class scores", "binary scores", "distance", ""]
_COMPARES: dict[Any, Compares] = {
    F.nll_loss: "log-probabilities",
    nn.NLLLoss: "log-probabilities",
    F.cross_entropy: "class scores",
    nn.CrossEntropyLoss: "class scores",
    F.binary_cross_entropy_with_logits: "binary scores",
    nn.BCEWithLogitsLoss: "binary scores",
}


class Scale(NamedTuple):
    """Where numbers lie."""

    mean: float
    sd: float
    low: float
    high: float

    @property
    def size(self) -> float:
        """Root of the mean square: how far from zero they are."""
        return math.hypot(self.mean, self.sd)


class Fit(NamedTuple):
    """The least loss that some steps on a few examples came to, at the best of the rates tried."""

    started: float
    reached: float
    goal: float  # see `goal`
    ample: float  # see `ample`
    constant: float | None  # the best constant predictor's loss on these examples
    examples: int
    steps: int
    rate: float

    @property
    def done(self) -> bool:
        """Whether the examples were fitted."""
        return self.reached <= self.goal

    @property
    def easy(self) -> bool:
        """Whether the rate that serves most models fitted them amply."""
        return self.rate == RATES[0] and self.reached <= self.ample


class Repeats(NamedTuple):
    """Validation rows that are training rows, of those compared."""

    found: int
    compared: int
    twins_in_training: float  # share of training rows that equal another one
    rows: tuple[tuple[int, int], ...]  # some of them: (validation row, training row)


@dataclass(frozen=True)
class InitialFigures:
    """Figures of a model before training, measured on a batch and some more examples; None: not measurable for this task."""

    loss: float
    compares: Compares = ""  # what the loss takes the outputs for, where that is known
    constant_loss: float | None = None
    constant_kind: str = ""
    classes: int | None = None
    gradients: Mapping[str, float] = field(default_factory=dict[str, float])  # parameter -> RMS of its gradient
    without_gradient: tuple[str, ...] = ()
    reaction: float | None = None  # see `reaction`; the larger one of before and after fitting one batch
    fit: Fit | None = None
    scale: Mapping[str, Scale] = field(default_factory=dict[str, Scale])  # of "inputs" and "targets", where numbers
    column_spread: float | None = None  # largest over smallest sd of the input's columns
    column_offset: tuple[int, float] | None = (
        None  # the column whose mean is most standard deviations away from zero, and how many
    )
    output_sum_to_one: bool = False
    output_log_sum: float | None = None  # log of the sum over classes of exp(output), the one farthest from 0
    output_range: tuple[float, float] | None = None
    bounds: tuple[float | None, float | None] = (None, None)  # that outputs were seen not to pass when pushed
    out_of_reach: float | None = None  # share of targets beyond these bounds
    target_alike: bool | None = None  # whether all targets of a larger sample are one and the same
    held_out: tuple[float, float] | None = (
        None  # best loss on examples not learnt from, and the constant predictor's there
    )
    repeats: Repeats | None = None


def constant_loss(objective: Objective, output: Any, target: Any) -> tuple[float, str] | None:
    """Give the loss of the best constant predictor, known for PyTorch's cross-entropy and squared error, else None."""
    task = objective.task
    if not isinstance(target, Tensor) or not isinstance(output, Tensor):
        return None
    if class_count(task, output) is not None and not target.is_floating_point():
        labels = target[target != getattr(task.loss, "ignore_index", -100)].flatten()
        counts = torch.bincount(labels).double()
        weight = getattr(task.loss, "weight", None)
        if isinstance(weight, Tensor):
            counts *= weight[: len(counts)].to(counts)
        shares = counts / counts.sum().clamp_min(1e-12)
        return float(-(shares * shares.clamp_min(1e-12).log()).sum()), "entropy of the labels"
    if task.loss is nn.functional.mse_loss or isinstance(task.loss, nn.MSELoss):
        return float(target.double().var(0, correction=0).mean()), "variance of the targets"
    return None


def goal(loss: float, constant: float | None) -> float:
    """Give the loss that a few examples can at least be brought down to.

    >>> goal(2.3, 2.0), goal(40.0, 2.0), goal(1.0, None)
    (1.96, 10.0, 0.98)
    """
    if constant is None or constant <= 0:
        return loss - MOVED * abs(loss)
    return max(FITTED * constant, FELL * loss)


def ample(loss: float, constant: float | None) -> float:
    """Give the loss at which a few examples are fitted beyond doubt.

    >>> ample(2.3, 2.0), ample(1.0, None)
    (1.4, 0.7)
    """
    return AMPLE * (loss if constant is None or constant <= 0 else constant)


def measure_initial(objective: Objective, model: nn.Module, batch: Any) -> InitialFigures:
    """Measure a throw-away model on one batch; its parameters keep their values, its buffers may not."""
    model.train()
    model.zero_grad(set_to_none=True)
    loss, _ = objective.loss(model, batch)
    loss.backward()
    gradients = {n: _rms(p.grad) for n, p in model.named_parameters() if p.grad is not None}
    without_gradient = tuple(n for n, p in model.named_parameters() if p.requires_grad and p.grad is None)
    model.zero_grad(set_to_none=True)
    if objective.task.step is not None:
        return InitialFigures(loss=float(loss.detach()), gradients=gradients, without_gradient=without_gradient)
    model.eval()
    with torch.no_grad():
        output, target = objective.outputs(model, batch)
    known = constant_loss(objective, output, target)
    first, kind = _first(objective, batch), compares(objective.task, output, target)
    return InitialFigures(
        loss=float(loss.detach()),
        compares=kind,
        constant_loss=known[0] if known else None,
        constant_kind=known[1] if known else "",
        classes=class_count(objective.task, output),
        gradients=gradients,
        without_gradient=without_gradient,
        reaction=reaction(objective, model, batch),
        scale=scales(objective, [batch], kind),
        column_spread=_spread(first),
        column_offset=_offset(first),
        output_sum_to_one=_is_probability(output),
        output_log_sum=_log_sum(output),
        output_range=extent(output),
    )


def _rms(tensor: Tensor) -> float:
    return float(tensor.detach().double().square().mean().sqrt())


def _first(objective: Objective, batch: Any) -> Tensor | None:
    """Give a batch's first input of floating-point numbers."""
    inputs = objective.split(batch)
    return next((leaf for leaf in leaves((inputs[0], inputs[1])) if leaf.is_floating_point()), None)


def target_of(objective: Objective, batch: Any, kind: Compares = "") -> Any:
    """Give a batch's target; whole numbers as floating-point ones where the loss measures a distance to them."""
    target = objective.split(batch)[2]
    whole = isinstance(target, Tensor) and not target.is_floating_point() and not target.is_complex()
    return target.double() if whole and kind == "distance" else target


def compares(task: Task, output: Any, target: Any) -> Compares:
    """Say what the loss takes the outputs for: what PyTorch's own losses are known for, else what it does on numbers.

    A distance is 0 between equals, and the same whichever way and wherever the output is off by one: so are the squared, the
    absolute and Huber's error.
    """
    loss = task.loss
    known = _COMPARES.get(loss if loss in _COMPARES else type(loss), "")
    numbers = isinstance(output, Tensor) and isinstance(target, Tensor) and output.shape == target.shape
    if known or not (numbers and output.is_floating_point() and not target.is_complex()):
        return known
    if isinstance(loss, nn.Module) and loss.state_dict():
        return ""  # it may remember what it is asked
    zero = torch.zeros(output.shape, dtype=output.dtype)  # where a refusal does no harm: on the CPU
    pairs = ((zero, zero), (zero + 1, zero), (zero - 1, zero), (zero + 8, zero + 7))
    try:
        with torch.no_grad():
            same, *off = (float(cast(Any, loss)(*pair)) for pair in pairs)
    except Exception:
        return ""  # this loss wants other numbers
    return "distance" if same == 0 < off[0] and all(math.isclose(off[0], o, rel_tol=1e-4) for o in off) else ""


def reaction(objective: Objective, model: nn.Module, batch: Any) -> float | None:
    """Give how far outputs move, relative to their size, when inputs change places among examples; None where unknown."""
    count = len(leaves(batch)[0]) if leaves(batch) else 0
    if count < 2 or objective.task.step is not None:
        return None
    rolled = tree_map(lambda leaf: leaf.roll(1, 0) if isinstance(leaf, Tensor) and leaf.ndim else leaf, batch)
    model.eval()
    with torch.no_grad():
        output, shifted = objective.outputs(model, batch)[0], objective.outputs(model, rolled)[0]
    if not isinstance(output, Tensor) or not output.is_floating_point() or output.ndim == 0:
        return None
    scale = _rms(output)
    return _rms(shifted - output) / scale if scale > 0 else 0.0


def scales(objective: Objective, batches: Sequence[Any], kind: Compares = "") -> dict[str, Scale]:
    """Give the scale of the first input and of the target, over some batches, where they are floating-point numbers."""
    inputs = [_first(objective, batch) for batch in batches]
    targets = [target_of(objective, batch, kind) for batch in batches]
    found = {"inputs": _scale(inputs), "targets": _scale(targets)}
    return {part: scale for part, scale in found.items() if scale is not None}


def _scale(parts: Sequence[Any]) -> Scale | None:
    if not all(isinstance(part, Tensor) and part.is_floating_point() for part in parts):
        return None
    count = sum(part.numel() for part in parts)
    if count < 2 or any(part.numel() == 0 for part in parts):
        return None
    # One part after the other: all of a sample of pictures at once, as float64, is gigabytes.
    mean = sum(float(part.double().sum()) for part in parts) / count
    squares = sum(float((part.double() - mean).square().sum()) for part in parts)
    low, high = min(float(part.min()) for part in parts), max(float(part.max()) for part in parts)
    return Scale(mean, math.sqrt(squares / (count - 1)), low, high)


def _spread(inputs: Tensor | None) -> float | None:
    if inputs is None or inputs.ndim != 2 or len(inputs) < 2:
        return None
    spreads = inputs.double().std(0)
    spreads = spreads[spreads > 0]
    return float(spreads.max() / spreads.min()) if spreads.numel() > 1 else None


def _offset(inputs: Tensor | None) -> tuple[int, float] | None:
    if inputs is None or inputs.ndim != 2 or len(inputs) < 2:
        return None
    spreads = inputs.double().std(0)
    if not (spreads > 0).any():
        return None
    usual = spreads[spreads > 0].median()  # a column that is nearly always the same spreads little, wherever it lies
    offsets = torch.where(spreads > 0, inputs.double().mean(0).abs() / spreads.clamp_min(usual), 0.0)
    column = int(offsets.argmax())
    return column, float(offsets[column])


def alike(targets: list[Any]) -> bool | None:
    """Tell whether all targets of some batches are one and the same; None where they are no tensors, or fewer than twenty."""
    if not all(isinstance(target, Tensor) and target.ndim for target in targets) or sum(map(len, targets)) < TELLING:
        return None
    first = targets[0][:1]
    return all(target.shape[1:] == first.shape[1:] and bool((target == first).all()) for target in targets)


def _is_probability(output: Any) -> bool:
    if not _is_scores(output):
        return False
    sums = output.sum(1)
    return bool((output >= 0).all()) and bool(torch.allclose(sums, torch.ones_like(sums), atol=1e-4))


def _log_sum(output: Any) -> float | None:
    if not _is_scores(output):
        return None
    sums = output.detach().double().logsumexp(1).flatten()
    return float(sums[sums.abs().argmax()])


def _is_scores(output: Any) -> bool:
    return isinstance(output, Tensor) and output.ndim > 1 and output.shape[1] > 1 and output.is_floating_point()


def extent(output: Any) -> tuple[float, float] | None:
    """Give the least and the largest output."""
    if not isinstance(output, Tensor) or not output.is_floating_point() or output.numel() == 0:
        return None
    seen = output.detach()
    return float(seen.min()), float(seen.max())


def out_of_reach(targets: Sequence[Any], bounds: tuple[float | None, float | None]) -> float | None:
    """Give the share of target values that lie beyond the outputs' bounds.

    >>> out_of_reach([torch.tensor([-1.0, 0.5, 2.0, 3.0])], (0.0, None))
    0.25
    """
    low, high = bounds
    numbers = all(isinstance(part, Tensor) and part.is_floating_point() for part in targets)
    if (low is None and high is None) or not numbers or not targets:
        return None
    least, most = -math.inf if low is None else low, math.inf if high is None else high
    beyond = sum(int(((part < least) | (part > most)).sum()) for part in targets)
    return beyond / max(1, sum(part.numel() for part in targets))


def repeats(train: Sequence[Tensor], validation: Sequence[Tensor]) -> Repeats | None:
    """Find validation rows that are training rows, number for number in all parts; of many rows, evenly spread ones.

    None where the two are not of one kind.

    >>> rows = torch.arange(10.0)[:, None]
    >>> repeats([rows], [rows[6:8]])
    Repeats(found=2, compared=2, twins_in_training=0.0, rows=((0, 6), (1, 7)))
    """
    kinds = [[(part.dtype, part.shape[1:]) for part in parts] for parts in (train, validation)]
    if kinds[0] != kinds[1] or not train or any(part.numel() == 0 for part in (*train, *validation)):
        return None
    size = sum(part[0].numel() * part.element_size() for part in train)
    kept = _spread_out(len(train[0]), min(KEPT, max(1, KEPT_BYTES // size)))
    looked = _spread_out(len(validation[0]), min(LOOKED, max(1, KEPT_BYTES // size)))
    prints = list(_prints(train, kept))
    where = dict(zip(reversed(prints), reversed(kept), strict=True))  # the first of those alike
    pairs = [(row, where[seen]) for row, seen in zip(looked, _prints(validation, looked), strict=True) if seen in where]
    same = [(i, j) for i, j in pairs if all(torch.equal(v[i], t[j]) for v, t in zip(validation, train, strict=True))]
    twins = sum(count for count in Counter(prints).values() if count > 1)
    return Repeats(len(same), len(looked), twins / len(kept), tuple(same[:5]))


def _spread_out(count: int, most: int) -> range:
    return range(0, count, math.ceil(count / most))


def _prints(parts: Sequence[Tensor], rows: range) -> Iterator[int]:
    """Give a hash of each row's bytes."""
    for start in range(0, len(rows), BLOCK):
        some = rows[start : start + BLOCK]
        cut = slice(some.start, some.stop, some.step)
        block = [part[cut].cpu().reshape(len(some), -1).clone(memory_format=torch.contiguous_format) for part in parts]
        yield from (hash(row.tobytes()) for row in torch.cat([part.view(torch.uint8) for part in block], 1).numpy())


def is_finite(value: float | None) -> bool:
    """Tell whether a figure was measured and is a number."""
    return value is not None and math.isfinite(value)
