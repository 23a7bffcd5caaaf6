"""Training a plan: into a folder or in memory, from the start or from where it stopped."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thalweg.descent.claim import LOCK, claimed, unwritable
from thalweg.descent.loop import descend
from thalweg.descent.problem import Problem
from thalweg.descent.progress import Progress
from thalweg.descent.recorder import Recorder, json_ready
from thalweg.descent.state import Descent
from thalweg.errors import CheckpointError, DivergedError, RunError, ThalwegError
from thalweg.records import checkpoint
from thalweg.records.diagnosis import Diagnosis
from thalweg.records.history import FILE, History
from thalweg.records.plan import Plan
from thalweg.records.run import (
    CHECKPOINTS,
    PLAN,
    STATUS,
    TASK,
    Figures,
    Run,
    as_folder,
    is_finished,
    read_status,
    write_status,
)
from thalweg.records.weights import load_model_state


def train_plan(
    problem: Problem,
    plan: Plan,
    out: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    found: Sequence[Diagnosis] = (),
) -> Run:
    """Train a settled plan; `found` is what was diagnosed before, and goes into the run.

    On an existing `out`: the same plan unfinished is resumed, finished it is opened, another plan is an error.

    Raises RunError for a folder that cannot serve, DivergedError where the descent cannot be saved.
    """
    if out is None:
        return _descend(Descent(problem, plan), Recorder(diagnoses=found, progress=progress))
    folder = as_folder(out)
    with claimed(folder):
        if not (folder / STATUS).exists():
            _found(folder, problem, plan)
        else:
            plan = _recorded(folder, plan)
            if is_finished(folder):
                return Run.open(folder, problem.task)
            _check_data(folder, problem)
        return _descend_in(folder, problem, plan, progress, found)


def _check_data(folder: Path, problem: Problem) -> None:
    """Refuse to go on with other data. Raises RunError."""
    there: dict[str, Any] = {}
    with suppress(RunError):
        there = read_status(folder)["summary"]
    here = _data_of(problem)
    for name, told in (
        ("examples", "number of training examples"),
        ("data", "training data"),
        ("held_out", "validation data"),
    ):
        if there.get(name) is not None and there[name] != here[name]:
            raise RunError(
                f"The {told} is {there[name]} for the run in {folder}, and {here[name]} now: the task gives other data. Where it"
                f" splits or draws them at random, seed that; or start a new run in another folder."
            )


def _data_of(problem: Problem) -> dict[str, Any]:
    return {
        "examples": problem.count,
        "data": problem.train.digest(),
        "held_out": problem.validation and problem.validation.digest(),
    }


def _descend_in(
    folder: Path, problem: Problem, plan: Plan, progress: Progress | None, found: Sequence[Diagnosis]
) -> Run:
    with History(folder / FILE) as history:
        descent, recorder = Descent(problem, plan), Recorder(folder, history, found, progress)
        try:
            loaded = checkpoint.load(folder / CHECKPOINTS)
        except CheckpointError as error:
            if checkpoint.steps(folder / CHECKPOINTS):
                raise CheckpointError(
                    f"The run in {folder} cannot go on: {error} To start it anew, remove {folder / CHECKPOINTS}."
                ) from error
            steps = history.columns()["step"]
            if len(steps):
                message = f"There was no checkpoint yet, so the run starts anew; it had come to step {int(steps[-1])}."
                recorder.event(0, "note", message)
                recorder.supersede(-1)
        else:
            for message in loaded.messages:
                recorder.event(loaded.step, "note", message)
            if not len(history.columns()["step"]):
                message = f"The figures before step {loaded.step} are lost: there was no {FILE}."
                recorder.event(loaded.step, "note", message)
            recorder.restore(descent, loaded)
            recorder.event(loaded.step, "resume", f"Went on from step {loaded.step}.")
        return _descend(descent, recorder, earlier=_seconds_so_far(history))


def _seconds_so_far(history: History) -> float:
    """Add up the steps' own seconds: of a killed run nothing else is known."""
    return float(np.nansum(history.columns().get("seconds", np.zeros(1))))


def _descend(descent: Descent, recorder: Recorder, earlier: float = 0.0) -> Run:
    started = time.perf_counter() - earlier
    try:
        descend(descent, recorder)
    except BaseException as error:
        with suppress(ThalwegError):  # where the disk is full this fails too, and the first error says so
            _leave(descent, recorder, error, time.perf_counter() - started)
        raise
    summary = _summary(descent, recorder, "finished", time.perf_counter() - started)
    _write(recorder, descent, summary)
    return _run(descent, recorder, summary)


