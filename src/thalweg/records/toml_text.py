"""Reading TOML that anybody may have written."""

from __future__ import annotations

import tomllib
from typing import Any


def parse_toml(data: bytes) -> dict[str, Any]:
    """Give what a TOML file holds. Raises ValueError with the reason where it is no TOML, or none that can be read."""
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
