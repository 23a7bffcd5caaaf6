"""TensorBoard's event files: the scalars in them, read without TensorBoard.

A file is a row of records, each with its length, the length's checksum, the data and their checksum (TensorFlow's TFRecord). The
data are an `Event` in the wire format of protocol buffers, of which only the scalars of a `Summary` are read: as a plain number
(`simple_value`, which PyTorch writes) or as a tensor of one number (TensorFlow 2). Graphs, images and histograms are passed over.

Source: `record_writer.h` of TensorFlow, `event.proto`, `summary.proto` and `tensor.proto` of TensorBoard; the checksum is CRC-32C
(Castagnoli, RFC 3720), rotated by 15 bits, with a constant added.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from thalweg.errors import RunError, few

MARK = "tfevents"  # in the name of every such file, by which TensorBoard knows them
TRAINING, VALIDATION = ("train", "training"), ("validation", "val", "valid", "eval", "evaluation", "dev", "test")
ALWAYS_SUMMED = (
    1 << 16
)  # bytes of a record: of larger ones, such as graphs, only those with scalars are compared with their sum
DEEPEST_VARINT = 10  # bytes
STEP, SUMMARY = 2, 5  # numbers of an Event's fields; next those of a Summary's, a Value's, a TensorProto's
VALUE = 1
TAG, SIMPLE_VALUE, TENSOR = 1, 2, 8
DTYPE, SHAPE, CONTENT = 1, 2, 4
DIMENSION = 2  # of a TensorShapeProto
DTYPES = {
    1: "f",
    2: "d",
    3: "i",
    9: "q",
    19: "e",
}  # float, double, int32, int64 and half: number in `types.proto` -> struct's letter
IN_FIELDS = {5: "f", 6: "d"}  # fields of a tensor that holds its number as such: float_val, double_val
WHOLE_FIELDS = (7, 10)  # int_val, int64_val

Renaming = Callable[[str], str]


class Scalar(NamedTuple):
    """One number that was logged."""

    tag: str
    step: int
    value: float


class Scalars(NamedTuple):
    """What event files hold: in their order, and what is to be said of the files."""

    scalars: list[Scalar]
    notes: tuple[str, ...]


def is_event_file(path: Path) -> bool:
    """Tell whether a path is a file that is named as TensorBoard's are."""
    return MARK in path.name and path.is_file()


def event_files(folder: Path) -> dict[str, list[Path]]:
    """Give the event files of a run's folder, by the folder within it: "" for its own.

    Some right below it are the run's too: see `_renaming`.
    """
    found: dict[str, list[Path]] = {}
    for place in (folder, *sorted(each for each in folder.iterdir() if each.is_dir())):
        files = sorted(each for each in place.iterdir() if is_event_file(each)) if os.access(place, os.R_OK) else []
        if files:
            found["" if place == folder else place.name] = files
    return found


def is_event_folder(path: Path) -> bool:
    """Tell whether a path is a folder in which, or right below which, event files lie."""
    return path.is_dir() and bool(event_files(path))


def read_scalars(path: Path) -> Scalars:
    """Read the scalars of an event file, or of a run's folder of such.

    Of a folder the files go one after another; where a tag begins in a later one at a step that an earlier one has passed, the
    training was continued from there, and what the earlier one has of it from that step on is left out, as TensorBoard does.

    Raises RunError where it is none, is damaged (with the place), or is a folder of several runs.
    """
    if path.is_file():
        return _joined([path], _same)
    found = event_files(path)
    known = {name: rename for name in found if (rename := _renaming(name)) is not None}
    if not known:
        raise RunError(
            f"{path} has event files only in folders below it: {few(list(found), 5)}. Give the folder of one training."
        )
    parts = [_joined(found[name], rename) for name, rename in known.items()]
    return Scalars(
        [one for part in parts for one in part.scalars], tuple(note for part in parts for note in part.notes)
    )


