"""The kernel cache: compiled kernels on the disk, each an object file with its checksum, loaded with LLVM alone.

To import Numba takes most of a second and a hundred megabytes, llvmlite by itself 25 ms and half of them. So Numba is imported
only for a kernel that no earlier process of this user compiled, on this processor, with these versions.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import stat
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

CHECKSUM_BYTES = hashlib.sha256().digest_size

NEVER_CALLED = ("NRT_MemInfo_call_dtor", "numba_gil_ensure", "numba_gil_release")
"""Functions of Numba's runtime that the code of a kernel refers to on paths for Python errors, which no kernel raises. Without
Numba they do not exist, and LLVM ends the process when it links a name that it cannot find: `_engine` makes them `abort`."""


def key(text: str) -> str:
    """Give a hash of the source text and all else that the object file depends on."""
    import llvmlite.binding as llvm

    machine = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    parts = (text, version("numba"), version("llvmlite"), version("numpy"), *machine)
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=12).hexdigest()


def load(name: str) -> int | None:
    """Load a saved kernel and give its address; None where there is none, or the file is damaged."""
    folder = cache_folder()
    if folder is None:
        return None
    with suppress(OSError, ValueError):
        data = (folder / f"{name}.kernel").read_bytes()
        if hashlib.sha256(data[CHECKSUM_BYTES:]).digest() != data[:CHECKSUM_BYTES]:
            return None
        symbol, code = data[CHECKSUM_BYTES:].split(b"\n", 1)
        return _link(symbol.decode(), code)
    return None


def save(name: str, symbol: str, code: bytes, calls: list[str]) -> None:
    """Save an object file and the symbol of its function, unless a later process could not load it.

    `calls` are the external functions that the code refers to. LLVM ends the process at one that it cannot find, so all must be
    functions that LLVM finds in any process (`sqrt`, say), or of `NEVER_CALLED`.
    """
    import llvmlite.binding as llvm

    folder = cache_folder()
    if folder is None or any(call not in NEVER_CALLED and llvm.address_of_symbol(call) is None for call in calls):
        return
    data = symbol.encode() + b"\n" + code
    with suppress(OSError):
        temporary = folder / f"{name}.{os.getpid()}.tmp"
        temporary.write_bytes(hashlib.sha256(data).digest() + data)
        temporary.replace(folder / f"{name}.kernel")


def _link(symbol: str, code: bytes) -> int | None:
    import llvmlite.binding as llvm

    engine = _engine()
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
    base = os.environ.get("XDG_CACHE_HOME")
    with suppress(OSError, RuntimeError):
        folder = (Path(base) if base else Path.home() / ".cache") / "thalweg" / "kernels"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
        ours = status.st_uid == os.getuid() and not stat.S_IMODE(status.st_mode) & 0o077
        return folder if ours and os.access(folder, os.W_OK) else None
    return None
