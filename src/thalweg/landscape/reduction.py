"""How the loss of a batch is made of the losses of its examples: found by comparing a whole batch with its parts.

Steps are split into parts where memory does not hold a whole batch, and validation goes through its data in batches. Both must
know how the parts' losses make up that of the whole: mostly, each counts as many times as it has examples.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any, Literal

import torch
from torch import Tensor, nn

from thalweg.landscape.loss_contracts import LossCall
from thalweg.sampling.sources import leaves, tree_map

Kind = Literal["examples", "targets", "calls", "sum", "batch", "weighted", "misweighted", "unknown"]
"""What the loss of a batch is: the mean over its examples, or over its targets less those that are ignored; over the targets that
PyTorch's loss on classes is called with, which the task's own code makes of the batch; their sum; something that depends on which
examples are together (a contrastive loss, say); a mean with weights that the task's `step` gives; none with the weights it gives,
which are no counts of examples either; or not known."""

TOLERANCE = 1e-5  # relative difference of two losses that count as equal; float32 sums differ by less
ALIKE = 1e-3  # relative difference of parts' losses below which their weights do not show
IGNORED = (-100, -1, 0, 255)  # targets that losses are often told to leave out
MOST_ROWS = 16  # that are compared
FAR = 100.0  # how many times the largest number a value is that lies beyond any bound on targets or outputs
MOST_NUMBERS = 1 << 22  # of their outputs, beyond which rows are not looked at one by one
CLASS_LOSSES = (nn.functional.cross_entropy, nn.functional.nll_loss)
CLASS_MODULES = (nn.CrossEntropyLoss, nn.NLLLoss)


@dataclass(frozen=True)
class Reduction:
    """How the losses of parts make up the loss of the whole batch.

    Arguments:
        kind: see `Kind`.
        ignored: targets of this value do not count; NaN where missing targets are NaN. None: all count.
        class_weights: of a loss on classes: a target counts as much as its class weighs.
        part: of a target of several tensors the number of the one that weighs the others, such as a mask: its sum counts.
        chosen: of "batch": a mean over what the loss itself chooses, by a condition that most examples meet, so that some of them
            look like a plain mean.
    """

    kind: Kind = "examples"
    ignored: float | None = None
    class_weights: Tensor | None = None
    part: int | None = None
    chosen: bool = False

    def weight(self, target: Any, size: int) -> float:
        """Give the weight of a part of `size` examples; 0 where all its targets are ignored, so that it has no mean.

        The loss of the whole is the parts' weighted average; where it is a sum, their sum: all weigh 1.

        >>> Reduction("targets", ignored=-100).weight(torch.tensor([3, -100, 1]), 3)
        2.0
        """
        if self.kind == "sum":
            return 1.0
        if self.part is not None:
            return float(leaves(target)[self.part].sum())
        if self.kind != "targets" or not isinstance(target, Tensor) or target.is_complex():
            return float(size)
        counts = _counting(target, self.ignored)
        if self.class_weights is None:
            return float(counts.sum())
        return float(self.class_weights[target[counts].long()].sum())

    @property
    def splits_exactly(self) -> bool:
        """Whether the loss of a batch follows from those of its parts."""
        return self.kind in ("examples", "targets", "calls", "sum", "weighted")

    @property
    def depends_on_size(self) -> bool:
        """Whether a batch of another size has another loss, so that losses are comparable only between equal sizes."""
        return self.kind in ("sum", "batch", "misweighted")


def unwrap(loss: Any) -> tuple[Any, dict[str, Any]]:
    """Give the function or module inside of any `functools.partial`, and the keywords that were given there."""
    keywords: dict[str, Any] = {}
    while isinstance(loss, functools.partial):
        keywords = {**loss.keywords, **keywords}
        loss = loss.func
    return loss, keywords


def is_class_loss(loss: Any) -> bool:
    """Tell whether a loss is PyTorch's cross-entropy or negative log-likelihood, as function, module or partial."""
    inner, _ = unwrap(loss)
    return inner in CLASS_LOSSES or isinstance(inner, CLASS_MODULES)


def loss_option(loss: Any, name: str, default: Any = None) -> Any:
    """Give an option of a loss: a keyword of its partial, or an attribute of its module.

    >>> loss_option(functools.partial(nn.functional.cross_entropy, ignore_index=0), "ignore_index")
    0
    """
    inner, keywords = unwrap(loss)
    return keywords[name] if name in keywords else getattr(inner, name, default)


