"""Whether this user made a run: a seal over what opening its task would run, made with a secret that only this user has.

A run's folder says which file or module makes its task. To make the task again runs that code, so a folder that came from
elsewhere must not decide what is run. What the folder says is sealed (HMAC-SHA256) where the run is made, with a key of the
user's that lies outside of all runs: who does not have the key cannot make a seal, nor change what was sealed. The seal says
nothing of where the folder lies, so a run that was moved or copied stays the user's.

The key is in the user's folder for state, which a cluster's machines may share. Where none can be kept there (no home, a
read-only one), the seal holds in the process that made it and in its children, and nowhere else.
"""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

KEY_BYTES = 32
PURPOSE = b"thalweg: what a run's task is made from\n"  # so that a seal of something else is never one of this
_process_key = os.urandom(KEY_BYTES)


def seal(content: str) -> str:
    """Give the seal of a text, with the user's key, which is made where there is none yet."""
    return _seal(content, _kept_key() or _made_key() or _process_key)


def is_sealed(content: str, found: str) -> bool:
    """Tell whether this user, or this process, sealed the text so."""
    keys = [key for key in (_kept_key(), _process_key) if key is not None]
    return any(hmac.compare_digest(_seal(content, key).encode(), found.encode("utf-8", "replace")) for key in keys)


def missing_key() -> str:
    """Say why runs of other processes are not recognised, and what to do about it; "" where there is a key."""
    if _kept_key() is not None:
        return ""
    folder = _state_folder()
    where = "your home, which there is not" if folder is None else str(folder)
    return (
        f" No key of yours is in {where}, so your own runs are recognised only in the process that made them; XDG_STATE_HOME"
        f" may name a folder that lasts."
    )


def _seal(content: str, key: bytes) -> str:
    return hmac.new(key, PURPOSE + content.encode("utf-8", "surrogatepass"), "sha256").hexdigest()


def _state_folder() -> Path | None:
    """Give the folder of what lasts and belongs to this machine; None where the user has no home."""
    base = Path(os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_STATE_HOME") or "")
    with suppress(RuntimeError):  # no home
        return (base if base.is_absolute() else Path.home() / ".local" / "state") / "thalweg"
    return None


def _kept_key() -> bytes | None:
    """Read the user's key; None where there is none that only this user can have written and read."""
    folder = _state_folder()
    if folder is None or not _is_private(folder):
        return None
    with suppress(OSError):
        descriptor = os.open(folder / "key", os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            key = file.read(KEY_BYTES + 1) if stat.S_ISREG(status.st_mode) and _is_ours(status) else b""
        return key if len(key) == KEY_BYTES else None
    return None


def _made_key() -> bytes | None:
    """Make the user's key; of several processes that do so at once one makes it, and all get the same."""
    folder = _state_folder()
    if folder is None:
        return None
    with suppress(OSError):
        _make_private(folder)
        draft = folder / f".key.{secrets.token_hex(8)}"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.write(os.urandom(KEY_BYTES))
                file.flush()
                os.fsync(descriptor)
            with suppress(
                FileExistsError
            ):  # a link, unlike a move, never replaces the key that another process just made
                os.link(draft, folder / "key")
        finally:
            draft.unlink()
    return _kept_key()


def _make_private(folder: Path) -> None:
    """Make the folder. Root makes none in a home that is another user's (sudo), who could not use it later: PermissionError."""
    above = next(parent for parent in folder.parents if parent.exists())
    if os.name != "nt" and os.geteuid() == 0 and above.stat().st_uid != 0:
        raise PermissionError
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)


def _is_private(folder: Path) -> bool:
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and _is_ours(status)


def _is_ours(status: os.stat_result) -> bool:
    """Whether a file belongs to this user, and to nobody else; on Windows the user's folders do."""
    return os.name == "nt" or (status.st_uid == os.geteuid() and not stat.S_IMODE(status.st_mode) & 0o077)
