"""Settings of the whole process that a run changes and restores: random states, gradient mode, autocast, CPU threads,
and the handling of Ctrl-C and SIGTERM."""

from __future__ import annotations

import os
import random
import signal
import threading
import warnings
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import FrameType
from typing import Any, TypeVar

import numpy as np
import torch

from thalweg.errors import Interrupted

T = TypeVar("T")

rng_lock = threading.RLock()
"""Hold it from seeding until the last random number is drawn.

Random generators belong to the process, not to a thread. Of two runs in two threads, each seeds before a step; without the lock
one would draw from the other's seed, and neither would have the same bits twice.
"""

_ours: list[Any] = []  # the signal handlers that are installed from here
_lock = threading.Lock()  # guards `_active_bodies`, `_states_before` and changes of the number of threads
_active_bodies = 0
_states_before: dict[str, Any] = {}
_own = threading.local()  # `depth`: how many bodies of this thread are under way


@contextmanager
def preserve_process_state(threads: int | None = None) -> Generator[None]:
    """Run the body with gradients on, autocast off and `threads` CPU threads; afterwards the process is as it was before.

    Bodies may be nested and may run in several threads at once. The random states are saved by the first that begins and
    restored by the last that ends: if each restored its own, one that ends early would disturb those still running. One within
    another of its thread, as where `step` calls a verb, restores its own as well: the other one draws on.
    """
    global _active_bodies
    depth: int = getattr(_own, "depth", 0)
    with rng_lock if depth else nullcontext():
        states = _random_states() if depth else {}
    _own.depth = depth + 1
    with _lock:
        if _active_bodies == 0:
            _states_before.update(_random_states())
        _active_bodies += 1
        threads_before = torch.get_num_threads()
        if threads is not None and threads != threads_before:
            _set_threads(threads)
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
                _set_threads(threads_before)
        _own.depth = depth
        if depth:
            with rng_lock:
                _restore_random_states(states)


def fork() -> int:
    """Fork this process, as `os.fork` does, while no other thread holds a lock of this module: the child could never take it.

    Warnings of forking beside other threads are left out. One of those might hold some other lock: whoever forks has to notice a
    child that gives no sign of life, or is not done in time.
    """
    with rng_lock, _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return os.fork()


def is_descending() -> bool:
    """Whether a body of `preserve_process_state` is under way, in whatever thread of this process."""
    return _active_bodies > 0


def _set_threads(count: int) -> None:
    """Set the CPU threads of this thread's computations, and not of threads that begin later, which inherit the last setting.

    Else a run that begins in another thread meanwhile would take this one's number for its own, and put it back afterwards.
    """
    inherited = _in_new_thread(torch.get_num_threads)
    torch.set_num_threads(count)
    _in_new_thread(lambda: torch.set_num_threads(inherited))
    if torch.get_num_threads() != count:  # this build of torch has one number for all threads
        torch.set_num_threads(count)


def _in_new_thread(call: Callable[[], T]) -> T:
    results = list[T]()
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    thread.join()
    return results[0]


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
    """Remembers that somebody pressed Ctrl-C, or that the process was asked to end by SIGTERM: `signal` is which of them."""

    def __init__(self) -> None:
        self.received = False
        self.signal: int = signal.SIGINT

    @contextmanager
    def listening(self) -> Generator[None]:
        """Within, a first signal is remembered and a second one interrupts at once; afterwards signals are handled as before.

        Only the main thread receives signals, and a handler that somebody else has installed stays in force.
        """
        with _handled(signal.SIGINT, self._receive), _handled(signal.SIGTERM, self._receive):
            yield

    def check(self, message: str) -> None:
        """Raise Interrupted where somebody asked, also with the last step, after which a descent is just at its end."""
        if self.received:
            raise Interrupted(message, signal=self.signal)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            _interrupt(number, frame)
        self.received, self.signal = True, number


@contextmanager
def interruptible() -> Generator[None]:
    """Within, SIGTERM raises `Interrupted` at once, as Ctrl-C raises KeyboardInterrupt, so that it can be said how to go on.

    As for `StopRequest.listening`, only in the main thread, and only where nobody else handles it.
    """
    with _handled(signal.SIGTERM, _interrupt):
        yield


def without_inference_mode() -> AbstractContextManager[object]:
    """Within, tensors that are made can be changed later, also where the caller is in `torch.inference_mode()`."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


def _interrupt(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT:
        signal.default_int_handler(number, frame)
    raise Interrupted("Terminated at once.", signal=number)


@contextmanager
def _handled(number: int, handler: Callable[[int, FrameType | None], None]) -> Generator[None]:
    before = signal.getsignal(number)
    replaceable = any(before is ours for ours in _ours) or before == (
        signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    )
    if threading.current_thread() is not threading.main_thread() or not replaceable:
        yield
        return
    process = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process:
            handler(number, frame)
        elif number == signal.SIGINT:  # in a child that was forked within, which is to end as it would have without us
            signal.default_int_handler(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    _ours.append(handle)
    signal.signal(number, handle)
    try:
        yield
    finally:
        if signal.getsignal(number) is handle:  # else the user's code has installed another within
            signal.signal(number, before)
        _ours.remove(handle)
