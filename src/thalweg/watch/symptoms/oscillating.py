"""Does the loss go up and down from step to step?"""

from __future__ import annotations

from itertools import pairwise
from statistics import fmean

from thalweg.watch.symptom import Symptom
from thalweg.watch.window import Window

EVERY = 16  # steps between looks
LOSSES = 48  # an even number in each half
ALTERNATING = -0.5  # correlation of the loss with the one before: that of noise is 0, of a perfect zigzag -1
WIDE = 0.1  # standard deviation over the mean: smaller swings harm nothing
FALL = 0.02  # of the mean: with more from half to half the descent gets on all the same


def oscillating(window: Window) -> Symptom | None:
    """See a loss that swings from one step to the next and gets nowhere: noise does not alternate, steps too long do."""
    if window.step % EVERY or window.count < LOSSES:
        return None
    losses = list(window.losses)[-LOSSES:]
    mean = fmean(losses)
    spread = [loss - mean for loss in losses]
    variance = fmean([value * value for value in spread])
    if not variance > (WIDE * mean) ** 2:
        return None
    correlation = sum(one * two for one, two in pairwise(spread)) / (len(losses) - 1) / variance
    fall = fmean(losses[: LOSSES // 2]) - fmean(losses[LOSSES // 2 :])
    if correlation > ALTERNATING or fall > FALL * abs(mean):
        return None
    return Symptom(
        name="oscillating",
        step=window.step,
        since=window.step - LOSSES + 1,
        text=f"the loss swings from step to step, by {variance**0.5:.3g} around {mean:.4g}, and does not fall",
        evidence={
            "correlation with the loss before": {"value": correlation, "threshold": ALTERNATING},
            "standard deviation over mean": {"value": variance**0.5 / abs(mean), "threshold": WIDE},
        },
    )
