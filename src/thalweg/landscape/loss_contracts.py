"""What PyTorch's losses take: shapes and values of scores and targets that make them fail or mean nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from thalweg.errors import DataError

TOLERANCE = 1e-3  # of values against their bounds and of sums against 1: half precision's rounding
NEARLY = 0.2  # beyond 0 and 1 where pictures come to lie by interpolation
MOST_CLASSES = 100  # whole numbers up to here may be class numbers


class LossCall(NamedTuple):
    """One call of a loss of `torch.nn.functional`: its name, its scores and targets, and all its arguments by name.

    `data` says where the targets' rows come from, as it ends "in row 3": " of `validation`". `counts` says which elements count
    where the loss was left without a reduction, None where that is not known.
    """

    name: str
    output: Tensor
    target: Tensor
    options: Mapping[str, Any]
    data: str = ""
    counts: Tensor | None = None

    @property
    def is_reduced(self) -> bool:
        """Whether the loss itself takes the mean or the sum, so that every element counts but for its weight."""
        return self.options.get("reduction") != "none"

    @property
    def ignored_throughout(self) -> int | None:
        """The label that is left out, where all targets are that one, so that their mean is NaN; else None."""
        ignored = self.options.get("ignore_index")
        if ignored is None or self.target.is_floating_point() or self.options.get("reduction") != "mean":
            return None
        return ignored if bool((self.target == ignored).all()) else None


class Misfit(NamedTuple):
    """What is wrong with a loss's targets, what to do, whether the loss means nothing with them, and rows where it is so."""

    fault: str
    remedy: str
    certain: bool
    rows: tuple[int, ...] = ()

    @property
    def message(self) -> str:
        """The fault and what to do."""
        return f"{self.fault} {self.remedy}"


def check_form(call: LossCall) -> None:
    """Refuse what the loss itself cannot compute, in words better than its own. Raises DataError."""
    check = _FORMS.get(call.name)
    if check is not None:
        check(call)


def misfits(call: LossCall) -> list[Misfit]:
    """Find targets for which the loss fails, means nothing, or is something that is seldom wanted.

    Of the scores only the shape counts, without the first dimension: the targets may be more than theirs. Nothing is found in
    tensors whose values cannot be looked at, such as those that `torch.func` traces.
    """
    try:
        return list(_found(call))
    except Exception:
        return []


def _found(call: LossCall) -> Iterator[Misfit]:
    if call.name in _CLASS_LOSSES and not call.target.is_floating_point():
        yield from _class_numbers(call)
    check = _RANGES.get(call.name)
    if check is not None and (call.is_reduced or call.counts is not None):
        yield from check(call)


def _take_class_numbers(call: LossCall) -> None:
    output, target = call.output, call.target
    if target.is_complex() or output.ndim == 0:
        return
    if call.name == "cross_entropy" and target.shape == output.shape:
        return  # probabilities; whole numbers, such as one-hot rows, become floats
    if target.shape != _shape_of_classes(output) or target.is_floating_point():
        message = _other_form(call)
        if message:
            raise DataError(message)
        return
    _check_class_weight(call)
    for misfit in _class_numbers(call):
        raise DataError(misfit.message)


def _shape_of_classes(output: Tensor) -> torch.Size:
    return output.shape[:1] + output.shape[2:] if output.ndim > 1 else torch.Size()


def _class_numbers(call: LossCall) -> Iterator[Misfit]:
    output, target = call.output, call.target
    if target.shape[1:] == output.shape[1:] and target.ndim > 1:
        return  # rows of one number per class
    classes = output.shape[1] if output.ndim > 1 else output.shape[0]
    wrong = ((target < 0) | (target >= classes)) & (target != call.options.get("ignore_index", -100))
    if wrong.any():
        label, rows = int(target[wrong][0]), _rows(wrong)
        remedy = (
            f"Give the model {label + 1} outputs or check the labels." if label > 0 else "Number the classes from 0."
        )
        if label < 0 or label == 255:  # the usual marks
            remedy += f" ignore_index={label} leaves such targets out."
        fault = (
            f"The target is {label} in row {rows[0]}{call.data}, but the model has {classes} output{'s' * (classes != 1)}: labels"
            f" run from 0 to {classes - 1}."
        )
        yield Misfit(fault, remedy, True, rows)


