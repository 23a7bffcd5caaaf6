"""Training a plan: into a folder or in memory, from the start or from where it stopped."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thalweg.descent.callbacks import Callbacks
from thalweg.descent.loop import descend
from thalweg.descent.prediction import casts_to_record, training_sample, validate_model
from thalweg.descent.problem import Problem
from thalweg.descent.recorder import Progress, Recorder
from thalweg.descent.state import Descent
from thalweg.errors import CheckpointError, DivergedError, Interrupted, RunError, ThalwegError
from thalweg.landscape.drifting_statistics import drifting_statistics
from thalweg.records import checkpoint
from thalweg.records.diagnosis import Diagnosis
from thalweg.records.fingerprint import changes, fingerprint
from thalweg.records.history import FILE, History
from thalweg.records.json_values import without_tuples
from thalweg.records.plan import Plan
from thalweg.records.run import HistoryColumns, Run
from thalweg.records.run_folder import RunFolder
from thalweg.records.weights import load_model_state

MOST_CHANGES = 5  # of the task that are named


def train_plan(
    problem: Problem,
    plan: Plan,
    out: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    diagnoses: Sequence[Diagnosis] = (),
    callbacks: Callbacks | None = None,
) -> Run:
    """Train a plan whose steps are known; `diagnoses`, made before training, become part of the run.

    Where `out` holds a run of the same plan, it is resumed, or opened if it is finished.

    Raises RunError where `out` holds another plan's run or other things, DivergedError where the descent diverges and no cure
    helps, Interrupted where it was stopped, CallbackError where a callback failed; all but the first with what was trained as
    their `run`.
    """
    if out is None:
        return _train(Descent(problem, plan), Recorder(diagnoses=diagnoses, progress=progress, callbacks=callbacks))
    folder = RunFolder.at(out)
    with folder.locked():
        return train_in(folder, problem, plan, progress, diagnoses, callbacks)


def train_in(
    folder: RunFolder,
    problem: Problem,
    plan: Plan,
    progress: Progress | None = None,
    diagnoses: Sequence[Diagnosis] = (),
    callbacks: Callbacks | None = None,
) -> Run:
    """Train as `train_plan` does, in a folder that the caller has locked."""
    resumed = folder.holds_run
    if resumed:
        plan = folder.check_plan(plan)
        if folder.is_finished:
            return Run.open(folder.path, problem.task)
        folder.check_data(_describe_data(problem))
    descent = Descent(problem, plan)
    code = fingerprint(problem.task, descent.model)
    changed = changes(folder.recorded_code, code) if resumed else []
    kept = None if resumed else create(folder, problem, plan, code)
    with folder.open_history() as history:
        recorder = Recorder(folder, history, diagnoses, progress, callbacks)
        _restore_newest(folder, descent, recorder)
        if changed:
            _tell_changes(changed, descent, recorder)
        if kept is not None:
            recorder.event(0, "note", f"Another plan lay in {folder.path}; it is kept as {kept.name}.")
        return _train(descent, recorder, _seconds_recorded(history), code)


def create(folder: RunFolder, problem: Problem, plan: Plan, code: Mapping[str, str]) -> Path | None:
    """Make a folder for a new run; gives where another plan is kept that lay there. Raises RunError where something else did."""
    return folder.create(
        plan, problem.task.source, {"name": problem.task.name, **_describe_data(problem), "code": dict(code)}
    )


def _tell_changes(changed: Sequence[str], descent: Descent, recorder: Recorder) -> None:
    """Say that the task is another than the one that the run began with."""
    more = f"; and {len(changed) - MOST_CHANGES} more" if len(changed) > MOST_CHANGES else ""
    message = (
        f"The task has changed since the run was stopped: {'; '.join(changed[:MOST_CHANGES])}{more}. From step {descent.step} on"
        f" the run goes by the new task, so it is no longer the run that it would have been."
    )
    recorder.warn(descent.step, message)


def _restore_newest(folder: RunFolder, descent: Descent, recorder: Recorder) -> None:
    """Load the newest intact checkpoint into the descent; where there is no checkpoint at all it starts from step 0.

    Raises CheckpointError where there are checkpoints and none is intact: the person decides what to do then.
    """
    steps = recorder.history.columns()["step"]
    try:
        loaded = checkpoint.load(folder.checkpoints_path)
    except CheckpointError as error:
        if checkpoint.steps(folder.checkpoints_path):
            raise CheckpointError(
                f"The run in {folder.path} cannot continue: {error} To start it anew, remove {folder.checkpoints_path}."
            ) from error
        if len(steps):
            message = f"There was no checkpoint yet, so the run starts anew; it had come to step {int(steps[-1])}."
            recorder.event(0, "note", message)
            recorder.supersede(-1)
        return
    for message in loaded.messages:
        recorder.event(loaded.step, "note", message)
    if not len(steps):
        message = f"The figures before step {loaded.step} are lost: there was no {FILE}."
        recorder.event(loaded.step, "note", message)
    recorder.restore(descent, loaded)
    recorder.event(loaded.step, "resume", f"Went on from step {loaded.step}.")


def _seconds_recorded(history: History) -> float:
    """Give the seconds that earlier processes trained: the sum over steps, as a killed one has recorded nothing else."""
    return float(np.nansum(history.columns().get("seconds", np.zeros(1))))


def _train(
    descent: Descent, recorder: Recorder, earlier_seconds: float = 0.0, code: Mapping[str, str] | None = None
) -> Run:
    """Descend, and record how it ended, also where it ends with an error. `code`: the task's fingerprint."""
    started = time.perf_counter() - earlier_seconds
    try:
        descend(descent, recorder)
    except BaseException as error:
        if recorder.is_in_forked_child:
            raise
        run = None
        with suppress(ThalwegError):  # the first error says what is wrong
            run = _failed_run(descent, recorder, error, time.perf_counter() - started, code)
        if isinstance(error, ThalwegError | Interrupted):
            error.run = run
        elif isinstance(error, KeyboardInterrupt):
            raise Interrupted(f"Interrupted at once, after step {descent.step}.", run=run) from error
        raise
    summary = _summarize(descent, "finished", time.perf_counter() - started, code)
    _take_kept_weights(descent)
    summary |= _training_metrics(descent, summary["notes"])
    try:
        _write_status(descent, recorder, summary)
    except RunError as error:
        error.run = _run(descent, recorder, summary)
        raise
    return _run(descent, recorder, summary)


