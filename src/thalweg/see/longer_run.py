"""Would a longer run end better? What runs of other lengths say: a run's first half, or the search's candidates.

A loss that falls at the end of one run is no evidence: a schedule that falls to zero lowers it by itself. But a run at a
constant rate has had in its first half a run of half its length, and the candidates of a search are cooled down
where they are judged.

- Of 300 pairs of runs at constant rates, the longer of twice the length, 97 in 100 of those that this advises to lengthen ended
  lower by at least 5 %.
- In the stored runs of `bench/tuning` (AdamW on sixteen tasks, Muon on fourteen of them, two or three seeds), told the best loss
  after 15 % and 40 % of the steps, cooled down, it advises 52 of 79 times to go on to the end: 49 of these gained at least 5 %
  for each doubling. From 15 % and 55 %, AdamW only, it is 30 of 31. Those are candidates of one run.

There the lengths that are compared differ by less than a factor of four. The usual search cools down after a tenth of the run,
and trains the best to its end: so far apart, all of the fall may lie far behind the end, as of a loss that has reached its noise,
and twice the gain is asked for. Ten pairs of runs of four small tasks, the longer of twice the length and searched anew: the five
that were expected to gain a quarter or more ended lower by 18 % or more; of the three that were expected to gain less, but 12 %
or more, two ended alike (a linear regression near the variance of its noise); the two others too. Only the limit of a quarter
was chosen on these ten.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from thalweg.formatting import is_share
from thalweg.records.run import Run
from thalweg.see.search_scores import scores_by_steps
from thalweg.watch.finished import LATE_SHARE, FinishedHistory

WORTHWHILE = 0.12  # share of the cost that is expected to go with twice the steps
FAR_APART = 4.0  # factor between the last two lengths, beyond which this share must be expected to go:
WORTHWHILE_FROM_FAR = 0.25
FEWEST_VALIDATIONS = 5


class Outcome(NamedTuple):
    """A run's length and what the criterion was at its end."""

    steps: int
    value: float


class Lengths(NamedTuple):
    """Outcomes of runs of several lengths, the shortest first, and the share of the cost that twice the steps should take."""

    outcomes: tuple[Outcome, ...]
    gain: float

    @property
    def pays(self) -> bool:
        """Whether the gain is worth a run of twice the steps, and the lengths say so clearly."""
        before, last = self.outcomes[-2:]
        return self.gain >= (WORTHWHILE if last.steps <= FAR_APART * before.steps else WORTHWHILE_FROM_FAR)


def lengths(run: Run, history: FinishedHistory) -> Lengths | None:
    """Give what shorter runs and this one came to; None where there are none to compare, or the criterion was best long ago."""
    x, y = history.criterion()
    if history.status != "finished" or len(y) < 2 or x[int(np.argmin(history.cost(y)))] < LATE_SHARE * x[-1]:
        return None
    end = Outcome(history.steps, float(run.metrics.get(history.select, math.nan)))
    shorter = _searched(run, history) or _first_half(run, history)
    outcomes = (*(outcome for outcome in shorter if outcome.steps < end.steps), end)
    costs = [_cost(history, outcome.value) for outcome in outcomes]
    if len(outcomes) < 2 or not all(0 < cost < math.inf for cost in costs):
        return None
    return Lengths(outcomes, _gain([outcome.steps for outcome in outcomes], costs))


def _gain(steps: list[int], costs: list[float]) -> float:
    """Give the share of the cost that twice the steps take, if it goes on with a power of the steps that declines as it did.

    >>> round(_gain([100, 200], [1.0, 0.5]), 3), round(_gain([50, 100, 200], [1.0, 0.5, 0.5**1.5]), 3)
    (0.5, 0.159)
    """
    logs, falls = np.diff(np.log(steps)), -np.diff(np.log(costs))
    powers = falls / logs
    power = float(powers[-1])
    if len(powers) > 1 and powers[-2] > power > 0:
        power *= power / float(powers[-2])
    return 1 - 0.5**power


def _searched(run: Run, history: FinishedHistory) -> list[Outcome]:
    """Give the best outcome of the search's first and last candidates."""
    by_steps = scores_by_steps(run)
    sign = -1.0 if history.mode == "max" else 1.0  # in the search, less is always better
    chosen = sorted({min(by_steps), max(by_steps)}) if by_steps else []
    best = [(steps, min(np.mean(values) for values in by_steps[steps].values())) for steps in chosen]
    return [Outcome(steps, sign * float(score)) for steps, score in best]


def _first_half(run: Run, history: FinishedHistory) -> list[Outcome]:
    """Give what the first half of a run at a constant rate came to."""
    x, y = history.criterion()
    lowered = any(event.kind == "rollback" for event in run.events)
    if run.plan.schedule.shape != "constant" or lowered or len(y) < FEWEST_VALIDATIONS:
        return []
    early = x <= x[-1] / 2
    best = int(np.argmin(history.cost(y[early])))
    return [Outcome(int(x[early][-1]), float(y[early][best]))] if x[early][-1] > 0 else []


def _cost(history: FinishedHistory, value: Any) -> float:
    """Give what of the criterion is left to gain; NaN where it has no known best value, such as that of a likelihood."""
    if history.mode == "max":
        return 1 - value if is_share(history.select) and 0 <= value <= 1 else math.nan
    return float(value)
