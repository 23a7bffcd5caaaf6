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
from thalweg.watch.symptom import CRITICAL_STEP, Symptom
from thalweg.watch.window import Window

LEAST_FACTOR = 1 / 64  # by which the rate is lowered at once
ABOVE = 1.05  # times the loss at the start: no cause but steps too long leaves it there
SPOILT = 0.5  # of a layer's units off, or of its outputs at their bounds
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
        return symptom.explained(f": at a learning rate of {rate} each step overshoots")
    if symptom.name == "non-finite":
        return symptom.explained(f". Steps at a learning rate of {rate} led there")
    if symptom.name == "oscillating":
        return symptom.explained(
            f": at a learning rate of {rate} each step goes from one side of the valley to the other"
        )
    start = window.start or math.inf
    is_early = window.upset is not None and window.upset[0] <= ONSET
    if not is_early and window.smoothed <= ABOVE * start and not window.faded:
        return None
    spoilt = [layer for layer in probe.unit_activity() if _is_spoilt(layer)]
    if not spoilt or _were_spoilt(probe, len(spoilt)):
        return None
    when, what = window.upset or (window.step, f"the loss is {window.smoothed / start:.3g} times that at the start")
    if not is_early and window.faded:
        what = f"{len(window.faded)} parameters have no gradient any more, as they had at the first step"
    names = ", ".join(f"{layer.kind} after {layer.name}" for layer in spoilt[:3])
    return symptom.explained(
        f". At step {when:,} {what}, and most units of {names} are off or at their bounds: the first steps, at a"
        f" learning rate of up to {format_number(window.top_rate)}, were far too long",
        severity="critical",
        cure=back(window, 0.25),  # to where nothing was spoilt yet: no snapshot was taken since
        evidence={"layers without a slope": {"value": [layer.name for layer in spoilt]}},
    )


def _is_spoilt(layer: Layer) -> bool:
    return layer.dead > SPOILT * layer.units or layer.saturated > SPOILT


def _were_spoilt(probe: Probe, count: int) -> bool:
    """Tell whether as many layers were so before: then it is not the steps that spoilt them."""
    try:
        return sum(map(_is_spoilt, probe.unit_activity(at_snapshot=True))) >= count
    except NotMeasuredError:
        return False


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
