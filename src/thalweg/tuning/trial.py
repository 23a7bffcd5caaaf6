"""A trial: one short run, from a task and a plan to figures, wherever it is run."""

from __future__ import annotations

from thalweg.descent.loop import descend
from thalweg.descent.problem import Problem, open_task
from thalweg.descent.recorder import Recorder
from thalweg.descent.state import Descent
from thalweg.descent.their_objects import as_found
from thalweg.errors import DivergedError
from thalweg.records.plan import Plan
from thalweg.records.task import Source, Task


def evaluate(source: Source | Task | Problem, plan: Plan, device: str = "auto") -> dict[str, float]:
    """Train a settled plan in memory, and give the figures of its last validation; none where it diverged.

    `source`: for another process a task's `Source`, or the task where it can be pickled; in this one a problem, whose data
    are then not opened again. All give the same bits.
    """
    task = source.load() if isinstance(source, Source) else source
    problem = open_task(task, device) if isinstance(task, Task) else task
    with as_found(problem.task):
        descent = Descent(problem, plan)
        try:
            descend(descent, Recorder())
        except DivergedError:
            return {}
        return dict(descent.last_validation)