def _check_class_weight(call: LossCall) -> None:
    weight, output = call.options.get("weight"), call.output
    if not isinstance(weight, Tensor) or not output.is_floating_point() or output.ndim < 2:
        return
    if weight.dtype != output.dtype:
        raise DataError(
            f"`weight` of {call.name} is {_dtype(weight)}, but the scores are {_dtype(output)}. Give weight.to({output.dtype})."
        )
    if weight.ndim == 1 and len(weight) != output.shape[1]:
        raise DataError(
            f"`weight` of {call.name} has {len(weight)} entries, but the model gives scores of {output.shape[1]} classes."
            f" Give one weight for each class."
        )


def _other_form(call: LossCall) -> str:
    """Say how targets, or scores, must be changed to be class numbers with scores for each; "" where that is not plain."""
    output, target, name = call.output, call.target, call.name
    if output.ndim == 2 and target.ndim == 2 and target.shape[1] == 1 and not target.is_floating_point():
        return (
            f"The targets are {_form(target)}, but class numbers have one dimension. Give y without the trailing dimension of 1:"
            f" y.squeeze(1), or y[:, 0]."
        )
    if output.ndim > 2 and target.shape == output.shape[:-1]:
        moved = "transpose(1, 2)" if output.ndim == 3 else "movedim(-1, 1)"
        return (
            f"The model gives {tuple(output.shape)} for targets {tuple(target.shape)}, with the scores of the classes in the last"
            f" dimension; {name} takes them in dimension 1. Give loss=lambda output, y: F.{name}(output.{moved}, y)."
        )
    if output.ndim > 2 and target.shape == output.shape[:1]:
        return (
            f"The model gives {tuple(output.shape)}: scores for several positions of each example, but the targets are"
            f" {tuple(target.shape)}: one class per example. Give scores (batch, classes): those of one position, such as"
            f" output[:, -1], or a mean over positions."
        )
    if output.ndim == 2 and target.ndim > 1 and len(output) == target.numel() and not target.is_floating_point():
        return (
            f"The model gives {tuple(output.shape)}, a row of scores for each of the {tuple(target.shape)} targets."
            f" Flatten these too: loss=lambda output, y: F.{name}(output, y.flatten())."
        )
    if target.shape == output.shape and output.ndim == 2:
        several = bool((target.sum(1) != 1).any())
        remedy = (
            "For several classes per example use binary_cross_entropy_with_logits."
            if several
            else "Give y.argmax(1), or use cross_entropy."
        )
        return (
            f"The targets are {_form(target)}, rows of one number per class, but {name} takes class numbers. {remedy}"
        )
    if target.is_floating_point():
        flat = ".squeeze(1)" if target.ndim == 2 and target.shape[1] == 1 and output.ndim == 2 else ""
        if target.isnan().any():
            ignored = call.options.get("ignore_index", -100)
            return (
                f"The targets are {_form(target)} with NaN, as labels of which some are missing are, but this loss wants class"
                f" numbers (int64). Give {ignored}, which it leaves out, for those: y.nan_to_num({ignored}).long(){flat}."
            )
        return (
            f"The targets are {_form(target)}, but this loss wants class numbers (int64), or probabilities of the output's shape"
            f" {tuple(output.shape)}. Give y as integers, without a trailing dimension of 1: y.long(){flat}."
        )
    return ""


def _take_probabilities(call: LossCall) -> None:
    wrong = (call.output < 0) | (call.output > 1)
    if wrong.any():
        raise DataError(
            f"The model's outputs run {_extent(call.output)}, but {call.name} takes probabilities from 0 to 1. End the model with"
            f" nn.Sigmoid(), or use binary_cross_entropy_with_logits."
        )
    for misfit in misfits(call):  # of these PyTorch says less, and on an accelerator it ends the process
        raise DataError(misfit.message)


