"""Which examples are held out for validation: pure functions of their number, a share, a seed, and what they have in common.

Each gives the positions of the examples that are held out, in order; nothing where the examples cannot be split. Classes, groups
and times come as codes: whole numbers from 0 on, one per example, equal where the values are. Codes of times are in their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thalweg.errors import DataError, shown
from thalweg.sampling.order import mix

USUAL_SHARE = 0.2
MOST = 10_000  # examples held out, unless more are asked for: by so many an accuracy is known to half a per cent
FEWEST = 10  # held out that are worth it, see `usual_share`
_HOLDOUT = 7  # mixed into the seed of a split, so that it differs from those of the steps


def usual_share(count: int) -> float:
    """Give the share of so many examples that is held out where nobody says: a fifth, at most 10,000; none of fewer than 50.

    On samples of four data sets (`bench/holdout.py`) a held-out fifth raised the loss on other data by half where there were 12
    or 30 examples, as so few teach more than they tell, lowered it by a third and a half with 50 and 100, and changed little
    with 200.

    >>> usual_share(1000), usual_share(200_000), usual_share(12)
    (0.2, 0.05, 0.0)
    """
    if USUAL_SHARE * count < FEWEST:
        return 0.0
    return min(USUAL_SHARE, float(f"{MOST / count:.3g}"))


def at_random(count: int, wanted: int, seed: int) -> Tensor:
    """Hold out any `wanted` of `count` examples."""
    return _shuffled(count, seed)[:wanted].sort().values


def by_class(codes: Tensor, wanted: int, seed: int) -> Tensor:
    """Hold out the same share of each class, `wanted` examples in all where that leaves one of every class.

    What a class's share has beyond whole examples goes by the largest such rest. A class of one example is not held out.

    >>> by_class(torch.tensor([0] * 10 + [1] * 5 + [2]), 3, seed=0)
    tensor([ 2,  8, 11])
    """
    shuffled = _shuffled(len(codes), seed)
    sizes = torch.bincount(codes)
    shares = sizes * wanted / len(codes)
    numbers = torch.minimum(shares.long(), (sizes - 1).clamp_min(0))
    # Equal rests go by a shuffled order of the classes, not by their numbers.
    lot = _shuffled(len(sizes), seed + 1)
    for code in lot[(numbers - shares)[lot].argsort(stable=True)].tolist():
        if int(numbers.sum()) < wanted and numbers[code] < sizes[code] - 1:
            numbers[code] += 1
    parts = [shuffled[codes[shuffled] == code][:number] for code, number in enumerate(numbers.tolist()) if number]
    return torch.cat(parts).sort().values if parts else shuffled[:0]


def by_group(codes: Tensor, wanted: int, seed: int) -> Tensor:
    """Hold out whole groups, as many as come nearest to `wanted` examples, in a random order.

    Where each is far larger, the smallest is held out if that leaves at least half of the examples.

    >>> by_group(torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 4, 4]), 2, seed=0)
    tensor([4, 5])
    """
    sizes, chosen, total = torch.bincount(codes), list[int](), 0
    for code in _shuffled(len(sizes), seed).tolist():
        size = int(sizes[code])
        if abs(total + size - wanted) < abs(total - wanted) and total + size < len(codes):
            chosen.append(code)
            total += size
    if not chosen and 2 * int(sizes.min()) <= len(codes) and len(sizes) > 1:
        chosen = [int(sizes.argmin())]
    return torch.isin(codes, torch.tensor(chosen, dtype=codes.dtype)).nonzero().flatten()


def by_time(codes: Tensor, wanted: int) -> Tensor:
    """Hold out the last stretch of time, of about `wanted` examples; those of one time stay together.

    >>> by_time(torch.tensor([5, 4, 3, 2, 1, 0, 5]), 3)
    tensor([0, 1, 6])
    """
    ordered = codes.sort().values
    starts = (ordered[1:] != ordered[:-1]).nonzero().flatten() + 1  # of each stretch that can be held out, in the order
    if not len(starts):
        return codes[:0]
    start = starts[(starts - (len(codes) - wanted)).abs().argmin()]
    return (codes >= ordered[start]).nonzero().flatten()


def _shuffled(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(mix(seed, _HOLDOUT)))


def group_codes(values: Any, count: int, name: str) -> Tensor:
    """Give codes of values of any kind that can be compared, one per example. Raises DataError."""
    plain, codes = _sequence(values, count, name), dict[Any, int]()
    try:
        return torch.tensor([codes.setdefault(value, len(codes)) for value in plain], dtype=torch.int64)
    except TypeError as error:
        raise DataError(f"`{name}` holds values that cannot be compared ({error}). Give numbers or texts.") from error


def time_codes(values: Any, count: int, name: str) -> Tensor:
    """Give codes of times, one per example, in their order. Raises DataError."""
    plain = _sequence(values, count, name)
    try:
        ranks = {value: rank for rank, value in enumerate(sorted(set(plain)))}
    except TypeError as error:
        raise DataError(f"`{name}` holds values that have no order ({error}). Give numbers or dates.") from error
    return torch.tensor([ranks[value] for value in plain], dtype=torch.int64)


def _sequence(values: Any, count: int, name: str) -> Sequence[Any]:
    """Give one value per example as a list of Python's. Raises DataError for another number of them, or a missing one."""
    plain = _listed(values, count, name)
    missing = [row for row, value in enumerate(plain) if value is None or value != value]  # NaN, and pandas' NaT
    if missing:
        raise DataError(f"`{name}` has no value in row {missing[0]}. Give one for every example.")
    return plain


def _listed(values: Any, count: int, name: str) -> Sequence[Any]:
    if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
        what = f"{shown(values, 60)}" if isinstance(values, str | bytes) else f"a {type(values).__name__}"
        raise DataError(f"`{name}` is {what}. Give one value per example: an array, a list or a frame's column.")
    if len(values) != count:
        raise DataError(
            f"`{name}` has {len(values):,} values, but the data have {count:,} examples: give one for each."
        )
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    array = values.to_numpy() if hasattr(values, "to_numpy") else values
    if isinstance(array, np.ndarray):
        if array.ndim > 1 and array.size != count:
            raise DataError(f"`{name}` has the shape {tuple(array.shape)}. Give one value per example.")
        array = array.reshape(-1)
        if array.dtype.kind in "mM":  # as numbers, as Python's dates are less exact
            missing = np.isnat(array).tolist()
            return [None if gone else time for time, gone in zip(array.astype("int64").tolist(), missing, strict=True)]
        return array.tolist()
    return list(array)


def class_codes(target: Any) -> Tensor | None:
    """Give codes of the classes of targets: of whole numbers, or of rows that are one at one place and zero elsewhere.

    None where the targets are no classes: other numbers, several per example, or nearly as many values as examples.

    >>> class_codes(torch.tensor([7, 3, 7, 7])), class_codes(torch.tensor([0.5, 1.5]))
    (tensor([1, 0, 1, 1]), None)
    """
    if not isinstance(target, Tensor) or target.is_complex() or not target.numel():
        return None
    target = target.detach().cpu()
    if target.ndim == 2 and target.shape[1] > 1:
        one_hot = bool(((target == 0) | (target == 1)).all()) and bool((target.sum(1) == 1).all())
        target = target.float().argmax(1) if one_hot else target
    if target.numel() != len(target):
        return None
    target = target.reshape(-1)
    if target.is_floating_point() and not bool(((target == 0) | (target == 1)).all()):
        return None
    values, codes = target.unique(return_inverse=True)
    return codes if len(values) <= max(2, len(target) // 4) else None