def _take_kept_weights(descent: Descent) -> None:
    """Give the model the weights that the run keeps, where these are not the last ones."""
    if descent.best_weights is not None:
        load_model_state(descent.model, descent.best_weights.model)
        descent.objects.write(descent.best_weights.objects, attributes_of="model")
    descent.optimizer.zero_grad(set_to_none=True)


def _training_metrics(descent: Descent, notes: list[str]) -> dict[str, Any]:
    """Measure the task's metrics, which are of validation data, on training examples too, with the weights that the run keeps.

    What fails there, where it did not on validation data, does not spoil the run: it is noted.
    """
    problem = descent.problem
    sample = training_sample(problem) if problem.task.metrics else None
    if sample is None:
        return {}
    try:
        return {"training": validate_model(sample, descent.model, descent.plan)}
    except Exception as error:
        notes.append(f"The metrics could not be measured on training data: {' '.join(str(error).split())}")
        return {}


def _failed_run(
    descent: Descent, recorder: Recorder, error: BaseException, seconds: float, code: Mapping[str, str] | None
) -> Run:
    """Record how a descent ended that did not come to its end, and give what it came to.

    Its model has the weights that validated best so far, where the plan keeps those, else the present ones.
    """
    status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
    if isinstance(error, DivergedError):
        status = "diverged"
        recorder.event(descent.step, "diverged", str(error))
    summary = _summarize(descent, status, seconds, code)
    try:
        recorder.history.flush()
        _write_status(descent, recorder, summary)
    except RunError:  # a full disk, say, of which the first error tells: what was trained is still worth giving
        recorder.keep_in_memory()
    return _run(descent, recorder, summary)


def _run(descent: Descent, recorder: Recorder, summary: dict[str, Any]) -> Run:
    """Make the record of a descent that ended, whose model gets the weights that the run keeps."""
    _take_kept_weights(descent)
    return Run(
        plan=descent.plan,
        history=HistoryColumns(recorder.history.columns()),
        events=tuple(recorder.history.events()),
        diagnoses=tuple(recorder.diagnoses),
        metrics=_final_figures(descent),
        summary=summary,
        folder=recorder.folder.path if recorder.folder else None,
        task=descent.problem.task,
        trained=descent.model.eval(),
    )


def _write_status(descent: Descent, recorder: Recorder, summary: dict[str, Any]) -> None:
    if recorder.folder is None:
        return
    status = {
        "status": summary["status"],
        "metrics": _final_figures(descent),
        "summary": summary,
        "diagnoses": without_tuples([diagnosis.to_dict() for diagnosis in recorder.diagnoses]),
    }
    recorder.folder.write_status(status)


def _final_figures(descent: Descent) -> dict[str, float]:
    return dict(descent.best_weights.figures) if descent.best_weights else dict(descent.last_validation)


def _summarize(descent: Descent, status: str, seconds: float, code: Mapping[str, str] | None) -> dict[str, Any]:
    best, problem = descent.best_weights, descent.problem
    return {
        "status": status,
        "name": problem.task.name,
        "steps": descent.step,
        "seconds": seconds,
        **_describe_data(problem),
        "parameters": sum(p.numel() for p in descent.model.parameters()),
        "trainable_parameters": sum(p.numel() for p in descent.model.parameters() if p.requires_grad),
        "device": str(problem.device),
        "torch": torch.__version__,
        "select": problem.task.select,
        "mode": problem.task.mode,
        "validated": problem.validation is not None,
        "start": dict(descent.initial_validation),
        "weights": None if best is None else {"step": best.step, "averaged": best.averaged},
        "cures": dict(descent.cures),
        "stopped_early": descent.out_of_patience and descent.step < descent.total_steps,
        "notes": list(problem.notes),
        "idle_parameters": list(problem.without_gradient),
        "drifting_statistics": list(drifting_statistics(descent.model)),
        "casts": casts_to_record(problem.objective.cast_inputs),
        **({"code": dict(code)} if code else {}),
    }


def _describe_data(problem: Problem) -> dict[str, Any]:
    """Give counts and digests of a task's data; `RunFolder.check_data` compares them when the run is resumed."""
    return {
        "examples": problem.count,
        "data": problem.train.digest(),
        "held_out": problem.validation and problem.validation.digest(),
    }