def _take_rates(call: LossCall) -> None:
    if not call.options.get("log_input", True) and bool((call.output < 0).any()):
        raise DataError(
            f"The model's outputs run {_extent(call.output)}, but {call.name} with log_input=False takes rates above zero."
            f" End the model with nn.Softplus(), or set log_input=True."
        )


def _within_one(call: LossCall) -> Iterator[Misfit]:
    target = call.target
    wrong = _counted((target < -TOLERANCE) | (target > 1 + TOLERANCE), call)
    if wrong.any():
        yield _misfit(
            wrong,
            call,
            f"{call.name} takes probabilities from 0 to 1, and can fall without end with others",
            _remedy_within_one(call),
        )


def _remedy_within_one(call: LossCall) -> str:
    target = call.target.detach()
    values, least, largest = set(target.unique()[:3].tolist()), float(target.min()), float(target.max())
    whole = not target.is_floating_point() or bool((target == target.round()).all())
    if values == {-1, 1}:
        return "Give (y + 1) / 2."
    if values == {1, 2}:
        return "Give y - 1."
    if values == {0, largest} or (whole and largest == 255 and least >= 0):
        return f"Give y / {largest:g}."
    if whole and least >= 0 and largest < MOST_CLASSES:
        return f"For {largest + 1:g} classes use cross_entropy, with as many outputs, or scale them: y / {largest:g}."
    if not whole and least > -NEARLY and largest < 1 + NEARLY:
        return "Give y.clamp(0, 1)."
    return "Scale them into that range, or use a loss of distances such as mse_loss."


def _signs(call: LossCall) -> Iterator[Misfit]:
    target = call.target
    zeros, others = _counted(target == 0, call), _counted((target != 0) & (target.abs() != 1), call)
    takes = f"{call.name} takes -1 and 1"
    if others.any():
        yield _misfit(
            others, call, takes, "Give 1 for what belongs together, or to the class, and -1 for what does not."
        )
    elif zeros.any() and not (target == -1).any():
        yield _misfit(zeros, call, takes, "Give 2 * y - 1.")
    elif zeros.any():
        yield _misfit(zeros, call, takes, "Leave these rows out unless they are to count for nothing.", certain=False)


def _distribution(call: LossCall) -> Iterator[Misfit]:
    """Of `kl_div`: both are distributions over a dimension, the output in logarithms, the target too with `log_target`."""
    target, logs = call.target, bool(call.options.get("log_target"))
    wrong = target > TOLERANCE if logs else target < 0
    if wrong.any() and logs:
        yield _misfit(wrong, call, "kl_div with log_target takes logarithms of probabilities", "Set log_target=False.")
    elif wrong.any():
        yield _misfit(
            wrong, call, "kl_div takes probabilities", "Set log_target=True where these are their logarithms."
        )
    elif not _sums_to_one(target.exp() if logs else target):
        fault = "The targets do not sum to 1 over the classes, but kl_div takes probabilities."
        yield Misfit(fault, "Divide them by y.sum(-1, keepdim=True).", False)
    if not _sums_to_one(call.output.detach().exp()):
        fault = "The model's outputs are no log-probabilities, but kl_div takes these, and can fall without end with others."
        yield Misfit(fault, "End the model with nn.LogSoftmax(-1).", False)


def _sums_to_one(probabilities: Tensor) -> bool:
    def is_one(sums: Tensor) -> bool:
        return bool((sums - 1).abs().max() <= 10 * TOLERANCE) if sums.numel() else True

    return (
        any(is_one(probabilities.sum(dim, dtype=torch.float32)) for dim in range(probabilities.ndim))
        if probabilities.ndim
        else True
    )


def _class_probabilities(call: LossCall) -> Iterator[Misfit]:
    target = call.target
    if not target.is_floating_point() or target.ndim < 2 or target.shape[1:] != call.output.shape[1:]:
        return
    wrong = target < -TOLERANCE
    sums = target.sum(1, dtype=torch.float32)
    off = ((sums - 1).abs() > 10 * TOLERANCE) & (sums != 0)  # a row of zeros counts for nothing, on purpose
    if wrong.any():
        remedy = "Give class numbers or probabilities, or use a loss of distances such as mse_loss."
        takes = "cross_entropy takes class numbers or probabilities, and can fall without end with others"
        yield _misfit(wrong, call, takes, remedy)
    elif off.any():
        fault = (
            f"The targets are {float(sums[off][0]):.4g} in sum over the classes in row {_rows(off)[0]}{call.data}, but"
            f" cross_entropy takes probabilities, which sum to 1."
        )
        remedy = "Divide them by their sum, or use binary_cross_entropy_with_logits for several classes per example."
        yield Misfit(fault, remedy, False, _rows(off))


