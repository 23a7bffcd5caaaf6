"""Validation within a descent: measure the weights, keep the best ones, and count validations without improvement.

The weights are measured, and so is their exponential moving average (EMA) where the plan has one. Where the update rule
itself keeps an average (schedule-free rules), only that average is measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from thalweg.descent.averages import averaged
from thalweg.descent.moving_weights import put_back
from thalweg.descent.process_state import preserve_process_state
from thalweg.descent.recorder import Recorder
from thalweg.descent.state import BestWeights, Descent, clone_into
from thalweg.descent.their_objects import STEPPING, of_model
from thalweg.descent.validation import LARGEST_BATCH, training_size, validate
from thalweg.records.task import Task
from thalweg.records.weights import load_model_state, model_state


def validate_and_select(descent: Descent, recorder: Recorder) -> None:
    """Validate, keep the weights where they are the best so far, and record an early stop where the plan's patience ends."""
    task, step, plan = descent.problem.task, descent.step, descent.plan
    better = figures = _measure_and_compare(descent, average=descent.evaluates_average_only and step > 0)
    row = {f"validation/{name}": value for name, value in figures.items()}
    if plan.ema is not None and step > 0:
        ema = _measure_and_compare(descent, average=True)
        row |= {f"ema/{name}": value for name, value in ema.items()}
        better = min(figures, ema, key=lambda figures: _cost(task, figures))
    if step == 0:
        descent.initial_validation = figures
        if task.evaluate is None:  # else it may be another figure than the training loss
            descent.monitor.expect(figures["loss"])
    descent.last_validation = better
    if descent.schedule_state and step > 0:
        descent.schedule_state = descent.schedule.observe(descent.schedule_state, better[task.select], step)
    recorder.validated(step, row, better)
    improved = descent.best_validation is not None and descent.best_validation["step"] == step
    descent.validations_since_best = 0 if improved else descent.validations_since_best + 1
    if descent.out_of_patience:
        message = f"No better {task.select} in {descent.validations_since_best} validations: stopped at step {step}."
        recorder.event(step, "early_stop", message)


def compare_anew(descent: Descent) -> str:
    """Forget what was best by a criterion, loss or metric that has changed; the best weights are measured by the present ones.

    Gives a sentence about it.
    """
    best, name = descent.best_weights, descent.problem.task.select
    descent.best_validation, descent.best_weights, descent.validations_since_best = None, None, 0
    descent.schedule_state = {
        key: value for key, value in descent.schedule_state.items() if key.rpartition("/")[2] != "best"
    }
    if best is None or best.step > descent.step:
        return " What was best so far is not compared with."
    weights = clone_into(None, model_state(descent.model))
    load_model_state(descent.model, best.model)
    with preserve_process_state(descent.plan.threads):
        figures = measure(descent)
    load_model_state(descent.model, weights)
    if not math.isfinite(figures[name]):
        return f" {name} of the best weights so far is not finite now: they are not compared with."
    descent.best_validation = {"value": figures[name], "step": best.step}
    descent.best_weights = BestWeights(figures[name], best.step, figures, best.averaged, best.model)
    return f" The best weights so far, of step {best.step}, were measured anew: {name} {figures[name]:.4g}."


def keep_last(descent: Descent, recorder: Recorder) -> None:
    """Keep the last weights, or their average where it validates better. No step may follow: the weights are not copied."""
    if descent.keeps_best:
        message = (
            f"`{descent.problem.task.select}` was not a number in any validation, so no weights could be chosen by it: the last"
            f" ones are kept. See that it can be measured on the validation data (that they have all classes, say)."
        )
        recorder.event(descent.step, "note", message)
    with descent.objects.unchanged(*STEPPING) as carried:
        _measure_and_keep(descent, carried)


def _measure_and_keep(descent: Descent, carried: Mapping[str, Any]) -> None:
    task, average_only = descent.problem.task, descent.evaluates_average_only
    figures = {} if average_only else measure(descent)
    if average_only or descent.plan.ema is not None:
        with averaged(descent):
            average_figures = measure(descent)
            if average_only or _cost(task, average_figures) < _cost(task, figures):
                _keep_copy(descent, average_figures, carried, averaged=True)
                return
    value, weights, objects = figures[task.select], model_state(descent.model), of_model(carried)
    descent.best_weights = BestWeights(value, descent.step, figures, averaged=False, model=weights, objects=objects)


def measure(descent: Descent) -> dict[str, float]:
    """Give the validation figures of the weights that the model holds now."""
    plan = descent.plan
    descent.optimizer.zero_grad(set_to_none=True)  # not needed any more, and a validation may need the memory
    # Where training ran out of memory (and split its batches), a large validation batch would too.
    split = descent.accumulate != plan.accumulate
    micro = min(LARGEST_BATCH, descent.batches.micro_batch_size) if split else LARGEST_BATCH
    size = training_size(descent.problem, descent.batches.batch_size, descent.accumulate)
    with put_back(descent.model, descent.moving):
        return validate(descent.problem, descent.model, plan.precision, micro, plan.seed, size)


def _measure_and_compare(descent: Descent, *, average: bool) -> dict[str, float]:
    # A step of the task's own that counts its calls, say, must not count those of a validation.
    with descent.objects.unchanged(*STEPPING) as carried, averaged(descent) if average else nullcontext():
        figures = measure(descent)
        if _is_best(descent, figures):
            descent.best_validation = {"value": figures[descent.problem.task.select], "step": descent.step}
            if descent.keeps_best:
                _keep_copy(descent, figures, carried, averaged=average)
    return figures


def _is_best(descent: Descent, figures: dict[str, float]) -> bool:
    value, best = figures[descent.problem.task.select], descent.best_validation
    sign = 1 if descent.problem.task.mode == "min" else -1
    return math.isfinite(value) and (best is None or sign * value < sign * best["value"])


def _keep_copy(descent: Descent, figures: dict[str, float], carried: Mapping[str, Any], averaged: bool) -> None:
    previous = descent.best_weights.model if descent.best_weights else None
    weights = clone_into(previous, model_state(descent.model))
    value = figures[descent.problem.task.select]
    descent.best_weights = BestWeights(value, descent.step, figures, averaged, weights, of_model(carried))


def _cost(task: Task, figures: Mapping[str, float]) -> float:
    """Give the criterion as a figure to be lowered; one that is NaN is never chosen."""
    value = figures[task.select] if task.mode == "min" else -figures[task.select]
    return math.inf if math.isnan(value) else value
