"""Holding out: a part of the training examples is kept for validation, where a task has no validation data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from thalweg.errors import DataError, PlanError
from thalweg.landscape.objective import Objective
from thalweg.objects.state import ObjectState
from thalweg.records.holdout import Holdout, HoldoutBy
from thalweg.records.task import Task
from thalweg.sampling import ItemSource, Source, StreamSource, TensorSource
from thalweg.sampling.holdout import (
    USUAL_SHARE,
    at_random,
    by_class,
    by_group,
    by_time,
    class_codes,
    group_codes,
    time_codes,
    usual_share,
)
from thalweg.sampling.reading import SeededItems

MOST_READ = (
    2_000  # examples of a data set that are read to find their classes; of more any part has about the same shares
)
HOW = {
    "class": "the same share of each class",
    "group": "whole groups",
    "time": "the last in time",
    "random": "drawn at random",
}


class HeldOut(NamedTuple):
    """What is held out: the share, by what, and the positions of the examples to train on and of the others; None: all are.

    `reason`: a sentence on it, or on why nothing is held out where that was looked at.
    """

    share: float = 0.0
    by: HoldoutBy = "auto"
    training: Tensor | None = None
    validation: Tensor | None = None
    reason: str = ""

    @property
    def figures(self) -> dict[str, int]:
        """The numbers of examples, as evidence."""
        if self.training is None or self.validation is None:
            return {}
        return {"training": len(self.training), "validation": len(self.validation)}

    def parts(self, source: Source) -> tuple[Source, Source | None]:
        """Give the examples to train on, and those to validate on, if any."""
        if self.training is None or self.validation is None or isinstance(source, StreamSource):
            return source, None
        validation = source.part(self.validation)
        if isinstance(validation, ItemSource) and validation.own_batches is not None:
            validation.own_batches = validation.own_batches._replace(shuffle=False)
        return source.part(self.training), validation


NOTHING_HELD_OUT = HeldOut()


def hold_out(task: Task, source: Source, weights: Tensor | None, wanted: Holdout) -> HeldOut:
    """Choose the examples that are held out, as a function of the data, the share and the seed.

    Raises PlanError where a share was decided that cannot be held out, DataError for groups or times that do not fit the data.
    """
    if not isinstance(source, StreamSource):
        _codes_of_task(task, len(source))  # raises, also where they are not used
    if task.validation is not None:
        if wanted.share:
            raise PlanError(
                f"`holdout` is {wanted.share:g}, but the task has validation data already. Set holdout=0, or leave `validation`"
                f" out of the task."
            )
        return NOTHING_HELD_OUT
    if wanted.share == 0.0:
        return NOTHING_HELD_OUT
    held = _choose(task, source, weights, wanted)
    if isinstance(held, HeldOut):
        return held
    if wanted.share is not None:
        raise PlanError(f"`holdout` is {wanted.share:g}, but {held}. Give `validation`, or set holdout=0.")
    return HeldOut(
        reason=f"no validation data were given, and {held}: nothing is held out, and the training loss is the criterion"
    )


def _choose(task: Task, source: Source, weights: Tensor | None, wanted: Holdout) -> HeldOut | str:
    """Give what is held out, or say why nothing can be."""
    if isinstance(source, StreamSource):
        if isinstance(getattr(task.data, "dataset", task.data), IterableDataset) or not isinstance(
            task.data, DataLoader
        ):
            return "the data are a stream, which cannot be split"
        return "the loader draws by a sampler of its own, which cannot be split"
    eligible = torch.arange(len(source)) if weights is None else (weights > 0).nonzero().flatten()
    count, share = len(eligible), wanted.share
    if share is None:
        share = usual_share(count) or USUAL_SHARE * (task.select != "loss")
        if not share:
            return f"a fifth of {count} examples is too few to judge by"
    own = source.own_batches if isinstance(source, ItemSource) else None
    batch = own.size if own is not None and own.drop_last else 1  # what is smaller is dropped
    number = max(1, math.floor(share * count / batch + 0.5)) * batch
    by, codes = _by(task, source, wanted.by)
    codes = None if codes is None else codes[eligible].unique(return_inverse=True)[1]
    chosen = eligible[_positions(by, codes, count, number, wanted.seed)]
    training = _others(chosen, len(source))
    if len(chosen) < batch or len(training) < batch:
        if batch > 1:
            return f"the loader drops what is smaller than {batch}, and there are {len(source)} examples"
        alike = {"group": "all examples are of one group", "time": "all examples have one time"}
        return alike.get(by, f"{count} examples cannot be split")
    if wanted.batch_size is not None and wanted.batch_size > len(training):
        return f"the batch of {wanted.batch_size} examples needs them all"
    reason = (
        f"no validation data were given: {len(chosen):,} of {len(source):,} examples ({HOW[by]}) are held out for validation, and"
        f" {len(training):,} are trained on"
    )
    return HeldOut(share, by, training, chosen, reason)


def _positions(by: HoldoutBy, codes: Tensor | None, count: int, number: int, seed: int) -> Tensor:
    number = min(number, count - 1)
    if codes is None:
        return at_random(count, number, seed)
    if by == "time":
        return by_time(codes, number)
    return (by_group if by == "group" else by_class)(codes, number, seed)


def _others(chosen: Tensor, count: int) -> Tensor:
    others = torch.ones(count, dtype=torch.bool)
    others[chosen] = False
    return others.nonzero().flatten()


def _by(task: Task, source: TensorSource | ItemSource, by: HoldoutBy) -> tuple[HoldoutBy, Tensor | None]:
    """Settle what to split by, and give the codes of that. Raises PlanError where it was decided and the task has none."""
    own, codes = _codes_of_task(task, len(source))
    if own is not None and by in ("auto", own):
        return own, codes
    if by == "group":
        raise PlanError("`holdout_by` is 'group', but the task has no `groups`. Give them, or leave it out.")
    if by == "time":
        raise PlanError("`holdout_by` is 'time', but the task is no `series`. Give series=True, or leave it out.")
    codes = None if by == "random" else _classes(task, source)
    if codes is None and by == "class":
        raise PlanError("`holdout_by` is 'class', but the targets are no classes. Leave it out, or set it to 'random'.")
    return ("random", None) if codes is None else ("class", codes)


def _codes_of_task(task: Task, count: int) -> tuple[HoldoutBy | None, Tensor | None]:
    """Give what the task itself says to split by, its groups or its times, and the codes of that. Raises DataError."""
    if task.groups is not None:
        return "group", group_codes(task.groups, count, "groups")
    if task.series is True:
        return "time", torch.arange(count)
    return (None, None) if task.series is False else ("time", time_codes(task.series, count, "series"))


def _classes(task: Task, source: TensorSource | ItemSource) -> Tensor | None:
    """Give codes of the examples' classes; None where the targets are no classes, or too many would have to be read."""
    target_of = Objective(task).split
    try:
        if isinstance(source, TensorSource):
            return class_codes(target_of(source.nest)[2])
        stated = _stated_targets(source.items)
        if stated is not None:
            return class_codes(stated)
        with ObjectState({"data": source.items}).unchanged():
            return _read_classes(source, lambda example: target_of(example)[2])
    except Exception:
        return None  # reading for training says what is wrong