def stated_reduction(loss: Any, target: Any = None) -> Reduction:
    """Give what a loss says of itself: PyTorch's losses on classes leave out ignored targets and weigh classes.

    With probabilities as targets they do neither. Any of PyTorch's losses may say that it is a sum.
    """
    if loss_option(loss, "reduction") == "sum":
        return Reduction("sum")
    if not is_class_loss(loss) or (isinstance(target, Tensor) and target.is_floating_point()):
        return Reduction()
    weights = loss_option(loss, "weight")
    ignored = loss_option(loss, "ignore_index", -100)
    return Reduction("targets", ignored, weights if isinstance(weights, Tensor) else None)


def called_reduction(calls: Sequence[LossCall]) -> tuple[Reduction, Tensor] | None:
    """Give the mean that the one loss on classes that was called takes, and its targets; None where there is no such one."""
    called = [call for call in calls if call.name in ("cross_entropy", "nll_loss")]
    if len(called) != 1 or called[0].target.is_floating_point():
        return None
    options = called[0].options
    return Reduction("targets", options.get("ignore_index", -100), options.get("weight")), called[0].target


def called_weight(calls: Sequence[LossCall]) -> float | None:
    """Give the weight of a batch's loss by what was counted where it was computed; None where that is not known."""
    found = called_reduction(calls)
    return None if found is None else found[0].weight(found[1], 0)


def measure_reduction(
    loss: Callable[[Any, Any], Any],
    output: Any,
    target: Any,
    count: int,
    stated: Reduction | None = None,
    extremes: Sequence[Sequence[float]] = (),
) -> Reduction:
    """Find a loss's reduction by calling it on a batch of `count` examples and on parts of it.

    What the loss says of itself (`stated`; None: see `stated_reduction`) is kept where it agrees with that. "unknown" where
    outputs or targets cannot be cut, the loss draws random numbers, or it fails on a part.

    `extremes`: for each tensor of the target values at the ends of what the data hold there; see `extremes_of`. A number that
    stands for a missing target is one of them, also where this batch has none.
    """
    stated = stated or stated_reduction(loss, target)
    if not isinstance(target, Tensor) and stated.kind != "sum":
        stated = Reduction()  # it tells of a tensor that the loss makes of these
    rows = _common_length(output, target)
    if rows is None or rows < 2:
        return stated if stated.kind in ("targets", "sum") else Reduction("unknown")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a part makes the user's loss warn of says nothing of training
        output, some = tree_map(_in_single_precision, output), slice(0, min(rows, MOST_ROWS))
        few = _rows(output, some), _rows(target, some)
        found = _measure(loss, *few, stated, extremes, rows_are_examples=rows == count)
        if found.kind in ("examples", "targets") and (
            _chooses_rows(loss, *few, found, extremes) or _fails_on_all(loss, output, target, found)
        ):
            return Reduction("batch", chosen=True)  # by a condition that these rows meet
        return found


def extremes_of(targets: Iterable[Any]) -> list[tuple[float, ...]]:
    """Give for each tensor of the targets the smallest and the largest finite number that it holds in any of the data.

    >>> extremes_of([torch.tensor([1.0, -999.0, math.nan]), torch.tensor([2.0, 3.0])])
    [(-999.0, 1.0, 2.0, 3.0)]
    """
    return [
        tuple(sorted({end for leaf in each for end in _ends(leaf)}))
        for each in zip(*map(leaves, targets), strict=False)
    ]


def _ends(leaf: Tensor) -> tuple[float, ...]:
    if leaf.dtype == torch.bool or leaf.is_complex() or leaf.layout is not torch.strided or not leaf.numel():
        return ()
    ends = [float(end) for end in torch.aminmax(leaf)]
    if not all(map(math.isfinite, ends)):
        finite = leaf[torch.isfinite(leaf)]
        ends = [float(end) for end in torch.aminmax(finite)] if finite.numel() else []
    return tuple(ends)


