"""Draws the batches of a run in their order, from any position."""

from __future__ import annotations

import copy
import math
from collections import Counter, deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from thalweg.errors import DataError
from thalweg.sampling.order import mix, order
from thalweg.sampling.reading import describe_error
from thalweg.sampling.sources import ItemSource, Source, StreamSource, TensorSource, is_open, leaves, seed_all

MOST_BYTES = 1 << 28  # of a stream's batches that are kept


class Draw(NamedTuple):
    """The examples of one step: its micro-batches, the number of examples in each, and the indices of all, except of a stream.

    `rows`: where these count within a part of the user's data, the number of each example of that part there. `batches`: how many
    batches these examples are, where cures put several together.
    """

    parts: list[Any]
    sizes: list[int]
    indices: Tensor | None
    rows: Tensor | None = None
    batches: int = 1

    def numbers(self, positions: Sequence[int]) -> tuple[int, ...]:
        """Give the numbers in the user's data of some examples of the step, by their positions in it; of a stream nothing."""
        if self.indices is None and self.rows is None:
            return ()
        indices = [p if self.indices is None else int(self.indices[p]) for p in positions]
        return tuple(indices if self.rows is None else (int(self.rows[index]) for index in indices))


def joined(draws: Sequence[Draw]) -> Draw:
    """Give the examples of several batches as those of one step."""
    if len(draws) == 1:
        return draws[0]
    indices = [draw.indices for draw in draws if draw.indices is not None]
    return Draw(
        [part for draw in draws for part in draw.parts],
        [size for draw in draws for size in draw.sizes],
        torch.cat(indices) if len(indices) == len(draws) else None,
        draws[0].rows,
        sum(draw.batches for draw in draws),
    )


class _Ahead(NamedTuple):
    """The micro-batches of a loader's next step, none at the end of its pass, or what reading them raised; and its state before
    them, at the end of a pass after that end."""

    parts: list[Any]
    error: Exception | None
    state: Any

    @property
    def is_end(self) -> bool:
        """Whether the pass has no further batch."""
        return not self.parts and self.error is None


