"""Does validation get worse while training goes on getting better?"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from thalweg.watch.symptom import Symptom
from thalweg.watch.window import Validated, Window

LASTING = 3  # validations in a row
CLEAR = 3.0  # standard deviations of a validation around its neighbours
RELEVANT = 0.1  # of the best validation loss
MEMORISED, LEFT = 0.1, 0.2  # training loss over validation loss, and the latter over the loss at the start


def overfitting(window: Window) -> Symptom | None:
    """See a validation loss clearly above its best for three validations in a row, while the training loss still falls."""
    validations = list(window.validations)
    if len(validations) <= LASTING or window.step > validations[-1].step + 1:
        return None
    best = min(validations, key=lambda each: each.loss)
    after = validations[-LASTING:]
    limit = best.loss + max(CLEAR * _noise([each.loss for each in validations]), RELEVANT * abs(best.loss))
    worse = best not in after and all(each.loss > limit for each in after) and after[-1].training < best.training
    if not worse and not _memorised(window, best, after):
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


def _memorised(window: Window, best: Validated, after: Sequence[Validated]) -> bool:
    """Tell whether the validation loss stands, far from learnt, while next to nothing is left of the training loss."""
    stands = best not in after and all(each.loss >= best.loss for each in after)
    left = window.start is not None and best.loss > LEFT * window.start > 0
    return stands and left and after[-1].training < MEMORISED * best.loss


def _noise(losses: Sequence[float]) -> float:
    """Give the standard deviation of a loss around the line through its neighbours, of the later half: a trend is no noise."""
    late = losses[-max(5, len(losses) // 2) :]
    bends = [abs(before - 2 * loss + after) for before, loss, after in zip(late, late[1:], late[2:], strict=False)]
    return median(bends) / (0.6745 * 6**0.5)
