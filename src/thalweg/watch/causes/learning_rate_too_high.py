"""Were the steps too long?"""

from __future__ import annotations

import math
from collections.abc import Iterator

from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.watch.cause import Cause
from thalweg.watch.finished import FinishedHistory


def ended_worse(history: FinishedHistory) -> Iterator[Diagnosis]:
    """Diagnose a run in which both the criterion and the training loss were better earlier."""
    worsened = history.worsened()
    if worsened is None:
        return
    early, last = history.training_loss(worsened.step), history.training_loss()
    if not math.isfinite(last) or last <= early:
        return
    yield Diagnosis(
        symptom="diverging",
        cause=f"{history.worsened_text(worsened)}, and so did the training loss get worse: not overfitting, but steps too long.",
        severity="warning",
        step=history.last_step,
        since=worsened.step,
        evidence={
            history.select: {"value": worsened.last_fifth, "threshold": worsened.best},
            "training loss": {"value": last, "threshold": early},
        },
        cure=Cure("Try a lower rate."),
    )


learning_rate_too_high = Cause(
    name="learning-rate-too-high",
    meaning="steps are so long that the loss rises",
    rank=60,
    after=ended_worse,
)
