"""Checkpoints that are either whole or not there: folders of safetensors, JSON, and a manifest with every file's sum.

    checkpoints/step-00001234/model.safetensors       tensors of the section "model", keys joined by "/"
                              optimizer.safetensors   … one file per section that has tensors
                              loop.json               everything that is not a tensor, and which tensor belongs where
                              MANIFEST.json           written last: length and sha256 of each file, and its own sum

Written into a hidden folder beside, confirmed by the disk file by file, then renamed: a process killed at any moment
leaves the checkpoints before it untouched. Nothing that is read is ever unpickled.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import stat
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch

from thalweg.errors import CheckpointError
from thalweg.records import files, sealed_json, tensor_sections, tensorfile
from thalweg.records.files import FileSum, NotRegularError
from thalweg.records.tensor_sections import SplitState

FORMAT = 1
MANIFEST = "MANIFEST.json"
LOOP = "loop.json"
STEP_FOLDER = r"(\.old-)?step-\d{8,}"
DRAFT_FOLDER, OLD_FOLDER = r"\.tmp-[a-z][a-z0-9_-]*", r"\.old-[a-z][a-z0-9_-]*"
CONTENT = r"[a-z][a-z0-9_]*\.safetensors|loop\.json"

CheckpointState: TypeAlias = Mapping[str, Any]
"""Sections ("model", "optimizer", "loop", …) of nested tensor, int, float, str, bool, None, list and dict."""


class NewerFormatError(CheckpointError):
    """A checkpoint of a later version of the format: not damaged, so no older one is read instead."""


class Loaded(NamedTuple):
    """What a checkpoint held, the step it was taken at, where it lies, and a message for each newer one that was damaged."""

    state: dict[str, Any]
    step: int
    path: Path
    messages: tuple[str, ...]


def save(
    folder: str | os.PathLike[str], state: CheckpointState, *, step: int, keep: int = 2, name: str | None = None
) -> Path:
    """Write a checkpoint that is on the disk when this returns, and remove the old ones beyond `keep`.

    folder: the run's `checkpoints/`, made where it is missing; one process at a time writes into it.
    state: sections by name, each nested dict (str or int keys), list, tensor (any device), int, float, str, bool, None.
      Tensors that are the same memory are written once and are one tensor again after `load`; all come back on the CPU,
      without gradient. Tuples and other objects are refused.
    step: updates done so far; the folder is `step-{step:08d}`, replaced in one move where it exists.
    keep: how many step folders stay, this one included. Only intact ones count. Later steps are removed too: they are
      superseded (by a rollback, or by a resume from an earlier step).
    name: a folder of this name instead, such as "best", replaced in one move; never removed.

    Links are not followed, and what somebody else put under these names or into these folders is moved aside, not removed.

    Returns the folder. Raises CheckpointError where a value cannot be stored, or the disk is full or not writable: nothing
    is left behind and the older checkpoints are as they were.
    """
    if step < 0 or keep < 1:
        raise CheckpointError(f"step is {step} and keep is {keep}: a checkpoint needs step >= 0 and keep >= 1.")
    if name is not None and not re.fullmatch(r"(?!step-)[a-z][a-z0-9_-]*", name):
        raise CheckpointError(
            f"a checkpoint cannot be named {name!r}: use lower-case letters, digits, _ and -, such as 'best'."
        )
    folder, parts = Path(folder), tensor_sections.split(state)
    final = folder / (name or f"step-{step:08d}")
    temporary = folder / f".tmp-{final.name}-{os.urandom(8).hex()}"
    try:
        set_aside_unless_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(folder)
        _write(temporary, parts, step, final.name)
        _rename_into_place(temporary, final)
    except OSError as error:
        _clean_up(temporary, final)
        raise CheckpointError(_cannot_write(final, parts, error)) from error
    except BaseException:
        _clean_up(temporary, final)
        raise
    _intact.add(_folder_identity(final))
    if name is None:
        _remove_superseded(folder, step, keep)
    return final


def load(path: str | os.PathLike[str]) -> Loaded:
    """Read one checkpoint, or of a folder of checkpoints the newest whose sums all agree.

    Returns (state, step, path, messages): one message for each newer checkpoint that is damaged, and how.
    Raises CheckpointError where there is none, none is intact, or the one asked for is not.
    """
    path = _restored(Path(path))
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: of a null byte
        raise CheckpointError(
            f"there is no checkpoint at {path}: give a run's folder of checkpoints, or one in it."
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}. Check its permissions.") from error
    if _is_checkpoint(path):
        state, step = _read(path)
        return Loaded(state, step, path, ())
    problems = list[str]()
    for candidate in _newest_first(path):
        try:
            state, step = _read(candidate)
        except NewerFormatError:
            raise
        except CheckpointError as error:
            problems.append(str(error))
            continue
        return Loaded(
            state, step, candidate, tuple(f"passed over: {text} Continuing from {candidate.name}." for text in problems)
        )
    raise CheckpointError(_none_intact(path, problems))


def verify(path: str | os.PathLike[str]) -> list[str]:
    """Compare every file of one checkpoint with its manifest; returns what is wrong, nothing where it is intact."""
    path = _restored(Path(path))
    try:
        manifest = _manifest(path)
    except CheckpointError as error:
        return [str(error)]
    problems = list[str]()
    for name, expected in manifest.files.items():
        try:
            tensorfile.check(path / name, expected)
        except (CheckpointError, OSError) as error:
            problems.append(f"{path.name}: {error}")
    return problems


def newest(folder: str | os.PathLike[str]) -> Path | None:
    """Find the newest step folder whose sums all agree, or None."""
    return next((path for path in _newest_first(Path(folder)) if not verify(path)), None)


def remove(folder: str | os.PathLike[str]) -> None:
    """Remove a folder with the checkpoints in it and in its folders; what somebody else put there stays, and links are left."""
    folder = Path(folder)
    with suppress(OSError):
        if folder.is_symlink():
            return
        for path in list(folder.iterdir()):
            if (path / LOOP).is_file() or (path / MANIFEST).is_file() or re.fullmatch(DRAFT_FOLDER, path.name):
                _discard(path)
            elif path.is_dir():
                remove(path)
        folder.rmdir()


def set_aside_unless_folder(path: Path) -> None:
    """Move aside what is under a name and is no folder: a link, a pipe or a file. Raises OSError."""
    with suppress(FileNotFoundError):
        if not stat.S_ISDIR(path.lstat().st_mode):
            files.set_aside(path)


def steps(folder: str | os.PathLike[str]) -> list[int]:
    """List the steps that have a folder, ascending, intact or not."""
    return [_step_of(path) for path in reversed(_newest_first(Path(folder)))]


# What is written


def _write(temporary: Path, parts: SplitState, step: int, name: str) -> None:
    temporary.mkdir()
    sums = {
        f"{section}.safetensors": tensorfile.write_tensors(temporary / f"{section}.safetensors", tensors)
        for section, tensors in parts.tensors.items()
    }
    sums[LOOP] = files.create(temporary / LOOP, [json.dumps(parts.values, allow_nan=False, indent=1).encode()])
    manifest = {
        "format": FORMAT,
        "step": step,
        "name": name,
        "world_size": 1,
        "files": {name: entry._asdict() for name, entry in sums.items()},
        "aliases": parts.aliases,
    }
    files.create(temporary / MANIFEST, [sealed_json.with_sum(manifest).encode()])
    files.sync_folder(temporary)


def _rename_into_place(temporary: Path, final: Path) -> None:
    """Rename the finished folder to its final name; what had that name is removed only after that."""
    if not os.path.lexists(final):
        os.rename(temporary, final)
    elif not _swap_names(temporary, final):
        # Where the system cannot swap two names, the old one is renamed for a moment; `load` finds it there too.
        _discard(_old_name(final))
        os.rename(final, _old_name(final))
        os.rename(temporary, final)
    files.sync_folder(final.parent)
    for left, name in ((temporary, final), (_old_name(final), final)):
        _discard(left, name)


def _clean_up(temporary: Path, final: Path) -> None:
    _discard(temporary)
    with suppress(OSError):
        _restored(final, move=True)


def _discard(path: Path, name: Path | None = None) -> None:
    """Remove a checkpoint's folder; what somebody else put there, into it or in its place, is moved aside instead.

    `name` is the name that it had. What cannot be removed stays, and the next save tries again.
    """
    with suppress(OSError):
        if stat.S_ISDIR(path.lstat().st_mode):
            for entry in list(os.scandir(path)):
                if re.fullmatch(f"{CONTENT}|{MANIFEST}", entry.name) and entry.is_file(follow_symlinks=False):
                    os.unlink(entry)
            with suppress(OSError):
                path.rmdir()
                return
        files.set_aside(path, name)


def _swap_names(one: Path, other: Path) -> bool:
    """Swap two names in one step; False where the system or the file system has no such call."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return call is not None and call(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _clear_leftovers(folder: Path) -> None:
    """Rename back what a killed process had renamed for a moment, and remove what it left half-written."""
    for path in list(folder.iterdir()):
        if re.fullmatch(OLD_FOLDER, path.name):
            _restored(path.with_name(path.name.removeprefix(".old-")), move=True)
            _discard(path)
        elif re.fullmatch(DRAFT_FOLDER, path.name):
            _discard(path)


