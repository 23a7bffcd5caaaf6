"""Usual steps: those that show no symptom whatever the steps between them were, so that the window may take them in later.

A step of a small model takes the time of some hundred Python calls, and between two steps the processor's caches have lost what
those need: to look for symptoms at every step costs three times as much as to do so for sixteen steps in a row.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from itertools import islice
from typing import NamedTuple

from thalweg.watch.window import LENGTH, MIN_LOSSES, ODD, Window

EVERY = 16
"""Steps by whose multiples lasting symptoms are looked for, and the window has all steps."""

FEWEST = 2 * EVERY  # losses and norms that must be known


class Usual(NamedTuple):
    """What a step must be like, up to a step: its number below `before`, loss and gradient norm at most so large."""

    before: int
    loss: float
    norm: float


def usual_after(window: Window, before: int) -> Usual | None:
    """Give what steps below a number, at most 15, must be like, so that neither do they show a symptom nor could they, had any
    other usual steps been between; None where there is no telling yet.

    Such a loss is not above the start, as it is where it diverges, and neither loss nor norm is above the largest of those that
    stay in the window till then, as outliers and spikes are; nor is the loss so far above the least that their median can become.
    """
    losses, norms = _staying(window.losses), _staying(window.gradient_norms)
    if (
        window.start is None
        or not window.is_finite
        or min(len(losses), len(norms), window.count) < max(FEWEST, MIN_LOSSES)
    ):
        return None
    ordered = sorted(losses)
    middle = (len(ordered) + EVERY - 2) // 2
    least, most = ordered[middle - EVERY + 1], ordered[min(middle + 1, len(ordered) - 1)]
    odd = math.inf if most <= 0 else ODD * least if least > 0 else -math.inf
    return Usual(before, min(window.start, ordered[-1], odd), max(norms))


def _staying(values: Collection[float]) -> list[float]:
    """Give the values that are still among the last ones after fifteen more."""
    return [*islice(values, max(0, len(values) + EVERY - 1 - LENGTH), None)]
