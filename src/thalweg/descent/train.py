"""Training a plan: into a folder or in memory, from the start or from where it stopped."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thalweg.descent.callbacks import Callbacks
from thalweg.descent.drift import drift_from
from thalweg.descent.loop import descend
from thalweg.descent.loop_kinds import LOOP_KINDS, SNAPSHOT_KINDS
from thalweg.descent.memory_history import HistoryWriter
from thalweg.descent.prediction import casts_to_record, training_sample, validate_model
from thalweg.descent.problem import Problem
from thalweg.descent.recorder import Progress, Recorder, how_to_resume
from thalweg.descent.same_task import changes, check_data, starts_elsewhere, sum_task, unsummed
from thalweg.descent.selection import compare_anew
from thalweg.descent.state import Descent
from thalweg.descent.suspended import Suspended
from thalweg.descent.their_objects import not_put_back
from thalweg.errors import CheckpointError, DivergedError, Interrupted, PlanError, RunError, ThalwegError, error_text
from thalweg.landscape.drifting_statistics import drifting_statistics
from thalweg.records import checkpoint
from thalweg.records.diagnosis import Diagnosis
from thalweg.records.json_values import without_tuples
from thalweg.records.kinds import check
from thalweg.records.plan import Plan
from thalweg.records.run import HistoryColumns, Run
from thalweg.records.run_folder import RunFolder, inputs_of
from thalweg.records.run_inputs import RunInputs, TaskSums, in_words, plan_changes
from thalweg.records.task import Task


def train_plan(
    problem: Problem,
    plan: Plan,
    out: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    diagnoses: Sequence[Diagnosis] = (),
    callbacks: Callbacks | None = None,
    begun: Suspended | None = None,
) -> Run:
    """Train a plan whose steps are known; `diagnoses`, made before training, become part of the run.

    `begun`: this run as far as a search has trained it, which is not trained twice; the bits are the same as without.

    Where `out` holds a run of the same plan, it is resumed, or opened if it is finished.

    Raises RunError where `out` holds another plan's run or other things, DivergedError where the descent diverges and no cure
    helps, Interrupted where it was stopped, CallbackError where a callback failed; all but the first with what was trained as
    their `run`.
    """
    if out is None:
        recorder = Recorder(diagnoses=diagnoses, progress=progress, callbacks=callbacks)
        return _train(Descent(problem, plan), recorder, begun=begun)
    folder = RunFolder.at(out)
    with folder.locked_to_go_on():
        folder.discard_request()
        return train_in(folder, problem, plan, progress, diagnoses, callbacks, begun)


def train_in(
    folder: RunFolder,
    problem: Problem,
    plan: Plan,
    progress: Progress | None = None,
    diagnoses: Sequence[Diagnosis] = (),
    callbacks: Callbacks | None = None,
    begun: Suspended | None = None,
) -> Run:
    """Train as `train_plan` does, in a folder that the caller has locked."""
    if folder.holds_run:
        folder.check_plan(plan)
        return resume_in(folder, problem, progress=progress, callbacks=callbacks, same_task=True)
    descent = Descent(problem, plan)
    inputs = RunInputs(plan.to_dict(), sum_task(descent))
    kept = create(folder, problem, plan, inputs)
    with folder.open_history() as history:
        recorder = Recorder(folder, history, diagnoses, progress, callbacks, inputs)
        for text in unsummed(inputs.task):
            recorder.event(0, "note", text)
        if kept is not None:
            recorder.event(0, "note", f"Another plan lay in {folder.path}; it is kept as {kept.name}.")
        return _train(descent, recorder, begun=begun)


def _go_on_with(begun: Suspended, descent: Descent, recorder: Recorder) -> float:
    """Take a new descent to where its run was suspended, and give the seconds that this was trained.

    Where callbacks are to see every step, or the suspended state is not all of it, the run is left to begin anew.
    """
    trained = "all" if begun.is_over else f"the first {begun.step:,}"
    message = f"The search has trained {trained} of {descent.total_steps:,} steps of this run already."
    if not recorder.callbacks.is_empty:
        recorder.event(0, "note", f"{message} They are taken again, so that the callbacks see every step.")
        return 0.0
    if not begun.is_whole:
        recorder.event(0, "note", f"{message} They are taken again, as task or model hold what cannot be copied.")
        return 0.0
    begun.history.write_into(recorder.history)
    recorder.diagnoses += begun.diagnoses
    begun.hand_over(descent)
    if begun.lost:
        recorder.warn(descent.step, not_put_back(begun.lost))
        descent.objects.give_up(begun.lost)
    recorder.event(descent.step, "note", message)
    recorder.checkpoint(descent)  # it took as long to come to as any other checkpoint
    return _seconds_recorded(recorder.history)


def create(folder: RunFolder, problem: Problem, plan: Plan, inputs: RunInputs) -> Path | None:
    """Make a folder for a new run; gives where another plan is kept that lay there. Raises RunError where something else did."""
    return folder.create(plan, problem.task.source, {"name": problem.task.name, "examples": problem.count}, inputs)


def resume_run(
    folder: RunFolder,
    problem: Problem,
    knobs: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    callbacks: Callbacks | None = None,
    adopted: Task | None = None,
) -> Run:
    """Go on with the run in a folder, with some knobs changed, or open it if it is finished. Raises as `resume_in` does.

    `adopted`: the task of a run that is trusted, and this user's from here on.
    """
    with folder.locked_to_go_on(changed=bool(knobs)) as is_writable:
        if adopted is not None and is_writable:
            folder.adopt(adopted)
        return resume_in(folder, problem, knobs, progress, callbacks)


def resume_in(
    folder: RunFolder,
    problem: Problem,
    knobs: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    callbacks: Callbacks | None = None,
    *,
    same_task: bool = False,
) -> Run:
    """Go on with the run in a folder that the caller has locked, or open it if it is finished.

    Arguments:
        knobs: to change in its plan.
        same_task: refuse a task with another criterion, loss, model or other code, instead of going on by it and saying so.

    Raises RunError for other data, and for another task where the run is finished; PlanError for knobs that cannot be changed;
    else as `train_plan` does.
    """
    recorded, finished = folder.read_inputs(), folder.is_finished and not knobs
    plan = folder.read_plan()
    plan = plan.changed(knobs) if knobs else plan
    loaded = None if finished else _newest_checkpoint(folder)
    before = inputs_before(folder, recorded, loaded)
    _check_steps(folder, plan, loaded, knobs)
    descent = Descent(problem, plan)
    task = sum_task(descent, before.task)
    check_data(folder.path, problem, before.task, task)
    edited = changes(problem, before.task, task)
    over = finished or (loaded is not None and loaded.step >= descent.total_steps)
    _check_same_task(folder, descent, before, task, edited, over, same_task)
    if finished:
        return Run.open(folder.path, problem.task)
    inputs = replace(recorded.with_plan(plan) if knobs else recorded, task=task)
    seconds, after = folder.seconds_taken()
    if knobs:
        folder.change_plan(plan, inputs)
    elif not os.path.lexists(folder.plan_path):
        folder.write_plan(plan)
    with folder.open_history() as history:
        recorder = Recorder(folder, history, (), progress, callbacks, inputs)
        damage = history.damage()
        _restore(descent, recorder, loaded, [] if loaded is None else history.lost(loaded.step))
        for text in damage:
            recorder.show(descent.step, "warning", text)  # whoever opens the run finds it in the history itself
        _take_over_plan(descent, recorder, before.plan)
        if before.task.data is not None and before.task.data.is_count:
            message = "The run was begun by an earlier version, which kept no sums of its data: only their number was compared."
            recorder.event(descent.step, "note", message)
        if edited:
            _tell_changes(edited, descent, recorder)
        return _train(descent, recorder, seconds + _seconds_recorded(history, after))


def inputs_before(folder: RunFolder, recorded: RunInputs, loaded: checkpoint.Loaded | None) -> RunInputs:
    """Give what the run was made from when the checkpoint was written. Raises RunError where that is another run's."""
    before = None if loaded is None else inputs_of(loaded)
    if loaded is None or before is None:
        return recorded
    if not recorded.had_plan(before.plan):
        differing = in_words(plan_changes(before.plan, recorded.plan))
        raise RunError(
            f"{loaded.path} is a checkpoint of another plan than the run's in {folder.path}: {differing}. Restore the run's files"
            f" from one copy, or start a new run in another folder."
        )
    return before


