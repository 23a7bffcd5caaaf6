"""The claim on a run's folder: one process at a time writes into it, and a claim ends with its process."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from thalweg.errors import RunError

LOCK = ".lock"

_held: set[int] = set()


def _let_go() -> None:
    # A lock belongs to the open file, which a forked loader worker shares: it would outlive the run by seconds.
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextmanager
def claimed(folder: Path) -> Generator[None]:
    """Hold a run's folder, made where it is missing, for this process and thread; nothing needs to be tidied after a crash.

    Raises RunError where the folder cannot be made or somebody else writes to it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        _lock(descriptor)
        _held.add(descriptor)
        yield
    except BlockingIOError as error:
        if descriptor in _held:
            raise
        raise RunError(f"Another process is writing to {folder}. Wait for it, or give another folder.") from error
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def unwritable(folder: Path, error: OSError) -> RunError:
    """Give the error that says that a folder cannot be written."""
    return RunError(f"{folder} cannot be written: {error.strerror}. Choose another folder with out=.")


def _lock(descriptor: int) -> None:
    """Take the lock or raise BlockingIOError."""
    if os.name == "nt":
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
        except OSError as error:
            raise BlockingIOError from error
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
