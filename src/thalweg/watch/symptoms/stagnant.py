"""Does the loss stand still, or move far slower than it could?"""

from __future__ import annotations

import math

from thalweg.watch.symptom import Symptom
from thalweg.watch.window import Window, mean_of

EVERY = 16  # steps between looks
LEAST_STEPS, LEAST_SHARE = 96, 0.05  # that the loss must have stood still for, and of the whole run
ABOVE, SOON = 1.1, 48  # times the start, above which a loss that jumped up has to stand for so many steps only
SMALL = 0.01  # of what there is to gain: a smaller fall is none
CLEAR = 2.0  # standard errors: a fall by more is one, however small
LEARNT = 0.5  # of the loss at the start, or of one fixed answer for all: with less, much was learnt, and standing is no fault
LITTLE = 0.7  # of the loss at the start: with less, the steps get on well enough
FAR_REACHES = 2  # tries in a row at which a step many times as far still lowers the loss


def stagnant(window: Window) -> Symptom | None:
    """See a loss that has not fallen over the last 96 steps, or twentieth of the run, though little was learnt; or that would
    still fall if steps were some hundred times as long.

    A loss that has come down a good part of the way and stands is where a descent ends: no fault.
    """
    if window.step % EVERY or window.start is None or not window.is_finite:
        return None
    return _stands(window, window.start) or _creeps(window)


def _stands(window: Window, start: float) -> Symptom | None:
    is_above = window.upset is not None and window.smoothed > ABOVE * start
    steps = SOON if is_above else max(LEAST_STEPS, LEAST_SHARE * (window.total or 0))
    blocks = [block for block in window.trend.blocks if block.step > window.step - steps]
    if window.count < steps or len(blocks) < 4:
        return None
    level = min(start, window.constant_loss) if window.constant_loss is not None else start
    half = len(blocks) // 2
    (before, error_before), (after, error_after) = mean_of(blocks[:half]), mean_of(blocks[half:])
    fall, error = before - after, math.hypot(error_before, error_after)
    if after <= LEARNT * level or level <= 0 or fall > SMALL * level or fall > CLEAR * error > 0:
        return None
    return Symptom(
        name="stagnant",
        step=window.step,
        since=max(1, window.step - round(steps)),
        text=f"the loss stands at {after:.4g}, after {start:.4g} at the start",
        evidence={
            "fall of the loss": {"value": fall, "threshold": SMALL * level},
            "standard error of it": {"value": error},
            "steps": {"value": round(steps)},
        },
    )


def _creeps(window: Window) -> Symptom | None:
    last = list(window.reaches)[-FAR_REACHES:]
    if len(last) < FAR_REACHES or not all(lowers for _, _, lowers in last) or not window.is_at_height:
        return None
    if last[-1][0] <= window.step - EVERY or window.smoothed < LITTLE * (window.start or math.inf):
        return None
    return Symptom(
        name="stagnant",
        step=window.step,
        since=last[0][0],
        text=f"the loss falls slower than it could: it is {window.smoothed:.4g}, after {window.start:.4g} at the start",
        evidence={"times as far, and the batch's loss still falls": {"value": last[-1][1]}},
    )