def _check_steps(
    folder: RunFolder, plan: Plan, loaded: checkpoint.Loaded | None, knobs: Mapping[str, Any] | None
) -> None:
    """Refuse knobs for a run that is at its end already, or has nothing to go on from. Raises RunError, PlanError."""
    if not knobs:
        return
    if loaded is None and folder.is_finished:
        raise RunError(f"{folder.path} holds a finished run without checkpoints: there is nothing to go on from.")
    if loaded is not None and plan.steps is not None and plan.steps <= loaded.step:
        raise PlanError(
            f"The run in {folder.path} is at step {loaded.step:,} already, and `steps` is {plan.steps:,}: nothing remains to be"
            f" done. Set `steps` to more than that."
        )
    stale = 0 if loaded is None else loaded.state.get("loop", {}).get("stale", 0)
    if loaded is not None and plan.patience is not None and isinstance(stale, int) and stale >= plan.patience:
        raise PlanError(
            f"The run in {folder.path} stopped early, at step {loaded.step:,}, after {stale:,} validations without improvement:"
            f" with `patience` {plan.patience:,} nothing remains to be done. Set `patience` to more than {stale:,}, or to none."
        )


def _check_same_task(
    folder: RunFolder,
    descent: Descent,
    before: RunInputs,
    task: TaskSums,
    edited: Sequence[str],
    over: bool,
    same_task: bool,
) -> None:
    """Refuse another task where the run has nothing more to do by it, or was not asked to go on by it. Raises RunError."""
    differing = list(edited)
    if same_task and not edited and starts_elsewhere(descent, before.task, task):
        differing.append("the model starts from other weights")
    if not differing or not (over or same_task):
        return
    resume = how_to_resume(folder.path, descent.problem.task.source)
    raise RunError(
        f"{folder.path} holds a {'finished ' * over}run of another task: {in_words(differing)}. Give a new folder"
        + ("." if over else f", or go on by this task with: {resume}")
    )


