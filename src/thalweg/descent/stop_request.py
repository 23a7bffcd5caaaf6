"""A person's wish to stop: Ctrl-C ends a run between two steps, so that what was trained can be saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any


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
