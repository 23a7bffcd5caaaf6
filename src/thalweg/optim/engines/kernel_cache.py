"""The kernel cache: compiled kernels on the disk, each an object file with a sum, loaded with LLVM alone.

To import Numba takes most of a second and a hundred megabytes, llvmlite by itself 25 ms and half of them. So Numba is imported
only for a kernel that no earlier process of this user compiled, on this processor, with these versions.

A file is run as code, so nothing about it is believed: it must be a plain file of this user's that nobody else may write, and its
sum goes over what the kernel was compiled from (`identity`) and the code. A file that was damaged, cut short, or put under
another kernel's name has another sum, and its kernel is compiled anew.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import pkgutil
import stat
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

SUM_BYTES = hashlib.sha256().digest_size

MOST_BYTES = 1 << 24
"""A kernel has some ten thousand bytes; more than this is none."""

NUMBA_OPTIONS = (
    *("NUMBA_OPT", "NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_ENABLE_AVX", "NUMBA_LOOP_VECTORIZE"),
    *("NUMBA_SLP_VECTORIZE", "NUMBA_DISABLE_INTEL_SVML", "NUMBA_BOUNDSCHECK", "NUMBA_DEBUGINFO"),
)
"""Variables of the environment by which Numba compiles the same text to other code."""

NEVER_CALLED = ("NRT_MemInfo_call_dtor", "numba_gil_ensure", "numba_gil_release")
"""Functions of Numba's runtime that the code of a kernel refers to on paths for Python errors, which no kernel raises. Without
Numba they do not exist, and LLVM ends the process when it links a name that it cannot find: `_engine` makes them `abort`."""


def identity(text: str, *options: str) -> str:
    """Give a sum of a kernel's source text, the options it is compiled with, and all else that its code depends on."""
    return hashlib.sha256("\0".join((text, *options, *_surroundings())).encode()).hexdigest()


def load(name: str, identity: str) -> int | None:
    """Load the kernel saved under a name and give its address.

    None where there is none, or the file is damaged or another kernel's, or it calls a function that this process does not have.
    """
    folder = cache_folder()
    if folder is None:
        return None
    with suppress(OSError, ValueError):
        data = _read(folder / f"{name}.kernel")
        if _sum(identity, data[SUM_BYTES:]) != data[:SUM_BYTES]:
            return None
        symbol, calls, code = data[SUM_BYTES:].split(b"\n", 2)
        return _link(symbol.decode(), calls.decode().split(), code)
    return None


def save(name: str, identity: str, symbol: str, code: bytes, calls: Sequence[str]) -> None:
    """Save an object file, the symbol of its function, and the external functions that the code refers to (`calls`)."""
    folder = cache_folder()
    if folder is None:
        return
    data = b"\n".join((symbol.encode(), " ".join(calls).encode(), code))
    # A name that nobody can foresee, of a file that does not exist: two processes never write into one file, also where their
    # ids are the same (in two containers with one home), and a link that was put there is not followed.
    with suppress(OSError):
        handle, temporary = tempfile.mkstemp(prefix=f"{name}.", suffix=".tmp", dir=folder)
        try:
            with open(handle, "wb") as file:
                file.write(_sum(identity, data) + data)
            os.replace(temporary, folder / f"{name}.kernel")
        except BaseException:
            os.unlink(temporary)
            raise


@cache
def _surroundings() -> tuple[str, ...]:
    """Give what the code of every kernel depends on beside its text."""
    import llvmlite.binding as llvm

    versions = *map(version, ("numba", "llvmlite", "numpy")), sys.implementation.cache_tag or sys.version
    machine = llvm.get_process_triple(), llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    options = (f"{name}={os.environ.get(name)}" for name in NUMBA_OPTIONS)
    called = pkgutil.get_data("thalweg.optim.engines", "intrinsics.py") or b""
    return *versions, *machine, *options, called.decode()


def _sum(identity: str, data: bytes) -> bytes:
    return hashlib.sha256(identity.encode() + data).digest()


def _read(path: Path) -> bytes:
    """Read a plain file that belongs to this user, and that nobody else may write; OSError or ValueError where it is not so."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(handle, "rb") as file:
        status = os.fstat(file.fileno())
        is_ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022
        if not is_ours or status.st_size > MOST_BYTES:
            raise ValueError(f"{path} is no kernel of this user's")
        return file.read()


def _link(symbol: str, calls: Sequence[str], code: bytes) -> int | None:
    """Link an object file and give the address of its function; None where it calls one that does not exist in this process.

    LLVM would end the process at such a name. Numba's own functions exist only where Numba was imported.
    """
    import llvmlite.binding as llvm

    engine = _engine()
    if any(llvm.address_of_symbol(call) is None for call in calls):
        return None
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return engine.get_function_address(symbol) or None


@cache
def _engine() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    abort = ctypes.cast(ctypes.CDLL(None).abort, ctypes.c_void_p).value
    for name in NEVER_CALLED:
        if llvm.address_of_symbol(name) is None:
            llvm.add_symbol(name, abort)
    return llvm.create_mcjit_compiler(
        llvm.parse_assembly(""), llvm.Target.from_default_triple().create_target_machine()
    )


def cache_folder() -> Path | None:
    """Give the folder of kernels in the user's cache, made if missing; None where no safe one can be had.

    Its files are run as code, so it must belong to the user, and nobody else may read or write it.
    """
    if os.name == "nt":  # LLVM does not link Windows' object files in memory
        return None
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    with suppress(OSError, RuntimeError):
        # A relative path is to be ignored (XDG Base Directory Specification): it would be another folder in every directory.
        folder = (base if base.is_absolute() else Path.home() / ".cache") / "thalweg" / "kernels"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
        ours = status.st_uid == os.getuid() and not stat.S_IMODE(status.st_mode) & 0o077
        return folder if ours and os.access(folder, os.W_OK) else None
    return None
