"""Are the steps far too short?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from thalweg import rules
from thalweg.formatting import format_number
from thalweg.landscape.critical_step import critical_step
from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.records.plan import Plan
from thalweg.watch.cause import Cause
from thalweg.watch.cures import raise_rate
from thalweg.watch.finished import SMALL_FALL, FinishedHistory
from thalweg.watch.probe import Probe
from thalweg.watch.symptom import BEST_LENGTH, CRITICAL_STEP, LIKELY_LENGTH, Symptom
from thalweg.watch.window import Window

FAR = 200.0  # times the update, and the batch's loss is still lower: about the best rate has 1 to 16
USUAL = 3.0  # times the step, which lowers the loss of other examples most at a good rate
AIMED = 1.5  # what is aimed at when the rate is raised
TRIES = 2  # steps whose length was tried on the next batch, that all say so
MOST = 30.0  # that the rate is raised by at once
SHORT = 100  # steps below which a run may be too short rather than its rate too low


def could_go_further(symptom: Symptom, window: Window, probe: Probe) -> Diagnosis | None:
    """Diagnose steps of which other examples tell that they should have been many times as long; of a loss that stands, those
    whose own batch does too.

    At a rate that is warming up or has decayed that is as it should be.
    """
    if window.finds_rate or not window.is_steady or window.has_few_examples:
        return None
    best = symptom.evidence.get(BEST_LENGTH, symptom.evidence.get(LIKELY_LENGTH, {})).get("value")
    evidence = dict[str, Any]()
    if best is None:
        found, lengths = critical_step(probe.loss_along()), [multiple for _, multiple in window.lengths][-TRIES:]
        if found.lowers < FAR or window.starts_trained or (lengths and min(lengths) <= USUAL):
            return None
        best = min(lengths) if lengths else found.lowers / 10
        evidence[CRITICAL_STEP] = {"value": found.multiple, "threshold": FAR}
    return symptom.explained(
        f". Steps {best:,.3g} times as long would lower the loss most: the learning rate of {format_number(window.rate)} is far"
        " too low",
        evidence=evidence,
        cure=_for_another_run(window, best)
        if symptom.severity == "note" and not window.tries_rates
        else raise_rate(window, _factor(best)),
    )


def _factor(best: float) -> float:
    return min(MOST, max(2.0, round(best / AIMED)))


def _for_another_run(window: Window, best: float) -> Cure:
    """Leave a run that gets on well as it is."""
    higher = format_number(window.rate * _factor(best))
    return Cure(f"The run goes on as it is; another one may do better with a rate of up to {higher}.")


def hardly_moved(history: FinishedHistory) -> Iterator[Diagnosis]:
    """Diagnose a loss that fell steadily to the end, but hardly at all."""
    before = history.initial.get(history.select, math.nan)
    if not math.isfinite(before) or history.plan is None or not history.fell_steadily_but_little():
        return
    plan, after = history.plan, float(history.final.get("loss", math.nan))
    finds_rate = rules.get(plan.rule).finds_rate
    rate = (
        f"the rate that {plan.rule} found"
        if finds_rate
        else f"the learning rate of {format_number(plan.learning_rate)}"
    )
    short = ", or the run far too short" if history.steps < SHORT else ""
    yield Diagnosis(
        symptom="stagnant",
        cause=f"Hardly anything was learnt: the {history.metric_name(history.select)} is {history.change_text()}. But the loss"
        f" fell steadily to the end and nothing ran away: {rate} is likely far too low{short}.",
        severity="warning",
        step=history.steps,
        evidence={
            "share of the loss that is gone": {
                "value": 1 - after / history.initial.get("loss", math.nan),
                "threshold": SMALL_FALL,
            },
            "learning_rate": {"value": plan.learning_rate},
        },
        cure=Cure(f"Raise it, for example tenfold: {_tenfold(plan)}{_or_search(plan)}."),
    )


def _tenfold(plan: Plan) -> str:
    """Say which knob to set: of a rule that finds its own rate, the factor on it."""
    knob, value = "learning_rate", 10 * plan.learning_rate
    if "d_coef" in rules.get(plan.rule).constants:
        knob, value = "constants.d_coef", 10 * float(plan.constants.get("d_coef", 1.0))
    return f"`{knob}={value:.3g}` (with `--set` for `thalweg train`, with `--fix` for `thalweg fit`)"


def _or_search(plan: Plan) -> str:
    needless = plan.why("learning_rate").source == "searched" or rules.get(plan.rule).finds_rate
    return "" if needless else ", or let `thalweg fit` search for it"


learning_rate_too_low = Cause(
    name="learning-rate-too-low",
    meaning="steps go in the right direction and are far too short",
    rank=25,
    symptoms=("stagnant",),
    question=could_go_further,
    explains=("nothing-to-learn",),
    after=hardly_moved,
)