def _take_over_plan(descent: Descent, recorder: Recorder, before: Mapping[str, Any]) -> None:
    """Let what was changed in the plan since the checkpoint take effect, and record it: from here on it is another run."""
    now = descent.plan.to_dict()
    knobs = {name for name in {**before, **now}.keys() - {"evidence", "format"} if before.get(name) != now.get(name)}
    if not knobs:
        return
    descent.take_over_changes(knobs)
    plans = ({name: value for name, value in plan.items() if name != "evidence"} for plan in (before, now))
    changed = plan_changes(*plans)
    message = f"The plan was changed as asked: {in_words(changed)}. From step {descent.step} on this is another run."
    recorder.event(descent.step, "change", message, {"knobs": sorted(knobs)})


def _tell_changes(changed: Sequence[str], descent: Descent, recorder: Recorder) -> None:
    """Say that the task is another than the one that the run began with."""
    message = (
        f"The task has changed since the run was stopped: {in_words(changed)}. From step {descent.step} on the run goes by the"
        f" new task, so it is no longer the run that it would have been."
    )
    if descent.best_validation is not None:
        message += compare_anew(descent)
    recorder.differs = True
    recorder.warn(descent.step, message)


def _newest_checkpoint(folder: RunFolder) -> checkpoint.Loaded | None:
    """Read the newest intact checkpoint; None where there is no checkpoint at all.

    Raises CheckpointError where there are checkpoints and none is intact: the person decides what to do then.
    """
    try:
        return checkpoint.load(folder.checkpoints_path)
    except CheckpointError as error:
        if checkpoint.steps(folder.checkpoints_path):
            raise CheckpointError(
                f"The run in {folder.path} cannot continue: {error} To start it anew, remove {folder.checkpoints_path}."
            ) from error
        return None


def _restore(descent: Descent, recorder: Recorder, loaded: checkpoint.Loaded | None, lost: Sequence[str]) -> None:
    """Take the descent to where the checkpoint was written, without one to step 0; `lost` says what its history lacks."""
    if loaded is None:
        steps = recorder.history.columns()["step"]
        if len(steps):
            message = f"There was no checkpoint yet, so the run starts anew; it had come to step {int(steps[-1])}."
            recorder.event(0, "note", message)
            recorder.supersede(-1)
        return
    for message in (*loaded.messages, *lost):
        recorder.event(loaded.step, "note", message)
    with naming_contents(loaded):
        check(loaded.state.get("loop"), LOOP_KINDS)
        if "snapshot" in loaded.state:
            check(loaded.state["snapshot"], SNAPSHOT_KINDS, ("model", "optimizer", "loop"))
        recorder.restore(descent, loaded)
    recorder.event(loaded.step, "resume", f"Went on from step {loaded.step}.")


@contextmanager
def naming_contents(loaded: checkpoint.Loaded) -> Generator[None]:
    """Turn an error within, from what a checkpoint holds whose sums agree, into a CheckpointError."""
    try:
        yield
    except ThalwegError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{loaded.path} is as it was written, but holds what is none of this run's ({error_text(error)}). Remove it to go on"
            f" from an older checkpoint."
        ) from error


def _seconds_recorded(history: HistoryWriter, after: int = 0) -> float:
    """Give the seconds of the steps that earlier processes took after one: a killed one has recorded nothing else."""
    columns = history.columns()
    return float(np.nansum(columns["seconds"][columns["step"] > after])) if "seconds" in columns else 0.0


