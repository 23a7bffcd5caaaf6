"""Does the loss run away?"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from itertools import islice
from typing import Any

from thalweg.formatting import format_number
from thalweg.records.diagnosis import Diagnosis
from thalweg.watch.cause import Cause
from thalweg.watch.cures import lower_rate_and_clip
from thalweg.watch.window import MIN_LOSSES, RECENT, Window

GROWTH = 2.0  # times the best smoothed loss: more is abnormal
SUSTAINED = 8  # abnormal steps among the last ten
NOISE = 5 * 0.23  # five standard deviations of the smoothed loss, each 0.23 of a single loss's
FAR, FAR_STEPS = 100.0, 3  # losses beyond FAR times the start, so many in a row, are diagnosed at once
EXPLODED = 1e6  # times the initial loss within the first steps, at once: two more such steps would overflow


class Diverging:
    """Finds that in eight of the last ten steps loss and smoothed loss were above the start, above twice the best smoothed loss
    and beyond the usual noise.

    A loss below zero (a likelihood of densities, say) has no such ratio; there the
    distance to the start counts instead.
    """

    def __init__(self) -> None:
        self.above: deque[int] = deque(maxlen=RECENT)  # 1 for each recent step above the limit, else 0

    @property
    def suspicious(self) -> bool:
        """Whether any recent step was above the limit."""
        return sum(self.above) > 0

    def observe(self, window: Window) -> Diagnosis | None:
        """Diagnose divergence after a step; a step that was not finite is ignored."""
        start = window.start
        if start is None or not window.is_finite:
            return None
        best, smoothed = window.best, window.smoothed
        limit = max(GROWTH * best, start) if best > 0 else start + abs(start - best)
        above, at_once = False, _exploded(window)
        if min(smoothed, window.loss) > limit:
            mean, deviation = window.mean_and_deviation() or (best, 0.0)
            limit = max(limit, mean + NOISE * deviation)
            above, at_once = smoothed > limit, at_once or _is_far(window, FAR * max(start, best, mean))
        self.above.append(int(above))
        if sum(self.above) < SUSTAINED and not at_once:
            return None
        return self._diagnosis(window, start, limit)

    def _diagnosis(self, window: Window, start: float, limit: float) -> Diagnosis:
        smoothed, best = window.smoothed, window.best
        return Diagnosis(
            symptom="diverging",
            cause=f"the smoothed loss is {smoothed:.4g}, after {best:.4g} at its best and {start:.4g} at the start: at a learning"
            f" rate of {window.rate:.3g} each step overshoots.",
            severity="critical",
            step=window.step,
            since=max(1, window.step - sum(self.above) + 1),
            evidence={
                "smoothed_loss": {"value": smoothed, "threshold": limit},
                "best_smoothed_loss": {"value": best},
                "learning_rate": {"value": window.rate},
            },
            not_measured=("critical step", "bad batch"),
        )

    def state_dict(self) -> dict[str, Any]:
        """Give the state as built-in types."""
        return {"above": list(self.above)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`'s values."""
        self.above = deque(state["above"], maxlen=RECENT)


def _is_far(window: Window, limit: float) -> bool:
    return (
        limit > 0
        and window.count >= FAR_STEPS
        and all(loss > limit for loss in islice(reversed(window.losses), FAR_STEPS))
    )


def _exploded(window: Window) -> bool:
    first = window.losses[0] if window.initial_loss is None else window.start
    return window.count < MIN_LOSSES and first is not None and window.loss > EXPLODED * first > 0


def summarise(evidence: Mapping[str, Any]) -> str:
    """Say the finding in one sentence."""
    smoothed, best = (format_number(evidence[name]["value"]) for name in ("smoothed_loss", "best_smoothed_loss"))
    return f"The loss ran away: its running mean was {smoothed}, after {best} at its best."


diverging = Cause(
    name="diverging",
    meaning="the loss grows instead of falling, because steps at this learning rate overshoot",
    rank=20,
    during=Diverging,
    cure=lower_rate_and_clip,
    summary=summarise,
)
