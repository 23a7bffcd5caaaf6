"""Does validation get worse while training goes on getting better?"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from thalweg.watch.symptom import Symptom
from thalweg.watch.window import Window

LASTING = 3  # validations in a row
CLEAR = 3.0  # standard deviations of a validation around its neighbours
RELEVANT = 0.1  # of the best validation loss


def overfitting(window: Window) -> Symptom | None:
    """See a validation loss clearly above its best for three validations in a row, while the training loss still falls."""
    validations = list(window.validations)
    if len(validations) < LASTING + 2 or window.step > validations[-1].step + 1:
        return None
    best = min(validations, key=lambda each: each.loss)
    after = validations[-LASTING:]
    limit = best.loss + max(CLEAR * _noise([each.loss for each in validations]), RELEVANT * abs(best.loss))
    if best in after or any(each.loss <= limit for each in after) or not after[-1].training < best.training:
        return None
    last = after[-1]
    return Symptom(
        name="overfitting",
        step=window.step,
        since=best.step,
        text=(
            f"the validation loss was best at step {best.step:,} ({best.loss:.4g}) and is {last.loss:.4g} now, while the training"
            f" loss went from {best.training:.4g} to {last.training:.4g}"
        ),
        evidence={
            "validation loss": {"value": last.loss, "threshold": limit},
            "training loss": {"value": last.training, "threshold": best.training},
        },
    )


def _noise(losses: Sequence[float]) -> float:
    """Give the standard deviation of a loss around the line through its neighbours, of the later half: a trend is no noise."""
    late = losses[-max(5, len(losses) // 2) :]
    bends = [abs(before - 2 * loss + after) for before, loss, after in zip(late, late[1:], late[2:], strict=False)]
    return median(bends) / (0.6745 * 6**0.5)
