"""Does the loss stand still, or move far slower than it could?"""

from __future__ import annotations

import math

from thalweg.watch.symptom import BEST_LENGTH, LIKELY_LENGTH, QUARTER, Symptom
from thalweg.watch.window import COURSE, FEW_EXAMPLES, RESTING, Window, fall_of

EVERY = 16  # steps between looks
LEAST_STEPS, LEAST_SHARE = 96, 0.05  # that the loss must have stood still for, and of the whole run
MOST_SHARE = 2 / 3  # of the whole run, where batches are of few examples
ABOVE, SOON = 1.1, 48  # times the start, above which a loss that jumped up has to stand for so many steps only
SMALL = 0.01  # of what there is to gain: a smaller fall is none
NOISY = 2 / 3  # of all steps: where noise hides a fall, as many are looked at; the first ones fall in any run
CLEAR = 2.0  # standard errors: a fall by more is one, however small
REST = 0.1  # of the run: a schedule that comes down to zero spends less at a hundredth of its height
LEARNT = 0.5  # of the loss at the start, or of one fixed answer for all: with less, much was learnt, and standing is no fault
LITTLE = 0.6  # of the loss at the start: with less, the steps get on well enough
# Of the last so many tries, the geometric mean of the multiple of a step that lowers the next batch's loss most; and the first
# step and share of the run at which that is asked: in a long run there is time. About the best rate of six networks under three
# rules has means of 0.5 to 6, a tenth of it 10 to 40.
# The last number: the loss that must be left, as a share of that at the start or of one fixed answer for all.
TRIES = ((2, 64.0, 12, 0.01, LITTLE), (3, 12.0, 64, 0.1, LITTLE), (6, 8.0, 64, 0.1, 0.25))
# Where rates can be tried on the first steps, fewer tries of less are worth that, if these steps are a good part of the run.
LIKELY_TRIES, LIKELY_FAR, LIKELY_NEAR, LIKELY_AFTER = 3, 6.0, 0.9, 64
GOOD_PART = 0.05
# A quarter of the step lowers the next batch's loss by so many standard errors, and the whole step by less than so much of that,
# where on a slope it would be four times as much.
SURE, WHOLE = 4.0, 0.25
BEGINNING = 0.02  # of the run, whose steps differ from the later ones: many tries must not be of it alone
UNKNOWN = 2_000  # steps that a run is taken to have where nobody knows


def stagnant(window: Window) -> Symptom | None:
    """See a loss that has not fallen over the last 96 steps, or twentieth of the run, though little was learnt; or steps of which
    the next batch tells that they should have been many times as long.

    A loss that has come down a good part of the way and stands is where a descent ends: no fault.
    """
    if window.start is None or not window.is_finite:
        return None
    looks = window.step % EVERY == 0
    return (
        (_rests(window) or _stands(window, window.start) if looks else None)
        or _creeps(window)
        or _overshoots(window)
        or _may_be_far_off(window)
    )


def _rests(window: Window) -> Symptom | None:
    """See a rate of next to nothing that no schedule ends with: for a tenth of the run, with more than that to come."""
    steps = window.total or window.step
    if window.rests_since is None or window.step - window.rests_since < max(EVERY, REST * steps):
        return None
    if window.total is not None and window.total - window.step < REST * steps:
        return None
    if window.rests_since - window.alive_at > REST * steps:
        return None  # it came down slowly, as an exponential does, or in several steps
    return Symptom(
        name="stagnant",
        step=window.step,
        since=window.rests_since,
        text=f"the learning rate is {window.rate:.3g} since step {window.rests_since:,}, after {window.top_rate:.3g} before",
        evidence={"rate over the highest": {"value": window.rate / window.top_rate, "threshold": RESTING}},
    )


def _stands(window: Window, start: float) -> Symptom | None:
    is_above = window.upset is not None and window.smoothed > ABOVE * start
    steps = SOON if is_above and not window.has_few_examples else max(LEAST_STEPS, LEAST_SHARE * (window.total or 0))
    if window.has_few_examples:  # which say as much only in more steps
        most = MOST_SHARE * window.total if window.total is not None else math.inf
        steps = max(steps, min(steps * FEW_EXAMPLES / window.examples, most))
    level = min(start, window.constant_loss) if window.constant_loss is not None else start
    blocks = window.trend.since(window.step - steps)
    if window.count < steps or len(blocks) < 4 or level <= 0:
        return None
    fall, error, after = fall_of(blocks)
    if (
        after <= LEARNT * level
        or fall > SMALL * level
        or fall > CLEAR * error > 0
        or _fell_in_noise(window, steps, level)
    ):
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


