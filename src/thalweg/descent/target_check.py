"""Targets of all data in memory, held to what the losses called on the first batch take."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from thalweg.errors import DataError
from thalweg.landscape.loss_calls import LossCalls
from thalweg.landscape.loss_contracts import LossCall, Misfit, misfits
from thalweg.landscape.objective import Objective
from thalweg.sampling import Source, TensorSource
from thalweg.sampling.sources import leaves


def check_targets(
    objective: Objective, model: nn.Module, source: Source, calls: Iterable[LossCall], count: int, data: str = ""
) -> list[str]:
    """Refuse targets with which the loss means nothing; give sentences about those with which it is odd.

    Arguments:
        objective: the loss, with the casts it needs.
        model: one that is thrown away.
        source: the data; where they are in memory all are looked at, else what the calls hold.
        calls: of PyTorch's losses, on the first batch.
        count: examples of that batch.
        data: words after a row's number: " of `validation`".

    Raises DataError that names a row.
    """
    notes: list[str] = []
    for call in calls:
        whole = _whole(call._replace(data=data), source, count)
        for misfit in misfits(call if whole is None else whole):
            if misfit.certain and (whole is None or _fails(objective, model, source, misfit, count)):
                raise DataError(misfit.message)
            if not misfit.certain:
                notes.append(misfit.message)
    return notes


def _whole(call: LossCall, source: Source, count: int) -> LossCall | None:
    """Give the call with the targets of all data, where its own are the first batch's, with another dtype or shape at most."""
    if not isinstance(source, TensorSource) or call.target.is_complex():
        return None
    for leaf in reversed(leaves(source.nest)):
        first = leaf[:count]
        if first.numel() != call.target.numel() or not _equal(first, call.target):
            continue
        rows = call.target.ndim and len(call.target) == len(first)
        target = leaf.reshape(len(leaf), *call.target.shape[1:]) if rows else leaf
        counts = None if call.counts is None else torch.ones((), device=leaf.device)  # `_fails` says which do
        return call._replace(target=target.to(call.target.dtype), counts=counts)
    return None


def _equal(first: Tensor, target: Tensor) -> bool:
    try:
        return torch.equal(_flat(first), _flat(target))
    except Exception:
        return False  # a target whose values cannot be looked at


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double().flatten()


def _fails(objective: Objective, model: nn.Module, source: Source, misfit: Misfit, count: int) -> bool:
    """Tell whether the loss is called with what does not fit on a batch with these rows: it may mend or mask them itself."""
    assert isinstance(source, TensorSource)
    others = [row for row in range(min(count, len(source))) if row not in set(misfit.rows)]
    rows = torch.tensor([*misfit.rows, *others][: min(count, len(source))])
    try:
        with LossCalls() as noted:
            loss, _ = objective.loss(model, source.take(rows))
    except DataError:
        return True
    except Exception:
        return False  # such a batch fails otherwise, so nothing is known
    return any(found.certain for call in noted.settle(loss) for found in misfits(call))