def _old_name(final: Path) -> Path:
    return final.with_name(f".old-{final.name}")


def _restored(path: Path, *, move: bool = False) -> Path:
    """The folder to read for `path`: the old one under its other name, where a process died before the new one was in place."""
    if os.path.lexists(path) or not os.path.exists(_old_name(path)):
        return path
    return _old_name(path).rename(path) if move else _old_name(path)


def _remove_superseded(folder: Path, step: int, keep: int) -> None:
    """Remove later steps, which are superseded, and of the others all but the newest, so that `keep` are intact."""
    intact = 0
    for path in _newest_first(folder):
        if _step_of(path) > step or intact >= keep:
            _discard(path)
        elif _is_intact(path):
            intact += 1


def _is_intact(path: Path) -> bool:
    """Whether the sums agree. Each folder is read once per process, so that a save does not read older checkpoints each time."""
    identity = _folder_identity(path)
    if identity not in _intact and not verify(path):
        _intact.add(identity)
    return identity in _intact


def _folder_identity(path: Path) -> tuple[str, int, int]:
    """Identify a folder by more than its name, which may later be another folder's."""
    try:
        status = (path / MANIFEST).stat()
    except OSError:
        return str(path.absolute()), 0, 0
    return str(path.absolute()), status.st_ino, status.st_mtime_ns