class Batches:
    """Draws the examples of one step after another.

    The position is `epoch` and `within`, the steps already drawn from that epoch; `load_state_dict` goes to any position.

    Arguments:
        source: from `open_source`.
        batch_size: examples per step; None: all of them.
        accumulate: micro-batches per step.
        seed: the order is a function of it and the epoch.
        drop_last: leave out an epoch's last batch where it is smaller than the others.
        shuffle, replacement, weights, rank, world: see `order`.
        workers: loader processes for indexed data and streams.
        recent: how many of a stream's last draws of this epoch to hold in `recent`, so that a run can repeat its last steps. At
            most one for a loader with a `state_dict`: going to a position does not read its earlier batches again.

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
        self.batch_size = self._checked_batch_size(batch_size)
        self.steps_per_epoch = self._count_steps()
        self.epoch, self.within = 0, 0
        self.recent = deque[Draw](
            maxlen=min(recent, 1) if isinstance(source, StreamSource) and source.stateful else recent
        )
        self.length_note: str | None = None  # set once, where a stream does not give as many batches as its `len` says
        self._last_epoch = 0  # steps of the epoch of a stream that ended last
        self.left_out = list[int]()  # indices of examples that are in no batch any more
        self._left_out = torch.empty(0, dtype=torch.long)  # the same
        self._order: tuple[int, Tensor] | None = None  # (epoch, its indices)
        self._goes_on = False  # from the place that a loader's state has, instead of the start of an epoch
        self._at_end = False  # a loader's state is that of the end of a pass
        self._at_end_of_pass = False  # the same, where the pass has yet to be seen to end, by the next draw
        self._loaded: Generator[Any] | None = None  # the next micro-batches, from a loader or a stream
        self._final: dict[str, Any] | None = None  # the position of a run that is over
        self._carried: dict[str, Any] = {}  # what a stream's objects carried when its present epoch began
        self._ahead: _Ahead | None = None  # what a loader with a state gives next, once its state was asked for

    def draw(self) -> Draw:
        """Give the next step's examples."""
        self.pass_left_out()
        if isinstance(self.source, TensorSource):
            drawn = self._slice(self.source)
        elif isinstance(self.source, ItemSource):
            drawn = self._load(self.source)
        else:
            drawn = self._stream(self.source)
            self.recent.append(drawn)
            self._compare_length(self.source)
            return drawn
        self.within += 1
        if self.within == self.steps_per_epoch:
            self.epoch, self.within = self.epoch + 1, 0
        return drawn

    def pass_left_out(self) -> None:
        """Go on to the next batch of which not all examples are left out."""
        if self.left_out and self.can_leave_out:
            self.epoch, self.within = self._next_position(self.epoch, self.within)

    def _next_position(self, epoch: int, within: int) -> tuple[int, int]:
        """Give the first position from here on of which not all examples are left out; where a whole epoch's are, this one."""
        at, per_epoch = (epoch, within), self.steps_per_epoch or 1
        for _ in range(per_epoch if self.left_out else 0):
            if len(self._kept(*at)):
                return at
            at = (at[0], at[1] + 1) if at[1] + 1 < per_epoch else (at[0] + 1, 0)
        return epoch, within

    def indices(self, epoch: int, within: int) -> Tensor:
        """Give the indices of one step; where all of them are left out, they are there all the same."""
        kept = self._kept(epoch, within)
        return kept if len(kept) else self._drawn(epoch, within)

    def _drawn(self, epoch: int, within: int) -> Tensor:
        """Give the indices of one step, those that are left out too."""
        if self._order is None or self._order[0] != epoch:
            options = {"shuffle": self.shuffle and not self.is_full_batch, "replacement": self.replacement}
            shares = {"weights": self.weights, "rank": self.rank, "world": self.world}
            self._order = (epoch, order(self._length(), self.seed, epoch, **options, **cast(Any, shares)))
        start = within * self.batch_size
        return self._order[1][start : start + self.batch_size]

    def _kept(self, epoch: int, within: int) -> Tensor:
        indices = self._drawn(epoch, within)
        return indices[~torch.isin(indices, self._left_out)] if self.left_out else indices

    @cached_property
    def is_full_batch(self) -> bool:
        """Whether every step uses the whole data set, each example once."""
        without_repeats = not (self.replacement or self.weights is not None or isinstance(self.source, StreamSource))
        return without_repeats and self.batch_size == self._length()

    def state_dict(self, *, is_over: bool = False) -> dict[str, Any]:
        """Give the position: two integers, and the loader's own state where it has one.

        `is_over`: nothing more will be drawn, so nothing is read ahead, which a stream might never give.
        """
        if self._final is not None:
            return copy.deepcopy(self._final)
        state: dict[str, Any] = {"epoch": self.epoch, "within": self.within}
        if isinstance(self.source, StreamSource) and self.source.stateful:
            ahead = self._ahead if is_over else self._look_ahead(self.source)
            loader = self.source.batches.state_dict() if ahead is None else copy.deepcopy(ahead.state)
            state |= {"loader": loader, "begun": self._loaded is not None}
            state |= {"length": self._last_epoch} if self._last_epoch else {}
            state |= {"ended": ahead.is_end} if ahead is not None else {}
        elif isinstance(self.source, StreamSource):
            carried = self._carried if self.within else self.source.objects.read()  # also once the pass is closed
            state |= {"carried": carried} if carried else {}
        return state

    def load_state_dict(self, state: dict[str, Any], *, is_over: bool = False) -> None:
        """Go to a position. Raises DataError where a stream ends before it, or a loader does not take its state.

        `is_over`: nothing will be drawn. A loader with a `state_dict` then stays as it is: one that was given a place, and is not
        read from there, would begin the next pass over it, of another run say, at that place.
        """
        self._end_pass()
        self._final = copy.deepcopy(state) if is_over and "loader" in state else None
        self._goes_on = self._at_end = self._at_end_of_pass = False
        self.recent.clear()
        self.epoch, self.within = state["epoch"], state["within"]
        if isinstance(self.source, StreamSource):
            if self._final is not None:
                return
            if "loader" in state:
                begun = state.get("begun", True) or self.within > 0
                self._last_epoch = state.get("length", 0)
                by_length = self.within > 0 and self.within == (self._last_epoch or self.steps_per_epoch)
                ended = state.get("ended", by_length)
                if begun or self.epoch:  # before the first pass, its place is the one that a rehearsal left it at
                    _load_state(self.source, state["loader"])
                self._goes_on, self._at_end = begun and not ended, not begun and self.epoch > 0
                self._loaded = self._open_stream(self.source) if self._goes_on else None
                if ended:  # Of such a place some loaders begin the next pass, where others give no batch.
                    self._loaded, self._at_end_of_pass = _no_batches(), True
            else:
                self.source.objects.write(state.get("carried", {}))
                self._fast_forward(self.source)

    @property
    def unkept(self) -> Mapping[str, str]:
        """What of a stream no state can hold, such as an iterator that it reads on in: paths, each with what is there."""
        return self.source.objects.problems if isinstance(self.source, StreamSource) else {}

    @property
    def can_split(self) -> bool:
        """Whether steps can be cut into more micro-batches."""
        return self.micro_batch_size > 1 and not isinstance(self.source, StreamSource)

    def split(self, accumulate: int, position: tuple[int, int]) -> None:
        """Cut steps into more micro-batches from a position (epoch, within) on; the examples of a step stay the same."""
        self.accumulate = accumulate
        self.load_state_dict({"epoch": position[0], "within": position[1]})

    @property
    def can_leave_out(self) -> bool:
        """Whether single examples can be left out: they are known by their indices."""
        return not isinstance(self.source, StreamSource)

    def leave_out(self, indices: Sequence[int]) -> None:
        """Leave these examples out of the batches from here on, and no others."""
        if self.left_out != list(indices):
            self.left_out, self._left_out = list(indices), torch.tensor(list(indices), dtype=torch.long)
            self._end_pass()  # what was read ahead may hold them

    def close(self, *, goes_on: bool = False) -> None:
        """End loader workers. `goes_on`: the position will be asked for, to go on from it."""
        if goes_on and isinstance(self.source, StreamSource) and self.source.stateful:
            self._look_ahead(self.source)
        if self._loaded is not None:
            self._loaded.close()
        self._loaded = None

    def _end_pass(self) -> None:
        """End loader workers, to go to another position."""
        if self._loaded is not None:
            self._loaded.close()
        self._loaded = self._ahead = None

    def _look_ahead(self, source: StreamSource) -> _Ahead | None:
        """Read what a loader with a state gives next, and keep it for the next draw; None where that is not within a pass.

        Only so can its state be told from that of a pass that is at its end: of that place some loaders begin this pass anew,
        others the next, and others give no batch.
        """
        if self._ahead is None and self.within and self._loaded is not None and is_open(self._loaded):
            before, parts, failed = copy.deepcopy(source.batches.state_dict()), list[Any](), None
            try:
                parts = list(self._next_parts(self._loaded))
            except Exception as error:  # where it is drawn
                failed = error
            is_end = not parts and failed is None and not self._at_end_of_pass
            self._ahead = _Ahead(parts, failed, copy.deepcopy(source.batches.state_dict()) if is_end else before)
        return self._ahead

    def _length(self) -> int:
        return len(cast("TensorSource | ItemSource", self.source))

    def _checked_batch_size(self, batch_size: int | None) -> int:
        if isinstance(self.source, StreamSource):
            loader_size = self.source.batch_size
            return batch_size or 1 if loader_size is None else loader_size * self.accumulate
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
                count = math.ceil(count / self.micro_batch_size)  # such a data set counts examples, not batches
            return max(1, math.ceil(count / self.accumulate))
        own = math.ceil(self._length() / self.world)  # examples of this process
        return max(1, own // self.batch_size if self.drop_last else math.ceil(own / self.batch_size))

    @property
    def micro_batch_size(self) -> int:
        """Examples per micro-batch."""
        return math.ceil(self.batch_size / self.accumulate)

    def _slice(self, source: TensorSource) -> Draw:
        if self.is_full_batch and self.accumulate == 1 and not self.left_out:
            return Draw([source.take(slice(None))], [source.length], None, source.rows)
        indices = self.indices(self.epoch, self.within)
        if self.accumulate == 1:
            return Draw([source.take(indices)], [len(indices)], indices, source.rows)
        parts = indices.split(self.micro_batch_size)
        return Draw([source.take(part) for part in parts], [len(part) for part in parts], indices, source.rows)

    def _load(self, source: ItemSource) -> Draw:
        indices = self.indices(self.epoch, self.within)
        sizes = [len(part) for part in indices.split(self.micro_batch_size)]
        if self._loaded is None:
            self._loaded = source.load(self._index_lists(self.epoch, self.within), self.seed, self.workers)
        return Draw([next(self._loaded) for _ in sizes], sizes, indices, source.rows)

    def _index_lists(self, epoch: int, within: int) -> Iterator[list[tuple[int, int]]]:
        """Give the (epoch, index) pairs of one micro-batch after another, from a position on, without end."""
        # A loader that prefetches asks for later epochs than the training is in. So this works on a shallow copy: `indices`
        # caches one epoch's order, and caching a later one here would have the training compute its own again at each step.
        ahead = copy.copy(self)
        while True:
            epoch, within = ahead._next_position(epoch, within)
            for part in ahead.indices(epoch, within).split(self.micro_batch_size):
                yield [(epoch, index) for index in part.tolist()]
            within += 1
            if within == self.steps_per_epoch:
                epoch, within = epoch + 1, 0

    def _stream(self, source: StreamSource) -> Draw:
        if self._loaded is None:
            self._loaded = self._open_stream(source)
            self.recent.clear()  # holds draws of this epoch alone, which `_fast_forward` makes again
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead.error is not None:
            raise ahead.error
        parts = list(self._next_parts(self._loaded)) if ahead is None else ahead.parts
        at_end, self._at_end = self._at_end, False
        if not parts and at_end:  # the loader takes its place for one within the pass that has ended
            self._loaded = None
            return self._stream(source)
        if not parts and self.within == 0:
            raise DataError(
                f"The data stream gave no batch in epoch {self.epoch + 1}. It must start again each time it is iterated over:"
                f" give an object whose __iter__ makes a fresh iterator, or an endless one."
            )
        if not parts:
            self._end_epoch()
            return self._stream(source)
        self.within += 1
        if len(parts) < self.accumulate:  # it has ended already
            self._end_epoch()
        return Draw(parts, [count_examples(part) for part in parts], None)

    def _end_epoch(self) -> None:
        self._last_epoch = self.within
        self._at_end, self._at_end_of_pass = self._at_end_of_pass, False
        self.epoch, self.within, self._loaded = self.epoch + 1, 0, None

    def _compare_length(self, source: StreamSource) -> None:
        """Note where a stream goes on past its `len`, or ended before it: the stream is read to its end, whatever `len` says.

        Only two positions of a run can set the note, so that a run that goes on from a later one does not repeat it.
        """
        expected, drawn = self.steps_per_epoch, None
        if expected is not None and (self.epoch, self.within) == (0, expected + 1):
            drawn = f"more than {expected:,}"
        elif expected is not None and (self.epoch, self.within) == (1, 1) and self._last_epoch < expected:
            drawn = f"{self._last_epoch:,}"
        if drawn is not None:
            self.length_note = (
                f"`{source.name}` gave {drawn} steps in its first epoch, but its len() says {expected:,}. It is read to its end;"
                f" the budget and the schedule count an epoch as {expected:,} steps. Give steps= for an exact number."
            )

    def _next_parts(self, stream: Iterator[Any]) -> Iterator[Any]:
        """Give the micro-batches of the next step: fewer than `accumulate`, or none, where the stream ends."""
        for part in range(self.accumulate):
            seed_all(
                mix(self.seed, self.epoch, self.within, part)
            )  # so that `_fast_forward` draws the same random numbers
            try:
                yield next(stream)
            except StopIteration:
                return

    def _open_stream(self, source: StreamSource) -> Generator[Any]:
        seed = mix(self.seed, self.epoch)
        self._carried = source.objects.read()
        go_on, self._goes_on = self._goes_on, False
        opened = source.open(self.epoch, seed, self.micro_batch_size, self.workers, self.drop_last, go_on=go_on)
        return source.reads_for_training(opened)

    def _fast_forward(self, source: StreamSource) -> None:
        """Read a stream from the start of its epoch up to the position. Raises DataError where it ends before."""
        epoch, target, self.within = self.epoch, self.within, 0
        for step in range(target):
            drawn = self._stream(source)
            if (self.epoch, self.within) != (epoch, step + 1) and not (step + 1 == target and self.within == 0):
                given = step + (self.within == 0)
                raise DataError(
                    f"`{source.name}` gave {given:,} steps when epoch {epoch + 1} was read again, but {target:,} of it were taken"
                    f" before: it is shorter now, or gives other data. Give the data that the run began with, or start a new run."
                )
            self.recent.append(drawn)


def _no_batches() -> Generator[Any]:
    """Give a pass that is at its end."""
    yield from ()


def _load_state(source: StreamSource, state: Any) -> None:
    try:
        source.batches.load_state_dict(state)
    except Exception as error:
        raise DataError(
            f"`{source.name}` does not take the state that it gave when the run was saved: {describe_error(error)}. Give the"
            f" loader that the run began with."
        ) from error


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
            f"`weights` has the shape {tuple(weights.shape)}, but the data have {len(source)} examples: give one weight for each."
        )
    invalid = ~(torch.isfinite(weights) & (weights >= 0))
    if invalid.any():
        row = int(invalid.nonzero()[0])
        raise DataError(f"`weights` is {float(weights[row])} in row {row}. Weights are finite and not negative.")
    if not weights.any():
        raise DataError("`weights` are all zero, so no example can be drawn. Give some of them a weight.")