def _fell_in_noise(window: Window, steps: float, level: float) -> bool:
    """Tell whether over more of the last steps, up to two thirds of all, a fall shows that the noise of fewer hides."""
    error = math.inf
    while error > SMALL * level and (steps := 2 * steps) <= NOISY * window.step:
        fall, error, _ = fall_of(window.trend.since(window.step - steps))
        if fall > SMALL * level and fall > CLEAR * error:
            return True
    return False


def _creeps(window: Window) -> Symptom | None:
    if not _was_tried(window) or window.starts_trained:
        return None
    for count, far, first, share, left in TRIES:
        if window.smoothed < left * _level(window):
            continue
        last = [*window.lengths][-count:]
        if count > 3 and last[0][0] < BEGINNING * (window.total or UNKNOWN):
            continue
        mean = math.exp(sum(math.log(multiple) for _, multiple in last) / len(last))
        if len(last) == count and mean >= far and window.step > max(first, share * (window.total or UNKNOWN)):
            return Symptom(
                name="stagnant",
                step=window.step,
                since=last[0][0],
                text=_slower(window),
                evidence={BEST_LENGTH: {"value": mean, "threshold": far}},
                severity="note" if window.smoothed < LITTLE * _level(window) else "warning",  # it gets on well enough
            )
    return None


def _overshoots(window: Window) -> Symptom | None:
    """See that a quarter of each step would lower the next batch's loss and the whole step does not: it goes too far."""
    if not _was_tried(window):
        return None
    tried = window.shortened(since=BEGINNING * (window.total or UNKNOWN))
    if tried is None or window.smoothed < LITTLE * _level(window):
        return None
    if tried.whole < WHOLE * tried.quarter or not tried.quarter < -SURE * tried.error:
        return None
    return Symptom(
        name="stagnant",
        step=window.step,
        since=window.lengths[0][0],
        text=_slower(window),
        evidence={
            QUARTER: {"value": tried.quarter / tried.error if tried.error else -math.inf, "threshold": -SURE},
            "how a step changes the next batch's loss": {"value": tried.whole, "threshold": WHOLE * tried.quarter},
        },
    )


def _may_be_far_off(window: Window) -> Symptom | None:
    """See that few tries speak for far longer or for shorter steps: where other rates can be tried; or for shorter ones where the
    rate was lowered before, which is then often too high still."""
    if window.has_few_examples or not _was_tried(window) or window.began_trained:
        return None
    was_lowered = window.lowered_at >= 0
    can_try = window.tries_rates and GOOD_PART * (window.total or UNKNOWN) <= COURSE and window.step > LIKELY_AFTER
    last = [multiple for step, multiple in window.lengths if step > window.lowered_at][-LIKELY_TRIES:]
    if len(last) < LIKELY_TRIES or not (can_try or was_lowered):
        return None
    mean = math.exp(sum(map(math.log, last)) / len(last))
    is_far = can_try and mean >= LIKELY_FAR and not window.starts_trained
    is_far = is_far and window.smoothed > TRIES[-1][-1] * _level(window)
    is_near = mean <= LIKELY_NEAR and window.smoothed > LITTLE * _level(window)
    if not (is_far or is_near):
        return None
    threshold, cause = (LIKELY_FAR, "learning-rate-too-low") if is_far else (LIKELY_NEAR, "learning-rate-too-high")
    return Symptom(
        name="stagnant",
        step=window.step,
        since=window.lengths[-LIKELY_TRIES][0],
        text=_slower(window),
        evidence={LIKELY_LENGTH: {"value": mean, "threshold": threshold}},
        severity="note" if can_try else "warning",
        asked=(cause,),
    )


def _was_tried(window: Window) -> bool:
    """Tell whether the length of the step before was tried on this batch, at a rate that is steady."""
    return bool(window.lengths) and window.lengths[-1][0] == window.step - 1 and window.is_steady


def _slower(window: Window) -> str:
    return f"the loss falls slower than it could: it is {window.smoothed:.4g}, after {window.start:.4g} at the start"


def _level(window: Window) -> float:
    return min(window.start or math.inf, window.constant_loss or math.inf)