_intact: set[tuple[str, int, int]] = set()


def _cannot_write(final: Path, parts: SplitState, error: OSError) -> str:
    needed = sum(tensor.nbytes for tensors in parts.tensors.values() for tensor in tensors.values())
    megabytes = max(1, round(needed / 1e6))
    reason = error.strerror or str(error)
    advice = {
        errno.ENOSPC: f"Free about {megabytes:,} MB there or lower the number of checkpoints kept",
        errno.EDQUOT: f"Your quota lacks about {megabytes:,} MB there",
        errno.EACCES: "Give this user permission to write there or choose another folder",
        errno.EPERM: "Give this user permission to write there or choose another folder",
        errno.EROFS: "The file system is read-only: choose another folder",
    }.get(error.errno or 0, "Check the disk")
    return f"{final.name} cannot be written to {final.parent}: {reason}. {advice}; older checkpoints there are intact."


# What is read


class _Manifest(NamedTuple):
    step: int
    name: str | None  # of the folder; older versions did not write it
    files: dict[str, FileSum]


def _manifest(path: Path) -> _Manifest:
    """Read and check a manifest: its own sum, its format, the names of its files and of its folder."""
    try:
        raw = files.read(path / MANIFEST)
    except (FileNotFoundError, NotADirectoryError, NotRegularError) as error:
        raise CheckpointError(
            f"{path.name} has no {MANIFEST}: it was never finished, or parts of it were removed."
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror}. Check its permissions.") from error
    altered = f"{path.name}: {MANIFEST} is altered or truncated: its own sum does not agree."
    try:
        content = json.loads(raw)
        if not sealed_json.agrees(raw.decode(), str(content[sealed_json.SUM])):
            raise CheckpointError(altered)
        if content["format"] > FORMAT:
            raise NewerFormatError(
                f"{path.name} is of checkpoint format {content['format']}, this thalweg reads up to {FORMAT}: "
                "install a newer one."
            )
        sums = {
            str(name): FileSum(int(entry["bytes"]), str(entry["sha256"])) for name, entry in content["files"].items()
        }
        name = content.get("name")
        manifest = _Manifest(int(content["step"]), None if name is None else str(name), sums)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(altered) from error
    if not all(re.fullmatch(CONTENT, name) for name in sums) or LOOP not in sums:
        raise CheckpointError(f"{path.name}: {MANIFEST} names files that no checkpoint has.")
    _check_name(path, manifest)
    return manifest


