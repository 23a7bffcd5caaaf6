"""The verbs: functions that take records (task, plan, run) and give a record.

The modules that a verb needs are imported when it is called, so that `import thalweg` costs little beyond `import torch`.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thalweg.errors import DivergedError, PlanError, RunError, TaskError
from thalweg.records.diagnosis import Diagnosis
from thalweg.records.plan import Plan
from thalweg.records.request import Request
from thalweg.records.run import Run
from thalweg.records.run_folder import PLAN, RunFolder, as_folder, check_writable
from thalweg.records.task import Task

CHECK_SHARE = 0.05  # of `seconds=`, for each part of the checks before training

if TYPE_CHECKING:
    from thalweg.descent.problem import Problem
    from thalweg.descent.recorder import Progress


def fit(
    task: Task,
    *,
    epochs: float | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    effort: str | float = "standard",
    seed: int = 0,
    fixed: Mapping[str, Any] | None = None,
    device: str = "auto",
    out: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Run:
    """Do everything: check the task, choose a plan, train with the watch on, and report.

    Arguments:
        task: what to descend.
        epochs, steps, seconds: the budget, one of them; `seconds` includes the search.
        effort: the price of it all in full trainings: 1 (no search), "quick" 2, "standard" 4, "thorough" 12, or a number.
        seed: of everything random.
        fixed: knobs you have decided, such as {"batch_size": 64}.
        device: "auto", "cpu", "cuda", …
        out: the run's folder; None keeps the run in memory.
        progress: a display that is shown every step.
        say: called with a sentence about each stage.

    Raises TaskError, DataError, PlanError before the first step; RunError where `out` cannot be used; DivergedError where
    training diverges and no cure helps.
    """
    from thalweg.descent.pretraining import SECONDS, check_task
    from thalweg.descent.train import train_plan
    from thalweg.tuning.tune import complete_plan, estimate_cost, start_plan

    started = time.perf_counter()
    request = Request(epochs, steps, seconds, effort, seed, fixed or {}, device)
    folder = None if out is None else RunFolder.at(out)
    if folder is not None:
        folder.check_usable()  # before the search has cost anything
    problem = _open(task, request.device)
    limit = min(SECONDS, CHECK_SHARE * (request.seconds or math.inf))
    found = check_task(problem, request.seed, seconds=limit)
    for diagnosis in found:
        say(f"{diagnosis.severity}: {diagnosis}")
    request = request.with_seconds_spent(time.perf_counter() - started)  # opening and checking the data is part of it
    start = start_plan(problem, request, say)
    say(str(estimate_cost(problem, request, start)))
    plan = complete_plan(problem, request, start, say)
    try:
        run = train_plan(problem, plan, folder and folder.path, progress, found)
    except (DivergedError, KeyboardInterrupt):
        if folder is not None:
            report(Run.open(folder.path, problem.task))  # a report is needed most for a run that failed
        raise
    if run.folder is not None:
        report(run)
    return run


def estimate(
    task: Task,
    *,
    epochs: float | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    effort: str | float = "standard",
    seed: int = 0,
    fixed: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> str:
    """Say in a sentence what `fit` with the same arguments would cost; a few steps are timed, nothing is written.

    Arguments and errors as for `fit`.
    """
    from thalweg.tuning.tune import estimate_cost, start_plan

    request = Request(epochs, steps, seconds, effort, seed, fixed or {}, device)
    problem = _open(task, request.device)
    return str(estimate_cost(problem, request, start_plan(problem, request)))


def tune(
    task: Task,
    *,
    epochs: float | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    effort: str | float = "standard",
    seed: int = 0,
    fixed: Mapping[str, Any] | None = None,
    device: str = "auto",
    out: str | os.PathLike[str] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Choose a plan, each knob with its evidence; `out` is a TOML file to write it to, or a folder for plan.toml.

    Arguments and errors as for `fit`; RunError where `out` is a run's plan or cannot be written.
    """
    from thalweg.tuning.tune import complete_plan, start_plan

    request = Request(epochs, steps, seconds, effort, seed, fixed or {}, device)
    path = None if out is None else _plan_file(out)
    problem = _open(task, request.device)
    plan = complete_plan(problem, request, start_plan(problem, request, say), say)
    if path is not None:
        try:
            plan.save(path)
        except OSError as error:
            raise RunError(f"{path} cannot be written: {error.strerror}. Choose another place with out=.") from error
    return plan


