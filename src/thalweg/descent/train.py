"""Training a plan: into a folder or in memory, from the start or from where it stopped."""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from thalweg.descent.keeper import Keeper
from thalweg.descent.loop import descend
from thalweg.descent.problem import Problem
from thalweg.descent.progress import Progress, Silent
from thalweg.descent.state import Descent
from thalweg.errors import CheckpointError, DivergedError, RunError
from thalweg.records import checkpoint
from thalweg.records.history import FILE, History
from thalweg.records.plan import Plan
from thalweg.records.run import CHECKPOINTS, PLAN, STATUS, TASK, Figures, Run, read_status, write_status
from thalweg.records.weights import load_model_state

LOCK = ".lock"


def train_plan(
    problem: Problem, plan: Plan, out: str | os.PathLike[str] | None = None, progress: Progress | None = None
) -> Run:
    """Train a settled plan.

    On an existing `out`: the same plan unfinished is resumed, finished it is opened, another plan is an error.

    Raises RunError for a folder that cannot serve, DivergedError where the descent cannot be saved.
    """
    progress = progress or Silent()
    if out is None:
        return _walk(Descent(problem, plan), Keeper(), progress)
    folder = Path(out)
    with claimed(folder):
        if not (folder / STATUS).exists():
            _found(folder, problem, plan)
        else:
            _same_plan(folder, plan)
            if read_status(folder).get("status") == "finished":
                return replace(Run.open(folder, problem.task), task=problem.task)
        return _walk_in(folder, problem, plan, progress)


def _walk_in(folder: Path, problem: Problem, plan: Plan, progress: Progress) -> Run:
    with History(folder / FILE) as ledger:
        descent, keeper = Descent(problem, plan), Keeper(folder, ledger)
        try:
            loaded = checkpoint.load(folder / CHECKPOINTS)
        except CheckpointError as error:
            fresh = not checkpoint.steps(folder / CHECKPOINTS)
            if not fresh:
                keeper.tell(0, "note", f"No checkpoint is intact, so the run starts anew: {error}", {}, progress)
            if ledger.columns():
                ledger.supersede(0)
        else:
            for message in loaded.messages:
                keeper.tell(loaded.step, "note", message, {}, progress)
            keeper.restore(descent, loaded)
            keeper.tell(loaded.step, "resume", f"Went on from step {loaded.step}.", {}, progress)
        return _walk(descent, keeper, progress)


def _walk(descent: Descent, keeper: Keeper, progress: Progress) -> Run:
    started = time.perf_counter()
    status = "finished"
    try:
        descend(descent, keeper, progress)
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    except DivergedError as error:
        status = "diverged"
        keeper.tell(descent.step, "diverged", str(error), {}, progress)
        raise
    except BaseException:
        status = "failed"
        raise
    finally:
        summary = _summary(descent, keeper, status, time.perf_counter() - started)
        if keeper.folder is not None:
            keeper.ledger.flush()
            _write(keeper, descent, status, summary)
    return _run(descent, keeper, summary)


def _run(descent: Descent, keeper: Keeper, summary: dict[str, Any]) -> Run:
    best = descent.best
    if best is not None:
        load_model_state(descent.model, best.model)
    descent.optimizer.zero_grad(set_to_none=True)
    return Run(
        plan=descent.plan,
        history=Figures(keeper.ledger.columns()),
        events=tuple(keeper.ledger.events()),
        diagnoses=tuple(keeper.diagnoses),
        metrics=dict(best.figures) if best else dict(descent.last),
        summary=summary,
        folder=keeper.folder,
        task=descent.problem.task,
        trained=descent.model.eval(),
    )


def _summary(descent: Descent, keeper: Keeper, status: str, seconds: float) -> dict[str, Any]:
    best = descent.best
    return {
        "status": status,
        "name": descent.problem.task.name,
        "steps": descent.step,
        "seconds": seconds,
        "examples": descent.problem.count,
        "parameters": sum(p.numel() for p in descent.model.parameters()),
        "device": str(descent.problem.device),
        "torch": torch.__version__,
        "select": descent.problem.task.select,
        "mode": descent.problem.task.mode,
        "validated": descent.problem.validation is not None,
        "start": dict(descent.start),
        "weights": None if best is None else {"step": best.step, "averaged": best.averaged},
        "cures": dict(descent.cures),
        "stopped_early": keeper.stopped_early,
        "notes": list(descent.problem.notes),
        "idle_parameters": list(descent.problem.idle),
    }


def _write(keeper: Keeper, descent: Descent, status: str, summary: dict[str, Any]) -> None:
    assert keeper.folder is not None
    figures = dict(descent.best.figures) if descent.best else dict(descent.last)
    found = [diagnosis.to_dict() for diagnosis in keeper.diagnoses]
    write_status(keeper.folder, {"status": status, "metrics": figures, "summary": summary, "diagnoses": found})


def _found(folder: Path, problem: Problem, plan: Plan) -> None:
    """Make the run's folder. Raises RunError where something else is in it."""
    strange = [p.name for p in folder.iterdir() if p.name not in {PLAN, TASK, FILE, CHECKPOINTS, LOCK}]
    if strange:
        raise RunError(
            f"{folder} holds other things ({', '.join(sorted(strange)[:3])}) and is no run. Give a new folder."
        )
    try:
        plan.save(folder / PLAN)
        if problem.task.source is not None:
            problem.task.source.save(folder / TASK)
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror}. Choose another folder with out=.") from error
    write_status(folder, {"status": "running", "summary": {"name": problem.task.name, "status": "running"}})


def _same_plan(folder: Path, plan: Plan) -> None:
    there, here = Plan.load(folder / PLAN).to_dict(), plan.to_dict()
    for entries in (there, here):
        entries.pop("evidence")
    differing = [knob for knob in {**there, **here} if there.get(knob) != here.get(knob)]
    if differing:
        knob = differing[0]
        raise RunError(
            f"{folder} already holds a run with another plan: {knob} is {there.get(knob)} there and {here.get(knob)} here"
            f"{f', and {len(differing) - 1} more differ' if len(differing) > 1 else ''}. Give a new folder, or resume that run."
        )


@contextmanager
def claimed(folder: Path) -> Generator[None]:
    """Hold a run's folder for this process; the claim ends with the process, however it ends.

    Raises RunError where the folder cannot be made or another process writes to it.
    """
    from filelock import FileLock, Timeout  # costs a tenth of a second, and many a process never writes a run

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, blocking=False)
        lock.acquire()
    except Timeout as error:
        raise RunError(f"Another process is writing to {folder}. Wait for it, or give another folder.") from error
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror}. Choose another folder with out=.") from error
    try:
        yield
    finally:
        lock.release()
