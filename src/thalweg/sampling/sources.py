"""Where examples come from: tensors in memory, a data set by index, or a stream."""

from __future__ import annotations

import copy
import hashlib
import multiprocessing
import pickle
import weakref
from collections import UserDict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from inspect import GEN_CLOSED, getgeneratorstate
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler

from thalweg.errors import DataError
from thalweg.objects.state import ObjectState
from thalweg.sampling.arrays import as_tensor
from thalweg.sampling.inherited import part_from_parent
from thalweg.sampling.order import mix
from thalweg.sampling.reading import Collate, Collator, SeededItems, start_iterator, with_data_errors
from thalweg.sampling.seeds import seed_all

Resume = Literal["exact", "state_dict", "fast-forward"]
"""How a source goes to a position: by index, by the loader's own state, or by reading its epoch again up to there."""


class TensorSource:
    """Examples in memory: a nest of tensors that share their first dimension. Batches are slices.

    `rows`: where it holds a part of the user's data, the number of each of its examples there. The memory is shared.
    """

    resume: Resume = "exact"

    def __init__(self, nest: Any, name: str = "data", rows: Tensor | None = None) -> None:
        self.nest = nest
        self.rows = rows
        lengths = {len(leaf) for leaf in leaves(nest)}
        if not lengths:
            raise DataError(f"`{name}` is empty: it has no array. Give (x, y).")
        if len(lengths) > 1:
            shapes = [tuple(leaf.shape) for leaf in leaves(nest)]
            raise DataError(
                f"The parts of `{name}` have different lengths: shapes {shapes}. The first dimension counts examples and"
                f" must be the same in all."
            )
        self.length = lengths.pop() if rows is None else len(rows)
        # For the usual tuple (x, y) on the CPU, `take` needs no `tree_map`.
        self.is_cpu_tuple = type(nest) is tuple and all(
            isinstance(part, Tensor) and part.device.type == "cpu" for part in nest
        )

    def __len__(self) -> int:
        return self.length

    def part(self, positions: Tensor) -> TensorSource:
        """Give the examples at these positions as a source of their own."""
        return TensorSource(self.nest, rows=positions if self.rows is None else self.rows[positions])

    def tensors(self) -> list[Tensor]:
        """Give the tensors of the nest; of a part of the data a copy of its rows."""
        return leaves(self.nest if self.rows is None else self.take(slice(None)))

    def take(self, indices: Tensor | slice) -> Any:
        """Give the examples at `indices` as one batch: copies, since a model may change its input in place."""
        if self.rows is not None:
            indices = self.rows[indices] if isinstance(indices, slice) else self.rows.index_select(0, indices.cpu())
        if self.is_cpu_tuple and not isinstance(indices, slice):
            return tuple([leaf.index_select(0, indices) for leaf in self.nest])
        if isinstance(indices, slice):
            return tree_map(lambda leaf: leaf[indices].clone(), self.nest)
        return tree_map(lambda leaf: leaf.index_select(0, indices.to(leaf.device)), self.nest)


class OwnBatches(NamedTuple):
    """How a user's loader cuts its data into batches."""

    size: int
    drop_last: bool = False
    shuffle: bool = False


