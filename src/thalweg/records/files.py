"""Files that are whole on the disk or not there at all: the one place where thalweg writes and reads files as a whole.

Whatever somebody else put under a name is left as it was. A link is not followed, neither for writing nor for reading; a pipe
is not waited for; what is no regular file is not written over, but refused, or moved aside where the name is thalweg's own.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

CHUNK = 1 << 20
MOST_BYTES = 1 << 26  # of a file that is read as a whole; those of a run have some kilobytes
DRAFT = r"\.thalweg-[0-9a-f]{16}\.tmp"  # the name of a file that is not complete yet; a killed process leaves one

DRAFT_SECONDS = 600.0  # more than a slow disk takes to confirm one

UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM}
"""What a file system answers that has no such operation: confirming a folder, say, or one without permission to list it."""


class FileSum(NamedTuple):
    """Length in bytes of a file, and the sha256 of all of them."""

    bytes: int
    sha256: str


class NotRegularError(OSError):
    """Under the name is no regular file but a link, a folder, a pipe, a socket or a device."""


def create(path: Path, parts: Iterable[memoryview | bytes]) -> FileSum:
    """Write the parts one after another to a new file, have the disk confirm it, and give length and sum.

    Raises OSError where anything is there already, a link included; what cannot be completed is removed.
    """
    digest, length = hashlib.sha256(), 0
    with open(path, "xb") as file, _removed_on_failure(path):
        for part in parts:
            for start in range(0, len(part), CHUNK):
                chunk = part[start : start + CHUNK]
                digest.update(chunk)
                file.write(chunk)
            length += len(part)
        file.flush()
        os.fsync(file.fileno())
    return FileSum(length, digest.hexdigest())


def replace(path: Path, data: bytes) -> FileSum:
    """Write a file, in place of an older one in one move, have the disk confirm it, and give length and sum.

    A reader sees the old file or the new one, also where the process is killed or the machine loses power meanwhile.

    Raises OSError; NotRegularError where something else than a regular file is under the name. Then all is as it was.
    """
    check_regular(path)
    draft = _draft(path.parent)
    written = create(draft, [data])
    with _removed_on_failure(draft):
        _rename_over(draft, path)
    sync_folder(path.parent)
    return written


def read(path: Path) -> bytes:
    """Read a whole file. Raises OSError where it is missing or longer than `MOST_BYTES`, NotRegularError where it is no file."""
    check_regular(path)
    with open(path, "rb", opener=_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):  # put there since it was checked
            raise NotRegularError(errno.EINVAL, "it is no regular file", str(path))
        if status.st_size > MOST_BYTES:
            raise OSError(errno.EFBIG, f"it has {status.st_size:,} bytes, which is no file of a run", str(path))
        return file.read(MOST_BYTES)


def check_writable(folder: Path) -> None:
    """Make a file in a folder, under a name of its own, and remove it. Raises OSError where that fails."""
    probe = _draft(folder)
    create(probe, [b""])
    probe.unlink()


def check_regular(path: Path) -> None:
    """Raise NotRegularError where something else than a regular file is under the name; nothing there is well."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise NotRegularError(errno.EEXIST, f"it is {_kind(mode)}", str(path))


def is_regular(path: Path) -> bool:
    """Whether a regular file is under the name."""
    with suppress(OSError, ValueError):  # ValueError: of a null byte
        return stat.S_ISREG(path.lstat().st_mode)
    return False


def set_aside_unless_regular(path: Path) -> Path | None:
    """Move away what is under a name of thalweg's own and is no regular file; gives where it is now, or None."""
    try:
        check_regular(path)
    except NotRegularError:
        return set_aside(path)
    return None


def set_aside(path: Path, name: Path | None = None) -> Path:
    """Rename what somebody else put under a name of thalweg's own, so that it is kept; gives where it is now.

    `name` is what it is called after, where that is another name than the one it has.
    """
    name = name or path
    number, free = 1, name.with_name(f"{name.name}.set-aside")
    while os.path.lexists(free):
        number += 1
        free = name.with_name(f"{name.name}.set-aside-{number}")
    os.rename(path, free)
    return free


def make_own(path: Path) -> None:
    """Give a name a file of its own where it shares one with other names, as in a copy by hard links, so that what is written to
    it is written under no other name. Raises OSError, and then the file is as it was.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if status.st_nlink < 2 or not stat.S_ISREG(status.st_mode):
        return
    draft = _draft(path.parent)
    with open(path, "rb", opener=_without_waiting) as file:
        create(draft, iter(lambda: file.read(CHUNK), b""))
    with _removed_on_failure(draft):
        os.chmod(draft, stat.S_IMODE(status.st_mode))
        _rename_over(draft, path)
    sync_folder(path.parent)


def name_before_aside(name: str) -> str | None:
    """Give the name that a file had before `set_aside`; None where this is no name that it gives.

    >>> name_before_aside("plan.toml.set-aside-2"), name_before_aside("plan.toml")
    ('plan.toml', None)
    """
    found = re.fullmatch(r"(.+)\.set-aside(-\d+)?", name, re.DOTALL)
    return found and found[1]


def sync_folder(folder: Path) -> None:
    """Have the disk confirm which names a folder holds, where the file system can."""
    if os.name == "nt":
        return  # Windows has no handle of a folder to sync.
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def identity(path: Path) -> tuple[int, int] | None:
    """Give what tells a file or folder from another that is later put under its name; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def remove_old_drafts(folder: Path) -> None:
    """Remove from a folder what killed processes did not complete; what is younger than `DRAFT_SECONDS` may yet be."""
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            if is_draft(entry.name) and entry.is_file(follow_symlinks=False):
                with suppress(OSError):  # somebody else removes it too
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > DRAFT_SECONDS:
                        os.unlink(entry.path)


def is_draft(name: str) -> bool:
    """Whether a name is that of a file which a killed process did not complete."""
    return re.fullmatch(DRAFT, name) is not None


@contextmanager
def _removed_on_failure(path: Path) -> Generator[None]:
    try:
        yield
    except BaseException:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise


def _draft(folder: Path) -> Path:
    # A name that nobody can foresee, and that is short enough beside every name that is.
    return folder / f".thalweg-{os.urandom(8).hex()}.tmp"


def _rename_over(draft: Path, path: Path) -> None:
    try:
        os.replace(draft, path)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.EPERM, errno.EOPNOTSUPP) or not path.exists():
            raise
        # Some file systems of networks and of other systems rename to free names only.
        old = set_aside(path)
        try:
            os.rename(draft, path)
        except OSError:
            os.rename(old, path)
            raise
        old.unlink()


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFLNK: "a link, which is not followed",
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")
