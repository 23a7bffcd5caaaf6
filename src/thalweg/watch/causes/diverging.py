"""Does the loss run away?"""

from __future__ import annotations

from thalweg.records.diagnosis import Diagnosis
from thalweg.watch.window import Window

GROWTH = 2.0  # times the best smoothed loss
SUSTAINED = 8  # of the last ten steps
FAR = 100.0  # times the start: no need to wait


def diverging(window: Window) -> Diagnosis | None:
    """Say so where the smoothed loss is above the start and above twice its best, in eight of the last ten steps.

    A loss below zero (a likelihood of densities, say) has no such ratio; there the distance to the start counts instead.
    """
    start = window.start
    if start is None:
        return None
    best, smoothed = window.best, window.smoothed
    limit = max(GROWTH * best, start) if best > 0 else start + abs(start - best)
    window.above.append(int(smoothed > limit))
    if sum(window.above) < SUSTAINED and not (best > 0 and window.loss > FAR * max(start, best)):
        return None
    return Diagnosis(
        symptom="diverging",
        cause=f"the smoothed loss is {smoothed:.4g}, after {best:.4g} at its best and {start:.4g} at the start: at a learning"
        f" rate of {window.rate:.3g} each step overshoots.",
        severity="critical",
        step=window.step,
        since=max(1, window.step - sum(window.above) + 1),
        evidence={
            "smoothed_loss": {"value": smoothed, "threshold": limit},
            "best_smoothed_loss": {"value": best},
            "learning_rate": {"value": window.rate},
        },
        not_measured=("critical step", "bad batch"),
    )