def _stated_targets(items: Any) -> Tensor | None:
    """Give the targets that a data set has as a whole, as PyTorch's and torchvision's do."""
    if isinstance(items, TensorDataset):
        return items.tensors[-1]
    if isinstance(items, Subset):
        whole = _stated_targets(cast(Any, items).dataset)
        return None if whole is None else whole[torch.as_tensor(items.indices)]
    for name in ("targets", "labels"):
        stated = getattr(items, name, None)
        if stated is not None and hasattr(stated, "__len__") and len(stated) == len(items):
            return torch.as_tensor(stated)
    return None


def _read_classes(source: ItemSource, target_of: Callable[[Any], Any]) -> Tensor | None:
    """Read the examples one by one, as long as their targets are single whole numbers or texts.

    How long that takes must not decide: the split would be another one the next time.
    """
    if len(source) > MOST_READ:
        return None
    items, codes, found = SeededItems(source.items, 0, source.name), dict[Any, int](), list[int]()
    for index in range(len(source)):
        target = target_of(items[0, index])
        target = target.tolist() if hasattr(target, "tolist") else target
        while isinstance(target, list) and len(cast("list[Any]", target)) == 1:
            target = cast("list[Any]", target)[0]
        if not isinstance(target, int | str) and target not in (0.0, 1.0):
            return None
        found.append(codes.setdefault(target, len(codes)))
    return class_codes(torch.tensor(found))


def check_criterion(task: Task, validation: Source | None, held: HeldOut) -> list[str]:
    """Refuse a criterion that is measured on validation data where there are none; say so of other metrics.

    Raises DataError.
    """
    if validation is not None or not task.metrics:
        return []
    how = "Give `validation`, or keep a share of the training examples for it: holdout=0.2 in the plan, as `fit` and `tune` do"
    if task.select != "loss":
        why = f" Here {held.reason.partition(':')[0]}." if held.reason else ""
        raise DataError(
            f"`select` is '{task.select}', which is measured on validation data, and there are none.{why} {how}."
        )
    names = ", ".join(cast("Mapping[str, Any]", task.metrics))
    return [f"There are no validation data to measure {names} on as it trains. {how}."]
