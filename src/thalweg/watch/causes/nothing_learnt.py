"""Did the training achieve anything?"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from thalweg.formatting import capitalized, format_number
from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.watch.cause import Cause
from thalweg.watch.finished import FEWEST_LOSSES, RELEVANT, FinishedHistory


def achieved_nothing(history: FinishedHistory) -> Iterator[Diagnosis]:
    """Diagnose a criterion that is worse than at the start, or practically unchanged."""
    before, after = history.initial.get(history.select, math.nan), float(history.final.get(history.select, math.nan))
    if not math.isfinite(before) or history.fell_steadily_but_little():  # the steps were too short: a cause of its own
        return
    name, check = history.metric_name(history.select), _where_to_look(history)
    if not math.isfinite(after):
        cause = f"The {name} ended not finite."
        yield _found(
            history, "non-finite", cause, f"Look for log(0), division by zero or overflow in the loss; {check}."
        )
    elif abs(after - before) <= RELEVANT * abs(before):
        last = history.last_if_best_at_start()
        cause = f"Nothing was learnt worth the name: the {name} is {history.change_text()}."
        if last is not None:  # and the run kept the weights that it began with
            cause = (
                f"No validation was better than the one before the first step: the {name} was {history.value_text(before)} then,"
                f" and {history.value_text(last)} at the end."
            )
            check = _where_it_went(history, check)
        yield _found(history, "stagnant", cause, f"{capitalized(check)}.")
    elif history.better(before, after):
        cause = f"The model is worse than before the first step: the {name} is {history.change_text()}."
        yield _found(history, "diverging", cause, f"{capitalized(check)}.")
    elif history.final.get("r2", 1.0) <= 0:
        r2 = format_number(float(history.final["r2"]))
        cause = f"An r2 of {r2} is no better than always predicting the mean."
        yield _found(history, "stagnant", cause, f"{capitalized(check)}.")


def _found(history: FinishedHistory, symptom: str, cause: str, cure: str) -> Diagnosis:
    value, threshold = history.final.get(history.select, math.nan), history.initial.get(history.select)
    evidence = {history.select: {"value": value, "threshold": threshold}}
    return Diagnosis(symptom, cause, "warning", step=history.steps, evidence=evidence, cure=Cure(cure))


def _where_it_went(history: FinishedHistory, check: str) -> str:
    """Say where to look where the validations got worse from the start on: elsewhere, if the training loss fell by half."""
    losses = history.recorded("loss")[1]
    losses = losses[np.isfinite(losses)][:FEWEST_LOSSES]
    first, last = float(losses.mean()) if len(losses) else math.nan, history.training_loss()
    if not last <= first - 0.5 * abs(first):
        return check
    return (
        f"the training loss fell from {format_number(first)} to {format_number(last)}: see that the validation data are prepared"
        f" as the training data are; else what is learnt does not carry over to them"
    )


def _where_to_look(history: FinishedHistory) -> str:
    if history.fault_before_training:
        return "what was found before training is the likely cause"
    if float((history.summary.get("cures") or {}).get("rate_factor", 1.0)) < 1:
        return "the learning rate, at which the loss ran away, is the likely cause"
    return "`thalweg check` looks for the cause before training"


nothing_learnt = Cause(
    name="nothing-learnt",
    meaning="the model ended no better than it was before the first step",
    rank=30,
    after=achieved_nothing,
)