def _plan_file(out: str | os.PathLike[str]) -> Path:
    """Give the file to write a plan to. Raises RunError where it is a run's own, or cannot be written."""
    path = as_folder(out)
    if path.suffix != ".toml":
        path = path / PLAN
    if path.name == PLAN and RunFolder(path.parent).holds_run:
        raise RunError(f"{path} is the plan of the run in {path.parent}. Write the new plan to another file.")
    check_writable(path.parent)
    return path


def train(
    task: Task,
    plan: Plan,
    *,
    epochs: float | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    seed: int | None = None,
    device: str = "auto",
    out: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Run:
    """Train a plan; a budget or seed given here is written into the run's plan.

    On an existing `out` the same plan unfinished is resumed and finished is opened. Raises as `fit` does.
    """
    from thalweg.descent.settle import settle
    from thalweg.descent.train import train_plan

    if not isinstance(plan, Plan):
        raise PlanError(f"`plan` is a {type(plan).__name__}. Give a thalweg.Plan, such as Plan.load('plan.toml').")
    if seed is not None:
        plan = plan.replace(seed=seed)
    request = Request(epochs, steps, seconds, effort=1, seed=plan.seed, device=device)
    problem = _open(task, request.device)
    return train_plan(problem, settle(problem, plan, request), out, progress)


def resume(
    out: str | os.PathLike[str], task: Task | None = None, *, device: str = "auto", progress: Progress | None = None
) -> Run:
    """Continue a run where it stopped, to the same bits as if it had not.

    The task is made again from the file and arguments that the run recorded; one that was passed as an object must be passed
    again.

    Raises RunError where the folder holds no run, or does not record how its task is made.
    """
    from thalweg.descent.train import train_plan

    folder = RunFolder.at(out)
    folder.check_holds_run()
    problem = _open(task or folder.read_task(), device)
    return train_plan(problem, folder.read_plan(), folder.path, progress)


def _open(task: Task, device: str) -> Problem:
    from thalweg.descent.problem import open_task

    if not isinstance(task, Task):
        raise TaskError(f"`task` is a {type(task).__name__}. Give a thalweg.Task(model=…, loss=…, data=…).")
    return open_task(task, device)


def check(task: Task, *, device: str = "auto", seed: int = 0) -> list[Diagnosis]:
    """Check the task before training, in seconds. Gives the faults found, gravest first; none is an empty list.

    Loss at the start against the constant predictor, a gradient for every parameter, outputs that depend on inputs, one batch
    that can be fitted, the scale of the data, the output layer. Raises TaskError or DataError for what cannot be trained at
    all.
    """
    from thalweg.descent.pretraining import check_task

    request = Request(seed=seed, device=device)
    return check_task(_open(task, request.device), request.seed)


def diagnose(run: Run | str | os.PathLike[str]) -> list[Diagnosis]:
    """Give what went wrong in a run, finished or not: what was found before and during it, and what its history shows.

    Raises RunError where the path is no run's folder, or its files are damaged.
    """
    from thalweg.watch.findings import diagnose_run

    return diagnose_run(run if isinstance(run, Run) else Run.open(run))


def report(run: Run, path: str | os.PathLike[str] | None = None) -> Path:
    """Write the run's report, one self-contained HTML file, and give its path.

    Raises RunError where the file cannot be written.
    """
    from thalweg.see.report import write_report

    return write_report(run, path)
