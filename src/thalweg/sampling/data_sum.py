"""Sums of data, by which a run that is resumed notices that it is given other ones.

Data in memory are summed whole, up to a size. Of a data set that is read one by one examples from all over it are, as many as can
be read in a second; how many is part of the sum, so that the same ones are read again. Of a stream its first batches are.

Random numbers must not look like other data. Examples are read with seeded generators; the first ones are read again, with the
same seed and with another, which tells the parts of an example that depend on random numbers (augmentation): these are summed
apart. A part that is another each time, under the same seed too, cannot be summed.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, fields, is_dataclass
from itertools import islice
from math import gcd
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from thalweg.sampling.reading import SeededItems, describe_error
from thalweg.sampling.sources import ItemSource, Source, StreamSource, TensorSource, leaves

MOST_BYTES = 256 << 20  # of data in memory: a fraction of a second
MOST_EXAMPLES, MOST_SECONDS = 1024, 1.0  # of a data set
BATCHES, BATCH_SIZE = 4, 32  # of a stream
TRIED = 8  # examples that are read again, to see which parts are random
SEED, OTHER_SEED = 0, 1

Read = Callable[[int, int], list[bytes]]
"""Gives, for an example's index and a seed, a sum of each part of the example."""


@dataclass(frozen=True)
class DataSum:
    """The sum of some data.

    - `count`: all examples; None for a stream.
    - `read`: how many examples (of a stream, batches) the sums are of.
    - `sum`: of the parts of these examples that do not depend on random numbers; `drawn_sum` of those that do, from a fixed seed.
    - `drawn`: the numbers of the parts that depend on random numbers; `unlike`, of those that are others each time.
    - `failed`: why nothing could be summed.
    """

    count: int | None = None
    read: int = 0
    sum: str = ""
    drawn_sum: str = ""
    drawn: tuple[int, ...] = ()
    unlike: tuple[int, ...] = ()
    failed: str = ""

    @property
    def is_count(self) -> bool:
        """Whether this is no more than the number of examples: what earlier versions recorded."""
        return not self.sum and not self.failed

    def to_dict(self) -> dict[str, Any]:
        """Give the sum as built-in types."""
        return {**asdict(self), "drawn": list(self.drawn), "unlike": list(self.unlike)}

    @staticmethod
    def from_dict(entries: Mapping[str, Any]) -> DataSum:
        """Read what `to_dict` gave. Raises TypeError, KeyError or ValueError for anything else."""
        known = {f.name for f in fields(DataSum)}
        values: dict[str, Any] = {name: value for name, value in entries.items() if name in known}
        values |= {"drawn": tuple(values["drawn"]), "unlike": tuple(values["unlike"])}
        return DataSum(**values)


def sum_data(source: Source, like: DataSum | None = None) -> DataSum:
    """Sum some data; with `like`, an earlier sum, of as many examples and of the same parts."""
    try:
        if isinstance(source, TensorSource):
            return _sum_tensors(source)
        if isinstance(source, ItemSource):
            return _sum_items(source, like)
        return _sum_stream(source, like)
    except Exception as error:
        # What only training can read, such as a file that a loader's worker opens, ends no run here.
        count = None if isinstance(source, StreamSource) else len(source)
        return DataSum(count, failed=describe_error(error))


def is_random(source: Source, like: DataSum) -> bool:
    """Whether summing the data twice, as for `like`, gives two sums: then an earlier one tells nothing."""
    return sum_data(source, like) != sum_data(source, like)


