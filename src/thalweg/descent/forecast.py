"""A forecast of a run: what a copy that cools down from its newest checkpoint is worth, and what that says of the planned end.

The run is only read: it may be under way in another process meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from thalweg import rules
from thalweg.descent.cooling import branch, cooled_plan
from thalweg.descent.loop import descend
from thalweg.descent.loop_kinds import LOOP_KINDS
from thalweg.descent.memory_history import MemoryHistory
from thalweg.descent.problem import Problem
from thalweg.descent.process_state import preserve_process_state
from thalweg.descent.projection import COOLED, cools_down, trend
from thalweg.descent.recorder import Recorder
from thalweg.descent.same_task import changes, check_data, sum_task
from thalweg.descent.state import BestWeights, Descent
from thalweg.descent.their_objects import as_found, not_put_back
from thalweg.descent.train import inputs_before, naming_contents, take_kept_weights
from thalweg.descent.validation import standard_error
from thalweg.errors import CheckpointError, RunError
from thalweg.records import checkpoint
from thalweg.records.forecast import Estimate, Forecast
from thalweg.records.kinds import check
from thalweg.records.plan import Plan
from thalweg.records.run import Run
from thalweg.records.run_folder import RunFolder
from thalweg.records.run_inputs import in_words
from thalweg.sampling import StreamSource
from thalweg.watch.finished import FinishedHistory

TRIES = 3  # of reading a checkpoint, which a run that is under way may replace meanwhile
EARLY = 0.1  # share of the run: no forecast from before it was compared with what came


def ended(run: Run) -> Forecast:
    """Give what a run that is over ended with."""
    figures = {name: Estimate(float(value), 0.0) for name, value in run.metrics.items()}
    step = int(run.summary.get("steps") or 0)
    return Forecast(step, run.plan.steps or step, True, figures, figures, bool(run.summary.get("validated")))


def forecast_run(run: Run, folder: RunFolder, problem: Problem) -> Forecast:
    """Give the forecast of an unfinished run, opened from its folder.

    Raises RunError, CheckpointError, DivergedError, Interrupted.
    """
    loaded, plan = _newest(folder), folder.read_plan()
    before = inputs_before(folder, folder.read_inputs(), loaded)
    notes = list[str]()
    with as_found(problem.task):
        start = Descent(problem, plan)
        task = sum_task(start, before.task)
        check_data(folder.path, problem, before.task, task)
        if edited := changes(problem, before.task, task):
            notes.append(
                f"The task has changed since the run was begun ({in_words(edited)}): this is by the present one."
            )
        with naming_contents(loaded):
            check(loaded.state.get("loop"), LOOP_KINDS)
            loop = loaded.state["loop"]
            factor = start.schedule.factor(loaded.step, dict(loop["schedule"]) or None)
        del start
        best, error, lost = _cooled(problem, plan, loaded.state, cooled_plan(plan, factor, loaded.step))
        if lost:
            notes.append(not_put_back(lost))
        if math.isnan(error) and not isinstance(problem.train, StreamSource):
            other = cooled_plan(plan.replace(seed=plan.seed + 1), factor, loaded.step)
            again = _cooled(problem, plan, loaded.state, other)[0]
            error = abs(again.figures["loss"] - best.figures["loss"]) / math.sqrt(2)
    now = {name: Estimate(value) for name, value in best.figures.items()}
    now["loss"] = Estimate(best.figures["loss"], error)
    end = _end(run, problem, plan, now["loss"].value, loaded.step, loop, notes)
    if end and not cools_down(plan) and rules.get(plan.rule).average is None:
        notes.append("The plan's rate does not fall to zero: the end is that of a copy that cools down there.")
    return Forecast(
        loaded.step, plan.steps or loaded.step, False, now, end, problem.validation is not None, tuple(notes)
    )


def _newest(folder: RunFolder) -> checkpoint.Loaded:
    """Read the newest intact checkpoint. Raises RunError where there is none yet, CheckpointError where none is intact."""
    for attempt in range(TRIES):
        try:
            return checkpoint.load(folder.checkpoints_path)
        except CheckpointError:
            there = bool(checkpoint.steps(folder.checkpoints_path))
            if there and attempt == TRIES - 1:
                raise
    raise RunError(
        f"The run in {folder.path} has no checkpoint yet, so there is nothing to cool down from. The first is written after"
        f" {folder.read_plan().checkpoint_seconds:g} seconds of training (`checkpoint_seconds`), or where the run is stopped."
    )


def _cooled(
    problem: Problem, plan: Plan, state: Mapping[str, Any], cooled: Plan
) -> tuple[BestWeights, float, list[str]]:
    """Cool a copy down, and give its weights with their figures, the standard error of their loss, and what was not put back."""
    descent, lost = branch(problem, cooled, state)
    recorder = Recorder(history=MemoryHistory())
    descend(descent, recorder)
    recorder.stop_request.check("Interrupted; the run is as it was.")
    best = descent.best_weights
    assert best is not None
    with preserve_process_state(plan.threads):
        take_kept_weights(descent)
        return best, standard_error(problem, descent.model, plan.precision, plan.seed), lost


def _end(
    run: Run, problem: Problem, plan: Plan, loss: float, step: int, loop: Mapping[str, Any], notes: list[str]
) -> dict[str, Estimate]:
    """Project the loss to the planned end, and note what is to be known of that."""
    assert plan.steps is not None
    if problem.validation is None:
        notes.append("There are no validation data: the training loss says nothing of the end that was checked.")
        return {}
    if not (math.isfinite(loss) and loss > 0):
        notes.append("The end is projected by a power law of the loss, and this one is not above zero.")
        return {}
    share = step / plan.steps
    steps, losses = FinishedHistory.of(run).recorded("validation/loss")
    value, error = COOLED.end(loss, share, trend(steps.tolist(), losses.tolist(), until=step))
    if share < EARLY:
        notes.append("It is early: no forecast from the first tenth of a run was compared with what came.")
    leading, task = loop["leading"], problem.task
    if plan.keep == "best" and task.select == "loss" and leading and leading["value"] < value:
        notes.append(
            f"The best so far, {leading['value']:.4g} at step {leading['step']:,}, is kept: the run ends no worse."
        )
        value = float(leading["value"])
    if task.select != "loss":
        notes.append(f"`{task.select}` is not projected: the law is one of losses.")
    return {"loss": Estimate(value, error)}
