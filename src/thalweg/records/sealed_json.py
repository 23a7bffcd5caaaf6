"""JSON with its own sum, the sha256 of the text with zeros in the sum's place, so that a damaged or edited file is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from thalweg.records import json_values

SUM = "sum"
UNSET = "0" * 64


def dump(entries: Mapping[str, Any]) -> str:
    """Give the text of a table of values as `json_values` takes them, with its sum as the last entry.

    >>> load(dump({"rate": float("inf")}))
    {'rate': inf}
    """
    encoded = {name: json_values.encode(value, (name,)) for name, value in entries.items()}
    return with_sum(encoded)


def load(text: str) -> dict[str, Any]:
    """Read what `dump` gave; a text without a sum is one of an earlier version.

    Raises ValueError where the sum does not agree, and what `json` and `json_values` raise for what is none.
    """
    entries: dict[str, Any] = json.loads(text)
    written = entries.pop(SUM, None)
    if written is not None and not agrees(text, str(written)):
        raise ValueError("it was changed since it was written: its own sum does not agree")
    return {name: json_values.decode(value) for name, value in entries.items()}


def with_sum(entries: Mapping[str, Any]) -> str:
    """Give the text of a table of what JSON holds, with its own sum as the last entry."""
    text = json.dumps({**entries, SUM: UNSET}, indent=1, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest().join(text.rsplit(UNSET, 1))


def agrees(text: str, written: str) -> bool:
    """Tell whether a sum that was read from a text is the text's."""
    return hashlib.sha256(UNSET.join(text.rsplit(written, 1)).encode()).hexdigest() == written
