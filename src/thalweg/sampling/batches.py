"""Batches in their order, from any position."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Iterator
from functools import cached_property
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from thalweg.errors import DataError
from thalweg.sampling.order import mix, order
from thalweg.sampling.sources import ItemSource, Source, StreamSource, TensorSource, leaves, seed_all


class Draw(NamedTuple):
    """The examples of one step: its micro-batches, how many examples each holds, and their indices where they have any."""

    parts: list[Any]
    sizes: list[int]
    indices: Tensor | None


class Batches:
    """Draws one step's examples after another; `position` says where it is, and setting it takes it anywhere.

    Arguments:
        source: from `open_source`.
        batch_size: examples a step; None: all of them.
        accumulate: micro-batches a step.
        seed: the order is a function of it and the epoch.
        shuffle, replacement, weights, drop_last, rank, world: see `order`.
        workers: loader processes for indexed data and streams.
        recent: of a stream, how many of this epoch's last draws are kept in `recent`. One that keeps its place itself is not
            gone through again to a position, so there it is the last draw alone.

    Raises DataError where a batch is larger than the data, or weights do not fit them.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int | None,
        *,
        seed: int,
        accumulate: int = 1,
        shuffle: bool = True,
        replacement: bool = False,
        weights: Tensor | None = None,
        drop_last: bool = False,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        recent: int = 0,
    ) -> None:
        self.source, self.seed, self.accumulate, self.workers = source, seed, accumulate, workers
        self.shuffle, self.replacement, self.weights, self.drop_last = shuffle, replacement, weights, drop_last
        self.rank, self.world = rank, world
        check_weights(weights, source)
        self.batch_size = self._settle_batch_size(batch_size)
        self.steps_per_epoch = self._count_steps()
        self.epoch, self.within = 0, 0  # `within`: steps already drawn from this epoch
        kept = min(recent, 1) if isinstance(source, StreamSource) and source.stateful else recent
        self.recent = deque[Draw](maxlen=kept)
        self._order: tuple[int, Tensor] | None = None
        self._feed: Generator[Any] | None = None

    def draw(self) -> Draw:
        """Give the next step's examples."""
        if isinstance(self.source, TensorSource):
            drawn = self._slice(self.source)
        elif isinstance(self.source, ItemSource):
            drawn = self._load(self.source)
        else:
            drawn = self._stream(self.source)
            self.recent.append(drawn)
            return drawn
        self.within += 1
        if self.within == self.steps_per_epoch:
            self.epoch, self.within = self.epoch + 1, 0
        return drawn

    def indices(self, epoch: int, within: int) -> Tensor:
        """Give the indices of one step."""
        if self._order is None or self._order[0] != epoch:
            options = {"shuffle": self.shuffle and not self.whole, "replacement": self.replacement}
            shares = {"weights": self.weights, "rank": self.rank, "world": self.world}
            self._order = (epoch, order(self._length(), self.seed, epoch, **options, **cast(Any, shares)))
        start = within * self.batch_size
        return self._order[1][start : start + self.batch_size]

    @cached_property
    def whole(self) -> bool:
        """Whether every step sees the whole data set: plain (batch) gradient descent."""
        plain = not (self.replacement or self.weights is not None or isinstance(self.source, StreamSource))
        return plain and self.batch_size == self._length()

    def state_dict(self) -> dict[str, Any]:
        """Give the position as plain values."""
        state: dict[str, Any] = {"epoch": self.epoch, "within": self.within}
        if isinstance(self.source, StreamSource) and self.source.stateful and self._feed is not None:
            state["loader"] = self.source.batches.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position."""
        self.close()
        self.recent.clear()
        self.epoch, self.within = state["epoch"], state["within"]
        if isinstance(self.source, StreamSource):
            if "loader" in state:
                self.source.batches.load_state_dict(state["loader"])
                self._feed = self._open_stream(self.source)
            else:
                self._fast_forward(self.source)

    @property
    def can_split(self) -> bool:
        """Whether steps can be cut into more micro-batches."""
        return self.micro > 1 and not isinstance(self.source, StreamSource)

    def split(self, accumulate: int, place: tuple[int, int]) -> None:
        """Cut steps into more micro-batches from a place (epoch, within) on; the examples of a step stay the same."""
        self.accumulate = accumulate
        self.load_state_dict({"epoch": place[0], "within": place[1]})

    def close(self) -> None:
        """End loader workers."""
        if self._feed is not None:
            self._feed.close()
        self._feed = None

    def _length(self) -> int:
        return len(cast("TensorSource | ItemSource", self.source))

    def _settle_batch_size(self, batch_size: int | None) -> int:
        if isinstance(self.source, StreamSource):
            own = self.source.batch_size
            return (own or batch_size or 1) if own is None else own * self.accumulate
        count = self._length()
        if batch_size is not None and batch_size > count:
            raise DataError(
                f"The batch size is {batch_size}, but the data have {count} examples. Give at most {count}, or None for all."
            )
        return count if batch_size is None else batch_size

    def _count_steps(self) -> int | None:
        if isinstance(self.source, StreamSource):
            count = self.source.count()
            if count is None:
                return None
            if self.source.batch_size is None and isinstance(self.source.batches, IterableDataset):
                count = math.ceil(count / self.micro)  # such a data set counts examples, not batches
            return max(1, math.ceil(count / self.accumulate))
        share = math.ceil(self._length() / self.world)
        return max(1, share // self.batch_size if self.drop_last else math.ceil(share / self.batch_size))

    @property
    def micro(self) -> int:
        """Examples a micro-batch."""
        return math.ceil(self.batch_size / self.accumulate)

    def _slice(self, source: TensorSource) -> Draw:
        if self.whole and self.accumulate == 1:
            return Draw([source.take(slice(None))], [source.length], None)
        indices = self.indices(self.epoch, self.within)
        if self.accumulate == 1:
            return Draw([source.take(indices)], [len(indices)], indices)
        lots = indices.split(self.micro)
        return Draw([source.take(lot) for lot in lots], [len(lot) for lot in lots], indices)

    def _load(self, source: ItemSource) -> Draw:
        indices = self.indices(self.epoch, self.within)
        sizes = [len(lot) for lot in indices.split(self.micro)]
        if self._feed is None:
            self._feed = source.feed(self._lots(self.epoch, self.within), self.seed, self.workers)
        return Draw([next(self._feed) for _ in sizes], sizes, indices)

    def _lots(self, epoch: int, within: int) -> Iterator[list[tuple[int, int]]]:
        # Runs ahead of the training by the loader's prefetching, so it must not touch the position or the cached order.
        ahead = Batches.__new__(Batches)
        ahead.__dict__.update(self.__dict__)
        while True:
            for lot in ahead.indices(epoch, within).split(self.micro):
                yield [(epoch, index) for index in lot.tolist()]
            within += 1
            if within == self.steps_per_epoch:
                epoch, within = epoch + 1, 0

    def _stream(self, source: StreamSource) -> Draw:
        if self._feed is None:
            self._feed = self._open_stream(source)
            self.recent.clear()  # so that going to a position fills it as the way there did
        parts = list(self._take(self._feed))
        if not parts and self.within == 0:
            raise DataError(
                f"The data stream gave no batch in epoch {self.epoch + 1}. It must start anew each time it is gone through:"
                f" give an object whose __iter__ makes a fresh iterator, or an endless one."
            )
        self.within += 1
        if not parts or self.within == self.steps_per_epoch:
            self.epoch, self.within, self._feed = self.epoch + 1, 0, None
        return Draw(parts, [_rows(part) for part in parts], None) if parts else self._stream(source)

    def _take(self, feed: Iterator[Any]) -> Iterator[Any]:
        for part in range(self.accumulate):
            seed_all(mix(self.seed, self.epoch, self.within, part))  # fast-forwarding draws the same random numbers
            try:
                yield next(feed)
            except StopIteration:
                return

    def _open_stream(self, source: StreamSource) -> Generator[Any]:
        return source.open(self.epoch, mix(self.seed, self.epoch), self.micro, self.workers)

    def _fast_forward(self, source: StreamSource) -> None:
        aim, self.within = self.within, 0
        while self.within < aim:
            self.recent.append(self._stream(source))


def check_weights(weights: Tensor | None, source: Source) -> None:
    """Refuse weights that do not fit the data. Raises DataError."""
    if weights is None:
        return
    if isinstance(source, StreamSource):
        raise DataError(
            "`weights` choose examples by index, which a stream has not. Leave them out, or give indexed data."
        )
    if weights.shape != (len(source),):
        raise DataError(
            f"`weights` has the shape {tuple(weights.shape)}, but the data have {len(source)} examples: give one each."
        )
    wrong = ~(torch.isfinite(weights) & (weights >= 0))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise DataError(f"`weights` is {float(weights[row])} in row {row}. Weights are finite and not negative.")
    if not weights.any():
        raise DataError("`weights` are all zero, so no example can be drawn. Give some of them a weight.")


def smallest_part(count: int, batch_size: int, accumulate: int) -> int:
    """Give the examples of the smallest micro-batch of an epoch.

    >>> smallest_part(100, 64, 1), smallest_part(65, 32, 1), smallest_part(64, 32, 1), smallest_part(100, 34, 2)
    (36, 1, 32, 15)
    """
    micro = math.ceil(batch_size / accumulate)
    last = count % batch_size or batch_size
    return min(last % micro or micro, batch_size % micro or micro)


def once(source: Source, micro: int) -> Iterator[tuple[Any, int]]:
    """Go through all examples once, in their own order, as (batch, number of examples)."""
    if isinstance(source, StreamSource):
        for batch in source.open(0, 0, micro, 0):
            yield batch, _rows(batch)
        return
    starts = range(0, len(source), micro)
    sizes = [min(micro, len(source) - start) for start in starts]
    if isinstance(source, TensorSource):
        for start, size in zip(starts, sizes, strict=True):
            yield source.take(slice(start, start + size)), size
    else:
        lots = ([(0, index) for index in range(start, start + size)] for start, size in zip(starts, sizes, strict=True))
        yield from zip(source.feed(lots, 0, 0), sizes, strict=True)


def _rows(batch: Any) -> int:
    """Count the examples of a batch by its first tensor's first dimension; one whose target is a single number is one."""
    found = leaves(batch)
    return len(found[0]) if found and found[0].ndim and found[-1].ndim else 1
