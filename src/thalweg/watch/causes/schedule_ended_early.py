"""Has the schedule ended while the loss still fell?"""

from __future__ import annotations

import math

from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.watch.cause import Cause
from thalweg.watch.probe import Probe
from thalweg.watch.symptom import Symptom
from thalweg.watch.window import Window, mean_of

OVER = 0.01  # of the highest learning rate: with less the schedule is over
ALIVE = 0.3  # of it: with more the rate was alive
CLEAR = 2.0  # standard errors: the fall then was no chance
LEFT = 0.2  # of the run: with less left, a rate of next to nothing is what a schedule ends with


def is_over(symptom: Symptom, window: Window, probe: Probe) -> Diagnosis | None:
    """Diagnose a learning rate of next to nothing, long before the end, where the loss fell as long as it was alive."""
    if not 0 <= window.rate < OVER * window.top_rate:
        return None
    if window.total is not None and window.total - window.step < LEFT * window.total:
        return None
    alive = [block for block in window.trend.blocks if block.rate > ALIVE * window.top_rate]
    if len(alive) < 4:
        return None
    (before, error_before), (last, error_last) = (
        mean_of(part) for part in (alive[: len(alive) // 2], alive[len(alive) // 2 :])
    )
    fall, error = before - last, math.hypot(error_before, error_last)
    if fall <= CLEAR * error:
        return None
    return symptom.explained(
        f". The learning rate came down from {window.top_rate:.3g} to {window.rate:.3g} while the loss still fell",
        evidence={
            "rate over the highest": {"value": window.rate / window.top_rate, "threshold": OVER},
            "fall of the loss while the rate was alive": {"value": fall, "threshold": CLEAR * error},
        },
    )


def lengthen(window: Window, attempt: int) -> Cure:
    """Say how to let the schedule last as long as the training."""
    until = f"to step {window.total:,}" if window.total else "as long as the training lasts"
    return Cure(
        f"Let the schedule go on {until}.",
        code="schedule = tw.schedule.linear(total=steps).attach(optimizer)  # as many steps as the training takes",
    )


schedule_ended_early = Cause(
    name="schedule-ended-early",
    meaning="the learning rate fell to next to nothing while the loss was still falling",
    rank=12,
    symptoms=("stagnant",),
    question=is_over,
    cure=lengthen,
    explains=("learning-rate-too-low",),
)