def _same(tag: str) -> str:
    return tag


def _renaming(folder: str) -> Renaming | None:
    """Give what makes the name of a column of a tag in a folder below the run's; None where that is not the run's own.

    Keras has `train` and `validation`; `SummaryWriter.add_scalars` has one for each curve, NAME_train and NAME_validation.
    """
    name = folder.lower()
    if not folder or name in TRAINING:
        return _same
    if name in VALIDATION:
        return lambda tag: f"val_{re.sub(r'^epoch_', '', tag)}"
    # The tag is the first part of such a folder's name.
    return (lambda tag: folder) if name.rpartition("_")[2] in (*TRAINING, *VALIDATION) else None


def _joined(files: list[Path], rename: Renaming) -> Scalars:
    """Read files one after another. A file that is cut off at its end, as one that is being written, is read up to there."""
    kept, notes = list[Scalar](), list[str]()
    for file in files:
        if len(files) > 1 and not file.stat().st_size:  # of a process that ended before it logged anything
            continue
        scalars = [one._replace(tag=rename(one.tag)) for one in _scalars(file, notes)]
        first: dict[str, int] = {}
        for tag, step, _ in scalars:
            first[tag] = min(step, first.get(tag, step))
        kept = [one for one in kept if one.tag not in first or one.step < first[one.tag]] + scalars
    return Scalars(kept, tuple(notes))


def _scalars(path: Path, notes: list[str]) -> Iterator[Scalar]:
    for place, data in _records(path, notes):
        try:
            found = list(_event(data.content))
        except (ValueError, IndexError, struct.error, UnicodeDecodeError) as error:
            raise RunError(
                f"{path}: the record at byte {place:,} is damaged, or no event of TensorBoard's ({error})."
            ) from error
        if found and len(data.content) > ALWAYS_SUMMED and masked_sum(data.content) != data.sum:
            raise _damaged(path, place)
        yield from found


class _Record(NamedTuple):
    content: bytes
    sum: int


def _records(path: Path, notes: list[str]) -> Generator[tuple[int, _Record]]:
    """Give each record with the byte it begins at. Raises RunError where one is damaged."""
    try:
        size, place = path.stat().st_size, 0
        if not size:
            raise RunError(f"{path} is empty: nothing was logged to it.")
        with path.open("rb") as file:
            while place < size:
                head = file.read(12)
                if len(head) == 12 and masked_sum(head[:8]) != int.from_bytes(head[8:], "little"):
                    if place == 0:
                        raise RunError(f"{path} is no event file of TensorBoard's: it does not begin with a record.")
                    raise _damaged(path, place)
                length = int.from_bytes(head[:8], "little")
                if len(head) < 12 or place + 16 + length > size:
                    if place == 0:
                        raise RunError(f"{path} is cut off in its first record, or no event file of TensorBoard's.")
                    notes.append(f"{path.name} is cut off at byte {place:,}, and was read up to there")
                    return
                data, end = file.read(length), file.read(4)
                record = _Record(data, int.from_bytes(end, "little"))
                if length <= ALWAYS_SUMMED and masked_sum(data) != record.sum:
                    raise _damaged(path, place)
                yield place, record
                place += 16 + length
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}.") from error


def _damaged(path: Path, place: int) -> RunError:
    return RunError(
        f"{path} is damaged: the record at byte {place:,} does not agree with its checksum. Restore the file from a copy, or cut"
        f" it off there (head -c {place}) to diagnose what is before."
    )


def _event(data: bytes) -> Iterator[Scalar]:
    """Give the scalars of an event. Raises ValueError, IndexError or struct.error where it is something else."""
    fields = list(_fields(data))
    step = next((_signed(value) for number, value in fields if number == STEP and isinstance(value, int)), 0)
    for number, summary in fields:
        if number != SUMMARY or not isinstance(summary, bytes):
            continue
        for part, value in _fields(summary):
            if part == VALUE and isinstance(value, bytes):
                yield from _value(value, step)


