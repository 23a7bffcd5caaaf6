"""Compiling: torch.compile where what it saves over search and training exceeds what compiling costs, both measured.

It is tried in a child process with a limit, since compiling may take minutes or not come to an end.
"""

from __future__ import annotations

import json
import os
import select
import signal
import statistics
import sys
import time
import warnings
from contextlib import closing, suppress
from typing import NamedTuple, NoReturn

import torch

from thalweg.descent.compiled import compiled_graphs
from thalweg.descent.problem import Problem
from thalweg.descent.timing import WARM_UP, TimedDescent
from thalweg.errors import error_text
from thalweg.formatting import format_seconds
from thalweg.records.plan import Plan
from thalweg.sampling import StreamSource
from thalweg.tuning.comparison import BLOCK, PAYS, ROUNDS, Finding, Trial, compare

FEWEST_SECONDS = 6.0  # where compiling would be given less, it is not tried


class Tried(NamedTuple):
    """The seconds of compiling, and a step's time over that without; or why there are none."""

    seconds: float = 0.0
    ratio: float = 1.0
    failure: str = ""


def choose(trial: Trial) -> Finding | None:
    """Try torch.compile; None in runs too short for it to pay, for a stream, whose batches may have any shape, and where no
    process can be forked that has all of the task: on an accelerator, and on other systems than Linux."""
    limit = trial.patience
    if limit < FEWEST_SECONDS or trial.plan.compile or isinstance(trial.problem.train, StreamSource):
        return None
    if sys.platform != "linux" or trial.problem.device.type != "cpu":
        return None
    trial.say(f"compile: trying torch.compile in another process, for at most {format_seconds(limit)}")
    changed = trial.plan.replace(compile=True)
    found = tried_in_child(trial.problem, changed, limit)
    if found.failure:
        return Finding(False, f"torch.compile does not serve here: {found.failure}")
    figures: dict[str, object] = {"seconds_compiling": round(found.seconds, 1)}
    ratio, compared = found.ratio, None
    if pays(ratio, trial.total, found.seconds):  # on one thread; now as the run will be
        compared = compare(trial, changed)
        ratio, figures = compared.ratio, compared.figures("compile", (False, True)) | figures
    reason = f"compiled a step takes {ratio:.2f} of its time, and compiling {format_seconds(found.seconds)}"
    total = f"in {format_seconds(trial.total)} of search and training"
    if compared is None or not pays(ratio, trial.total, found.seconds):
        return Finding(False, f"{reason}, which does not pay {total}", figures)
    return Finding(True, f"{reason}, which pays {total}", figures)


def pays(ratio: float, total: float, cost: float) -> bool:
    """Whether steps that take `ratio` of their time save more over `total` seconds than they cost, and at least a twentieth.

    >>> pays(0.8, 600.0, 40.0), pays(0.8, 100.0, 40.0), pays(0.99, 1e6, 40.0)
    (True, False, False)
    """
    return ratio <= PAYS and (1 - ratio) * total > cost


def tried_in_child(problem: Problem, plan: Plan, limit: float) -> Tried:
    """Compile and time some steps in a forked child on one thread, which is ended after `limit` seconds.

    It is forked, since a task need not be picklable and no script is to be run again; it has one thread, since OpenMP's threads
    are not there any more in a forked process.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of forking beside threads, one of which may hold a lock: the limit is for that too
        child = os.fork()
    if child == 0:
        _work(problem, plan, writer)
    os.close(writer)
    try:
        text = _read(reader, limit)
    finally:
        os.close(reader)
        for kill in (os.killpg, os.kill):  # its compilers too, and itself where it has no group of its own yet
            with suppress(ProcessLookupError, PermissionError):
                kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if text is None:
        return Tried(failure=f"it was not done within {format_seconds(limit)}")
    return Tried(**json.loads(text)) if text else Tried(failure="the process that tried it died")


def _work(problem: Problem, plan: Plan, writer: int) -> NoReturn:
    """Try, in the child, and end it without what its parent would do at its end."""
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        torch.set_num_threads(1)
        found = tried(problem, plan.replace(threads=1))
    except BaseException as error:
        found = Tried(failure=f"{error_text(error):.200}")
    with suppress(BaseException):
        os.write(writer, json.dumps(found._asdict()).encode())
    os._exit(0)


def _read(reader: int, limit: float) -> str | None:
    """Read what the child writes until it ends; None where that takes longer than the limit."""
    parts, end = list[bytes](), time.monotonic() + limit
    while True:
        ready, _, _ = select.select([reader], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            return None
        part = os.read(reader, 1 << 16)
        if not part:
            return b"".join(parts).decode()
        parts.append(part)


def tried(problem: Problem, plan: Plan) -> Tried:
    """Compile and time some steps in this process; `plan`: one that compiles."""
    with (
        closing(TimedDescent(problem, plan.replace(compile=False))) as plain,
        closing(TimedDescent(problem, plan)) as timed,
    ):
        plain.take(WARM_UP)
        compiled = timed.descent.compiled
        assert compiled is not None
        seconds = timed.take(1)[0]
        timed.take(WARM_UP)
        if compiled.failure is not None:
            return Tried(failure=compiled.failure)
        if not compiled.has_compiled:
            return Tried(failure="no call of the model has batches of full size alone")
        graphs = compiled_graphs()
        blocks = [(plain.take(BLOCK), timed.take(BLOCK)) for _ in range(ROUNDS)]
        if compiled.failure is not None or compiled_graphs() != graphs:
            return Tried(failure="it is compiled anew as it trains")
    return Tried(seconds, statistics.median(statistics.median(b) / statistics.median(a) for a, b in blocks))
