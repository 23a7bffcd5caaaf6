"""Threads that run one kernel together, as many as torch may use.

A kernel processes chunks of the weights. Each thread takes the next chunk by an atomic counter until none is left, so any number
of threads may run it at once, and the bits are the same for each number.

Where torch uses GNU OpenMP, the kernel runs on torch's own threads: after torch's last parallel operation they still spin on
their cores for a while, and other threads would compete with them. Elsewhere, and in a forked child, where GNU OpenMP does not
work, Python threads do it (a kernel runs without the interpreter's lock).
"""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from threading import Lock
from typing import Any

import torch

from thalweg.optim.engines.kernels import Kernel

WEIGHTS_PER_THREAD = 1 << 16
"""At least so many weights for each thread: waking one costs as much as updating some ten thousand."""

ParallelRegion = Any
"""libgomp's `GOMP_parallel(function, data, threads, flags)`: call the function with the data in so many threads."""


_launch_lock = Lock()
_executor: list[ThreadPoolExecutor] = []  # empty, or one
_is_forked_child = False


def run(kernel: Kernel, arguments: int, chunks: int, weights: int) -> None:
    """Run a kernel on its arguments (an address): in several threads where that pays, in this one while others run a kernel."""
    if (
        weights < 2 * WEIGHTS_PER_THREAD
        or chunks < 2
        or (threads := min(torch.get_num_threads(), weights // WEIGHTS_PER_THREAD, chunks)) < 2
    ):
        kernel.call(arguments)
        return
    if not _launch_lock.acquire(blocking=False):  # another optimiser's step, in another thread, has the cores
        kernel.call(arguments)
        return
    try:
        openmp = None if _is_forked_child else _openmp()
        if openmp is not None:
            openmp(kernel.address, arguments, threads, 0)
            return
        others: list[Future[None]] = []
        with suppress(RuntimeError):  # the interpreter is about to end and starts no more threads
            others += [_python_threads(threads - 1).submit(kernel.call, arguments) for _ in range(threads - 1)]
        kernel.call(arguments)
        for other in others:
            other.result()
    finally:
        _launch_lock.release()


@cache
def _openmp() -> ParallelRegion | None:
    """Find GNU OpenMP in this process; None where torch does not use it.

    `CDLL(None)` searches the libraries that the process has loaded, so this finds the very library whose threads torch uses.
    Loading libgomp by name could load a second copy, whose threads would compete with torch's.
    """
    try:
        parallel = ctypes.CDLL(None).GOMP_parallel
    except (OSError, AttributeError, TypeError):
        return None
    if "OpenMP" not in torch.__config__.parallel_info():
        return None
    parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    parallel.restype = None
    return parallel


def _python_threads(count: int) -> ThreadPoolExecutor:
    """Give an executor of at least so many threads."""
    if not _executor or _executor[0]._max_workers < count:
        _executor[:] = [ThreadPoolExecutor(count, "thalweg-kernel")]
    return _executor[0]


def _reset_in_child() -> None:
    """Forget threads and lock after a fork: the child has neither the threads nor whoever held the lock."""
    global _launch_lock, _is_forked_child
    _launch_lock, _is_forked_child = Lock(), True
    _executor.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_in_child)
