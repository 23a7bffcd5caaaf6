"""Does the model get worse on validation data while it gets better on the training data?"""

from __future__ import annotations

import math
from collections.abc import Iterator

from thalweg.formatting import format_count, format_number
from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.watch.cause import Cause
from thalweg.watch.finished import FinishedHistory


def overfits(history: FinishedHistory) -> Iterator[Diagnosis]:
    """Diagnose a criterion that is worse in the last fifth of the run than before, while the training loss kept falling."""
    worsened = history.worsened()
    if worsened is None:
        return
    early, last = history.training_loss(worsened.step), history.training_loss()
    if math.isfinite(last) and last > early:
        return
    fell = (
        f", while the training loss went from {format_number(early)} to {format_number(last)}"
        if math.isfinite(last)
        else ""
    )
    keeps_best = history.plan is not None and history.plan.keep == "best"
    best_weights = "The best weights were kept. " if keeps_best else 'Keep the best weights (`keep = "best"`). '
    fewer = f"fewer steps ({history.epochs(worsened.step) or format_count(worsened.step, 'step')} were enough)"
    yield Diagnosis(
        symptom="overfitting",
        cause=f"{history.worsened_text(worsened)}{fell}: overfitting.",
        severity="warning",
        step=history.last_step,
        since=worsened.step,
        evidence={
            history.select: {"value": worsened.last_fifth, "threshold": worsened.best},
            "training loss": {"value": last},
        },
        cure=Cure(f"{best_weights}More data, augmentation, dropout or more weight decay would help, or {fewer}."),
    )


overfitting = Cause(
    name="overfitting",
    meaning="validation gets worse while the training loss still falls",
    rank=70,
    after=overfits,
)
