"""Figures of a model before training: its loss against a constant predictor's, gradients, reaction to inputs, data scale."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thalweg.landscape.loss_calls import LossCalls
from thalweg.landscape.loss_contracts import Misfit, misfits
from thalweg.landscape.objective import Objective, class_count, make_gradients_dense
from thalweg.landscape.reduction import loss_option, unwrap
from thalweg.records.task import Task
from thalweg.sampling.sources import leaves

FEWEST_TARGETS = 20  # fewer may all be alike by chance
RATES = (
    3e-3,
    3e-2,
    0.3,
)  # learning rates of the trial fit: one for most models, and two for outputs far from their targets
FITTED = 0.98  # of the constant predictor's loss: a lower one shows that the inputs are used
AMPLE = 0.7  # of the constant predictor's loss: the trial fit stops there
FELL = 0.25  # of the loss at the start: a fall to this is enough, even above FITTED
MOVED = 0.02  # of the loss at the start, by which it must fall where the constant predictor's is unknown
MOST_VALIDATION_ROWS, MOST_TRAINING_ROWS = 2_000, 200_000  # that are compared
MOST_BYTES = 2**28  # of either
SAMPLE = " of a sample"  # after a row's number in messages
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
    """Mean, standard deviation and range of some numbers."""

    mean: float
    sd: float
    low: float
    high: float

    @property
    def size(self) -> float:
        """Root mean square."""
        return math.hypot(self.mean, self.sd)


class Fit(NamedTuple):
    """The lowest loss that some steps on a few examples reached, at one learning rate."""

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
        """Whether the first rate, which suits most models, reached `ample`."""
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
    misfits: tuple[Misfit, ...] = ()  # of targets, or outputs, and the loss
    compares: Compares = ""  # what kind of outputs the loss takes, where that is known
    constant_loss: float | None = None
    constant_kind: str = ""
    classes: int | None = None
    gradients: Mapping[str, float] = field(default_factory=dict[str, float])  # parameter -> RMS of its gradient
    without_gradient: tuple[str, ...] = ()  # trainable parameters that the loss gives none
    drifting_statistics: tuple[str, ...] = ()  # frozen normalisation layers whose running statistics a step moves
    reaction: float | None = None  # see `reaction`; the larger one of before and after fitting one batch
    fit: Fit | None = None
    scale: Mapping[str, Scale] = field(default_factory=dict[str, Scale])  # of "inputs" and "targets", where numbers
    column_spread: float | None = None  # largest over smallest sd of the input's columns
    column_offset: tuple[int, float] | None = (
        None  # the column whose mean is most standard deviations away from zero, and how many
    )
    output_sum_to_one: bool = False
    output_log_sum: float | None = None  # log sum exp(output) over classes, of the example where it is farthest from 0
    output_range: tuple[float, float] | None = None
    bounds: tuple[float | None, float | None] = (None, None)  # of the outputs, as found by training them to extremes
    out_of_reach: float | None = None  # share of targets beyond these bounds
    stored_mask: bool = False  # whether targets are 0 and 255 alone, and the loss takes 0 and 1
    target_alike: bool | None = None  # whether all targets of a larger sample are equal
    held_out: tuple[float, float] | None = None  # lowest loss on examples not learnt from, and the constant predictor's
    repeats: Repeats | None = None
    reduction: str = ""  # how the loss of a batch is made of its examples' losses; see `Reduction`


def constant_loss(objective: Objective, output: Any, target: Any) -> tuple[float, str] | None:
    """Give the loss of the best constant predictor, known for PyTorch's cross-entropy and squared error, else None."""
    task = objective.task
    if not isinstance(target, Tensor) or not isinstance(output, Tensor):
        return None
    if class_count(task, output) is not None and not target.is_floating_point():
        labels = target[target != loss_option(task.loss, "ignore_index", -100)].flatten()
        counts = torch.bincount(labels).double()
        weight = loss_option(task.loss, "weight")
        if isinstance(weight, Tensor):
            counts *= weight[: len(counts)].to(counts)
        shares = counts / counts.sum().clamp_min(1e-12)
        return float(-(shares * shares.clamp_min(1e-12).log()).sum()), "entropy of the labels"
    if unwrap(task.loss)[0] is F.mse_loss or isinstance(task.loss, nn.MSELoss):
        if not torch.isfinite(target).all():
            return None
        return float(target.double().var(0, correction=0).mean()), "variance of the targets"
    return None


