"""What a run's loss will be at its planned end, from what it is on the way: a power law, and the spread of what came of others.

    loss at the end = loss now x (progress now) ** exponent

Progress is 1 at the end. The exponent is read from the validations of the second half of the run so far (their trend), drawn
towards a usual one; without enough of them it is the usual one. The laws were settled by hand on stored runs of `bench/tuning`,
at rates that end within 1.5 times a task's best. `bench/README.md` has what came, and which of these runs were looked at for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from thalweg.errors import ScheduleError
from thalweg.records.forecast import Estimate
from thalweg.records.plan import Plan

COOL = 0.05
"""Share of the run in which a branch cools down: within it the rate falls to zero."""
COOLED_FACTOR = 0.05  # of the peak rate, at most, at the end of a run that cools down by itself
EARLIEST = 0.25
"""Share of the run from which on its validations say something of its end: from before nothing was compared with what came."""
RECENT = 0.5  # share of the run so far from which on validations make the trend
FEWEST = 3  # validations that make one
STEEPEST = 1.0  # exponent of a trend that counts


class Trend(NamedTuple):
    """The exponent of the power law that recent validations follow, from 0 to 1, and their spread around it, as a share."""

    exponent: float
    noise: float


def trend(steps: Sequence[float], losses: Sequence[float], until: float) -> Trend | None:
    """Give the trend of validations up to a step; None where there are too few recent ones, or one is not above zero.

    >>> trend([10, 20, 30, 40], [1 / 10, 1 / 20, 1 / 30, 1 / 40], until=40).exponent
    1.0
    """
    x, y = np.asarray(steps, np.float64), np.asarray(losses, np.float64)
    recent = (x >= RECENT * until) & (x <= until) & (x > 0)
    x, y = x[recent], y[recent]
    if len(np.unique(x)) < FEWEST or not (np.isfinite(y).all() and (y > 0).all()):
        return None
    x, y = np.log(x), np.log(y)
    x, y = x - x.mean(), y - y.mean()
    slope = float(x @ y / (x @ x))
    noise = math.sqrt(float(np.square(y - slope * x).sum()) / (len(x) - 2))
    return Trend(round(min(STEEPEST, max(0.0, -slope)), 9), noise)


class Law(NamedTuple):
    """A power law of the loss in a run's progress.

    `ahead`: share of the run by which a loss is ahead of the step that it was measured from. `usual`, `usual_spread`: exponent
    without a trend, and its standard error. `least`, `weight`, `spread`: with a trend the exponent is least + weight x its own.
    `is_noisy`: whether a loss lies as far off as the validations off their trend.
    """

    ahead: float
    usual: float
    usual_spread: float
    least: float
    weight: float
    spread: float
    is_noisy: bool

    def progress(self, share: float) -> float:
        """Give the progress of a loss measured from a share of the run; 1 is the end."""
        return min(1.0, share + self.ahead)

    def end(self, loss: float, share: float, recent: Trend | None = None) -> tuple[float, float]:
        """Give the loss at the end and its standard error, from a loss above zero at a share of the run above 0."""
        left, noise = -math.log(self.progress(share)), 0.0
        if recent is None:
            exponent, spread = self.usual, self.usual_spread
        else:
            exponent, spread = self.least + self.weight * recent.exponent, self.spread
            noise = recent.noise if self.is_noisy else 0.0
        value = loss * math.exp(-exponent * left)
        return value, value * math.hypot(math.expm1(spread * left), noise)


COOLED = Law(COOL, usual=0.35, usual_spread=0.4, least=0.15, weight=0.5, spread=0.33, is_noisy=False)
"""Of losses of a copy that cools down from that step."""
AT_A_VALIDATION = Law(0.0, usual=0.6, usual_spread=0.5, least=0.15, weight=0.7, spread=0.3, is_noisy=True)
"""Of validations on the way, under a rate that falls to zero until the end."""


def forecast_end(plan: Plan, steps: Sequence[float], losses: Sequence[float]) -> Estimate | None:
    """Give the loss at a plan's end by the validations so far; None where they do not say, or its rate does not fall to zero.

    Arguments:
        steps, losses: of the validations, ascending.
    """
    if not plan.steps or not len(steps) or not EARLIEST <= steps[-1] / plan.steps < 1 or not cools_down(plan):
        return None
    recent = trend(steps, losses, until=steps[-1])
    return recent and Estimate(*AT_A_VALIDATION.end(losses[-1], steps[-1] / plan.steps, recent))


def cools_down(plan: Plan) -> bool:
    """Tell whether a plan's rate falls to zero until its end, or next to it."""
    if plan.steps is None:
        return False
    try:
        return plan.schedule.resolve(plan.steps, plan.steps_per_epoch).factor(plan.steps) <= COOLED_FACTOR
    except ScheduleError:  # in epochs, of which the plan does not know the steps
        return False
