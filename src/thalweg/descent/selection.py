"""Validation within a descent: measure the weights, keep the best ones, and count validations without improvement.

The weights are measured, and so is their exponential moving average (EMA) where the plan has one. Where the update rule
itself keeps an average (schedule-free rules), only that average is measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from thalweg.descent.averages import averaged
from thalweg.descent.moving_weights import put_back
from thalweg.descent.process_state import preserve_process_state
from thalweg.descent.recorder import Recorder
from thalweg.descent.state import BestWeights, Descent, clone_into
from thalweg.descent.their_objects import STEPPING, of_model
from thalweg.descent.validation import LARGEST_BATCH, training_size, validate
from thalweg.records.task import Task
from thalweg.records.weights import model_state

NOTICEABLE = 0.01  # of a figure: validations that differ by less may do so for what a model carries from batch to batch


def validate_and_select(descent: Descent, recorder: Recorder) -> None:
    """Validate, keep the weights where they are the best so far, and record an early stop where the plan's patience ends."""
    task, step = descent.problem.task, descent.step
    better = figures = _measure_and_compare(descent, average=descent.evaluates_average_only and step > 0)
    row = {f"validation/{name}": value for name, value in figures.items()}
    if descent.optimizer.ema is not None and step > 0:
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
    if step > 0 and math.isfinite(figures["loss"]) and descent.problem.validation is not None:
        descent.monitor.validated(step, figures["loss"])
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
    with preserve_process_state(descent.plan.threads):
        figures = _measure_again(descent, best.model)
    if not math.isfinite(figures[name]):
        return f" {name} of the best weights so far is not finite now: they are not compared with."
    descent.best_validation = {"value": figures[name], "step": best.step}
    descent.best_weights = BestWeights(figures[name], best.step, figures, best.averaged, best.model)
    return f" The best weights so far, of step {best.step}, were measured anew: {name} {figures[name]:.4g}."


def end_with_weights(descent: Descent, recorder: Recorder) -> None:
    """Keep the last weights where none were kept; say where the best ones would not be chosen any more. No step may follow."""
    best = descent.best_weights
    if best is None:
        keep_last(descent, recorder)
    elif best.step < descent.step and (counts := _carried_counts(descent, best)) is not None:
        # The user's code may measure by what it carries: a term that comes in over the steps, a queue that fills.
        try:
            again = _measure_again(descent, {**best.model, **counts})
        except Exception:  # of memory that runs out, say: what would only be told ends no training
            return
        task, last = descent.problem.task, descent.last_validation
        worse = _cost(task, again) - _cost(task, last)
        if again[task.select] != best.value and worse > NOTICEABLE * abs(last[task.select]):
            recorder.warn(
                descent.step,
                f"The best weights are those of step {best.step:,}, with a {task.select} of {best.value:.4g} then. Measured once"
                f" more at the end they come to {again[task.select]:.4g}, and the last ones to {last[task.select]:.4g}: what is"
                f" measured changes with the steps (a term that comes in bit by bit, a queue that fills), so validations from"
                f" different moments do not compare. keep='last' ends with the last weights; `select` may name a metric that"
                f" does not change.",
            )


def _carried_counts(descent: Descent, best: BestWeights) -> dict[str, Tensor] | None:
    """Give the model's counters as they are now, by name; None where nothing but weights and statistics has changed."""
    counts = {
        name: value
        for name, value in model_state(descent.model).items()
        if not value.is_floating_point() and not value.is_complex() and not name.endswith("num_batches_tracked")
    }
    counts = {
        name: value for name, value in counts.items() if name in best.model and not torch.equal(value, best.model[name])
    }
    return counts if counts or descent.objects.read() else None


def _measure_again(descent: Descent, weights: Mapping[str, Tensor]) -> dict[str, float]:
    """Give the validation figures of other weights, as the user's code measures now; model and code are then as before."""
    before = clone_into(None, model_state(descent.model))
    descent.load_weights(weights)
    try:
        with descent.objects.unchanged(*STEPPING):
            return measure(descent)
    finally:
        descent.load_weights(before)


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
    if average_only or descent.optimizer.ema is not None:
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