def smallest_part(count: int, batch_size: int, accumulate: int) -> int:
    """Give the number of examples in the smallest micro-batch of an epoch.

    >>> smallest_part(100, 64, 1), smallest_part(65, 32, 1), smallest_part(64, 32, 1), smallest_part(100, 34, 2)
    (36, 1, 32, 15)
    """
    micro = math.ceil(batch_size / accumulate)
    last = count % batch_size or batch_size
    return min(last % micro or micro, batch_size % micro or micro)


def iterate_once(source: Source, size: int, *, own: bool = True, shuffle: bool = False) -> Iterator[tuple[Any, int]]:
    """Go through all examples once: pairs (batch, number of examples).

    Batches of `size` examples in the order of the data. Those of a user's loader have the loader's own size and `drop_last` and,
    where it shuffles, an order that is always the same one; with `own=False` its examples too come in batches of `size`. With
    `shuffle` other examples come in such an order too.
    """
    if isinstance(source, StreamSource):
        with source.objects.unchanged():
            for batch in source.open(0, 0, size, 0):
                yield batch, count_examples(batch)
        return
    parts = list(_positions(source, size, own, shuffle))
    if isinstance(source, TensorSource):
        for part in parts:
            yield source.take(part if shuffle else slice(int(part[0]), int(part[-1]) + 1)), len(part)
    else:
        loaded = source.load(([(0, index) for index in part.tolist()] for part in parts), 0, 0)
        yield from zip(loaded, map(len, parts), strict=True)