def _train(descent: Descent, recorder: Recorder, earlier_seconds: float = 0.0, begun: Suspended | None = None) -> Run:
    """Descend, and record how it ended, also where it ends with an error; `begun`: from where the run was suspended."""
    started = time.perf_counter() - earlier_seconds
    try:
        if begun is not None:
            started -= _go_on_with(begun, descent, recorder)
        if recorder.folder is not None:
            recorder.folder.discard_candidates()
        # A search tries rates itself, and the run of a plan that one has found is to be the one that it took.
        recorder.tries_rates = all(why.source != "searched" for why in descent.plan.evidence.values())
        descend(descent, recorder)
        recorder.tell_not_kept(descent)
    except BaseException as error:
        if recorder.is_in_forked_child:
            raise
        run = None
        with suppress(ThalwegError):  # the first error says what is wrong
            run = _failed_run(descent, recorder, error, time.perf_counter() - started)
        if isinstance(error, ThalwegError | Interrupted):
            error.run = run
        elif isinstance(error, KeyboardInterrupt):
            raise Interrupted(f"Interrupted at once, after step {descent.step}.", run=run) from error
        raise
    summary = _summarize(descent, recorder, "finished", time.perf_counter() - started)
    take_kept_weights(descent)
    summary |= _training_metrics(descent, summary["notes"])
    if drift := drift_from(descent.problem.task.model, descent.model):
        summary["drift"] = drift
    try:
        _write_status(descent, recorder, summary)
    except RunError as error:
        error.run = _run(descent, recorder, summary)
        raise
    return _run(descent, recorder, summary)


def take_kept_weights(descent: Descent) -> None:
    """Give the model the weights that the run keeps, where these are not the last ones."""
    if descent.best_weights is not None:
        descent.load_weights(descent.best_weights.model)
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


def _failed_run(descent: Descent, recorder: Recorder, error: BaseException, seconds: float) -> Run:
    """Record how a descent ended that did not come to its end, and give what it came to.

    Its model has the weights that validated best so far, where the plan keeps those, else the present ones.
    """
    status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
    if isinstance(error, DivergedError):
        status = "diverged"
        recorder.event(descent.step, "diverged", str(error))
    summary = _summarize(descent, recorder, status, seconds)
    try:
        recorder.history.flush()
        _write_status(descent, recorder, summary)
    except RunError:  # a full disk, say, of which the first error tells: what was trained is still worth giving
        recorder.keep_in_memory()
    return _run(descent, recorder, summary)


def _run(descent: Descent, recorder: Recorder, summary: dict[str, Any]) -> Run:
    """Make the record of a descent that ended, whose model gets the weights that the run keeps."""
    take_kept_weights(descent)
    return Run(
        plan=descent.plan,
        history=HistoryColumns(recorder.history.columns()),
        events=tuple(recorder.history.events()),
        diagnoses=tuple(recorder.diagnoses),
        metrics=_final_figures(descent),
        summary=summary,
        folder=recorder.folder.path if recorder.folder else None,
        task=descent.problem.task,
        trained=descent.hand_over_model().eval(),
        trail=descent.trail.points,
    )


def _write_status(descent: Descent, recorder: Recorder, summary: dict[str, Any]) -> None:
    if recorder.folder is None:
        return
    status = {
        "status": summary["status"],
        "metrics": _final_figures(descent),
        "summary": summary,
        "diagnoses": without_tuples([diagnosis.to_dict() for diagnosis in recorder.diagnoses]),
        **({} if recorder.inputs is None else {"inputs": without_tuples(recorder.inputs.to_dict())}),
    }
    recorder.folder.write_status(status)


def _final_figures(descent: Descent) -> dict[str, float]:
    return dict(descent.best_weights.figures) if descent.best_weights else dict(descent.last_validation)


def _is_exact(descent: Descent, recorder: Recorder) -> bool:
    """Whether nothing is known by which the run, where it is resumed, may differ from the uninterrupted one."""
    states = descent.objects.problems, recorder.callbacks.objects.problems, descent.batches.unkept
    data = None if recorder.inputs is None else recorder.inputs.task.data
    as_begun = descent.problem.is_exact and not recorder.differs
    return as_begun and not any(states) and not (data is not None and data.unlike)


def _summarize(descent: Descent, recorder: Recorder, status: str, seconds: float) -> dict[str, Any]:
    best, problem = descent.best_weights, descent.problem
    return {
        "status": status,
        "name": problem.task.name,
        "steps": descent.step,
        "seconds": seconds,
        "examples": problem.count,
        "parameters": sum(p.numel() for p in descent.model.parameters()),
        "trainable_parameters": sum(p.numel() for p in descent.model.parameters() if p.requires_grad),
        "device": str(problem.device),
        "torch": torch.__version__,
        "select": problem.task.select,
        "mode": problem.task.mode,
        "validated": problem.validation is not None,
        "start": dict(descent.initial_validation),
        "weights": None if best is None else {"step": best.step, "averaged": best.averaged},
        "cures": descent.changes.to_dict(),
        "stopped_early": descent.out_of_patience and descent.step < descent.total_steps,
        "exact": _is_exact(descent, recorder),
        "notes": list(problem.notes),
        "idle_parameters": list(problem.without_gradient),
        "drifting_statistics": list(drifting_statistics(descent.model)),
        "casts": casts_to_record(problem.objective.cast_inputs),
    }
