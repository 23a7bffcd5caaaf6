"""Kinds of plain values: whether what a file says, that anybody may have written, is what its readers count on.

A kind is a function that tells of a value whether it is of it. A table of kinds says what some entries of a table are, where
they are there; entries that it does not name, of a later version say, are let through.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, cast

from thalweg.errors import shown

Kind = Callable[[Any], bool]

LARGEST = 2**63 - 1  # that SQLite and tensors of indices hold


def text(value: Any) -> bool:
    """A text."""
    return isinstance(value, str)


def flag(value: Any) -> bool:
    """True or false."""
    return isinstance(value, bool)


def whole(value: Any) -> bool:
    """A whole number that fits into 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST


def count(value: Any) -> bool:
    """A whole number, zero or above."""
    return whole(value) and value >= 0


def number(value: Any) -> bool:
    """A number that is or can be a float, infinite ones and NaN included."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) <= sys.float_info.max


def optional(kind: Kind) -> Kind:
    """None, or a value of the kind."""
    return lambda value: value is None or kind(value)


def listing(kind: Kind) -> Kind:
    """A list of values of the kind."""
    return lambda value: isinstance(value, list) and all(map(kind, cast("list[Any]", value)))


def table(kind: Kind) -> Kind:
    """A table with texts as keys and values of the kind."""
    return lambda value: (
        isinstance(value, Mapping)
        and all(text(key) and kind(part) for key, part in cast("Mapping[Any, Any]", value).items())
    )


def record(kinds: Mapping[str, Kind], required: tuple[str, ...] = ()) -> Kind:
    """A table whose entries of these names, where it has them, are of these kinds; it has the required ones."""

    def fits(value: Any) -> bool:
        complete = table(anything)(value) and all(name in value for name in required)
        return complete and all(kind(value[name]) for name, kind in kinds.items() if name in value)

    return fits


def anything(value: Any) -> bool:
    """Any value."""
    return True


def check(entries: Any, kinds: Mapping[str, Kind], required: tuple[str, ...] = ()) -> None:
    """Raise TypeError, naming the entry, where what should be a table is none, lacks one, or has one of another kind.

    >>> check({"steps": "many"}, {"steps": count})
    Traceback (most recent call last):
    TypeError: `steps` is 'many'
    """
    if not table(anything)(entries):
        raise TypeError(f"{shown(entries, 60)} is no table")
    for name in required:
        if name not in entries:
            raise TypeError(f"`{name}` is missing")
    for name, kind in kinds.items():
        if name in entries and not kind(entries[name]):
            raise TypeError(f"`{name}` is {shown(entries[name], 60)}")