def hold(source: StreamSource, size: int, count: int) -> list[tuple[Any, int]]:
    """Give the first batches of a stream, as `iterate_once` does: `count` examples or a little more, read once and kept.

    To be called before training reads the stream: another pass over a loader that keeps its workers, draws from its generator as
    it goes or has a state would end or change that of training. Where they take much memory, there are fewer.
    """
    key = size if source.batch_size is None else None  # a loader has batches of its own
    if key not in source.held:
        seed_all(mix(0, size))
        held, examples, numbers = list[tuple[Any, int]](), 0, 0
        for batch, examples_of_batch in iterate_once(source, size):
            held.append((batch, examples_of_batch))
            examples += examples_of_batch
            numbers += sum(leaf.nbytes for leaf in leaves(batch))
            if examples >= count or numbers >= MOST_BYTES:
                break
        source.held[key] = held
    return source.held[key]


def _positions(source: TensorSource | ItemSource, size: int, own: bool, shuffle: bool) -> Iterator[Tensor]:
    """Give the indices of each batch of one pass over the data."""
    batches = source.own_batches if own and isinstance(source, ItemSource) else None
    size = size if batches is None else batches.size
    indices = order(len(source), 0, 0, shuffle=shuffle if batches is None else batches.shuffle)
    for part in indices.split(size):
        if len(part) == size or batches is None or not batches.drop_last:
            yield part


def count_examples(batch: Any) -> int:
    """Count the examples of a batch that a loader made.

    Of its tensors most have one row per example. Where as many have one length as another (pieces laid end to end with their
    offsets, targets of all time steps in one row), the shorter counts. 1 where the last tensor, the target, is a single number.

    >>> count_examples((torch.zeros(8, 3), torch.zeros(8))), count_examples((torch.zeros(30), torch.zeros(4), torch.zeros(4)))
    (8, 4)
    """
    tensors = leaves(batch)
    if not tensors or not tensors[-1].ndim:
        return 1
    lengths = Counter(len(tensor) for tensor in tensors if tensor.ndim)
    return max(lengths, key=lambda length: (lengths[length], -length))
