"""Kinds of values of Python's library and PyTorch's that are no containers or arrays: constants, such as a `Decimal`, and memory.

Memory is what holds plain bytes and is changed in place: a `bytearray`, an `array`, numbers that processes share, a `BytesIO`.
Of a file that is only read the place in it is kept.
"""

from __future__ import annotations

import array
import ctypes
import io
import zlib
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from multiprocessing.sharedctypes import SynchronizedBase
from pathlib import PosixPath, WindowsPath
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import torch
from torch import Tensor

_OF_FILES = {"_io", "gzip", "bz2", "lzma", "zipfile"}  # modules of Python's that have kinds of files
_NUMBERS = set("?bBhHiIlLqQfdgcu")  # codes of ctypes' simple types that are no addresses: those no checkpoint may set


class _Constant(NamedTuple):
    """How a constant becomes numbers and texts, and is made of them."""

    parts: Callable[[Any], list[int] | list[str]]
    make: Callable[..., Any]


def _without_zone(make: Callable[[str], Any]) -> _Constant:
    return _Constant(lambda value: [value.isoformat()], make)


def _size(*lengths: int) -> torch.Size:
    return torch.Size(lengths)


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name)
    if not isinstance(found, torch.dtype):
        raise TypeError(f"{name} is no dtype")
    return found


def _moment(text: str, zone: str = "", fold: str = "0") -> datetime:
    """Make a time of a day, in a zone by its name, where one is given; a fixed offset is a part of the text."""
    value = datetime.fromisoformat(text)
    return value.replace(tzinfo=ZoneInfo(zone), fold=int(fold)) if zone else value


def _parts_of_moment(value: datetime) -> list[str]:
    if isinstance(value.tzinfo, ZoneInfo):
        return [value.replace(tzinfo=None, fold=0).isoformat(), str(value.tzinfo.key), str(value.fold)]
    return [value.isoformat()]


def _slice(*ends: str) -> slice:
    return slice(*[None if end == "" else int(end) for end in ends])


def _fraction(numerator: str, denominator: str) -> Fraction:
    return Fraction(int(numerator, 16), int(denominator, 16))


_CONSTANTS: dict[type, _Constant] = {
    Decimal: _Constant(lambda value: [str(value)], Decimal),
    Fraction: _Constant(lambda value: [hex(value.numerator), hex(value.denominator)], _fraction),
    date: _without_zone(date.fromisoformat),
    datetime: _Constant(_parts_of_moment, _moment),
    time: _without_zone(time.fromisoformat),
    timedelta: _Constant(lambda value: [value.days, value.seconds, value.microseconds], timedelta),
    range: _Constant(lambda value: [value.start, value.stop, value.step], range),
    slice: _Constant(lambda v: ["" if end is None else str(int(end)) for end in (v.start, v.stop, v.step)], _slice),
    UUID: _Constant(lambda value: [value.hex], UUID),
    PosixPath: _Constant(lambda value: [str(value)], PosixPath),
    WindowsPath: _Constant(lambda value: [str(value)], WindowsPath),
    torch.Size: _Constant(list, _size),
    torch.dtype: _Constant(lambda value: [str(value).removeprefix("torch.")], _dtype),
    torch.device: _Constant(lambda value: [str(value)], torch.device),
}
_BY_NAME = {kind.__name__: constant for kind, constant in _CONSTANTS.items()}


def is_constant(value: object) -> bool:
    """Tell whether a value is one that never changes, of a kind that is known here."""
    if type(value) is slice:
        return all(end is None or type(end) is int for end in (value.start, value.stop, value.step))
    zone = getattr(value, "tzinfo", None)
    has_name = type(value) is datetime and (type(zone) is timezone or (isinstance(zone, ZoneInfo) and bool(zone.key)))
    return type(value) in _CONSTANTS and (zone is None or has_name)


def encode_constant(value: Any) -> dict[str, Any]:
    """Give the entry of a constant.

    >>> encode_constant(Decimal("0.10"))
    {'kind': 'constant', 'type': 'Decimal', 'parts': ['0.10']}
    """
    return {"kind": "constant", "type": type(value).__name__, "parts": _CONSTANTS[type(value)].parts(value)}