def goal(loss: float, constant: float | None) -> float:
    """Give the loss that a few examples reach if they can be fitted.

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


def measure_initial(objective: Objective, model: nn.Module, batch: Any, other: Any = None) -> InitialFigures:
    """Measure a model on one batch; parameters stay as they are, buffers may change. `other`: see `reaction`."""
    model.train()
    model.zero_grad(set_to_none=True)
    with LossCalls(SAMPLE) as noted:
        loss, _ = objective.loss(model, batch)
    found = _unlike(misfit for call in noted.settle(loss) for misfit in misfits(call))
    loss.backward()
    make_gradients_dense(model.parameters())
    gradients = {n: _rms(p.grad) for n, p in model.named_parameters() if p.grad is not None}
    without_gradient = tuple(n for n, p in model.named_parameters() if p.requires_grad and p.grad is None)
    model.zero_grad(set_to_none=True)
    if objective.task.step is not None:
        return InitialFigures(float(loss.detach()), found, gradients=gradients, without_gradient=without_gradient)
    model.eval()
    with objective.gradient_mode():
        output, target = objective.outputs(model, batch)
    known = constant_loss(objective, output, target)
    inputs, kind = _float_input(objective, batch), compares(objective.task, output, target)
    return InitialFigures(
        loss=float(loss.detach()),
        misfits=found,
        compares=kind,
        constant_loss=known[0] if known else None,
        constant_kind=known[1] if known else "",
        classes=class_count(objective.task, output),
        gradients=gradients,
        without_gradient=without_gradient,
        reaction=reaction(objective, model, batch, other),
        scale=scales(objective, [batch], kind),
        column_spread=_spread(inputs),
        column_offset=_offset(inputs),
        output_sum_to_one=_is_probability(output),
        output_log_sum=_log_sum(output),
        output_range=extent(output),
        stored_mask=kind == "" and not found and _is_stored_mask(objective.task.loss, output, target),
    )


def target_misfits(objective: Objective, model: nn.Module, batches: Sequence[Any]) -> tuple[Misfit, ...]:
    """Find targets that are not what PyTorch's losses take, where the loss calls any."""
    found: list[Misfit] = []
    for batch in batches:
        with LossCalls(SAMPLE) as noted:
            loss, _ = objective.loss(model, batch)
        if not noted.calls:
            return ()
        found += [misfit for call in noted.settle(loss) for misfit in misfits(call)]
    return _unlike(found)


def _unlike(found: Iterable[Misfit]) -> tuple[Misfit, ...]:
    """Leave out what is found again in other rows."""
    return tuple({(misfit.certain, misfit.remedy): misfit for misfit in found}.values())


def _rms(tensor: Tensor) -> float:
    return float(tensor.detach().abs().double().square().mean().sqrt())  # `abs`: of complex numbers their size


def _float_input(objective: Objective, batch: Any) -> Tensor | None:
    """Give a batch's first input of floating-point numbers."""
    arguments, keywords, _ = objective.split(batch)
    return next((leaf for leaf in leaves((arguments, keywords)) if leaf.is_floating_point()), None)


def target_of(objective: Objective, batch: Any, kind: Compares = "") -> Any:
    """Give a batch's target; whole numbers as floating-point ones where the loss measures a distance to them."""
    target = objective.split(batch)[2]
    integers = isinstance(target, Tensor) and not target.is_floating_point() and not target.is_complex()
    return target.double() if integers and kind == "distance" else target


def compares(task: Task, output: Any, target: Any) -> Compares:
    """Say what kind of outputs the loss takes: known for PyTorch's losses, else found by calling it on a few numbers.

    A distance is 0 between equals, and the same whichever way and wherever the output is off by one: so are the squared, the
    absolute and Huber's error.
    """
    loss = task.loss
    inner, _ = unwrap(loss)
    known = _COMPARES.get(inner if inner in _COMPARES else type(inner), "")
    numbers = isinstance(output, Tensor) and isinstance(target, Tensor) and output.shape == target.shape
    if known or not (numbers and output.is_floating_point() and not target.is_complex()):
        return known
    if isinstance(loss, nn.Module) and loss.state_dict():
        return ""  # calling it might change its state
    zero = torch.zeros(output.shape, dtype=output.dtype)  # on the CPU, where an error does no harm
    pairs = ((zero, zero), (zero + 1, zero), (zero - 1, zero), (zero + 8, zero + 7))
    try:
        with torch.no_grad():
            same, *off = (float(cast(Any, loss)(*pair)) for pair in pairs)
    except Exception:
        return ""  # the loss does not take these numbers
    return "distance" if same == 0 < off[0] and all(math.isclose(off[0], o, rel_tol=1e-4) for o in off) else ""


def reaction(objective: Objective, model: nn.Module, batch: Any, other: Any) -> float | None:
    """Give how far outputs move, relative to their size, when a batch's examples are exchanged for those of another.

    None where there is no other batch (None), or their outputs are not of the same shape.
    """
    if other is None or objective.task.step is not None:
        return None
    model.eval()
    with objective.gradient_mode():
        output, exchanged = objective.outputs(model, batch)[0], objective.outputs(model, other)[0]
    if not isinstance(output, Tensor) or not output.is_floating_point() or output.ndim == 0 or len(output) < 2:
        return None
    if not isinstance(exchanged, Tensor) or exchanged.shape != output.shape:
        return None
    scale = _rms(output)
    return _rms(exchanged - output) / scale if scale > 0 else 0.0


def scales(objective: Objective, batches: Sequence[Any], kind: Compares = "") -> dict[str, Scale]:
    """Give the scale of the first input and of the target, over some batches, where they are floating-point numbers."""
    inputs = [_float_input(objective, batch) for batch in batches]
    targets = [target_of(objective, batch, kind) for batch in batches]
    found = {"inputs": _scale(inputs), "targets": _scale(targets)}
    return {part: scale for part, scale in found.items() if scale is not None}


