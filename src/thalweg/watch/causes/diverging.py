"""Does the loss run away?"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from itertools import islice
from typing import Any

from thalweg.formatting import format_number
from thalweg.records.diagnosis import Diagnosis
from thalweg.watch.cause import Cause
from thalweg.watch.cures import calm
from thalweg.watch.window import ARMED, RECENT, Window

GROWTH = 2.0  # times the best smoothed loss
SUSTAINED = 8  # of the last ten steps
NOISE = 5 * 0.23  # standard deviations of single losses: five of their smoothed mean, whose own is 0.23 of theirs
FAR, RUSHED = 100.0, 3  # so many times the start, so many steps in a row: no need to wait
EXPLODED = 1e6  # times the loss at the very start, within the first steps: two more such steps, and numbers end


class Diverging:
    """Finds a loss that is above the start, above twice the best, and out of what is usual, in eight of the last ten steps.

    Both the loss and the smoothed loss must be. A loss below zero (a likelihood of densities, say) has no such ratio; there the
    distance to the start counts instead.
    """

    def __init__(self) -> None:
        self.above: deque[int] = deque(maxlen=RECENT)  # 1 for each recent step above the limit, else 0

    @property
    def suspicious(self) -> bool:
        """Whether any recent step was above the limit."""
        return sum(self.above) > 0

    def observe(self, window: Window) -> Diagnosis | None:
        """Ask after a step; one that was not finite says nothing of a trend."""
        start = window.start
        if start is None or not window.is_finite:
            return None
        best, smoothed = window.best, window.smoothed
        limit = max(GROWTH * best, start) if best > 0 else start + abs(start - best)
        above, rushes = False, _explodes(window)
        if min(smoothed, window.loss) > limit:
            mean, deviation = window.usual() or (best, 0.0)
            limit = max(limit, mean + NOISE * deviation)
            above, rushes = smoothed > limit, rushes or _rushes(window, FAR * max(start, best, mean))
        self.above.append(int(above))
        if sum(self.above) < SUSTAINED and not rushes:
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
        """Give plain values."""
        return {"above": list(self.above)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`'s values."""
        self.above = deque(state["above"], maxlen=RECENT)


def _rushes(window: Window, limit: float) -> bool:
    return limit > 0 and window.seen >= RUSHED and all(loss > limit for loss in islice(reversed(window.losses), RUSHED))


def _explodes(window: Window) -> bool:
    first = window.losses[0] if window.expected is None else window.start
    return window.seen < ARMED and first is not None and window.loss > EXPLODED * first > 0


def ran_away(evidence: Mapping[str, Any]) -> str:
    """Say the finding in one sentence."""
    smoothed, best = (format_number(evidence[name]["value"]) for name in ("smoothed_loss", "best_smoothed_loss"))
    return f"The loss ran away: its running mean was {smoothed}, after {best} at its best."


diverging = Cause(
    name="diverging",
    meaning="the loss grows instead of falling, because steps at this learning rate overshoot",
    rank=20,
    during=Diverging,
    cure=calm,
    summary=ran_away,
)
