"""Work in a forked child, which has the task as it is, may die, and is ended after so many seconds.

It is forked, since a task need not be picklable and no script is to be run again; it has one thread, since OpenMP's threads are
not there any more in a forked process.
"""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

import torch

from thalweg.descent.process_state import fork
from thalweg.sampling.inherited import part_from_parent


class Answer(NamedTuple):
    """What came of a child's work: the text that it gave, whether it ended in time, and the signal that it died of, or 0."""

    text: str
    in_time: bool
    signal: int


def can_fork(device: torch.device) -> bool:
    """Tell whether a child can be forked that takes a step: on Linux, and without an accelerator, as a child lacks the threads by
    which autograd serves those."""
    return sys.platform == "linux" and device.type == "cpu" and not torch.accelerator.is_available()


def in_child(work: Callable[[], str], seconds: float) -> Answer:
    """Do the work in a forked child, and give what it says. It and what it has started are ended after so many seconds."""
    reading, writing = os.pipe()
    child = fork()
    if child == 0:
        _be_child(work, writing, seconds)
    os.close(writing)
    pieces, ended = list[bytes](), False
    try:
        until = time.monotonic() + seconds
        while not ended and (left := until - time.monotonic()) > 0:
            if select.select([reading], [], [], left)[0]:
                pieces.append(os.read(reading, 1 << 16))
                ended = not pieces[-1]
    finally:
        os.close(reading)
        if not ended:
            for kill in (os.killpg, os.kill):  # a group of its own it has only once it has begun
                with suppress(ProcessLookupError, PermissionError):
                    kill(child, signal.SIGKILL)
        status = _wait(child)
    return Answer(b"".join(pieces).decode(), ended, os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0)


def _wait(child: int) -> int:
    """Wait for a child's end, and give its status; 0 where the user's process waits for all children, or lets nobody wait."""
    try:
        return os.waitpid(child, 0)[1]
    except ChildProcessError:
        return 0


def _be_child(work: Callable[[], str], writing: int, seconds: float) -> NoReturn:
    """Do the work and write what it came to; nothing of the parent's is touched, and the process ends here whatever happens."""
    try:
        _make_expendable(seconds)
        part_from_parent({writing})
        torch.set_num_threads(1)
        os.write(writing, work().encode())
    finally:
        os._exit(0)


def _make_expendable(seconds: float) -> None:
    """Let the child end by itself where its parent no longer ends it, be silent, and be the first to go where memory ends."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds + 1)
    faulthandler.disable()  # which has a copy of the standard error
    silent = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(silent, number)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    be_first_to_go()


def be_first_to_go() -> None:
    """Let the system end this process before others where memory ends."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
