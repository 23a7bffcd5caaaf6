"""Does the loss run away?"""

from __future__ import annotations

from itertools import islice

from thalweg.watch.symptom import FIRST_STEPS, Symptom
from thalweg.watch.window import FEW_EXAMPLES, FIRST, MIN_LOSSES, Window

GROWTH = 2.0  # times the best smoothed loss: more is abnormal
SUSTAINED = 8  # abnormal steps among the last ten
NOISE = 5 * 0.23  # five standard deviations of the smoothed loss, each 0.23 of a single loss's
FAR, FAR_STEPS = 100.0, 3  # losses beyond FAR times the start, so many in a row, are diagnosed at once
JUMP, SEVERAL = 1.5, 3  # times the start and all losses later, in so many of the first steps in a row
EXPLODED = 1e6  # times the initial loss within the first steps, at once: two more such steps would overflow


def diverging(window: Window) -> Symptom | None:
    """See that in eight of the last ten steps loss and smoothed loss were above the start, above twice the best smoothed loss and
    beyond the usual noise.

    A loss below zero (a likelihood of densities, say) has no such ratio; there the distance to the start counts instead.
    """
    start = window.start
    if start is None or not window.is_finite:
        return None
    if window.step == FIRST and (jumped := _jumped(window)) is not None:
        return jumped
    exploded = _exploded(window)
    least = _least(window, start)
    if min(window.smoothed, window.loss) <= least and not exploded:
        return None
    above, limit = _above(window, start, least)
    if above < SUSTAINED and not exploded and not _is_far(window, start):
        return None
    smoothed, best = window.smoothed, window.best
    return Symptom(
        name="diverging",
        step=window.step,
        since=max(1, window.step - above + 1),
        text=f"the smoothed loss is {smoothed:.4g}, after {best:.4g} at its best and {start:.4g} at the start",
        evidence={
            "smoothed_loss": {"value": smoothed, "threshold": limit},
            "best_smoothed_loss": {"value": best},
            "learning_rate": {"value": window.rate},
        },
        severity="critical",
    )


def _jumped(window: Window) -> Symptom | None:
    """See losses that jumped in the first steps, several in a row, above all those of the steps after; of very few examples
    single ones always do."""
    losses = window.first_losses
    if window.examples < FEW_EXAMPLES or len(losses) < FIRST:
        return None
    start = max(losses[0], window.initial_loss or 0.0)
    limit = JUMP * max(start, *losses[FIRST // 2 :])
    in_a_row = [losses[begin : begin + SEVERAL] for begin in range(1, FIRST // 2 - SEVERAL + 1)]
    if start <= 0 or not any(min(several) > limit for several in in_a_row):
        return None
    return Symptom(
        name="diverging",
        step=window.step,
        since=1,
        text=f"in the first steps the loss jumped to {max(losses) / start:.3g} times that at the start",
        evidence={FIRST_STEPS: {"value": max(losses) / start, "threshold": JUMP}},
    )


def begins_to_diverge(window: Window) -> bool:
    """Tell whether any of the last ten steps was abnormal, though not enough of them for the symptom."""
    start = window.start
    return start is not None and _above(window, start, _least(window, start))[0] > 0


def _least(window: Window, start: float) -> float:
    """Give the loss that is abnormal whatever the noise."""
    best = window.best
    return max(GROWTH * best, start) if best > 0 else start + abs(start - best)


def _above(window: Window, start: float, least: float) -> tuple[int, float]:
    """Give how many of the last ten steps were abnormal, and the smoothed loss from which on they are."""
    if not any(min(loss, smoothed) > least for loss, smoothed in window.recent):
        return 0, least
    mean, deviation = window.mean_and_deviation() or (window.best, 0.0)
    limit = max(least, mean + NOISE * deviation)
    return sum(smoothed > limit and loss > least for loss, smoothed in window.recent), limit


def _is_far(window: Window, start: float) -> bool:
    mean, _ = window.mean_and_deviation() or (window.best, 0.0)
    limit = FAR * max(start, window.best, mean)
    return (
        limit > 0
        and window.count >= FAR_STEPS
        and all(loss > limit for loss in islice(reversed(window.losses), FAR_STEPS))
    )


def _exploded(window: Window) -> bool:
    if window.count >= MIN_LOSSES:
        return False
    first = window.losses[0] if window.initial_loss is None else window.start
    return first is not None and window.loss > EXPLODED * first > 0