def _sum_tensors(source: TensorSource) -> DataSum:
    digest, count = hashlib.sha256(), len(source)  # most processors have instructions for this one
    if source.rows is not None:  # another part of the same data is other data, whatever its values
        digest.update(_tensor_bytes(source.rows))
    size = max(1, sum(leaf.nbytes // max(1, len(leaf)) * count for leaf in leaves(source.nest)))
    read = count if size <= MOST_BYTES else max(1, int(MOST_BYTES / size * count))
    rows = None if read == count else torch.linspace(0, count - 1, read, dtype=torch.float64).round().long()
    if source.rows is not None:
        rows = source.rows if rows is None else source.rows[rows]
    for leaf in leaves(source.nest):
        digest.update(str(tuple(leaf.shape)).encode())
        digest.update(_tensor_bytes(leaf if rows is None else leaf.index_select(0, rows.to(leaf.device))))
    return DataSum(count, read, digest.hexdigest()[:32])


def _sum_items(source: ItemSource, like: DataSum | None) -> DataSum:
    seeded = {seed: SeededItems(source.items, seed, source.name) for seed in (SEED, OTHER_SEED)}

    def read(index: int, seed: int) -> list[bytes]:
        return part_sums(seeded[seed][0, source.number(index)])

    count = len(source)
    indices = list(_spread(count))
    if like is None:
        drawn, unlike = _random_parts(read, indices[:TRIED])
        # Data with a state of their own are read no further: how far depends on the clock, and then training would.
        limit = TRIED if unlike else MOST_EXAMPLES
    else:
        drawn, unlike, limit = like.drawn, like.unlike, like.read
    sums, started, done = _Sums(drawn, unlike), time.monotonic(), 0
    if source.rows is not None:
        sums.fixed_digest.update(_tensor_bytes(source.rows))
    for index in indices[:limit]:
        if like is None and done >= TRIED and time.monotonic() - started > MOST_SECONDS:
            break
        sums.add(read(index, SEED))
        done += 1
    return sums.of(count, done)


def _sum_stream(source: StreamSource, like: DataSum | None) -> DataSum:
    def first(number: int, seed: int) -> list[list[bytes]]:
        with source.objects.unchanged(), closing(source.open(0, seed, BATCH_SIZE, 0)) as batches:
            return [part_sums(batch) for batch in islice(batches, number)]

    number = BATCHES if like is None else like.read
    found = first(number, SEED)
    if like is None:
        again, other = first(1, SEED), first(1, OTHER_SEED)
        unlike, drawn = _differing(found[0], again[0]), _differing(found[0], other[0])
    else:
        drawn, unlike = like.drawn, like.unlike
    sums = _Sums(drawn, unlike)
    for parts in found:
        sums.add(parts)
    return sums.of(None, len(found))


class _Sums:
    """The two sums of some examples, of which the parts that depend on random numbers are known."""

    def __init__(self, drawn: Iterable[int], unlike: Iterable[int]) -> None:
        self.unlike = tuple(sorted(set(unlike)))
        self.drawn = tuple(sorted(set(drawn) - set(unlike)))
        self.fixed_digest, self.drawn_digest = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)

    def add(self, parts: Sequence[bytes]) -> None:
        self.fixed_digest.update(len(parts).to_bytes(8, "little"))
        for number, part in enumerate(parts):
            if number not in self.unlike:
                (self.drawn_digest if number in self.drawn else self.fixed_digest).update(part)

    def of(self, count: int | None, read: int) -> DataSum:
        fixed, drawn = self.fixed_digest.hexdigest(), self.drawn_digest.hexdigest() if self.drawn else ""
        return DataSum(count, read, fixed, drawn, self.drawn, self.unlike)


def _random_parts(read: Read, indices: Sequence[int]) -> tuple[set[int], set[int]]:
    """Give the parts of these examples that depend on the seed, and those that are others under the same seed too."""
    drawn, unlike = set[int](), set[int]()
    for index in indices:
        one, again, other = read(index, SEED), read(index, SEED), read(index, OTHER_SEED)
        unlike |= _differing(one, again)
        drawn |= _differing(one, other)
    return drawn, unlike


def _differing(one: Sequence[bytes], other: Sequence[bytes]) -> set[int]:
    differing = {number for number, (a, b) in enumerate(zip(one, other, strict=False)) if a != b}
    return differing | set(range(min(len(one), len(other)), max(len(one), len(other))))


def _spread(count: int) -> Iterator[int]:
    """Give at most `MOST_EXAMPLES` indices of so many examples, such that the first few lie all over them too.

    >>> list(_spread(10))
    [0, 7, 4, 1, 8, 5, 2, 9, 6, 3]
    """
    step = max(1, round(count * 0.6180339887498949))  # the golden ratio: each index falls into one of the largest gaps
    step = next(s for s in range(step, step + count + 1) if gcd(s, count) == 1) if count > 1 else 1
    return (number * step % count for number in range(min(count, MOST_EXAMPLES)))


def part_sums(example: Any) -> list[bytes]:
    """Give a sum of each part of an example: of tensors, arrays, numbers and texts in nested tuples, lists and tables."""
    return [hashlib.blake2b(data, digest_size=16).digest() for data in _part_bytes(example)]


def _part_bytes(value: Any) -> Iterator[bytes]:
    if isinstance(value, Tensor):
        yield f"{value.dtype}{tuple(value.shape)}".encode() + bytes(_tensor_bytes(value))
    elif isinstance(value, str | bytes | int | float | complex | None):
        yield repr(value).encode("utf-8", "surrogatepass")
    elif isinstance(value, Mapping):
        for key, part in cast("Mapping[Any, Any]", value).items():
            yield repr(key).encode("utf-8", "surrogatepass")
            yield from _part_bytes(part)
    elif isinstance(value, tuple | list):
        for part in cast("Sequence[Any]", value):
            yield from _part_bytes(part)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _part_bytes(getattr(value, field.name))
    elif hasattr(value, "__array_interface__") or isinstance(value, np.generic):  # an array, or a picture
        array = np.ascontiguousarray(value)
        if array.dtype.hasobject:
            yield from _part_bytes(array.tolist())
        else:
            yield f"{array.dtype}{array.shape}".encode() + array.tobytes()
    elif getattr(value, "__dict__", None):  # a graph, say
        yield from _part_bytes(vars(value))
    else:
        raise TypeError(f"an example holds a {type(value).__name__}, whose values are not known")


def _tensor_bytes(tensor: Tensor) -> memoryview:
    dense = tensor.detach().to_dense() if tensor.layout is not torch.strided else tensor.detach()
    return dense.resolve_conj().resolve_neg().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data
