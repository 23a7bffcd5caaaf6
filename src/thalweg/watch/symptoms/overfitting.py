"""Does validation get worse while training goes on getting better?"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

from thalweg.watch.symptom import Symptom
from thalweg.watch.window import Validated, Window

LASTING = 3  # validations in a row
CLEAR = 3.0  # standard deviations of a validation around its neighbours
RELEVANT = 0.1  # of the best validation loss
# Of the loss of one fixed answer for all: where validation never was clearly below it and ends there, and training gets below it.
NEVER, NOT_NOW, BELOW = 0.9, 0.98, 0.95
MEMORISED, LEFT = 0.1, 0.2  # training loss over validation loss, and the latter over the loss at the start


def overfitting(window: Window) -> Symptom | None:
    """See a validation loss clearly above its best for three validations in a row, while the training loss still falls."""
    validations = list(window.validations)
    if len(validations) <= LASTING or window.step > validations[-1].step + 1:
        return None
    best = min(validations, key=lambda each: each.loss)
    after = validations[-LASTING:]
    limit = best.loss + max(CLEAR * _noise([each.loss for each in validations]), RELEVANT * abs(best.loss))
    learns = window.constant_loss is None or after[-1].training < BELOW * abs(window.constant_loss)
    worse = (
        learns and best not in after and all(each.loss > limit for each in after) and after[-1].training < best.training
    )
    if not worse and not _memorised(window, best, after) and not carries_nothing_over(window):
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


def carries_nothing_over(window: Window) -> bool:
    """Tell whether training gets below the loss of one fixed answer for all examples, and validation does not."""
    constant, validations = window.constant_loss, list(window.validations)
    if constant is None or constant <= 0 or len(validations) <= LASTING or window.starts_trained:
        return False
    after = validations[-LASTING:]
    return (
        min(each.loss for each in validations) > NEVER * constant
        and fmean(each.loss for each in after) > NOT_NOW * constant
        and all(each.training < BELOW * constant for each in after[1:])
    )


def _noise(losses: Sequence[float]) -> float:
    """Give the standard deviation of a loss around the line through its neighbours, of the later half: a trend is no noise."""
    late = losses[-max(5, len(losses) // 2) :]
    bends = [abs(before - 2 * loss + after) for before, loss, after in zip(late, late[1:], late[2:], strict=False)]
    return median(bends) / (0.6745 * 6**0.5)
