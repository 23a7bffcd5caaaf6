"""Does the model get worse on validation data while it gets better on the training data?"""

from __future__ import annotations

from collections.abc import Iterator

from thalweg.formatting import format_count, format_number
from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.watch.cause import Cause
from thalweg.watch.finished import FinishedHistory
from thalweg.watch.probe import Probe
from thalweg.watch.symptom import Symptom
from thalweg.watch.window import Window


def gets_worse(symptom: Symptom, window: Window, probe: Probe) -> Diagnosis | None:
    """Diagnose the symptom of the same name: nothing else brings it about."""
    return symptom.explained("")


def stop_or_regularise(window: Window, attempt: int) -> Cure:
    """Say what helps against it."""
    return Cure(
        "Go back to the weights of that step. More data, augmentation, dropout or more weight decay may help, or fewer steps.",
        code="model.load_state_dict(best)  # kept where the validation loss was least",
    )


def overfits(history: FinishedHistory) -> Iterator[Diagnosis]:
    """Diagnose a criterion that got worse while the training loss went on falling, far below the validation loss."""
    worsened = history.worsened()
    if worsened is None or worsened.reason != "overfitting":
        return
    training, last = (format_number(loss) for loss in (worsened.training, worsened.last_training))
    keeps_best = history.plan is not None and history.plan.keep == "best"
    best_weights = "The best weights were kept. " if keeps_best else 'Keep the best weights (`keep = "best"`). '
    fewer = f"fewer steps ({history.epochs(worsened.step) or format_count(worsened.step, 'step')} were enough)"
    yield Diagnosis(
        symptom="overfitting",
        cause=(
            f"{history.worsened_text(worsened)}, while the training loss went from {training} to {last}, far below the validation"
            " loss: overfitting."
        ),
        severity="warning",
        step=history.last_step,
        since=worsened.step,
        evidence={
            history.select: {"value": worsened.last_fifth, "threshold": worsened.best},
            "training loss": {"value": worsened.last_training},
        },
        cure=Cure(f"{best_weights}More data, augmentation, dropout or more weight decay may help, or {fewer}."),
    )


overfitting = Cause(
    name="overfitting",
    meaning="validation gets worse while the training loss still falls",
    rank=70,
    symptoms=("overfitting",),
    question=gets_worse,
    cure=stop_or_regularise,
    after=overfits,
)
