"""Values as JSON without loss: what a checkpoint and an event hold besides tensors.

JSON has no NaN, no infinity, no integer keys, and many readers round integers above 2**53. Those, and only those, are
written as an object with one key that starts with a tilde:

    {"~float": "inf"}   {"~float": "-inf"}   {"~float": "nan:7ff8000000000000"}   (the NaN's 64 bits)
    {"~int": "-0x20000000000001"}                                                 (beyond 2**53, exact)
    {"~dict": [[0, "a"], ["~b", 1]]}                                              (keys that are integers or start with ~)
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np

KeyPath = tuple[str, ...]

DEEPEST = 100  # levels of nesting
EXACT_IN_EVERY_READER = 2**53  # larger integers are rounded by readers that use float64


class NotJsonError(TypeError):
    """A value that JSON cannot represent; the message names its path and what to give instead."""


def path_text(path: KeyPath) -> str:
    """Give the path of a nested value as text, for a message.

    >>> path_text(("optimizer", "state", "0"))
    'optimizer/state/0'
    """
    return "/".join(path) or "the value itself"


def refuse(value: object, path: KeyPath) -> object:
    """Raise NotJsonError: JSON has no such type, and the caller encodes no further ones."""
    if isinstance(value, tuple):
        raise NotJsonError(f"{path_text(path)} is a tuple, which would come back as a list: give a list.")
    raise NotJsonError(
        f"{path_text(path)} is of type {type(value).__name__}: give int, float, str, bool, None, a list or a dict of those."
    )


def encode(value: object, path: KeyPath = (), other: Callable[[object, KeyPath], object] = refuse) -> object:
    """Turn nested values into what `json.dumps(…, allow_nan=False)` takes.

    `other` encodes values of types that JSON lacks (a checkpoint encodes tensors with it). NumPy scalars and subclasses of
    int, float and dict come back as the built-in type.

    Raises NotJsonError for tuples, keys that are neither str nor int, and nesting deeper than 100.

    >>> encode({"rate": float("inf"), 0: [1, None]})
    {'~dict': [['rate', {'~float': 'inf'}], [0, [1, None]]]}
    """
    if len(path) > DEEPEST:
        raise NotJsonError(f"{path_text(path[:3])} is nested deeper than {DEEPEST}, or contains itself.")
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) <= EXACT_IN_EVERY_READER else {"~int": hex(value)}
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"~float": _nonfinite_text(value)}
    if isinstance(value, list):
        items = cast("list[object]", value)
        return [encode(item, (*path, str(index)), other) for index, item in enumerate(items)]
    if isinstance(value, Mapping):
        return _encode_mapping(cast("Mapping[object, object]", value), path, other)
    return other(value, path)


def without_tuples(value: Any) -> Any:
    """Turn tuples into lists, which is what they would come back as; `encode` refuses them.

    >>> without_tuples({"betas": (0.9, 0.999), "rows": [(1, 2)]})
    {'betas': [0.9, 0.999], 'rows': [[1, 2]]}
    """
    if isinstance(value, Mapping):
        return {key: without_tuples(part) for key, part in cast("Mapping[object, object]", value).items()}
    if isinstance(value, list | tuple):
        return [without_tuples(part) for part in cast("list[object]", value)]
    return value


def decode(value: Any, special: Mapping[str, Callable[[Any], Any]] | None = None) -> Any:
    """Turn back what `encode` made; `special` maps further tilde keys to what they stand for.

    >>> decode({"~dict": [["rate", {"~float": "inf"}], [0, [1, None]]]})
    {'rate': inf, 0: [1, None]}
    """
    if isinstance(value, list):
        return [decode(item, special) for item in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    pairs = cast("dict[str, Any]", value)
    mark = next(iter(pairs), "")
    if not mark.startswith("~"):
        return {key: decode(item, special) for key, item in pairs.items()}
    if mark == "~int":
        return int(pairs[mark], 16)
    if mark == "~float":
        return _nonfinite(pairs[mark])
    if mark == "~dict":
        return {decode(key): decode(item, special) for key, item in pairs[mark]}
    return (special or {})[mark](pairs[mark])


def _encode_mapping(
    value: Mapping[object, object], path: KeyPath, other: Callable[[object, KeyPath], object]
) -> object:
    for key in value:
        if not isinstance(key, (str, int)):
            raise NotJsonError(f"{path_text(path)} has a key of type {type(key).__name__}: give str or int keys.")
    pairs = [(cast("str | int", key), encode(item, (*path, str(key)), other)) for key, item in value.items()]
    if all(isinstance(key, str) and not key.startswith("~") for key, _ in pairs):
        return dict(pairs)
    return {"~dict": [[encode(key), item] for key, item in pairs]}


def _nonfinite_text(value: float) -> str:
    return f"nan:{struct.pack('>d', value).hex()}" if math.isnan(value) else ("inf" if value > 0 else "-inf")


def _nonfinite(text: str) -> float:
    return float(struct.unpack(">d", bytes.fromhex(text[4:]))[0]) if text.startswith("nan:") else float(text)
