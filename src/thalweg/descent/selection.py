"""Validation within a descent: measure the weights, keep the best ones, and count validations without improvement.

Measured are the weights, and beside them their moving average (EMA) where there is one; of a rule that keeps an average of its
own, that average alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext

from thalweg.descent.averages import averaged
from thalweg.descent.recorder import Recorder
from thalweg.descent.state import Best, Descent, clone_into
from thalweg.descent.validation import LARGEST, validate
from thalweg.records.task import Task
from thalweg.records.weights import model_state


def validate_and_select(descent: Descent, recorder: Recorder) -> None:
    """Validate, keep the weights where they are the best so far, and stop the descent where its patience ends."""
    task, step, plan = descent.problem.task, descent.step, descent.plan
    shown = figures = _measure_and_compare(descent, average=descent.evaluates_average_only and step > 0)
    row = {f"validation/{name}": value for name, value in figures.items()}
    if plan.ema is not None and step > 0:
        second = _measure_and_compare(descent, average=True)
        row |= {f"ema/{name}": value for name, value in second.items()}
        shown = min(figures, second, key=lambda figures: _cost(task, figures))
    if step == 0:
        descent.start = figures
        if task.evaluate is None:  # else it may be another figure than the training loss
            descent.monitor.expect(figures["loss"])
    descent.last = shown
    if descent.shape_state and step > 0:
        descent.shape_state = descent.schedule.observe(descent.shape_state, shown[task.select], step)
    recorder.validated(step, row, shown)
    descent.stale = 0 if descent.leading is not None and descent.leading["step"] == step else descent.stale + 1
    if descent.out_of_patience:
        message = f"No better {task.select} in {descent.stale} validations: stopped at step {step}."
        recorder.event(step, "early_stop", message)


def keep_last(descent: Descent) -> None:
    """Keep the last weights, or their average where it validates better. No step may follow: the weights are not copied."""
    task, only = descent.problem.task, descent.evaluates_average_only
    raw = {} if only else measure(descent)
    if only or descent.plan.ema is not None:
        with averaged(descent):
            figures = measure(descent)
            if only or _cost(task, figures) < _cost(task, raw):
                _keep(descent, figures, averaged=True)
                return
    descent.best = Best(raw[task.select], descent.step, raw, averaged=False, model=model_state(descent.model))


def measure(descent: Descent) -> dict[str, float]:
    """Give the validation figures of the weights that the model holds now."""
    plan = descent.plan
    descent.optimizer.zero_grad(set_to_none=True)  # not needed any more, and a validation may need the memory
    micro = LARGEST if descent.accumulate == plan.accumulate else min(LARGEST, descent.batches.micro)
    return validate(descent.problem, descent.model, plan.precision, micro, plan.seed)


def _measure_and_compare(descent: Descent, *, average: bool) -> dict[str, float]:
    with averaged(descent) if average else nullcontext():
        figures = measure(descent)
        _compare(descent, figures, averaged=average)
    return figures


def _compare(descent: Descent, figures: dict[str, float], *, averaged: bool) -> None:
    value, leading = figures[descent.problem.task.select], descent.leading
    sign = 1 if descent.problem.task.mode == "min" else -1
    if not math.isfinite(value) or (leading is not None and sign * value >= sign * leading["value"]):
        return
    descent.leading = {"value": value, "step": descent.step}
    if descent.keeps_best:
        _keep(descent, figures, averaged)


def _keep(descent: Descent, figures: dict[str, float], averaged: bool) -> None:
    previous = descent.best.model if descent.best else None
    weights = clone_into(previous, model_state(descent.model))
    descent.best = Best(figures[descent.problem.task.select], descent.step, figures, averaged, weights)


def _cost(task: Task, figures: Mapping[str, float]) -> float:
    value = figures[task.select] if task.mode == "min" else -figures[task.select]
    return math.inf if math.isnan(value) else value