def _check_name(path: Path, manifest: _Manifest) -> None:
    """Raise CheckpointError where a whole checkpoint was put under the name of another."""
    name = path.name.removeprefix(".old-")
    if re.fullmatch(STEP_FOLDER, name) and _step_of(path) != manifest.step:
        raise CheckpointError(f"{path.name} holds step {manifest.step}: the folder was renamed. Give it back its name.")
    if manifest.name not in (None, name) and re.fullmatch(f"{STEP_FOLDER}|best", name):
        raise CheckpointError(
            f"{path.name} was written as {manifest.name}: the folder was renamed. Give it back its name."
        )


def _read(path: Path) -> tuple[dict[str, Any], int]:
    manifest = _manifest(path)
    try:
        content = json.loads(tensorfile.read(path / LOOP, manifest.files[LOOP]))
        tensors = dict[str, torch.Tensor]()
        for name, expected in manifest.files.items():
            section, _, kind = name.rpartition(".")
            if kind == "safetensors":
                found = tensorfile.read_tensors(path / name, expected)
                tensors.update({f"{section}/{key}": tensor for key, tensor in found.items()})
        return tensor_sections.join(content, tensors), manifest.step
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror}. Check the disk.") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path.name}: {error}") from error
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path.name}: {LOOP} does not fit the tensors beside it.") from error


def _is_checkpoint(path: Path) -> bool:
    return re.fullmatch(f"{STEP_FOLDER}|best", path.name) is not None or files.is_regular(path / MANIFEST)


def _newest_first(folder: Path) -> list[Path]:
    try:
        found = [path for path in folder.iterdir() if re.fullmatch(STEP_FOLDER, path.name) and _is_current(path)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be listed: {error.strerror}. Give the folder of checkpoints."
        ) from error
    return sorted(found, key=_step_of, reverse=True)


def _is_current(path: Path) -> bool:
    """Whether a folder that was renamed for a moment has not been replaced since."""
    return path.name.startswith("step-") or not os.path.exists(path.with_name(path.name.removeprefix(".old-")))


def _step_of(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _none_intact(folder: Path, problems: list[str]) -> str:
    if not problems:
        return f"there is no checkpoint in {folder}: give a run's folder of checkpoints, or start the run anew."
    best = folder / "best"
    rest = f" {best} is intact: load it by its path." if os.path.exists(best) and not verify(best) else ""
    return f"no checkpoint in {folder} is intact: {' '.join(problems)}{rest}"
