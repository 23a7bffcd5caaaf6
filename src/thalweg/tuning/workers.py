"""Workers: pieces of a search's work, each done in a forked process of its own, so that all cores are busy.

A fork has the task by value, with all that cannot be pickled, runs nobody's script again and is there at once. It is only safe
where the child needs none of its parent's threads: on Linux, one thread each, without an accelerator. Elsewhere work is done in
this process.

What comes of the work depends neither on the number of workers nor on which of them ends first. One that is killed, as where
memory runs out, is replaced twice at most, one that gives no sign of life once. None outlives its parent.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import selectors
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import torch

from thalweg.descent.memory_use import room
from thalweg.descent.out_of_memory import out_of_memory
from thalweg.descent.problem import Problem, start_model
from thalweg.descent.process_state import fork, is_descending, preserve_process_state, rng_lock
from thalweg.descent.their_objects import as_found
from thalweg.records import json_values
from thalweg.records.plan import Plan
from thalweg.records.weights import model_state
from thalweg.sampling import StreamSource
from thalweg.sampling.inherited import part_from_parent, shares_memory
from thalweg.tuning.cores import usable_cores
from thalweg.tuning.forked import be_first_to_go, can_fork

TRIES = 3  # of a piece of work whose worker is lost
TRIES_OF_SILENT = 2  # of one whose worker only hangs, which costs the whole patience each time
PATIENCE = 60.0  # seconds without a sign of life, besides those that the work may take
LEAST_CPU_SECONDS = 0.02  # in the time of patience: a process that waits for ever uses none
GRACE = 5.0  # seconds in which a worker that is to stop may save what it has
BEAT = 0.5  # seconds between two signs of life, at least
LIFE, ANSWER = b".", b"="
OUT_OF_MEMORY = 3  # the status with which a worker says so
COPIES = 16  # of the weights that a candidate may need: gradients, state, snapshot, best weights, a branch, activations
PR_SET_PDEATHSIG = 1

Alive = Callable[[], None]
Work = Callable[[Alive], Mapping[str, Any]]
"""Does a piece of work, calls what it is given now and then, and gives what JSON holds."""


class _Worker:
    """A forked process with one piece of work, by its number. It writes a point as a sign of life, and in the end its answer."""

    def __init__(self, number: int, work: Work) -> None:
        self.number, self._written = number, b""
        self.is_given_up = False  # it was silent for too long, and is being ended
        self.pipe, writing = os.pipe()
        parent = os.getpid()
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()  # else the child would write it too
        self.pid = fork()
        if self.pid == 0:
            os.close(self.pipe)
            _be_worker(work, writing, parent)
        os.close(writing)
        self.heard, self._cpu_seconds = time.monotonic(), 0.0

    @property
    def has_worked(self) -> bool:
        """Whether it has given a sign of life."""
        return bool(self._written)

    def hear(self) -> bool:
        """Read what it has written; gives whether there will be more."""
        piece = os.read(self.pipe, 1 << 16)
        if piece:
            self._written, self.heard = self._written + piece, time.monotonic()
        return bool(piece)

    def is_at_work(self) -> bool:
        """Whether it has used CPU time since this was last asked, though it has given no sign of life: a long validation does."""
        before, self._cpu_seconds = self._cpu_seconds, _cpu_seconds(self.pid)
        return self._cpu_seconds > before + LEAST_CPU_SECONDS

    def signal(self, number: int) -> None:
        """Send it a signal."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self) -> str:
        """Wait for its end, and say how it was lost; nothing where it ended by itself."""
        os.close(self.pipe)
        try:
            _, status = os.waitpid(self.pid, 0)
        except ChildProcessError:  # somebody else in this process has waited for it
            return ""
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            memory = ", as where memory runs out" * (number == signal.SIGKILL)
            return f"its process was ended by {signal.Signals(number).name}{memory}"
        return "memory ran out in its process" if os.WEXITSTATUS(status) == OUT_OF_MEMORY else ""

    @property
    def answer(self) -> dict[str, Any] | None:
        """What came of the work; None where it failed with an error, as it will in this process."""
        _, _, text = self._written.partition(ANSWER)
        with suppress(ValueError, TypeError):
            return json_values.decode(json.loads(text))
        return None


