"""Settings of the whole process that a run changes and restores: random states, gradient mode, autocast, CPU threads,
and the handling of Ctrl-C."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

rng_lock = threading.RLock()
"""Hold it from seeding until the last random number is drawn.

Random generators belong to the process, not to a thread. Of two runs in two threads, each seeds before a step; without the lock
one would draw from the other's seed, and neither would have the same bits twice.
"""

_lock = threading.Lock()  # guards `_active_bodies`, `_states_before` and changes of the number of threads
_active_bodies = 0
_states_before: dict[str, Any] = {}


@contextmanager
def preserve_process_state(threads: int | None = None) -> Generator[None]:
    """Run the body with gradients on, autocast off and `threads` CPU threads; afterwards the process is as it was before.

    Bodies may be nested and may run in several threads at once. The random states are saved by the first that begins and
    restored by the last that ends: if each restored its own, one that ends early would disturb those still running.
    """
    global _active_bodies
    with _lock:
        if _active_bodies == 0:
            _states_before.update(_random_states())
        _active_bodies += 1
        threads_before = torch.get_num_threads()
        if threads is not None and threads != threads_before:
            torch.set_num_threads(threads)
    try:
        with torch.enable_grad(), torch.inference_mode(False), ExitStack() as stack:
            for device_type in _autocasting_device_types():
                stack.enter_context(torch.autocast(device_type, enabled=False))
            yield
    finally:
        with _lock:
            _active_bodies -= 1
            if _active_bodies == 0:
                _restore_random_states(_states_before)
            if threads is not None and threads != threads_before:
                torch.set_num_threads(threads_before)


def _autocasting_device_types() -> list[str]:
    """Give the types of devices on which the caller has autocast on."""
    accelerator = torch.accelerator.current_accelerator()
    types = ["cpu"] if accelerator is None else ["cpu", accelerator.type]
    return [device_type for device_type in types if torch.is_autocast_enabled(device_type)]


def _random_states() -> dict[str, Any]:
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def _restore_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])


class StopRequest:
    """Remembers that somebody pressed Ctrl-C."""

    def __init__(self) -> None:
        self.received = False

    @contextmanager
    def listening(self) -> Generator[None]:
        """Within, the first Ctrl-C is remembered and a second one interrupts at once; afterwards signals are handled as before.

        Only the main thread receives signals, and a handler that somebody else has installed stays in force.
        """
        in_main_thread = threading.current_thread() is threading.main_thread()
        if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            return
        signal.signal(signal.SIGINT, self._receive)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _receive(self, number: int, frame: Any) -> None:
        if self.received:
            signal.default_int_handler(number, frame)
        self.received = True
