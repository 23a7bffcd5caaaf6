"""Compiling: torch.compile where what it saves over search and training exceeds what compiling costs, both measured.

It is tried in a child process with a limit, since compiling may take minutes or not come to an end.
"""

from __future__ import annotations

import json
import statistics
from contextlib import closing
from typing import NamedTuple

from thalweg.descent.compiled import compiled_graphs
from thalweg.descent.problem import Problem
from thalweg.descent.timing import WARM_UP, TimedDescent
from thalweg.errors import error_text
from thalweg.formatting import format_seconds
from thalweg.records.plan import Plan
from thalweg.sampling import StreamSource
from thalweg.tuning.comparison import BLOCK, PAYS, ROUNDS, Finding, Trial, compare
from thalweg.tuning.forked import can_fork, in_child

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
    if not can_fork(trial.problem.device):
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
    """Compile and time some steps in a child on one thread, which is ended after `limit` seconds."""

    def work() -> str:
        try:
            found = tried(problem, plan.replace(threads=1))
        except Exception as error:
            found = Tried(failure=f"{error_text(error):.200}")
        return json.dumps(found._asdict())

    answer = in_child(work, limit)
    if not answer.in_time:
        return Tried(failure=f"it was not done within {format_seconds(limit)}")
    return Tried(**json.loads(answer.text)) if answer.text else Tried(failure="the process that tried it died")


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
