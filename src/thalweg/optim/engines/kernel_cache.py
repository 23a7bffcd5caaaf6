"""Compiled kernels on the disk: an object file with its own sum, brought back by LLVM alone.

Numba takes most of a second and a hundred megabytes to load, LLVM by itself 25 ms and half of them. So Numba is asked only for
what no earlier process of this user compiled, on this processor, with these versions.
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

SUM = hashlib.sha256().digest_size

NEVER_CALLED = ("NRT_MemInfo_call_dtor", "numba_gil_ensure", "numba_gil_release")
"""Numba's own functions, which a kernel names for errors that no kernel has; calling one ends the process."""


def key(text: str) -> str:
    """Name a text by all that its object file depends on."""
    import llvmlite.binding as llvm

    machine = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    parts = (text, version("numba"), version("llvmlite"), version("numpy"), *machine)
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=12).hexdigest()


def load(name: str) -> int | None:
    """Give the address of a kernel that was kept; None where there is none, or it is not whole."""
    folder = cache_folder()
    if folder is None:
        return None
    with suppress(OSError, ValueError):
        data = (folder / f"{name}.kernel").read_bytes()
        if hashlib.sha256(data[SUM:]).digest() != data[:SUM]:
            return None
        symbol, code = data[SUM:].split(b"\n", 1)
        return _linked(symbol.decode(), code)
    return None


def keep(name: str, symbol: str, code: bytes, names: list[str]) -> None:
    """Keep an object file where it can be brought back: `names` are what it calls, all of which must be found then."""
    import llvmlite.binding as llvm

    folder = cache_folder()
    if folder is None or any(name not in NEVER_CALLED and llvm.address_of_symbol(name) is None for name in names):
        return
    data = symbol.encode() + b"\n" + code
    with suppress(OSError):
        fresh = folder / f"{name}.{os.getpid()}.tmp"
        fresh.write_bytes(hashlib.sha256(data).digest() + data)
        fresh.replace(folder / f"{name}.kernel")


def _linked(symbol: str, code: bytes) -> int | None:
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
    """Give the folder of kernels in the user's cache, which nobody else can read or write; None where there can be none."""
    if os.name == "nt":  # whose object files LLVM does not link in memory
        return None
    base = os.environ.get("XDG_CACHE_HOME")
    with suppress(OSError, RuntimeError):
        folder = (Path(base) if base else Path.home() / ".cache") / "thalweg" / "kernels"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
        ours = status.st_uid == os.getuid() and not stat.S_IMODE(status.st_mode) & 0o077
        return folder if ours and os.access(folder, os.W_OK) else None
    return None