def _counts(call: LossCall) -> Iterator[Misfit]:
    wrong = _counted(call.target < 0, call)
    if wrong.any():
        takes = f"{call.name} takes counts, which are not negative, and can fall without end with others"
        yield _misfit(wrong, call, takes, "Use a loss of distances, such as mse_loss, for what is no count.")


def _lists_of_classes(call: LossCall) -> Iterator[Misfit]:
    """Of `multilabel_margin_loss`: each row lists its classes, once each, and goes on with -1."""
    target = call.target.reshape(-1, call.target.shape[-1]) if call.target.ndim else call.target.reshape(1, 1)
    listed = (target >= 0).long().cumprod(1).bool()
    columns = torch.arange(target.shape[1], device=target.device)
    classes = torch.where(listed, target, -1 - columns).sort(1).values  # what is not listed is unlike all others
    twice = (classes[:, 1:] == classes[:, :-1]).any(1)
    if twice.any():
        fault = (
            f"The targets name a class twice in row {_rows(twice)[0]}{call.data}, but multilabel_margin_loss takes lists of class"
            f" numbers that end with -1, each once."
        )
        yield Misfit(fault, "For rows of 0 and 1 use multilabel_soft_margin_loss.", True, _rows(twice))


def _counted(wrong: Tensor, call: LossCall) -> Tensor:
    """Leave out what does not count: what has a weight of zero, or is left out after the loss."""
    for counts in (call.options.get("weight"), call.counts):
        if isinstance(counts, Tensor):
            try:
                wrong = wrong & (counts != 0)
            except RuntimeError:  # they do not fit the targets: the loss itself says so, or trying those rows
                continue
    return wrong


def _misfit(wrong: Tensor, call: LossCall, takes: str, remedy: str, *, certain: bool = True) -> Misfit:
    rows = _rows(wrong)
    value = float(call.target[wrong][0]) if wrong.ndim else float(call.target)
    fault = f"The target is {value:.4g} in row {rows[0]}{call.data} (targets run {_extent(call.target)}), but {takes}."
    return Misfit(fault, remedy, certain, rows)


def _rows(wrong: Tensor) -> tuple[int, ...]:
    if not wrong.ndim:
        return (0,)
    return tuple(wrong.reshape(len(wrong), -1).any(1).nonzero().flatten()[:1000].tolist())


def _extent(values: Tensor) -> str:
    values = values.detach()
    return f"from {float(values.min()):.4g} to {float(values.max()):.4g}"


def _form(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {_dtype(tensor)}"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


_FORMS: dict[str, Callable[[LossCall], None]] = {
    "cross_entropy": _take_class_numbers,
    "nll_loss": _take_class_numbers,
    "multi_margin_loss": _take_class_numbers,
    "binary_cross_entropy": _take_probabilities,
    "poisson_nll_loss": _take_rates,
}
_RANGES: dict[str, Callable[[LossCall], Iterator[Misfit]]] = {
    "cross_entropy": _class_probabilities,
    "binary_cross_entropy": _within_one,
    "binary_cross_entropy_with_logits": _within_one,
    "multilabel_soft_margin_loss": _within_one,
    "hinge_embedding_loss": _signs,
    "soft_margin_loss": _signs,
    "margin_ranking_loss": _signs,
    "cosine_embedding_loss": _signs,
    "kl_div": _distribution,
    "poisson_nll_loss": _counts,
    "multilabel_margin_loss": _lists_of_classes,
}
_CLASS_LOSSES = ("cross_entropy", "nll_loss", "multi_margin_loss")
LOSSES: dict[Callable[..., Any], str] = {getattr(F, name): name for name in {**_FORMS, **_RANGES}}
