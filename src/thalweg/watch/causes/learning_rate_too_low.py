"""Were the steps far too short?"""

from __future__ import annotations

import math
from collections.abc import Iterator

from thalweg import rules
from thalweg.formatting import format_number
from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.records.plan import Plan
from thalweg.watch.cause import Cause
from thalweg.watch.finished import SMALL_FALL, FinishedHistory

SHORT = 100  # steps below which a run may be too short rather than its rate too low


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
    rank=20,
    after=hardly_moved,
)