def _measure(
    loss: Callable[[Any, Any], Any],
    output: Any,
    target: Any,
    stated: Reduction,
    extremes: Sequence[Sequence[float]],
    *,
    rows_are_examples: bool,
) -> Reduction:
    output, target, without = _sorted_by_loss(loss, output, target)
    known = [stated] if stated.kind == "targets" else []
    for candidate in chain(known, _possible(loss, output, target, extremes)):
        for tried in (_telling(target, candidate), target):
            found = _compare(loss, output, tried, candidate)
            if found == candidate and _counts_none_of(candidate, without):
                return candidate
            if found.kind != "unknown":
                break
    # Where a row is not an example but a time step, say, of which examples have more or fewer, the rows are what counts.
    found = _compare(loss, output, target, Reduction() if rows_are_examples else Reduction("targets"))
    if found.splits_exactly and not _counts_none_of(found, without):
        return Reduction("batch", chosen=True)  # rows that it leaves out count by what was found
    return stated if found.kind == "unknown" and stated.kind in ("targets", "sum") else found


def _chooses_rows(
    loss: Callable[[Any, Any], Any],
    output: Any,
    target: Any,
    found: Reduction,
    extremes: Sequence[Sequence[float]],
) -> bool:
    """Tell whether there are values with which a row no longer counts in the mean, though it does by what was found.

    As where only targets below a bound count, or outputs above one. A row whose loss is zero counts still.
    """
    row, others = slice(0, 1), slice(1, None)
    # On the CPU, where a target out of range raises an error; on an accelerator it would break the process's context.
    output, target = tree_map(_on_cpu, output), tree_map(_on_cpu, target)
    if sum(leaf.numel() for leaf in leaves(output)) > MOST_NUMBERS:
        return False

    def value(output: Any, target: Any) -> float:
        try:
            with torch.no_grad():
                return float(loss(output, target))
        except Exception:
            return math.nan

    rest = value(_rows(output, others), _rows(target, others))
    if not math.isfinite(rest) or _close(value(output, target), rest, ()):
        return False  # this row's loss is that of the others, so that it does not show whether it counts
    changed = [(moved, target) for moved in _with_first_row_far_off(output)]
    changed += [(output, moved) for moved in _with_first_row_far_off(target, extremes)]
    return any(_close(value(*pair), rest, ()) and found.weight(_rows(pair[1], row), 1) != 0 for pair in changed)


def _with_first_row_far_off(nest: Any, extremes: Sequence[Sequence[float]] = ()) -> Iterator[Any]:
    """Give copies whose first row, of one tensor at a time, is far above all numbers, far below, zero, ignored elsewhere, or one
    of the extremes of that tensor.

    Not -100, which PyTorch's losses on classes leave out, whether targets have it or not.
    """
    for leaf, ends in zip_longest(leaves(nest), extremes, fillvalue=()):
        if (
            not isinstance(leaf, Tensor)
            or leaf.dtype == torch.bool
            or leaf.is_complex()
            or leaf.layout is not torch.strided
            or not leaf.numel()
        ):
            continue
        if leaf.is_floating_point():
            far = FAR * (1 + float(leaf.nan_to_num(0.0, 0.0, 0.0).abs().max()))
            values = [far, -far, 0.0, *ends]
        else:
            values = [number for number in {*_integers(leaf.dtype), *ends} if number != IGNORED[0]]
        for number in values:
            moved = leaf.clone(memory_format=torch.contiguous_format)
            moved[0] = number
            yield tree_map(lambda other, leaf=leaf, moved=moved: moved if other is leaf else other, nest)


def _fails_on_all(loss: Callable[[Any, Any], Any], output: Any, target: Any, found: Reduction) -> bool:
    """Tell whether the losses of two parts of the whole batch do not make up its own, though those of a few rows did."""
    if sum(leaf.numel() for leaf in leaves(output)) > MOST_NUMBERS:
        return False
    return _compare(loss, output, target, found).kind in ("batch", "sum")


def _on_cpu(leaf: Any) -> Any:
    return leaf.cpu() if isinstance(leaf, Tensor) else leaf


def _counts_none_of(candidate: Reduction, without: Sequence[Any]) -> bool:
    """Tell whether rows that have no loss, so that they do not count in the mean, weigh nothing under a candidate either."""
    return candidate.kind == "sum" or not any(candidate.weight(target, 1) for target in without)


def _possible(
    loss: Callable[[Any, Any], Any], output: Any, target: Any, extremes: Sequence[Sequence[float]]
) -> Iterator[Reduction]:
    """Give means over some of the targets that this loss may take: without ignored ones, or weighed by a part of the target."""
    parts = leaves(target)
    if len(parts) < 2:
        yield from (Reduction("targets", value) for value in _find_ignored(loss, output, target, *extremes[:1]))
    else:
        yield from (Reduction("targets", part=number) for number, leaf in enumerate(parts) if _may_weigh(leaf))


