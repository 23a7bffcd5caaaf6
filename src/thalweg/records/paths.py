"""Arguments that are paths."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

from thalweg.errors import ThalwegError


def as_path(value: Any, what: str, example: str, error: type[ThalwegError]) -> Path:
    """Turn an argument into a path. Raises `error` where it cannot be one.

    >>> from thalweg.errors import RunError
    >>> as_path("runs/mine", "a run's folder", "runs/mine", RunError).name
    'mine'
    """
    if not isinstance(value, str | os.PathLike) or not os.fspath(cast(Any, value)) or "\0" in str(value):
        raise error(f"{value!r:.80} cannot be {what}. Give a path, such as '{example}'.")
    return Path(cast("str | os.PathLike[str]", value)).expanduser()