class ItemSource:
    """Examples by index from a `Dataset` or a sequence, collated by `collate_fn`, with loader workers if wanted.

    `own_batches`: those of the user's loader, where the data came with one. `rows`: where it holds a part of the user's data, the
    number of each of its examples there. `loader`: further arguments for the `DataLoader` that reads them.
    """

    resume: Resume = "exact"

    def __init__(
        self,
        items: Any,
        collate_fn: Collate | None = None,
        *,
        name: str = "data",
        own_batches: OwnBatches | None = None,
        rows: Tensor | None = None,
        **loader: Any,
    ) -> None:
        self.items = items
        self.rows = rows
        self.name = name
        self.collator = Collator(collate_fn, name)
        self.own_batches = own_batches
        self.loader = loader

    def __len__(self) -> int:
        return len(self.items) if self.rows is None else len(self.rows)

    def part(self, positions: Tensor) -> ItemSource:
        """Give the examples at these positions as a source of their own."""
        part = copy.copy(self)
        part.rows = positions if self.rows is None else self.rows[positions]
        return part

    def number(self, position: int) -> int:
        """Give the number of an example in the user's data."""
        return position if self.rows is None else int(self.rows[position])

    def load(self, batches: Iterator[list[tuple[int, int]]], seed: int, workers: int) -> Generator[Any]:
        """Load one batch for each list of (epoch, index) pairs, in their order."""
        if self.rows is not None:
            batches = ([(epoch, self.number(index)) for epoch, index in batch] for batch in batches)
        sampler = cast("BatchSampler", _Iterable(batches))
        needs_workers = ("prefetch_factor", "multiprocessing_context", "timeout")
        options = {key: value for key, value in self.loader.items() if workers or key not in needs_workers}
        if workers and _forks(options.get("multiprocessing_context")):
            own = options.get("worker_init_fn")
            options["worker_init_fn"] = _BeginWorker(own, ends_connections=self.own_batches is None)
        loader = DataLoader(
            cast("Dataset[Any]", SeededItems(self.items, seed, self.name)),
            batch_sampler=sampler,
            collate_fn=self.collator,
            num_workers=workers,
            # Without this a loader draws its seed from the global generator.
            generator=torch.Generator().manual_seed(mix(seed, 0)),
            **options,
        )
        return with_data_errors(start_iterator(loader, self.name), self.name)


def _forks(context: Any) -> bool:
    """Whether a loader with this `multiprocessing_context` forks its workers."""
    if isinstance(context, BaseContext):
        return context.get_start_method() == "fork"
    return (context or multiprocessing.get_start_method()) == "fork"


class _BeginWorker:
    """Begins a forked loader worker, with files of its own; then the user's `worker_init_fn` is called.

    `ends_connections`: where no loader of the user's asked for workers, so that nobody thought of what these share.
    """

    def __init__(self, own: Callable[[int], None] | None, *, ends_connections: bool) -> None:
        self.own, self.ends_connections = own, ends_connections

    def __call__(self, worker: int) -> None:
        part_from_parent(ends="internet" if self.ends_connections else "none")
        if self.own is not None:
            self.own(worker)


