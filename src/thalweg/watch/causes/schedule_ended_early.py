"""Has the schedule ended while the loss still fell?"""

from __future__ import annotations

from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.watch.cause import Cause
from thalweg.watch.probe import Probe
from thalweg.watch.symptom import Symptom
from thalweg.watch.symptoms.stagnant import LEAST_STEPS
from thalweg.watch.window import ALIVE, RESTING, Window, fall_of

LATELY = 0.5  # standard errors: of the last two thirds of it
CLEAR = 2.0  # standard errors: the fall then was no chance
LEFT = 0.1  # of the run: with less left, a rate of next to nothing is what a schedule ends with


def is_over(symptom: Symptom, window: Window, probe: Probe) -> Diagnosis | None:
    """Diagnose a learning rate of next to nothing, long before the end, where the loss fell as long as it was alive, or it was so
    for too few steps to tell."""
    if not 0 <= window.rate < RESTING * window.top_rate:
        return None
    if window.total is not None and window.total - window.step < LEFT * window.total:
        return None
    alive = [block for block in window.trend.blocks if block.rate > ALIVE * window.top_rate]
    if len(alive) < 4:
        return None
    fall, error, _ = fall_of(alive)
    lately, lately_error, _ = fall_of(alive[len(alive) // 3 :])  # some schedules follow a loss that stands
    still_fell = fall > CLEAR * error and lately > LATELY * lately_error
    if not still_fell and window.alive_at >= LEAST_STEPS:
        return None
    when = (
        "while the loss still fell" if still_fell else f"after {window.alive_at} steps, too few for the loss to stand"
    )
    return symptom.explained(
        f". The learning rate came down from {window.top_rate:.3g} to {window.rate:.3g} {when}",
        evidence={
            "rate over the highest": {"value": window.rate / window.top_rate, "threshold": RESTING},
            "fall of the loss while the rate was alive": {"value": fall, "threshold": CLEAR * error},
        },
    )


def lengthen(window: Window, attempt: int) -> Cure:
    """Let the rate come down over the rest of the run."""
    until = f"step {window.total:,}" if window.total else "the end"
    return Cure(
        f"Go on at the highest learning rate, {window.top_rate:.3g}, and let it come down to zero at {until}.",
        begin_again=True,
        anneal=1.0,
        code="watch.change(anneal=1.0)",
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
