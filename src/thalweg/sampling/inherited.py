"""What a forked process shares with its parent besides memory: places in open files, connections and pipes.

Two processes that read one open file by turns move each other's place, and each gets rows of the other's. So a child opens each
file again, at the place where it stood. A connection to a database, say, can serve one of them only: it is the parent's. In the
child it is ended, so that code there connects anew or fails, instead of reading the answers to somebody else's questions.
"""

from __future__ import annotations

import gc
import os
import socket
import stat
from collections.abc import Collection
from typing import Literal

try:
    import fcntl
except ImportError:  # on Windows, where nothing is forked
    fcntl = None

KEPT_FLAGS = ("O_APPEND", "O_NONBLOCK", "O_DIRECT")
STANDARD = (0, 1, 2)
HARMLESS = ("/dev/shm/sem.", "/dev/shm/__KMP_REGISTERED_LIB_")  # locks, which are there to be shared, and OpenMP's own


def part_from_parent(keep: Collection[int] = (), *, ends: Literal["all", "internet", "none"] = "all") -> None:
    """Give this forked process files of its own, and end the connections that it shares with its parent.

    Files that are only written stay shared, so that what both write comes one behind the other. Nothing is done where the system
    does not say which files are open (it is not Linux).

    Arguments:
        keep: descriptors that stay as they are; the standard ones do anyway.
        ends: which connections; "internet" leaves pipes and local sockets, by which a loader's worker talks to its parent.
    """
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return
    for number in numbers:
        if number in STANDARD or number in keep:
            continue
        try:
            kind = os.fstat(number).st_mode
        except OSError:  # that of the list itself
            continue
        if stat.S_ISREG(kind):
            own = _opened_again(number)
        elif ends != "none" and _is_connection(number, kind, only_internet=ends == "internet"):
            own = _ended()
        else:
            continue
        if own is not None:
            os.dup2(own, number, inheritable=os.get_inheritable(number))
            os.close(own)


def shares_memory() -> bool:
    """Whether this process has memory that it would share with a child, so that what one of them writes the other reads.

    That are tensors after `share_memory_`, arrays mapped from a file for writing, values of `multiprocessing`. What SQLite maps
    for itself does not count, nor what nobody holds any more but has not been freed yet.
    """
    if not _maps_shared_memory():
        return False
    gc.collect()
    return _maps_shared_memory()


def _maps_shared_memory() -> bool:
    try:
        with open("/proc/self/maps") as file:
            lines = file.read().splitlines()
    except OSError:
        return False
    for line in lines:
        _, access, _, _, _, *path = line.split(maxsplit=5)
        if access[1] == "w" and access[3] == "s" and not _is_harmless("".join(path)):
            return True
    return False


def _is_harmless(path: str) -> bool:
    is_memory = path.startswith("/") and not path.startswith(("/dev/dri", "/dev/nvidia"))
    return not is_memory or path.startswith(HARMLESS) or path.endswith("-shm")


def _opened_again(number: int) -> int | None:
    """Open a file that can be read once more, at the same place; None where it is only written, or only named."""
    assert fcntl is not None
    flags = fcntl.fcntl(number, fcntl.F_GETFL)
    access = flags & os.O_ACCMODE
    if access == os.O_WRONLY or flags & os.O_PATH:
        return None
    kept = sum(flags & getattr(os, name, 0) for name in KEPT_FLAGS)
    try:
        own = os.open(f"/proc/self/fd/{number}", access | kept | os.O_CLOEXEC)
    except OSError:  # no longer allowed: better no file than one at a place that others move
        return _ended()
    os.lseek(own, os.lseek(number, 0, os.SEEK_CUR), os.SEEK_SET)
    return own


def _is_connection(number: int, kind: int, *, only_internet: bool) -> bool:
    if not only_internet:
        return stat.S_ISSOCK(kind) or stat.S_ISFIFO(kind)
    if not stat.S_ISSOCK(kind):
        return False
    with socket.socket(fileno=os.dup(number)) as known:
        return known.family in (socket.AF_INET, socket.AF_INET6)


def _ended() -> int:
    """Give a connection whose other side is gone: it reads as ended, and refuses what is written."""
    own, other = socket.socketpair()
    other.close()
    return own.detach()
