"""Arguments that are paths."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

from thalweg.errors import ThalwegError, shown


def as_path(value: Any, what: str, example: str, error: type[ThalwegError]) -> Path:
    """Turn an argument into an absolute path: the user's code may change the working directory later.

    Raises `error` where it cannot be a path.

    >>> from thalweg.errors import RunError
    >>> path = as_path("runs/mine", "a run's folder", "runs/mine", RunError)
    >>> path.name, path.is_absolute()
    ('mine', True)
    """
    if not isinstance(value, str | os.PathLike) or not os.fspath(cast(Any, value)) or "\0" in str(value):
        raise error(f"{shown(value, 80)} cannot be {what}. Give a path, such as '{example}'.")
    try:
        return Path(cast("str | os.PathLike[str]", value)).expanduser().absolute()
    except (OSError, RuntimeError) as reason:  # the working directory was removed; or there is no such user
        raise error(f"{shown(value, 80)} cannot be {what}: {reason}. Give a path that begins with /.") from reason


def typed(path: Path) -> str:
    """Give a path as somebody would type it where this process began: relative to there, or as a whole.

    The whole is given too where the working directory is another by now.
    """
    try:
        relative = os.path.relpath(path)
        moved = Path.cwd() != STARTED_IN
    except (OSError, ValueError):  # the working directory was removed; or the path is on another drive
        return str(path)
    return str(path) if moved or relative.startswith("..") else relative


def _working_directory() -> Path | None:
    try:
        return Path.cwd()
    except OSError:
        return None


STARTED_IN = _working_directory()