def _scale(parts: Sequence[Any]) -> Scale | None:
    if not all(isinstance(part, Tensor) and part.is_floating_point() for part in parts):
        return None
    parts = [
        part if torch.isfinite(part.sum()) else part[torch.isfinite(part)] for part in parts
    ]  # some losses take NaN
    count = sum(part.numel() for part in parts)
    if count < 2 or any(part.numel() == 0 for part in parts):
        return None
    # One part after the other: all of a sample of pictures at once, as float64, is gigabytes.
    mean = sum(float(part.double().sum()) for part in parts) / count
    squares = sum(float((part.double() - mean).square().sum()) for part in parts)
    low, high = min(float(part.min()) for part in parts), max(float(part.max()) for part in parts)
    return Scale(mean, math.sqrt(squares / (count - 1)), low, high)


def _finite_rows(inputs: Tensor | None) -> Tensor | None:
    """Give the rows of a table without NaN and infinity; None for what is no table, or where fewer than two are left."""
    if inputs is None or inputs.ndim != 2 or inputs.layout is not torch.strided:
        return None
    rows = inputs[torch.isfinite(inputs).all(1)]
    return rows if len(rows) > 1 else None


def _spread(inputs: Tensor | None) -> float | None:
    inputs = _finite_rows(inputs)
    if inputs is None:
        return None
    spreads = inputs.double().std(0)
    spreads = spreads[spreads > 0]
    return float(spreads.max() / spreads.min()) if spreads.numel() > 1 else None


def _offset(inputs: Tensor | None) -> tuple[int, float] | None:
    inputs = _finite_rows(inputs)
    if inputs is None:
        return None
    spreads = inputs.double().std(0)
    if not (spreads > 0).any():
        return None
    usual = spreads[spreads > 0].median()  # a column that is nearly always the same spreads little, wherever it lies
    offsets = torch.where(spreads > 0, inputs.double().mean(0).abs() / spreads.clamp_min(usual), 0.0)
    column = int(offsets.argmax())
    return column, float(offsets[column])


def alike(targets: list[Any]) -> bool | None:
    """Tell whether all targets of some batches are equal; None where they are no tensors, or fewer than twenty."""
    if (
        not all(isinstance(target, Tensor) and target.ndim for target in targets)
        or sum(map(len, targets)) < FEWEST_TARGETS
    ):
        return None
    first = targets[0][:1]
    return all(target.shape[1:] == first.shape[1:] and bool((target == first).all()) for target in targets)


def _is_stored_mask(loss: Any, output: Any, target: Any) -> bool:
    """Tell whether targets, one for each output, are 0 and 255 alone, as image files hold a mask, and the loss takes 0 and 1.

    With 255 for 1, right outputs make a loss that shares pixels out, such as dice, negative.
    """
    if not isinstance(output, Tensor) or not isinstance(target, Tensor) or output.numel() != target.numel():
        return False
    if target.is_complex() or target.unique().tolist() != [0, 255]:
        return False
    right = torch.where(target.reshape(output.shape) > 0, 20.0, -20.0).to(output)
    with torch.no_grad():
        try:
            return float(loss(right, target)) < 0
        except Exception:
            return False


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
    return float(output.detach().min()), float(output.detach().max())


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
    trained = _spread_out(len(train[0]), min(MOST_TRAINING_ROWS, max(1, MOST_BYTES // size)))
    compared = _spread_out(len(validation[0]), min(MOST_VALIDATION_ROWS, max(1, MOST_BYTES // size)))
    hashes = list(_hashes(train, trained))
    row_of = dict(zip(reversed(hashes), reversed(trained), strict=True))  # of equal rows the first
    found = zip(compared, _hashes(validation, compared), strict=True)
    pairs = [(row, row_of[value]) for row, value in found if value in row_of]
    same = [(i, j) for i, j in pairs if all(torch.equal(v[i], t[j]) for v, t in zip(validation, train, strict=True))]
    twins = sum(count for count in Counter(hashes).values() if count > 1)
    return Repeats(len(same), len(compared), twins / len(trained), tuple(same[:5]))


def _spread_out(count: int, most: int) -> range:
    return range(0, count, math.ceil(count / most))


def _hashes(parts: Sequence[Tensor], rows: range) -> Iterator[int]:
    """Give a hash of each row's bytes."""
    for start in range(0, len(rows), BLOCK):
        part_rows = rows[start : start + BLOCK]
        cut = slice(part_rows.start, part_rows.stop, part_rows.step)
        block = [
            part[cut].cpu().reshape(len(part_rows), -1).clone(memory_format=torch.contiguous_format) for part in parts
        ]
        yield from (hash(row.tobytes()) for row in torch.cat([part.view(torch.uint8) for part in block], 1).numpy())


def is_finite(value: float | None) -> bool:
    """Tell whether a figure was measured and is a number."""
    return value is not None and math.isfinite(value)
