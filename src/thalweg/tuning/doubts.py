"""What a search could not tell, in words: its criterion was the same throughout, nothing was learnt, or nothing trained."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from thalweg.descent.constant_predictor import constant_predictor_loss
from thalweg.descent.gradient import compute_gradient
from thalweg.descent.prediction import validate_model
from thalweg.descent.problem import Problem
from thalweg.descent.process_state import preserve_process_state
from thalweg.descent.recorder import Recorder
from thalweg.descent.state import Descent
from thalweg.descent.their_objects import as_found
from thalweg.errors import ThalwegError
from thalweg.formatting import format_count
from thalweg.landscape.first_nonfinite import first_nonfinite
from thalweg.records.plan import Plan
from thalweg.sampling.sources import to_device

MOST_STEPS = 50  # that are taken to find where a NaN comes from
BEATS = 0.98  # of the constant prediction's loss: a lower one is better beyond the luck of the best of some candidates
WHAT = {"entropy of the labels": "the shares of the classes", "variance of the targets": "the mean"}


def doubts(problem: Problem, scores: Sequence[float]) -> list[str]:
    """Give sentences on what the scores of different candidates do not tell; `scores`: less is better."""
    task, found = problem.task, list[str]()
    finite = [score for score in scores if math.isfinite(score)]
    if len(finite) > 1 and min(finite) == max(finite):
        value = finite[0] if task.mode == "min" else -finite[0]
        other = ", such as the loss" if task.select != "loss" else ""
        found.append(
            f"{task.select} was {value:.4g} with every candidate, so it could not choose between them: the one nearest to what is"
            f" usual was taken. Where that is no accident, select another criterion{other}"
        )
    constant = constant_predictor_loss(problem) if finite and task.select == "loss" else None
    if constant is not None and min(finite) > BEATS * constant[0]:
        found.append(
            f"no candidate did clearly better than predicting {WHAT[constant[1]]} ({constant[0]:.4g}): the best came to"
            f" {min(finite):.4g}. Where a longer run does not help, see that the targets belong to their inputs (`thalweg check`)"
        )
    return found


def nothing_learnt(problem: Problem) -> float | None:
    """Give the loss above which a model does no better than a constant prediction; None where that is not known."""
    constant = constant_predictor_loss(problem) if problem.task.select == "loss" else None
    return None if constant is None else BEATS * constant[0]


def why_none_trained(problem: Problem, plan: Plan) -> str:
    """Say what a short run by a plan shows: the module, or the parameter, where the first number that is not finite arises."""
    try:
        with preserve_process_state(plan.threads), as_found(problem.task):
            return _where_it_fails(problem, plan)
    except ThalwegError as error:
        return str(error)


def _where_it_fails(problem: Problem, plan: Plan) -> str:
    descent, recorder = Descent(problem, plan), Recorder()
    try:
        for step in range(min(MOST_STEPS, descent.total_steps)):
            descent.set_rate(descent.rate())
            loss, _ = compute_gradient(descent, recorder)
            when = "on the first batch" if not step else f"after {format_count(step, 'step')}"
            when = f"With a learning rate of {plan.learning_rate:.3g}, {{what}} not finite {when}."
            if not math.isfinite(loss):
                return f"{when.format(what='the loss is')} {_first_module(descent)}"
            bad = _without_finite_gradient(descent)
            if bad:
                what = f"the loss is finite, but the gradient of {bad} is"
                return f"{when.format(what=what)} Look for the square root or the norm of zero, and for 0 / 0."
            descent.optimizer.step()
            descent.step += 1
    finally:
        descent.batches.close()
    figure = validate_model(descent.problem, descent.model, plan).get(problem.task.select, math.nan)
    if math.isfinite(figure):
        return f"{format_count(descent.step, 'step')} with a learning rate of {plan.learning_rate:.3g} are finite throughout."
    return f"The training loss is finite, but '{problem.task.select}' is {figure} in validation: see that it can be measured."


def _first_module(descent: Descent) -> str:
    """Name the first module whose output is not finite for the batch that was drawn last."""
    draw, objective = descent.last_draw, descent.problem.objective
    assert draw is not None
    for part in draw.parts:
        batch = to_device(part, descent.problem.device)
        with objective.gradient_mode():
            loss, _ = objective.loss(descent.model, batch)
            if not bool(torch.isfinite(loss.detach()).all()):
                return first_nonfinite(descent.model, lambda batch=batch: objective.loss(descent.model, batch))
    return ""


def _without_finite_gradient(descent: Descent) -> str:
    """Name the first parameter whose gradient is not finite; empty where all are."""
    for name, parameter in descent.model.named_parameters():
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
            return f"`{name}`"
    return ""
