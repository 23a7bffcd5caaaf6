"""Did the first steps, at the full rate, go too far?"""

from __future__ import annotations

from statistics import median

from thalweg.formatting import format_number
from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.watch.cause import Cause
from thalweg.watch.probe import Probe
from thalweg.watch.symptom import FIRST_STEPS, Symptom
from thalweg.watch.window import Window

RECOVERED = 0.95  # of the loss at the start: steps that come back below it are not too long, only the first ones were
FEWEST = 5  # losses that tell
LEAST, SHARE = 32, 0.1  # steps, and of the run, that the cure's warm-up takes


def jumped_at_first(symptom: Symptom, window: Window, probe: Probe) -> Diagnosis | None:
    """Diagnose a loss that jumped up in the first steps, at the full rate, and then came down at the same rate."""
    if FIRST_STEPS not in symptom.evidence or window.rose_at > 1 or not window.is_at_height:
        return None
    last = [loss for loss, _ in window.recent][-FEWEST:]
    if len(last) < FEWEST or window.start is None or median(last) > RECOVERED * window.start:
        return None
    return symptom.explained(
        f", and came down again at the same learning rate of {format_number(window.rate)}: without a warm-up the first steps went"
        " too far"
    )


def warm_up(window: Window, attempt: int) -> Cure:
    """Go back to the beginning, and raise the rate step by step."""
    steps = max(LEAST, round(SHARE * (window.total or 0)))
    return Cure(
        f"Go back to the beginning and raise the learning rate over {steps} steps.",
        rollback=True,
        warmup=steps,
        code=f"watch.go_back(); watch.change(warmup={steps})",
    )


missing_warm_up = Cause(
    name="missing-warm-up",
    meaning="the first steps are taken at the full learning rate, at which only later ones are safe",
    rank=55,
    symptoms=("diverging",),
    question=jumped_at_first,
    cure=warm_up,
    explains=("learning-rate-too-high", "dead-units"),
)
