"""How long a run of open length is: it goes on as long as that pays.

Finished runs of doubling lengths are branched from one trunk. What the next one would gain is projected by how the gains decline:
under the law

    cost = floor + factor x steps ** -exponent

each doubling gains the same share of what the one before it gained, whatever the three numbers are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from thalweg.formatting import is_share

USUAL_DECLINE = 0.7
"""What a doubling gains, as a share of the one before, while two lengths are known only: an exponent of a half."""
LEAST_DECLINE = 0.25
LONGER = 2.0  # the next length
LEAST_LONGER = 1.25  # by which the last one, which is the most, is longer than the one before it at least
PATIENCE = 4  # doublings that are tried while nothing is learnt
HALVINGS = 3  # of the shortest run that are tried where that one overfits already


class Finished(NamedTuple):
    """A finished run: its steps, its cost (less is better; infinite where it failed), what each part of the validation examples
    adds to that, where it is their loss, and whether the weights that it keeps are of before its rate began to fall."""

    steps: int
    cost: float
    parts: Sequence[float] = ()
    is_past_best: bool = False


class Verdict(NamedTuple):
    """Whether to go on: the steps of the next run, or None; why, or why not; and the gain it is projected to have, as a share.

    `gain` is NaN where nothing tells. `noise`: the standard error of what the last run gained, as such a share; NaN where it is
    not known.
    """

    next: int | None
    reason: str = ""
    gain: float = math.nan
    noise: float = math.nan


def cost_of(name: str, mode: str, value: float) -> float:
    """Give a criterion as a cost: what a share of which more is better lacks to 1, else the value, or less it.

    >>> round(cost_of("accuracy", "max", 0.9), 3), cost_of("loss", "min", 0.3), cost_of("reward", "max", 5.0)
    (0.1, 0.3, -5.0)
    """
    if not math.isfinite(value):
        return math.inf
    if mode == "max":
        return 1 - value if is_share(name) and 0 <= value <= 1 else -value
    return value


def next_length(steps: int, most: int) -> int | None:
    """Give the length after one of so many steps; None where the most is reached.

    >>> next_length(300, 1000), next_length(600, 1000), next_length(900, 1000)
    (600, 1000, None)
    """
    longer = min(round(LONGER * steps), most)
    return longer if longer >= LEAST_LONGER * steps else None


def best_of(runs: Sequence[Finished]) -> Finished:
    """Give the run of the least cost, of equal ones the shortest."""
    return min(runs, key=lambda run: (run.cost, run.steps))


def shorter_lengths(steps: int) -> list[int]:
    """Give the lengths to try below the shortest one, where that overfits already, as long as each is better than the one before.

    >>> shorter_lengths(300), shorter_lengths(3)
    ([150, 75, 37], [1])
    """
    return [length for length in (steps // 2**k for k in range(1, HALVINGS + 1)) if length >= 1]


def judge(runs: Sequence[Finished], pays: float, most: int, unlearnt: float | None = None) -> Verdict:
    """Tell whether to go on after these finished runs, each longer than the one before.

    Arguments:
        pays: the share of the cost that twice the steps must be projected to gain.
        most: steps of a run.
        unlearnt: a cost that a model has which has learnt nothing; None: not known.
    """
    last, longer = runs[-1], next_length(runs[-1].steps, most)
    if not math.isfinite(last.cost):
        return Verdict(None, f"a run of {last.steps:,} steps did not train")
    if longer is None:
        gain, noise = _gain(runs, last.steps * LONGER)
        more = f", though twice as many are projected to gain {gain:.1%}" if gain >= pays else ""
        return Verdict(None, f"{most:,} steps are the most{more}", gain, noise)
    if len(runs) == 1:
        if last.is_past_best:
            return Verdict(None, f"the best weights of {last.steps:,} steps are of before its rate began to fall")
        return Verdict(longer, "one length says nothing of the next")
    if unlearnt is not None and best_of(runs).cost >= unlearnt:
        if len(runs) <= PATIENCE:
            return Verdict(longer, "nothing is learnt yet")
        return Verdict(None, f"nothing was learnt in {last.steps:,} steps")
    gain, noise = _gain(runs, longer)
    before = runs[-2]
    if last.cost >= best_of(runs[:-1]).cost:
        return Verdict(None, f"{last.steps:,} steps came to no more than {best_of(runs[:-1]).steps:,}", gain, noise)
    if not last.cost:
        return Verdict(None, f"{last.steps:,} steps came to a cost of 0, of which no share can be gained")
    if noise >= (before.cost - last.cost) / abs(last.cost):
        return Verdict(
            None,
            f"what {last.steps:,} steps gained over {before.steps:,} is within the noise of the criterion",
            gain,
            noise,
        )
    if gain < pays * math.log(longer / last.steps, LONGER):
        reason = f"{longer:,} steps are projected to gain {gain:.1%}, and twice the steps pay from {pays:.1%} on"
        return Verdict(None, reason, gain, noise)
    return Verdict(longer, "", gain, noise)


def _gain(runs: Sequence[Finished], steps: float) -> tuple[float, float]:
    """Give what a run of so many steps is projected to gain over the last one, and the noise of what that gained, as shares."""
    if len(runs) < 2 or not runs[-1].cost:
        return math.nan, math.nan
    last, before = runs[-1], runs[-2]
    per_doubling = [
        (one.cost - other.cost) / math.log(other.steps / one.steps, LONGER) for one, other in pairwise(runs[-3:])
    ]
    decline = USUAL_DECLINE
    if len(per_doubling) > 1 and per_doubling[0] > 0:
        decline = min(1.0, max(LEAST_DECLINE, per_doubling[1] / per_doubling[0]))
    gain = decline * per_doubling[-1] * math.log(steps / last.steps, LONGER)
    return max(0.0, gain) / abs(last.cost), _noise(before, last) / abs(last.cost)


def _noise(one: Finished, other: Finished) -> float:
    """Give the standard error of the difference between two runs' losses over the same examples; NaN where it is not known."""
    count = len(one.parts)
    if count < 2 or count != len(other.parts):
        return math.nan
    differences = [a - b for a, b in zip(one.parts, other.parts, strict=True)]
    mean = sum(differences) / count
    return math.sqrt(sum((d - mean) ** 2 for d in differences) * count / (count - 1))
