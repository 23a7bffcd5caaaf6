"""Opening a task's data for training: data in memory are cast, checked and moved to the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from thalweg.errors import DataError, few
from thalweg.sampling.batches import iterate_once
from thalweg.sampling.sources import (
    ItemSource,
    Source,
    StreamSource,
    TensorSource,
    leaves,
    nonfinite_rows,
    open_source,
    to_device,
    tree_map,
)

FIRST_BATCH_SIZE = 32  # more than one, for batch normalisation, and few, for speed


def open_data(
    data: Any,
    *,
    float_dtype: torch.dtype,
    device: torch.device,
    name: str,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    has_targets: bool = True,
) -> tuple[Source, list[str]]:
    """Open data; arrays and tensors are cast and moved to the device.

    Arguments:
        data: as `Task` takes them.
        float_dtype: dtype that floating-point data are cast to.
        device: device that data in memory are moved to.
        name: name of the data in messages.
        collate_fn: makes a batch of examples.
        has_targets: whether the last part is a target; whole numbers among targets become int64.

    Gives the source, and notes on casts that lose precision. Raises DataError as `open_source` does.
    """
    source = open_source(data, float_dtype=float_dtype, collate_fn=collate_fn, name=name)
    if not isinstance(source, TensorSource):
        return source, []
    notes = [f"`{name}` is float64 and was cast to the model's {float_dtype}."] if _is_wider(data, float_dtype) else []
    nest = source.nest
    if isinstance(nest, tuple) and len(nest) > 1 and has_targets:
        nest = (*nest[:-1], tree_map(_widen, nest[-1]))
    return TensorSource(to_device(nest, device)), notes


def _is_wider(data: Any, dtype: torch.dtype) -> bool:
    parts = data if isinstance(data, tuple) else (data,)
    return dtype != torch.float64 and any("float64" in str(getattr(part, "dtype", "")) for part in parts)


def _widen(target: Tensor) -> Tensor:
    # PyTorch's classification losses want class numbers as int64.
    return target.long() if target.dtype in (torch.int8, torch.int16, torch.int32, torch.uint8) else target


class NonFinite(NamedTuple):
    """Where data in memory hold NaN or infinity: in words, and the rows of the first part that does."""

    text: str
    rows: list[int]


def find_nonfinite(source: Source, name: str) -> NonFinite | None:
    """Look for NaN and infinity in data in memory; None where there are none, or the data are read one by one."""
    for part, leaf in enumerate(leaves(source.nest) if isinstance(source, TensorSource) else []):
        rows = nonfinite_rows(leaf)
        if rows:
            columns = (~torch.isfinite(leaf.reshape(len(leaf), -1))).any(0).nonzero().flatten().tolist()
            text = (
                f"`{name}` (part {part + 1}, shape {tuple(leaf.shape)}) has NaN or infinity in {len(rows)} of {len(leaf)} rows:"
                f" rows {few(rows)}, columns {few(columns)}"
            )
            return NonFinite(text, rows)
    return None


def first_batch(source: Source, device: torch.device, count: int = FIRST_BATCH_SIZE, *, own: bool | None = None) -> Any:
    """Give the first examples as a batch on the device: `count`, or with `own` as many as the user's loader puts together.

    `own=None`: as the loader does, unless another `count` than the usual one is asked for, as where memory runs out.

    Raises DataError where there are no examples.
    """
    own = count == FIRST_BATCH_SIZE if own is None else own
    batch, _ = next(iterate_once(source, count, own=own), (None, 0))
    if batch is None:
        name = source.name if isinstance(source, StreamSource) else "data"
        raise DataError(f"The stream `{name}` gave no batch. It must start again each time it is iterated over.")
    return to_device(batch, device)


def batch_of_rows(source: TensorSource, rows: list[int], count: int = FIRST_BATCH_SIZE) -> Any:
    """Give a batch of some of these rows and of other ones, as they come together in training."""
    chosen = rows[: max(1, count // 2)]
    others = [row for row in range(min(len(source), 2 * count)) if row not in set(chosen)][: count - len(chosen)]
    return source.take(torch.tensor([*chosen, *others]))


def spread_batch(source: TensorSource | ItemSource, device: torch.device, count: int = FIRST_BATCH_SIZE) -> Any:
    """Give a batch of as many examples as `first_batch` does, evenly from all over the data, which may lie sorted."""
    own = source.own_batches if isinstance(source, ItemSource) else None
    size = min(len(source), count if own is None else own.size)
    rows = torch.linspace(0, len(source) - 1, size).round().long().tolist()
    return in_parts(source, [rows], device)[0]


def in_parts(source: Source, parts: Sequence[Sequence[int]], device: torch.device) -> list[Any]:
    """Give these examples as batches, each put together on its own. Raises DataError for a stream."""
    if isinstance(source, StreamSource):
        raise DataError("A stream has no examples by their numbers.")
    if isinstance(source, TensorSource):
        return [source.take(torch.tensor(part)) for part in parts]
    loaded = source.load(([(0, index) for index in part] for part in parts), 0, 0)
    return [to_device(batch, device) for batch in loaded]
