"""Weight matching: the order of hidden units that brings one network nearest to another.

Networks that are alike but for the order of their hidden units compute the same, and lie far apart. With one group's order
free and the others fixed, the squared distance between the weights is least where a sum over pairs of units is largest: a
linear assignment. Group after group is assigned until nothing changes.

Source: Ainsworth, Hayase and Srinivasa 2022, arXiv:2209.04836, section 3.2. Here it is begun from several orders, the nearest
end is kept, and the first begins where all but one side of some weights is settled, as the inputs' are: so a network finds
back to its own permuted copy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from thalweg.landscape.hidden_units import Indices, UnitGroup, index_of, permuted

STARTS = 4
MOST_UNITS = 512  # of a group, for which it is begun from random orders too
MOST_ROUNDS = 50


def matched_orders(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], groups: Sequence[UnitGroup], *, seed: int = 0
) -> list[Indices]:
    """Give the order of the second network's hidden units that brings it nearest to the first; for `permuted`.

    Arguments:
        first, second: the weights by name, without buffers, of the same shapes.
        groups: of hidden units, as `hidden_units` finds them.
        seed: of the orders from which it is begun.

    The distance after it is never larger than before.
    """
    first, second = ({n: t.detach().float() for n, t in each.items()} for each in (first, second))
    random = np.random.default_rng(seed)
    as_they_are = [np.arange(group.units) for group in groups]
    begun = [_settled(first, second, groups), as_they_are]
    if all(group.units <= MOST_UNITS for group in groups):
        begun += [[random.permutation(group.units) for group in groups] for _ in range(STARTS - len(begun))]
    lengths = [math.sqrt(sum(float(t.double().square().sum()) for t in each.values())) for each in (first, second)]
    best, most = as_they_are, _product(first, second, groups, as_they_are)
    for start in begun:
        orders = _improved(first, second, groups, start, random)
        product = _product(first, second, groups, orders)
        if product > most * (1 + 1e-12 if most > 0 else 1 - 1e-12):
            best, most = orders, product
        if most >= math.prod(lengths) * (1 - 1e-12):
            break  # none is nearer than a copy
    return best


def _improved(
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    groups: Sequence[UnitGroup],
    orders: Sequence[Indices],
    random: np.random.Generator,
) -> list[Indices]:
    """Assign group after group, in random order, until none gets nearer."""
    orders = list(orders)
    for _ in range(MOST_ROUNDS):
        moved = False
        for number in random.permutation(len(groups)).tolist():
            group = groups[number]
            touched = {name for name, _ in group.places}
            ones = {n: t for n, t in first.items() if n in touched}
            others = {n: t for n, t in second.items() if n in touched}
            before = _product(ones, others, groups, orders)
            assigned = _assigned(_gains(ones, others, groups, orders, number))
            after = _product(ones, others, groups, [*orders[:number], assigned, *orders[number + 1 :]])
            # With both sides of a matrix in one group the assignment is of a first order only.
            if after > before + 1e-6 * abs(before):
                orders[number], moved = assigned, True
        if not moved:
            break
    return orders


def _settled(first: Mapping[str, Tensor], second: Mapping[str, Tensor], groups: Sequence[UnitGroup]) -> list[Indices]:
    """Assign first the groups whose weights' other sides are settled, by these weights alone, and so on from these."""
    orders = [np.arange(group.units) for group in groups]
    waiting = list(range(len(groups)))
    while waiting:
        open_keys = {key for number in waiting for key in groups[number].places}

        def is_settled(key: tuple[str, int], open_keys: set[tuple[str, int]] = open_keys) -> bool:
            return not any(name == key[0] and axis != key[1] for name, axis in open_keys)

        def share(number: int) -> float:
            sizes = {key: first[key[0]].numel() for key in groups[number].places if key[0] in first}
            known = sum(size for key, size in sizes.items() if is_settled(key) and first[key[0]].dim() > 1)
            return known / max(1, sum(sizes.values()))

        number = max(waiting, key=share)
        keys = {key for key in groups[number].places if is_settled(key)}
        orders[number] = _assigned(_gains(first, second, groups, orders, number, keys or None))
        waiting.remove(number)
    return orders


def _gains(
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    groups: Sequence[UnitGroup],
    orders: Sequence[Indices],
    number: int,
    keys: set[tuple[str, int]] | None = None,
) -> Tensor:
    """Give the product of the weights of each unit of the first network with those of each of the second."""
    group = groups[number]
    total = torch.zeros(group.units, group.units, dtype=torch.float64)
    index = index_of(second, groups, orders)
    for (name, axis), places in group.places.items():
        if name not in first or (keys is not None and (name, axis) not in keys):
            continue
        other = second[name]
        for side in range(other.dim()):
            if side != axis and (name, side) in index:
                other = other.index_select(side, torch.from_numpy(index[name, side]).to(other.device))
        at = torch.from_numpy(places.ravel()).to(other.device)
        rows = [each.movedim(axis, 0)[at].reshape(group.units, -1) for each in (first[name], other)]
        total += (rows[0] @ rows[1].T).double().cpu()
    return total


def _assigned(gains: Tensor) -> Indices:
    return np.asarray(linear_sum_assignment(gains.numpy(), maximize=True)[1], np.int64)


def _product(
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    groups: Sequence[UnitGroup],
    orders: Sequence[Indices],
) -> float:
    """Give the product of the first network's weights with the second's in an order: the more, the nearer they are."""
    moved = permuted(second, groups, orders)
    return sum(float((first[name] * moved[name]).double().sum()) for name in first)