class Workers:
    """Does pieces of work, so many at once.

    Arguments:
        at_once: how many.
        seconds: that a piece may take, about.
        lost: called with a piece's number, how its worker was lost, and whether it is replaced.
        meanwhile: called now and then while they work.
    """

    def __init__(
        self,
        at_once: int,
        seconds: float,
        lost: Callable[[int, str, bool], None],
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        self._at_once, self._patience, self._lost, self._meanwhile = at_once, PATIENCE + 10 * seconds, lost, meanwhile
        self._running = dict[int, _Worker]()
        self._losses = Counter[int]()
        self.serve = True

    def do(self, pieces: Sequence[Work], done: Callable[[int, dict[str, Any]], None]) -> None:
        """Do pieces of work. `done` is called with the number of each and what came of it, as they end.

        One that fails with an error is left out. One whose worker was lost is tried again alone, as memory may be short, and left
        out after `TRIES`, or `TRIES_OF_SILENT` where it hangs. Where workers do not even begin, no more are tried:
        `serve` is false.

        Whatever is raised meanwhile, Ctrl-C say, tells all workers to stop; they have some seconds to save what they have.
        """
        waiting = deque(range(len(pieces)))
        with selectors.DefaultSelector() as selector:
            try:
                while self._running or (waiting and self.serve):
                    while waiting and self.serve and len(self._running) < self._limit(waiting[0]):
                        worker = _Worker(waiting[0], pieces[waiting[0]])
                        self._running[waiting.popleft()] = worker
                        selector.register(worker.pipe, selectors.EVENT_READ, worker)
                    self._meanwhile()
                    for key, _ in selector.select(BEAT):
                        worker: _Worker = key.data
                        if not worker.hear():
                            selector.unregister(worker.pipe)
                            self._end(worker, waiting, done)
                    for worker in self._running.values():
                        if worker.is_given_up or time.monotonic() - worker.heard <= self._patience:
                            continue
                        if worker.is_at_work():
                            worker.heard = time.monotonic()
                        else:
                            worker.is_given_up = True
                            worker.signal(signal.SIGKILL)
            finally:
                self._stop()

    def _limit(self, number: int) -> int:
        """Give how many workers may run when a piece is begun: none beside one that was lost before."""
        is_alone = any(self._losses[one] for one in (number, *self._running))
        return 1 if is_alone else self._at_once

    def _end(self, worker: _Worker, waiting: deque[int], done: Callable[[int, dict[str, Any]], None]) -> None:
        """Take what a worker gives that has ended, or have its work done again."""
        number, silent = worker.number, worker.is_given_up
        del self._running[number]
        how = worker.wait()
        if not how:
            if (answer := worker.answer) is not None:
                done(number, answer)
            return
        if silent:
            how = f"its process gave no sign of life for {self._patience:.0f} s"
            if not worker.has_worked:
                self.serve = False
                return
        self._losses[number] += 1
        is_replaced = self._losses[number] < (TRIES_OF_SILENT if silent else TRIES)
        self._lost(number, how, is_replaced)
        if is_replaced:
            waiting.append(number)

    def _stop(self) -> None:
        """Tell all that run to stop, and end those that do not."""
        running = list(self._running.values())
        self._running.clear()
        until = time.monotonic() + GRACE
        for worker in running:
            worker.signal(signal.SIGTERM)
        try:
            for worker in running:
                while (left := until - time.monotonic()) > 0 and select.select([worker.pipe], [], [], left)[0]:
                    if not worker.hear():
                        break
        finally:
            for worker in running:
                worker.signal(signal.SIGKILL)
                worker.wait()


def _be_worker(work: Work, writing: int, parent: int) -> NoReturn:
    """Do a piece of work and write what came of it; the process ends here, whatever happens, and its parent's end is its own."""
    status = 1
    try:
        _end_with_parent(parent)
        be_first_to_go()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the whole terminal: the parent says when to stop
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        part_from_parent({writing})
        torch.set_num_threads(1)  # those of the parent are not there
        told = 0.0

        def alive() -> None:
            nonlocal told
            if (now := time.monotonic()) >= told + BEAT:
                told = now
                os.write(writing, LIFE)

        text = json.dumps(json_values.encode(dict(work(alive))), allow_nan=False)
        _write_all(writing, ANSWER + text.encode())
        status = 0
    except BaseException as error:
        status = OUT_OF_MEMORY if out_of_memory(error) else 1
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _end_with_parent(parent: int) -> None:
    """Have the system kill this process when its parent ends, however that ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _cpu_seconds(pid: int) -> float:
    """Give the CPU time that a process has used; 0 where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def most_workers(problem: Problem, plan: Plan) -> tuple[int, str]:
    """Give how many workers may train candidates of a plan at once; of 1, why there are no more."""
    if not can_fork(problem.device):
        return 1, "no process can be forked beside an accelerator, or on this system"
    if plan.threads != 1:
        return 1, "each takes several threads"
    if plan.compile:
        return 1, "the model is compiled"
    sources = (problem.train, problem.validation)
    if plan.workers or any(isinstance(source, StreamSource) for source in sources):
        return 1, "they read a stream, or by workers of their own"
    if any(getattr(data, "num_workers", 0) for data in (problem.task.data, problem.task.validation)):
        return 1, "their loader has workers of its own"
    if shares_memory():
        return 1, "some memory here would be shared by all of them"
    if is_descending():
        return 1, "another run is under way in this process"
    return max(1, min(usable_cores(), _fitting(problem, plan))), "there is one core, or memory for one"


def _fitting(problem: Problem, plan: Plan) -> int:
    """Give how many candidates fit into half of the memory that is free, each with its weights' copies and state."""
    free = room(problem.device)
    if free is None:
        return 1
    with as_found(problem.task), preserve_process_state(), rng_lock:
        weights = sum(tensor.nbytes for tensor in model_state(start_model(problem, plan.seed)).values())
    return int(0.5 * free.bytes / (COPIES * weights + 1))
