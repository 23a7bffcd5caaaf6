"""Were the steps too long?"""

from __future__ import annotations

from collections.abc import Iterator

from thalweg.formatting import format_number
from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.watch.cause import Cause
from thalweg.watch.finished import FinishedHistory


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


learning_rate_too_high = Cause(
    name="learning-rate-too-high",
    meaning="steps are so long that the loss rises",
    rank=60,
    after=ended_worse,
)
