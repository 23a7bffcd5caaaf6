"""The critical step: the largest multiple of an update that still lowers the loss of the batch that the update was made for.

It tells whether steps are too long (below 1) or could be far longer, whatever the rule, as arXiv:2601.16979 proposes: no gradient
is needed, only the loss at a few points on the line that the step was taken along.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

FACTOR = 16.0  # between the multiples that are tried first
MOST = 2.0**20  # a multiple that still lowers the loss there is called so, not looked beyond
LEAST = 2.0**-16
PASSES = 9  # forward passes at most, the loss before the step not counted


class CriticalStep(NamedTuple):
    """The largest multiple of the update that was seen to lower the loss, and the smallest one above it that does not.

    `lowers` is 0 where not even the smallest step lowers the loss, and `raises` infinite where none raised it. `passes` is how
    often the loss was computed.
    """

    lowers: float
    raises: float
    passes: int

    @property
    def multiple(self) -> float:
        """The critical step itself: between the two, in the middle of their logarithms; 0 or infinite where one of them is."""
        return math.sqrt(self.lowers * self.raises) if self.lowers > 0 and self.raises < math.inf else self.edge

    @property
    def edge(self) -> float:
        """The side that is known, where the other one is not."""
        return self.lowers if math.isinf(self.raises) else 0.0


def critical_step(loss_at: Callable[[float], float], passes: int = PASSES) -> CriticalStep:
    """Find the critical step by factors of 16 first, and then by halving the interval in logarithms.

    Arguments:
        loss_at: gives the loss of the batch at a multiple of the update from the weights before it: 0 is before the step, 1 after
            it. The same examples, and the same random numbers, each time. A loss that is not finite counts as one that rose.
        passes: how often it may be called, the call at 0 not counted.

    A parabola that the update takes to within a fifth of its minimum rises again beyond ten such steps:

    >>> found = critical_step(lambda multiple: (1 - 0.2 * multiple) ** 2)
    >>> found.lowers < 10 < found.raises, found.passes
    (True, 10)
    """
    before = loss_at(0.0)
    lowers, raises, left = 0.0, math.inf, passes

    def is_lower(multiple: float) -> bool:
        loss = loss_at(multiple)
        return math.isfinite(loss) and loss < before

    multiple = 1.0
    while left and (lowers == 0.0 or math.isinf(raises)) and LEAST <= multiple <= MOST:
        left -= 1
        if is_lower(multiple):
            lowers, multiple = multiple, multiple * FACTOR
        else:
            raises, multiple = multiple, multiple / FACTOR
        if lowers and raises < math.inf:
            break
    while left and lowers > 0 and raises < math.inf:
        left -= 1
        middle = math.sqrt(lowers * raises)
        if is_lower(middle):
            lowers = middle
        else:
            raises = middle
    return CriticalStep(lowers, raises, passes - left + 1)


class LengthTry(NamedTuple):
    """What multiples of an update do to a loss that it was not made for.

    `best` is as `best_multiple` gives it; `whole` and `quarter` are how the update, and a quarter of it, change the loss, as a
    share of it: below zero where they lower it.
    """

    best: float
    whole: float
    quarter: float


def try_lengths(loss_at: Callable[[float], float]) -> LengthTry:
    """Try an update, a quarter of it, and multiples of it, in three forward passes or more; `loss_at` is as of `best_multiple`.

    An update that goes to the far side of a valley: a quarter of it gets nearer to the bottom.

    >>> try_lengths(lambda multiple: (1 - 2.5 * multiple) ** 2)
    LengthTry(best=0.5, whole=1.25, quarter=-0.859375)
    """
    known = {multiple: loss_at(multiple) for multiple in (0.0, 1.0, 0.25)}
    before = known[0.0]
    best = best_multiple(lambda multiple: known[multiple] if multiple in known else loss_at(multiple))
    size = abs(before) or math.inf
    return LengthTry(best, (known[1.0] - before) / size, (known[0.25] - before) / size)


def best_multiple(loss_at: Callable[[float], float], most: float = 1024.0) -> float:
    """Find which of 1, 4, 16, … times an update lowers a loss most; 0.5 where not even the update itself lowers it.

    Of examples that the update was not made for, this is how long a step should have been: at about the best rate it is 0.5 to 4,
    at a tenth of it 4 to 64 (of small networks of six kinds under three rules). A batch's own loss falls further than that.

    Arguments:
        loss_at: as of `critical_step`. It is called for ever longer steps, until the loss is higher than before.
        most: the longest that is tried.

    >>> best_multiple(lambda multiple: (1 - 0.05 * multiple) ** 2)
    16.0
    """
    best, least, multiple = 0.5, loss_at(0.0), 1.0
    while multiple <= most and (loss := loss_at(multiple)) < least:
        best, least, multiple = multiple, loss, multiple * 4
    return best
