"""Schedules: the factor on the peak learning rate at each step, as a record and a pure function of the step.

    rate(step) = peak rate * schedule.factor(step, state)

Step 0 is the first update. A linear warm-up of w steps has the factors 1/(w+1) … w/(w+1), so that no step is wasted on a
rate of zero; the shape then begins at its full height at step w and would reach its end at step `total`, so that the last
step, total - 1, still moves. From `total` on the factor stays at the end. `state` is an empty dict except for
reduce-on-plateau, whose state sums up the earlier validations: so a run resumes at any step without repeating others.

A length is a number of steps (2000), of epochs ("3 epochs"), or a share (0.05): of the run where it is the `total`, of the
schedule's own total where it is anything else. `resolve` turns them into steps once the run's length is known.

In the formulas t counts the steps since the warm-up and n = total - warmup is their number.

The constructors of the shapes are written by `tools/tables.py` from `schedule/shapes.py`. A third party's shape comes by an entry
point of the group `thalweg.shapes`, and is made with `Schedule(name, total, warmup, options={…})`.
"""

from __future__ import annotations

from thalweg.schedule.constructors import (
    constant,
    cosine,
    cosine_restarts,
    exponential,
    inverse_sqrt,
    inverse_time,
    linear,
    one_cycle,
    plateau,
    polynomial,
    step,
    wsd,
)
from thalweg.schedule.lengths import Length, Option
from thalweg.schedule.lookup import SHAPES
from thalweg.schedule.names import takes
from thalweg.schedule.record import AttachedSchedule, Schedule, State, WarmupShape
from thalweg.schedule.shape import Curve, Shape, Span, shape

__all__ = [
    "SHAPES",
    "AttachedSchedule",
    "Curve",
    "Length",
    "Option",
    "Schedule",
    "Shape",
    "Span",
    "State",
    "WarmupShape",
    "constant",
    "cosine",
    "cosine_restarts",
    "exponential",
    "inverse_sqrt",
    "inverse_time",
    "linear",
    "one_cycle",
    "plateau",
    "polynomial",
    "sequence",
    "shape",
    "step",
    "wsd",
]


@takes
def sequence(
    *parts: Schedule, total: Length | None = None, warmup: Length = 0, warmup_shape: WarmupShape = "linear"
) -> Schedule:
    """Follow one schedule after the other; each counts its own steps, shares are of the whole, the last one's end stays.

    Only the last part's length may be open: it takes what is left. Each part begins at the peak, not where the one before it
    ended: see `Schedule.scaled`.

    >>> [sequence(constant(total=2), linear(total=2)).factor(step) for step in range(5)]
    [1.0, 1.0, 1.0, 0.5, 0.0]
    """
    return Schedule("sequence", total, warmup, warmup_shape, parts=parts)
