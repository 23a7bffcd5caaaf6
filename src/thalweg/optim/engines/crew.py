"""The crew: threads of Python that share a kernel's spans, as many as torch may use.

Kernels hold no lock of Python's, so these threads run side by side. A forked child has none of them and hires its own, two
optimisers in two threads share them without harm, and the spans are the same for any number of threads: so are the bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

import torch

LEAST = 1 << 16
"""Weights a thread: waking one costs as much as moving some ten thousand."""

_lock = Lock()
_hired: list[ThreadPoolExecutor] = []


def share(run: Callable[..., None], spans: int, weights: int, *arguments: Any) -> None:
    """Call `run(first, last, *arguments)` on stretches of the spans, side by side where there is enough to do."""
    threads = min(torch.get_num_threads(), weights // LEAST, spans)
    if threads < 2:
        run(0, spans, *arguments)
        return
    edges = [spans * i // threads for i in range(threads + 1)]
    crew = _crew(threads - 1)
    others = [crew.submit(run, edges[i], edges[i + 1], *arguments) for i in range(1, threads)]
    run(edges[0], edges[1], *arguments)
    for other in others:
        other.result()


def _crew(count: int) -> ThreadPoolExecutor:
    with _lock:
        if not _hired or _hired[0]._max_workers < count:
            _hired[:] = [ThreadPoolExecutor(count, "thalweg-kernel")]
        return _hired[0]


def _forget() -> None:
    global _lock
    _lock = Lock()
    _hired.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