def _may_weigh(leaf: Tensor) -> bool:
    if leaf.is_complex() or leaf.layout is not torch.strided:
        return False
    return bool((leaf >= 0).all()) and math.isfinite(float(leaf.sum()))


def _compare(loss: Callable[[Any, Any], Any], output: Any, target: Any, candidate: Reduction) -> Reduction:
    """Give the candidate where under it the losses of two parts of a batch make up its own; "unknown" where one fails."""
    rows = len(leaves(target)[0])
    split = [(_rows(output, part), _rows(target, part), part.stop - part.start) for part in _parts(rows)]
    try:
        with torch.no_grad():
            whole = [float(loss(output, target)) for _ in range(2)]
            losses = [float(loss(o, t)) for o, t, _ in split]
        weights = [candidate.weight(t, size) for _, t, size in split]
    except Exception:
        return Reduction("unknown")
    if candidate.kind == "targets" and min(weights) <= 0:
        return Reduction("unknown")  # a sum, too, is the loss of the other part
    return _agreeing(whole, losses, candidate, weights)


def compare_parts(
    whole: Sequence[float],
    parts: Sequence[float],
    weights: Sequence[Any],
    sizes: Sequence[int],
    called: Sequence[float | None] = (None,),
) -> Reduction:
    """Find the reduction from losses alone, for a task's own `step`: two of the whole batch, and one of each part.

    `weights` are those that the step returned beside the parts' losses, or None; `called` those of `called_weight`.

    >>> compare_parts([2.0, 2.0], [1.0, 3.0], [None, None], [2, 2]).kind
    'examples'
    """
    if any(weight is None for weight in weights):
        found = _agreeing(whole, parts, Reduction(), [float(size) for size in sizes])
        counted = [weight for weight in called if weight is not None]
        if found.kind == "batch" and len(counted) == len(parts):
            return _agreeing(whole, parts, Reduction("calls"), counted)
        return found
    given = [float(weight) for weight in weights]
    found = _agreeing(whole, parts, Reduction("weighted"), given)
    shares = [weight / size for weight, size in zip(given, sizes, strict=True)]
    return Reduction("misweighted") if found.kind == "batch" and not _close(shares[0], shares[-1], shares) else found


def _agreeing(
    whole: Sequence[float], parts: Sequence[float], candidate: Reduction, weights: Sequence[float]
) -> Reduction:
    """Give the candidate where with these weights the parts make up the whole, else what else they may do."""
    if not all(math.isfinite(value) for value in (*whole, *parts)) or not _close(whole[0], whole[1], parts):
        return Reduction("unknown")  # not finite, or random
    if max(parts) - min(parts) <= ALIKE * max(map(abs, parts)):
        return Reduction("unknown")  # equal losses have the same mean whatever they weigh
    if _close(_average(parts, weights), whole[0], parts):
        return candidate
    if not _close(sum(parts), whole[0], parts):
        return Reduction("batch")
    # Where one part's loss is zero, it may be none of the mean as well as a summand.
    return Reduction("sum" if min(map(abs, parts)) > TOLERANCE * max(map(abs, parts)) else "unknown")


def _average(values: Sequence[float], weights: Sequence[float]) -> float:
    total = sum(weights)
    return math.nan if total <= 0 else sum(v * w for v, w in zip(values, weights, strict=True) if w) / total


def _close(first: float, second: float, scale: Iterable[float]) -> bool:
    largest = max(abs(second), *(abs(value) for value in scale), 1e-12)
    return abs(first - second) <= TOLERANCE * largest


