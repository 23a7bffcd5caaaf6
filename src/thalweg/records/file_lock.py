"""A lock on an open file: held by one process and thread at a time, and released when its process ends, however it ends."""

from __future__ import annotations

import errno
import os
from pathlib import Path

WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}

_held: set[int] = set()  # descriptors of the locks that this process holds


def _close_in_child() -> None:
    # A lock belongs to the open file, which a forked child (a worker of a DataLoader) shares. Without this, a child that
    # outlives its killed parent by some seconds would keep the lock for as long, and the run could not be resumed at once.
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def open(path: Path) -> int:
    """Open the file to lock, made where it is missing; a link is not followed. Raises OSError."""
    return os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o644)


def acquire(descriptor: int) -> bool:
    """Lock an open file without waiting; `release` unlocks and closes it. Gives False where the file system has no locks.

    Raises BlockingIOError where somebody else holds the lock; the file is closed then.
    """
    try:
        _lock(descriptor)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            os.close(descriptor)
            raise
        _held.add(descriptor)
        return False
    _held.add(descriptor)
    return True


def acquire_folder(path: Path) -> int | None:
    """Lock a folder as `acquire` locks a file; None where the system does not open or lock folders, as over some networks.

    Raises BlockingIOError where somebody else holds the lock.
    """
    if os.name == "nt":
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY)
        acquire(descriptor)
    except BlockingIOError:
        raise
    except OSError:
        return None
    return descriptor


def release(descriptor: int) -> None:
    """Unlock and close a file that `acquire` locked; in a forked child, which has not got the lock, do nothing."""
    if descriptor in _held:
        _held.discard(descriptor)
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    if os.name == "nt":
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
        except OSError as error:
            raise BlockingIOError from error
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