def _value(data: bytes, step: int) -> Iterator[Scalar]:
    tag, found = "", None
    for number, value in _fields(data):
        if number == TAG and isinstance(value, bytes):
            tag = value.decode()
        elif number == SIMPLE_VALUE and isinstance(value, bytes):
            (found,) = struct.unpack("<f", value)
        elif number == TENSOR and isinstance(value, bytes):
            found = _tensor(value)
    if found is not None and tag:
        yield Scalar(tag, step, found)


def _tensor(data: bytes) -> float | None:
    """Give the number of a tensor of one number, None of any other, and of texts."""
    fields = list(_fields(data))
    letter = next((DTYPES.get(value) for number, value in fields if number == DTYPE and isinstance(value, int)), None)
    shape = [value for number, value in fields if number == SHAPE and isinstance(value, bytes)]
    if letter is None or (shape and any(number == DIMENSION for number, _ in _fields(shape[-1]))):
        return None
    for number, value in fields:
        if number == CONTENT and isinstance(value, bytes) and len(value) == struct.calcsize(letter):
            return float(struct.unpack(f"<{letter}", value)[0])
        if number in IN_FIELDS and isinstance(value, bytes) and len(value) == struct.calcsize(IN_FIELDS[number]):
            return float(struct.unpack(f"<{IN_FIELDS[number]}", value)[0])
        if number in WHOLE_FIELDS:
            return float(_signed(value if isinstance(value, int) else _varint(value, 0)[0]))
    return 0.0  # zeros may be left out


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Give the fields of a message: number, and value, bytes for all but whole numbers."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, place = _varint(data, place)
            yield number, value
            continue
        if kind == 2:
            length, place = _varint(data, place)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of the unknown kind {kind}")
        if place + length > len(data):
            raise ValueError("a field that goes beyond its record")
        yield number, data[place : place + length]
        place += length


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(DEEPEST_VARINT):
        byte = data[place + shift]
        value |= (byte & 127) << (7 * shift)
        if byte < 128:
            return value, place + shift + 1
    raise ValueError("a whole number without an end")


def _signed(value: int) -> int:
    """Give a whole number of 64 bits, which stand for negative ones too."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def masked_sum(data: bytes) -> int:
    """Give the checksum of a record's data or length, as it is written.

    >>> hex(masked_sum(b"123456789"))  # CRC-32C is 0xe3069283
    '0xc78ab0e5'
    """
    sum_ = 0xFFFFFFFF
    table = _TABLE
    for byte in data:
        sum_ = table[(sum_ ^ byte) & 255] ^ (sum_ >> 8)
    sum_ ^= 0xFFFFFFFF
    return (((sum_ >> 15) | (sum_ << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _table() -> list[int]:
    table: list[int] = []
    for byte in range(256):
        entry = byte
        for _ in range(8):
            entry = (entry >> 1) ^ (0x82F63B78 if entry & 1 else 0)
        table.append(entry)
    return table


_TABLE = _table()


def rows(scalars: list[Scalar]) -> list[tuple[int, dict[str, Any]]]:
    """Put scalars into rows of a table, each with its number, in the order of their steps.

    Those of one step share a row, unless a tag comes again in it. Where all have the same step, as where none was given to
    `add_scalar`, the table has no column of steps.
    """
    table: dict[int, list[dict[str, Any]]] = {}
    for tag, step, value in scalars:
        if tag == "step":
            continue
        same = table.setdefault(step, [])
        row = next((row for row in same if tag not in row), None)
        if row is None:
            row = dict[str, Any](step=step)
            same.append(row)
        row[tag] = value
    ordered = [row for step in sorted(table) for row in table[step]]
    if len(table) == 1 and len(ordered) > 1:
        ordered = [{name: value for name, value in row.items() if name != "step"} for row in ordered]
    return list(enumerate(ordered, 1))