def _parts(rows: int) -> list[slice]:
    """Cut into two parts, unequal ones, so that a mean of the parts' means shows."""
    cut = max(1, rows // 3)
    return [slice(0, cut), slice(cut, rows)]


def _in_single_precision(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    return leaf.detach().float() if leaf.dtype in (torch.bfloat16, torch.float16) else leaf.detach()


def _sorted_by_loss(loss: Callable[[Any, Any], Any], output: Any, target: Any) -> tuple[Any, Any, list[Any]]:
    """Sort rows by their losses, so that the parts have different ones: else the root of a mean would pass for a mean.

    Rows whose targets are all ignored, so that they have no loss, are left out; the targets of those that are finite are given
    beside. Where that loss is zero, as of a sum, they come before the last row, so that no part consists of such rows alone: it
    would tell nothing.
    """
    rows = len(leaves(target)[0])
    if sum(leaf.numel() for leaf in leaves(output)) > MOST_NUMBERS:
        return output, target, []
    try:
        with torch.no_grad():
            singles = [float(loss(_rows(output, slice(i, i + 1)), _rows(target, slice(i, i + 1)))) for i in range(rows)]
    except Exception:
        return output, target, []  # this loss takes no single row
    finite = sorted((row for row in range(rows) if math.isfinite(singles[row])), key=lambda row: singles[row])
    others, zero = [row for row in finite if singles[row]], [row for row in finite if not singles[row]]
    places = [*others[:-1], *zero, *others[-1:]]
    if len(places) < 3:
        return output, target, []
    lost = [slice(row, row + 1) for row in range(rows) if not math.isfinite(singles[row])]
    without = [_rows(target, row) for row in lost if _is_finite(_rows(output, row)) and _is_finite(_rows(target, row))]
    return _taken(output, places), _taken(target, places), without


def _is_finite(nest: Any) -> bool:
    return all(bool(torch.isfinite(leaf).all()) for leaf in leaves(nest))


def _taken(nest: Any, places: list[int]) -> Any:
    return tree_map(lambda leaf: leaf[places] if isinstance(leaf, Tensor) else leaf, nest)


def _common_length(output: Any, target: Any) -> int | None:
    """Give the number of rows that all tensors of output and target share, None where they differ or there are none."""
    tensors = [*leaves(output), *leaves(target)]
    lengths = {len(tensor) if tensor.ndim else None for tensor in tensors}
    return lengths.pop() if len(lengths) == 1 and leaves(output) and leaves(target) else None


def _rows(nest: Any, rows: slice) -> Any:
    return tree_map(lambda leaf: leaf[rows] if isinstance(leaf, Tensor) else leaf, nest)


def _counting(target: Tensor, ignored: float | None) -> Tensor:
    """Tell which targets count."""
    if ignored is None:
        return torch.ones_like(target, dtype=torch.bool)
    return ~torch.isnan(target) if math.isnan(ignored) else target != ignored


def _telling(target: Any, candidate: Reduction) -> Any:
    """Give a copy in which half of the second part's targets do not count, so that it shows whether they do."""
    chosen = leaves(target)[candidate.part or 0]
    changed = chosen.clone(memory_format=torch.contiguous_format)
    second = changed[_parts(len(changed))[1]].view(-1)
    second[: len(second) // 2] = candidate.ignored or 0
    return tree_map(lambda leaf: changed if leaf is chosen else leaf, target)


def _find_ignored(
    loss: Callable[[Any, Any], Any], output: Any, target: Any, extremes: Sequence[float] = ()
) -> list[float]:
    """Find values of targets that the loss may leave out: with them, it no longer depends on the output there."""
    if not isinstance(output, Tensor) or not isinstance(target, Tensor) or not output.is_floating_point():
        return []
    rows = max(1, min(len(output), 4))
    if output[:rows].numel() > MOST_NUMBERS or rows < 2 or target.is_complex():
        return []
    candidates = [math.nan, *IGNORED] if target.is_floating_point() else _integers(target.dtype)
    candidates += [value for value in extremes if value not in candidates]
    # On the CPU, where a target out of range raises an error; on an accelerator it would break the process's context.
    output, target = output[:rows].cpu(), target[:rows].cpu()
    return [value for value in candidates if _is_ignored(loss, output, target, value)]


def _integers(dtype: torch.dtype) -> list[float]:
    if dtype == torch.bool:
        return []
    return [value for value in IGNORED if torch.iinfo(dtype).min <= value <= torch.iinfo(dtype).max]


def _is_ignored(loss: Callable[[Any, Any], Any], output: Tensor, target: Tensor, value: float) -> bool:
    changed, moved = target.clone(), output.clone()
    changed[0] = value
    moved[0] = output[0].flip(0) + 1 if output[0].ndim else output[0] + 1
    all_moved = output.flip(1) + 1 if output.ndim > 1 else output + 1
    try:
        with torch.no_grad():
            before, after = float(loss(output, changed)), float(loss(moved, changed))
            differs = float(loss(all_moved, target)) != float(loss(output, target))
    except Exception:
        return False
    return math.isfinite(before) and before == after and differs