class _Iterable:
    """An object whose `__iter__` gives this iterator: all that a `DataLoader` needs of a batch sampler."""

    def __init__(self, batches: Iterator[list[tuple[int, int]]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self.batches


class StreamSource:
    """Batches as they come from a user's loader or an `IterableDataset`; iterating over it again is a new epoch.

    The global random generators, and a `generator` of the loader, its sampler or its data set, are seeded from (seed, epoch) at
    each epoch, so that reading it again gives the same batches. What else its objects carry from epoch to epoch (a count of
    epochs, random generators of other names) is in `objects`, which whoever goes back to an epoch puts back first.
    """

    def __init__(
        self, batches: Any, *, batch_size: int | None, collate_fn: Collate | None = None, name: str = "data"
    ) -> None:
        self.batches = batches
        self.collate_fn = collate_fn  # for an `IterableDataset` without a loader, which gives single examples
        self.name = name
        self.batch_size = batch_size  # the loader's; None: not known
        self.stateful = _has_place(batches)
        self.held: dict[int | None, list[tuple[Any, int]]] = {}  # see `hold`
        self._start: list[Any] | None = None  # see `_begin_anew`
        self.resume: Resume = "state_dict" if self.stateful else "fast-forward"
        self.objects = ObjectState({} if self.stateful else stream_parts(batches))

    @property
    def gives_batches(self) -> bool:
        """Whether it gives batches of its own, rather than examples to make batches of."""
        return not isinstance(self.batches, IterableDataset)

    def count(self) -> int | None:
        """Give the number of batches per epoch; None where the stream has no `len`."""
        # A loader that was asked for its length warns later of every example beyond it.
        asked = getattr(self.batches, "_IterableDataset_len_called", None)
        try:
            return len(self.batches)
        except TypeError:
            return None
        finally:
            if hasattr(self.batches, "_IterableDataset_len_called"):
                self.batches._IterableDataset_len_called = asked

    def open(
        self, epoch: int, seed: int, micro: int, workers: int, drop_last: bool = False, *, go_on: bool = False
    ) -> Generator[Any]:
        """Start an epoch; an `IterableDataset` without a loader is cut into batches of `micro` examples.

        With `drop_last` smaller ones of those, at its end, are left out. `go_on`: from the place in the epoch that the loader's
        `load_state_dict` was given.

        Raises DataError where training is reading the stream, and another pass would disturb that one.
        """
        self._check_unread()
        if self.stateful and epoch == 0 and not go_on:
            self._begin_anew()
        for number, part in enumerate(stream_parts(self.batches).values()):
            if callable(getattr(part, "set_epoch", None)):
                part.set_epoch(epoch)
            if isinstance(getattr(part, "generator", None), torch.Generator):
                part.generator.manual_seed(mix(seed, number))
        seed_all(seed)
        if isinstance(self.batches, IterableDataset):
            generator = torch.Generator().manual_seed(seed)
            collator = Collator(self.collate_fn, self.name)
            loader = DataLoader(
                self.batches,
                batch_size=micro,
                num_workers=workers,
                generator=generator,
                collate_fn=collator,
                drop_last=drop_last,
                worker_init_fn=_BeginWorker(None, ends_connections=True) if workers and _forks(None) else None,
            )
            return with_data_errors(start_iterator(loader, self.name), self.name)
        return self._read_epoch(start_iterator(self.batches, self.name))

    def _begin_anew(self) -> None:
        """Take a loader back to the state that it was handed over with, where a pass begins at the place that the last one left.

        Else rehearsals, and whatever else reads a few batches, would take them from the first epoch.
        """
        if self._start is None:
            self._start = self._find_start()
        for start in self._start:
            with suppress(Exception):  # reading says what is wrong
                if pickle.dumps(self.batches.state_dict()) != pickle.dumps(start):
                    self.batches.load_state_dict(copy.deepcopy(start))

    def _find_start(self) -> list[Any]:
        """Give the loader's state, in a list; an empty one where it has none yet, or gives other batches from it.

        Also of a loader whose passes all begin anew by themselves: it may count them, and shuffle by their number.
        """
        try:
            start = copy.deepcopy(self.batches.state_dict())
            first = self._state_after_a_batch()
            if first is None:  # it stood at its end, as after an earlier run
                start = copy.deepcopy(self.batches.state_dict())
                first = self._state_after_a_batch()
            self.batches.load_state_dict(copy.deepcopy(start))
            return [start] if first is not None and first == self._state_after_a_batch() else []
        except Exception:
            return []  # reading says what is wrong

    def _state_after_a_batch(self) -> bytes | None:
        """Begin a pass, read a batch and give the loader's state; None where there is no batch."""
        seed_all(0)
        batches = with_data_errors(iter(self.batches), self.name)
        try:
            return None if next(batches, None) is None else pickle.dumps(self.batches.state_dict())
        finally:
            batches.close()

    def reads_for_training(self, stream: Generator[Any]) -> Generator[Any]:
        """Give a pass that `open` gave, which no other one may disturb until it is closed or at its end."""
        _training_passes[id(self.batches)] = weakref.ref(stream)
        return stream

    def _check_unread(self) -> None:
        reference = _training_passes.get(id(self.batches))
        stream = None if reference is None else reference()
        if stream is None or not is_open(stream) or not self._shares_a_place():
            return
        raise DataError(
            f"`{self.name}` is a loader that training is reading, and a second pass over it would disturb that one: its workers,"
            f" its generator or its place belong to all passes. Give each run, and `validation`, a loader of its own."
        )

    def _shares_a_place(self) -> bool:
        """Whether two passes at once share something that one of them changes."""
        keeps_workers = getattr(self.batches, "persistent_workers", False) and self.batches.num_workers
        parts = stream_parts(self.batches).values()
        seeded = any(isinstance(getattr(part, "generator", None), torch.Generator) for part in parts)
        return bool(self.stateful or keeps_workers or seeded or any(isinstance(part, Iterator) for part in parts))

    def _read_epoch(self, batches: Iterator[Any]) -> Generator[Any]:
        try:
            yield from with_data_errors(batches, self.name)
        finally:
            # Persistent workers would carry random states from epoch to epoch, so that an epoch could not be read again.
            if getattr(self.batches, "_iterator", None) is not None:
                self.batches._iterator = None


def is_open(stream: Generator[Any]) -> bool:
    """Whether a pass may give more: it is neither at its end nor closed, and has raised nothing."""
    return getgeneratorstate(stream) != GEN_CLOSED


def parts_of_passes(data: Any) -> dict[str, Any]:
    """Give the parts of a user's loader or stream that a pass over it may change, by name; none of data that are read by index.

    >>> parts_of_passes((torch.zeros(3, 1), torch.zeros(3))), parts_of_passes(DataLoader([1, 2, 3], batch_size=2))
    ({}, {})
    """
    if isinstance(data, DataLoader):
        is_stream = _own_batches(cast("DataLoader[Any]", data)) is None
    else:
        in_memory = _is_table(data) or isinstance(data, tuple | Mapping)
        is_indexed = in_memory or (hasattr(data, "__getitem__") and hasattr(data, "__len__"))
        is_stream = isinstance(data, IterableDataset) or (hasattr(data, "__iter__") and not is_indexed)
    if not is_stream:
        return {}
    return {"data": data} if _has_place(data) else stream_parts(data)


def _has_place(batches: Any) -> bool:
    """Whether a loader tells and takes its place, as torchdata's do."""
    return all(callable(getattr(batches, verb, None)) for verb in ("state_dict", "load_state_dict"))


def stream_parts(batches: Any) -> dict[str, Any]:
    """Give the parts of a user's loader or stream that may carry state, by name."""
    parts = {name: getattr(batches, name, None) for name in ("sampler", "batch_sampler", "dataset")}
    of_batches = getattr(parts["batch_sampler"], "sampler", None)
    if of_batches is not None and of_batches is not parts["sampler"]:
        parts["batch_sampler.sampler"] = of_batches
    return {"data": batches, **{f"data.{name}": part for name, part in parts.items()}}


_training_passes: dict[
    int, weakref.ref[Generator[Any]]
] = {}  # by the loader's id: the pass that training reads, if any
Source = TensorSource | ItemSource | StreamSource


def open_source(
    data: Any, *, float_dtype: torch.dtype = torch.float32, collate_fn: Collate | None = None, name: str = "data"
) -> Source:
    """Make a source of a user's data: arrays, tensors, frames, a data set, or a loader.

    Of a `DataLoader` over indexed items, in order or shuffled, only the data set and the options are used, because then the
    order becomes a function of (seed, epoch) and resuming is exact; any other loader is a stream.

    Raises DataError where the data are empty, not numbers, or of unequal lengths.
    """
    source = _open(data, float_dtype, collate_fn, name)
    if not isinstance(source, StreamSource) and len(source) == 0:
        raise DataError(f"`{name}` is empty: it has no example. Check what you load.")
    return source


def _open(data: Any, float_dtype: torch.dtype, collate_fn: Collate | None, name: str) -> Source:
    if isinstance(data, DataLoader):
        return _open_loader(data, name)
    if isinstance(data, IterableDataset):
        return StreamSource(data, batch_size=None, collate_fn=collate_fn, name=name)
    if isinstance(data, torch.utils.data.TensorDataset) and collate_fn is None:
        return TensorSource(tree_map(lambda leaf: as_tensor(leaf, float_dtype, name), tuple(data.tensors)), name)
    if _is_table(data) or isinstance(data, tuple | Mapping):
        return _open_arrays(data, float_dtype, collate_fn, name)
    if isinstance(data, str | bytes | Path):
        raise DataError(f"`{name}` is the text {str(data)!r}. Load what it names, and give the arrays or a Dataset.")
    if isinstance(data, list) and collate_fn is None and _is_columns(cast("list[Any]", data)):
        raise DataError(
            f"`{name}` is a list of arrays, which would be read as a list of examples. Give a tuple: (x, y)."
        )
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return ItemSource(data, collate_fn, name=name)
    if hasattr(data, "__iter__") and not isinstance(data, Iterator):
        return StreamSource(data, batch_size=None, name=name)
    what = (
        "an iterator, which can be gone through once only" if isinstance(data, Iterator) else f"a {type(data).__name__}"
    )
    raise DataError(
        f"`{name}` is {what}. Give (x, y) arrays or tensors, a Dataset, an IterableDataset, or a DataLoader."
    )


def _is_table(data: Any) -> bool:
    return isinstance(data, Tensor | np.ndarray) or hasattr(data, "to_numpy") or hasattr(data, "toarray")


def _is_columns(data: list[Any]) -> bool:
    if not 2 <= len(data) <= 4 or not all(_is_table(part) and hasattr(part, "shape") for part in data):
        return False
    shapes = [tuple(part.shape) for part in data]
    return len(set(shapes)) > 1 and all(shapes) and len({shape[0] for shape in shapes}) == 1


def _open_arrays(data: Any, float_dtype: torch.dtype, collate_fn: Collate | None, name: str) -> Source:
    if isinstance(data, tuple) and collate_fn is not None:
        return ItemSource(Rows(data, name), collate_fn, name=name)
    if isinstance(data, tuple) and any(isinstance(part, list) and _is_ragged(part) for part in data):
        raise DataError(
            f"`{name}` has examples of different lengths. Give `collate_fn`, which pads or packs a list of examples."
        )
    return TensorSource(tree_map(lambda leaf: as_tensor(leaf, float_dtype, name), data), name)


def _is_ragged(part: list[Any]) -> bool:
    lengths = {len(row) for row in part if hasattr(row, "__len__") and not (isinstance(row, Tensor) and row.ndim == 0)}
    return len(lengths) > 1


class Rows:
    """A tuple of equally long sequences, read example by example."""

    def __init__(self, columns: tuple[Any, ...], name: str = "data") -> None:
        lengths = [len(column) for column in columns]
        if len(set(lengths)) != 1:
            raise DataError(f"The parts of `{name}` have different lengths: {lengths}. Each example needs all of them.")
        self.columns = tuple(column.to_numpy() if hasattr(column, "to_numpy") else column for column in columns)

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return tuple(column[index] for column in self.columns)


def _open_loader(loader: DataLoader[Any], name: str) -> Source:
    own = _own_batches(loader)
    if own is None:
        return StreamSource(loader, batch_size=_batch_size(loader), name=name)
    count = len(cast(Any, loader.dataset))
    if own.drop_last and 0 < count < own.size:
        raise DataError(
            f"`{name}` gives no batch: its loader drops what is smaller than {own.size}, and there are {count} examples."
            f" Set drop_last=False, or a smaller batch_size."
        )
    options = {
        key: getattr(loader, key) for key in ("pin_memory", "timeout", "worker_init_fn", "multiprocessing_context")
    }
    if loader.num_workers:
        options["prefetch_factor"] = loader.prefetch_factor
    given = {key: value for key, value in options.items() if value}
    return ItemSource(loader.dataset, loader.collate_fn, name=name, own_batches=own, **given)


def _own_batches(loader: DataLoader[Any]) -> OwnBatches | None:
    """Give how a loader cuts its data where it goes through all of them once, in order or shuffled; else None."""
    cutter = loader.batch_sampler
    if type(loader) is not DataLoader or type(cutter) is not BatchSampler:
        return None
    # Not the loader's own sampler, which stands for nothing where it was given a batch sampler.
    sampler = cast(Any, cutter.sampler)
    shuffle = type(sampler) is RandomSampler
    if not shuffle and type(sampler) is not SequentialSampler:
        return None
    if (shuffle and (sampler.replacement or sampler._num_samples)) or sampler.data_source is not loader.dataset:
        return None
    return OwnBatches(cutter.batch_size, cutter.drop_last, shuffle)


def loader_knobs(data: Any) -> dict[str, Any]:
    """Give the knobs that a user's `DataLoader` has already decided, as entries of a plan.

    >>> loader_knobs(DataLoader([1, 2, 3], batch_size=2, shuffle=True))
    {'workers': 0, 'batch_size': 2, 'drop_last': False, 'shuffle': True}
    """
    if not isinstance(data, DataLoader):
        return {}
    loader = cast("DataLoader[Any]", data)
    knobs: dict[str, Any] = {"workers": loader.num_workers}
    cutter, size = loader.batch_sampler, _batch_size(loader)
    if size is not None:
        knobs["batch_size"] = _at_most_all(loader, size)
        if loader.batch_size is not None or isinstance(getattr(cutter, "drop_last", None), bool):
            knobs["drop_last"] = bool(getattr(cutter, "drop_last", loader.drop_last))
    sampler = getattr(cutter, "sampler", loader.sampler)
    return knobs | {"shuffle": not isinstance(sampler, SequentialSampler)}


def _batch_size(loader: DataLoader[Any]) -> int | None:
    """Give the batch size of a loader or its batch sampler, where it has one."""
    size = loader.batch_size if loader.batch_size is not None else getattr(loader.batch_sampler, "batch_size", None)
    return size if isinstance(size, int) else None


def _at_most_all(loader: DataLoader[Any], size: int) -> int:
    """Give a batch size, at most the number of examples: with fewer, a loader gives all of them as one batch."""
    if isinstance(loader.dataset, IterableDataset) or loader.drop_last or not hasattr(loader.dataset, "__len__"):
        return size
    return min(size, max(1, len(cast(Any, loader.dataset))))


def leaves(nest: Any) -> list[Tensor]:
    """Give the tensors of a nest of tuples, lists, dicts and dataclasses, in order; none of any other object.

    Of a packed sequence only its values count, padded again: one row per example.
    """
    if isinstance(nest, Tensor):
        return [nest]
    if isinstance(nest, PackedSequence):
        return [pad_packed_sequence(nest, batch_first=True)[0]]
    if is_dataclass(nest) and not isinstance(nest, type):
        return [leaf for field in fields(nest) for leaf in leaves(getattr(nest, field.name))]
    if isinstance(nest, Mapping):
        return [leaf for part in nest.values() for leaf in leaves(part)]
    if isinstance(nest, Sequence) and not isinstance(nest, str | bytes):
        return [leaf for part in nest for leaf in leaves(part)]
    return []


def checksum(parts: Sequence[tuple[str, Tensor]], size: int = 8) -> str:
    """Give a checksum of `size` bytes, in hexadecimal, of texts and tensors."""
    digest = hashlib.blake2b(digest_size=size)
    for text, tensor in parts:
        digest.update(text.encode())
        digest.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def nonfinite_rows(batch: Any) -> list[int]:
    """Give the rows of a batch that hold NaN or infinity.

    >>> nonfinite_rows((torch.tensor([[1.0, 2.0], [3.0, torch.nan]]), torch.tensor([0, 1])))
    [1]
    """
    rows = set[int]()
    for leaf in leaves(batch):
        if (leaf.is_floating_point() or leaf.is_complex()) and leaf.ndim and not torch.isfinite(leaf.sum()):
            nonfinite = ~torch.isfinite(leaf.to_dense().reshape(len(leaf), -1)).all(1)
            rows.update(nonfinite.nonzero().flatten().tolist())
    return sorted(rows)


def tree_map(function: Callable[[Any], Any], nest: Any) -> Any:
    """Apply a function to each leaf of a nest of tuples (named ones too), dicts, dataclasses and lists of such.

    Other lists are leaves, and so are packed sequences, whose fields do not hold one row per example.
    """
    if isinstance(nest, PackedSequence):
        return function(nest)
    if is_dataclass(nest) and not isinstance(nest, type):
        return rebuilt(nest, {field.name: tree_map(function, getattr(nest, field.name)) for field in fields(nest)})
    if isinstance(nest, Mapping):
        return rebuilt(nest, {key: tree_map(function, part) for key, part in nest.items()})
    if isinstance(nest, tuple):
        parts = [tree_map(function, part) for part in nest]
        return type(nest)(*parts) if hasattr(nest, "_fields") else tuple(parts)
    if isinstance(nest, list) and any(isinstance(part, Tensor | Mapping | tuple) for part in nest):
        return [tree_map(function, part) for part in nest]
    return function(nest)


def rebuilt(nest: Any, parts: Mapping[Any, Any]) -> Any:
    """Give a mapping or dataclass with other parts: of the same type, for code that reads them by `.name` or methods.

    A mapping that is no kind of dict, such as an open file, becomes one: copying or changing it might change the file.
    """
    if type(nest) is dict or not (is_dataclass(nest) or isinstance(nest, dict | UserDict)):
        return dict(parts)
    copied = copy.copy(nest)  # not `replace`, which would run the person's __init__ again
    if is_dataclass(nest):
        for name, part in parts.items():
            object.__setattr__(copied, name, part)
    if isinstance(nest, dict | UserDict):  # a dataclass may be one too, whose entries are its fields
        entries = cast("dict[Any, Any]", copied)
        for key in list(entries):
            entries[key] = parts[key]
    return copied


def to_device(nest: Any, device: torch.device) -> Any:
    """Move a batch's tensors, and objects such as packed sequences and graphs by their own `to`."""
    if device.type == "cpu":
        return nest

    def move(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.to(device, non_blocking=True)
        return leaf.to(device) if callable(getattr(leaf, "to", None)) else leaf

    return tree_map(move, nest)
