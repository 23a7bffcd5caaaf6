"""The crew: threads that share a kernel's spans, as many as torch may use.

A kernel takes span after span from its frame until none is left, so any number of threads may run it at once, and the bits are
the same for each number. Where torch's own threads are GNU OpenMP's, they are asked: after torch's last parallel work they
still spin on their cores for a while, and threads of ours beside them would wait. Elsewhere, and in a forked child, which
OpenMP does not survive, Python's threads do it (a kernel holds no lock of Python's).
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

LEAST = 1 << 16
"""Weights a thread: waking one costs as much as moving some ten thousand."""

Team = Any
"""`GOMP_parallel(function, data, threads, flags)`."""


_busy = Lock()
_hired: list[ThreadPoolExecutor] = []
_forked = False


def run(kernel: Kernel, frame: int, spans: int, weights: int) -> None:
    """Run a kernel on the frame at an address, side by side where there is enough to do and nobody else does."""
    if weights < 2 * LEAST or spans < 2 or (threads := min(torch.get_num_threads(), weights // LEAST, spans)) < 2:
        kernel.call(frame)
        return
    if not _busy.acquire(blocking=False):  # another thread's step has the cores
        kernel.call(frame)
        return
    try:
        team = None if _forked else _team()
        if team is not None:
            team(kernel.address, frame, threads, 0)
            return
        others: list[Future[None]] = []
        with suppress(RuntimeError):  # where the interpreter is about to end, nobody is hired any more
            others += [_crew(threads - 1).submit(kernel.call, frame) for _ in range(threads - 1)]
        kernel.call(frame)
        for other in others:
            other.result()
    finally:
        _busy.release()


@cache
def _team() -> Team | None:
    """Find the threads that torch itself works with; None where they are not GNU OpenMP's."""
    try:
        team = ctypes.CDLL(None).GOMP_parallel
    except (OSError, AttributeError, TypeError):
        return None
    if "OpenMP" not in torch.__config__.parallel_info():
        return None
    team.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    team.restype = None
    return team


def _crew(count: int) -> ThreadPoolExecutor:
    if not _hired or _hired[0]._max_workers < count:
        _hired[:] = [ThreadPoolExecutor(count, "thalweg-kernel")]
    return _hired[0]


def _forget() -> None:
    global _busy, _forked
    _busy, _forked = Lock(), True
    _hired.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