def _leave(descent: Descent, recorder: Recorder, error: BaseException, seconds: float) -> None:
    status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
    if isinstance(error, DivergedError):
        status = "diverged"
        recorder.event(descent.step, "diverged", str(error))
    recorder.history.flush()
    _write(recorder, descent, _summary(descent, recorder, status, seconds))


def _run(descent: Descent, recorder: Recorder, summary: dict[str, Any]) -> Run:
    best = descent.best
    if best is not None:
        load_model_state(descent.model, best.model)
    descent.optimizer.zero_grad(set_to_none=True)
    return Run(
        plan=descent.plan,
        history=Figures(recorder.history.columns()),
        events=tuple(recorder.history.events()),
        diagnoses=tuple(recorder.diagnoses),
        metrics=dict(best.figures) if best else dict(descent.last),
        summary=summary,
        folder=recorder.folder,
        task=descent.problem.task,
        trained=descent.model.eval(),
    )


def _summary(descent: Descent, recorder: Recorder, status: str, seconds: float) -> dict[str, Any]:
    best = descent.best
    return {
        "status": status,
        "name": descent.problem.task.name,
        "steps": descent.step,
        "seconds": seconds,
        **_data_of(descent.problem),
        "parameters": sum(p.numel() for p in descent.model.parameters()),
        "device": str(descent.problem.device),
        "torch": torch.__version__,
        "select": descent.problem.task.select,
        "mode": descent.problem.task.mode,
        "validated": descent.problem.validation is not None,
        "start": dict(descent.start),
        "weights": None if best is None else {"step": best.step, "averaged": best.averaged},
        "cures": dict(descent.cures),
        "stopped_early": descent.out_of_patience and descent.step < descent.total,
        "notes": list(descent.problem.notes),
        "idle_parameters": list(descent.problem.idle),
    }


def _write(recorder: Recorder, descent: Descent, summary: dict[str, Any]) -> None:
    if recorder.folder is None:
        return
    figures = dict(descent.best.figures) if descent.best else dict(descent.last)
    found = json_ready([diagnosis.to_dict() for diagnosis in recorder.diagnoses])
    status = {"status": summary["status"], "metrics": figures, "summary": summary, "diagnoses": found}
    write_status(recorder.folder, status)


def check_room(folder: Path) -> None:
    """Refuse a folder that no new run can be founded in. Raises RunError."""
    if (folder / STATUS).exists():
        raise RunError(f"{folder} already holds a run. Resume it (thalweg resume {folder}), or give a new folder.")
    ours = {PLAN, TASK, FILE, CHECKPOINTS, LOCK, f".{STATUS}.tmp"}  # what a process killed while founding may leave
    strange = [p.name for p in folder.iterdir() if p.name not in ours]
    if strange:
        raise RunError(
            f"{folder} holds other things ({', '.join(sorted(strange)[:3])}) and is no run. Give a new folder."
        )


def _found(folder: Path, problem: Problem, plan: Plan) -> None:
    """Make the run's folder; its status is written last. Raises RunError where something else is in it."""
    check_room(folder)
    try:
        plan.save(folder / PLAN)
        if problem.task.source is not None:
            problem.task.source.save(folder / TASK)
    except OSError as error:
        raise unwritable(folder, error) from error
    summary = {"name": problem.task.name, "status": "running", **_data_of(problem)}
    write_status(folder, {"status": "running", "summary": summary})


def _recorded(folder: Path, plan: Plan) -> Plan:
    """Give the plan that a run's folder records. Raises RunError where the one at hand is another.

    What both measured is no difference: threads, and the steps that came of the same seconds.
    """
    recorded = Plan.load(folder / PLAN)
    there, here = recorded.to_dict(), plan.to_dict()
    knobs = {**there, **here}.keys() - {"evidence"} - _measured(recorded, plan)
    differing = sorted(knob for knob in knobs if there.get(knob) != here.get(knob))
    if differing:
        knob, more = differing[0], len(differing) - 1
        raise RunError(
            f"{folder} already holds a run with another plan: {knob} is {there.get(knob)} there and {here.get(knob)} here"
            f"{f', and {more} more differ' if more else ''}. Give a new folder, or resume that run."
        )
    return recorded


def _measured(one: Plan, other: Plan) -> set[str]:
    knobs = {"threads"} if {one.why("threads").source, other.why("threads").source} <= {"measured"} else set[str]()
    seconds = {plan.why("steps").figures.get("seconds") for plan in (one, other)}
    if len(seconds) == 1 and None not in seconds:
        knobs |= {"steps", "validate_every"}
    return knobs
