"""Are the steps too long?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from thalweg.formatting import format_number
from thalweg.landscape.unit_activity import Layer
from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.watch.cause import Cause
from thalweg.watch.cures import back, lower_rate_and_clip
from thalweg.watch.finished import FinishedHistory
from thalweg.watch.probe import NotMeasuredError, Probe
from thalweg.watch.symptom import CRITICAL_STEP, FIRST_STEPS, LIKELY_LENGTH, QUARTER, Symptom
from thalweg.watch.window import FEW_EXAMPLES, FIRST, Window

LEAST_FACTOR = 1 / 64  # by which the rate is lowered at once
ABOVE = 1.05  # times the loss at the start: no cause but steps too long leaves it there
SPOILT = 0.5  # of a layer's units off, or of its outputs at their bounds
NEARLY = 0.85  # likewise, where the loss shows nothing
SAME = 1.5  # times the loss of the batch at weights from before: with less it is not the steps that raised it
ONSET = 50  # steps from the beginning within which what was abnormal shows a rate too high


def overshoots(symptom: Symptom, window: Window, probe: Probe) -> Diagnosis | None:
    """Diagnose a loss that runs away or swings, what is not finite where data and model are not at fault, and units that died
    after a loss far above that at the start.

    A stagnant loss alone does not show it: the weights may long be where no step leads back from.
    """
    rate = format_number(window.rate)
    if CRITICAL_STEP in symptom.evidence:
        factor = max(LEAST_FACTOR, symptom.evidence[CRITICAL_STEP]["value"] / 2)
        return symptom.explained(f", at a learning rate of {rate}", cure=back(window, factor))
    if symptom.name == "diverging":
        if FIRST_STEPS not in symptom.evidence and _was_so_before(window, probe):
            return None
        return symptom.explained(f": at a learning rate of {rate} each step overshoots")
    if symptom.name == "non-finite":
        return symptom.explained(f". Steps at a learning rate of {rate} led there")
    if symptom.name == "oscillating":
        return symptom.explained(
            f": at a learning rate of {rate} each step goes from one side of the valley to the other"
        )
    if QUARTER in symptom.evidence:
        return symptom.explained(
            f". A quarter of each step lowers the loss of the next batch, the whole step does not: the learning rate of {rate}"
            " is too high",
            cure=_quartered(window),
        )
    if LIKELY_LENGTH in symptom.evidence:
        return symptom.explained(
            f". Steps at a learning rate of {rate} hardly lower the loss of the next batch", cure=_quartered(window)
        )
    start = window.start or math.inf
    is_early = window.upset is not None and window.upset[0] <= ONSET
    is_above = window.smoothed > ABOVE * start or bool(window.faded)
    if symptom.step > FIRST and not is_early and not is_above:
        return None
    shows = is_early or is_above
    spoilt = [layer for layer in probe.unit_activity() if _is_spoilt(layer, SPOILT if shows else NEARLY)]
    if not spoilt or _were_spoilt(probe, len(spoilt), unknown=not shows):
        return None
    when, what = window.upset or (window.step, f"the loss is {window.smoothed / start:.3g} times that at the start")
    if not is_early and window.faded:
        what = f"{len(window.faded)} parameters have no gradient any more, as they had at the first step"
    elif not shows:
        when, what = 1, "they were not so"
    names = ", ".join(f"{layer.kind} after {layer.name}" for layer in spoilt[:3])
    return symptom.explained(
        f". Most units of {names} are off or at their bounds; at step {when:,} {what}: the first steps, at a"
        f" learning rate of up to {format_number(window.top_rate)}, were far too long",
        severity="critical",
        cure=back(window, 0.25),  # to where nothing was spoilt yet: no snapshot was taken since
        evidence={"layers without a slope": {"value": [layer.name for layer in spoilt]}},
    )


def _was_so_before(window: Window, probe: Probe) -> bool:
    """Tell whether the batch has about this loss at weights from before too: then the data raise it, not the steps."""
    try:
        before = probe.loss_at_snapshot()
    except NotMeasuredError:
        return False
    return math.isfinite(before) and 0 < window.loss <= SAME * before


def _is_spoilt(layer: Layer, share: float = SPOILT) -> bool:
    if layer.examples < FEW_EXAMPLES:
        return False
    return layer.dead > share * layer.units or layer.saturated > share


def _were_spoilt(probe: Probe, count: int, *, unknown: bool) -> bool:
    """Tell whether as many layers were so before: then it is not the steps that spoilt them. `unknown`: what is taken for true
    where it cannot be measured."""
    try:
        return sum(map(_is_spoilt, probe.unit_activity(at_snapshot=True))) >= count
    except NotMeasuredError:
        return unknown


def _quartered(window: Window) -> Cure:
    return Cure(
        f"Lower the learning rate from {window.rate:.3g} by a factor of 0.25.",
        by_courses=True,
        rate_factor=0.25,
        code="watch.change(rate_factor=0.25)",
    )


def halved(window: Window) -> Cure:
    """Lower the rate where the loss only swings: there is nothing to go back to."""
    return Cure(
        f"Lower the learning rate from {window.rate:.3g} by a factor of 0.5.",
        rate_factor=0.5,
        code="watch.change(rate_factor=0.5)",
    )


def ended_worse(history: FinishedHistory) -> Iterator[Diagnosis]:
    """Diagnose a run in which both the criterion and the training loss were better earlier."""
    worsened = history.worsened()
    if worsened is None or worsened.reason != "steps too long":
        return
    training, last = (format_number(loss) for loss in (worsened.training, worsened.last_training))
    yield Diagnosis(
        symptom="diverging",
        cause=(
            f"{history.worsened_text(worsened)}, and the training loss rose from {training} to {last}: not overfitting, but steps"
            " too long."
        ),
        severity="warning",
        step=history.last_step,
        since=worsened.step,
        evidence={
            history.select: {"value": worsened.last_fifth, "threshold": worsened.best},
            "training loss": {"value": worsened.last_training, "threshold": worsened.training},
        },
        cure=Cure("Try a lower rate."),
    )


def summarise(evidence: Mapping[str, Any]) -> str:
    """Say a loss that ran away in one sentence; nothing of other findings."""
    if "smoothed_loss" not in evidence:
        return ""
    smoothed, best = (format_number(evidence[name]["value"]) for name in ("smoothed_loss", "best_smoothed_loss"))
    return f"The loss ran away: its running mean was {smoothed}, after {best} at its best."


learning_rate_too_high = Cause(
    name="learning-rate-too-high",
    meaning="steps are so long that the loss rises",
    rank=60,
    symptoms=("non-finite", "diverging", "oscillating", "stagnant"),
    question=overshoots,
    early=16,
    cure=lower_rate_and_clip,
    after=ended_worse,
    summary=summarise,
    explains=("dead-units", "saturated-units", "vanishing-gradient", "nothing-to-learn"),
)