def decode_constant(entry: Any) -> Any:
    """Give the constant of an entry. Raises an error of its kind where it is none."""
    parts = entry["parts"]
    if not isinstance(parts, list) or not all(type(part) in (int, str) for part in parts):  # pyright: ignore
        raise TypeError("the parts of a constant are numbers and texts")
    return _BY_NAME[entry["type"]].make(*parts)


def mark_constant(value: Any) -> Any:
    """Give something that differs for another constant."""
    return type(value).__name__, tuple(_CONSTANTS[type(value)].parts(value))


def shared_memory_of(value: object) -> Any:
    """Give the memory that a `multiprocessing.Value` or `Array` guards by a lock; None of anything else."""
    return value.get_obj() if isinstance(value, SynchronizedBase) else None


def is_read_only_file(value: object) -> bool:
    """Tell whether a value is an open file, of a kind of Python's own, in which only one's own place can change."""
    return (
        isinstance(value, io.IOBase)
        and type(value).__module__ in _OF_FILES
        and not value.closed
        and value.readable()
        and not value.writable()
        and value.seekable()
    )


def mark_file(value: Any) -> Any:
    """Give the place in a file. Raises OSError where it cannot be told, as after `next(file)`."""
    return value.tell()


def encode_file(value: Any) -> dict[str, Any]:
    """Give the entry of a file that is only read: the place in it."""
    return {"kind": "file", "place": value.tell()}


def put_into_file(target: Any, entry: Any) -> bool:
    """Go to a place in a file that is only read; False where that is none."""
    place = entry["place"]
    if not is_read_only_file(target) or type(place) is not int:
        return False
    target.seek(place)
    return True


def is_memory(value: object) -> bool:
    """Tell whether a value holds plain bytes that can be changed in place."""
    if isinstance(value, io.StringIO | io.BytesIO):
        return not value.closed
    if isinstance(value, ctypes.Array):
        return getattr(value._type_, "_type_", None) in _NUMBERS
    return type(value) in (bytearray, array.array) or getattr(type(value), "_type_", None) in _NUMBERS


def mark_memory(value: Any) -> Any:
    """Give something that differs once memory has changed."""
    if isinstance(value, io.StringIO | io.BytesIO):
        data = _written(value)
        return len(data), value.tell(), zlib.crc32(data)
    data = bytes(value)
    return len(data), zlib.crc32(data)


def _written(value: io.StringIO | io.BytesIO) -> bytes:
    text = value.getvalue()
    return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text


def encode_memory(value: Any) -> dict[str, Any]:
    """Give the entry of memory: a copy of its bytes."""
    if isinstance(value, io.StringIO | io.BytesIO):
        return {**encode_memory(bytearray(_written(value))), "place": value.tell()}
    return {
        "kind": "memory",
        "data": torch.frombuffer(bytearray(value) or bytearray(1), dtype=torch.uint8)[: len(bytes(value))],
    }


def decode_memory(entry: Any, like: Any) -> Any:
    """Give new memory of the kind of `like`, with the bytes of an entry. Raises TypeError where `like` is none."""
    if type(like) is bytearray:
        return bytearray(_bytes(entry))
    if type(like) is array.array:
        return array.array(like.typecode, _bytes(entry))
    if type(like) in (io.StringIO, io.BytesIO):
        made = type(like)()
        put_into_memory(made, entry)
        return made
    raise TypeError("memory of a kind that is not made anew")


def put_into_memory(target: Any, entry: Any) -> bool:
    """Give memory the bytes of an entry; False where it does not take so many."""
    data = _bytes(entry)
    if isinstance(target, io.StringIO | io.BytesIO):
        target.seek(0)
        target.truncate()
        target.write(data.decode("utf-8", "surrogatepass") if isinstance(target, io.StringIO) else data)  # pyright: ignore
        target.seek(entry["place"])
        return True
    if type(target) is bytearray:
        target[:] = data
    elif type(target) is array.array:
        target[:] = array.array(target.typecode, data)
    elif is_memory(target) and len(data) == ctypes.sizeof(target):
        ctypes.memmove(ctypes.addressof(target), data, len(data))
    else:
        return False
    return True


def _bytes(entry: Any) -> bytes:
    data = entry["data"]
    if not isinstance(data, Tensor) or data.dtype is not torch.uint8:
        raise TypeError("memory is kept as bytes")
    return data.cpu().numpy().tobytes()
