"""Being a guest: a run draws from global random states and sets gradient mode and threads; it leaves them as found."""

from __future__ import annotations

import random
import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

#: Held while a step draws random numbers: the generators are the process's, and two runs in two threads must not share a draw.
alone = threading.RLock()

_guard = threading.Lock()
_guests = 0
_found: dict[str, Any] = {}


@contextmanager
def ambient(threads: int | None = None) -> Generator[None]:
    """Run the body with gradients on, autocast off and `threads` CPU threads; afterwards these and random states are as found."""
    global _guests
    with _guard:
        if _guests == 0:
            _found.update(_take())
        _guests += 1
        before = torch.get_num_threads()
        if threads is not None and threads != before:
            torch.set_num_threads(threads)
    try:
        with torch.enable_grad(), torch.inference_mode(False), ExitStack() as stack:
            for device in _casting():
                stack.enter_context(torch.autocast(device, enabled=False))
            yield
    finally:
        with _guard:
            _guests -= 1
            if _guests == 0:
                _give_back(_found)
            if threads is not None and threads != before:
                torch.set_num_threads(before)


def _casting() -> list[str]:
    """Give the kinds of devices on which the caller's autocast is on."""
    accelerator = torch.accelerator.current_accelerator()
    kinds = ["cpu"] if accelerator is None else ["cpu", accelerator.type]
    return [kind for kind in kinds if torch.is_autocast_enabled(kind)]


def _take() -> dict[str, Any]:
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def _give_back(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])
