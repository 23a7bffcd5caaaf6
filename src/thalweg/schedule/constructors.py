"""Decay shapes as functions, written by `tools/tables.py` from `shapes.py`: `make tables`, not by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from thalweg.schedule.lengths import Length
from thalweg.schedule.names import takes
from thalweg.schedule.record import Schedule, WarmupShape


@takes
def constant(
    total: Length | None = None,
    warmup: Length = 0,
    *,
    warmup_shape: WarmupShape = "linear",
) -> Schedule:
    """Stay at the peak.

    >>> [constant(warmup=3).factor(step) for step in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return Schedule("constant", total, warmup, warmup_shape)


@takes
def linear(
    total: Length | None = None,
    warmup: Length = 0,
    *,
    final: float = 0.0,
    warmup_shape: WarmupShape = "linear",
) -> Schedule:
    """Fall in a straight line to `final` (0 to 1): final + (1 - final) (1 - t/n).

    >>> linear(total=10, final=0.5).factor(5)
    0.75
    """
    return Schedule("linear", total, warmup, warmup_shape, {"final": final})


@takes
def cosine(
    total: Length | None = None,
    warmup: Length = 0,
    *,
    final: float = 0.0,
    warmup_shape: WarmupShape = "linear",
) -> Schedule:
    """Fall along half a cosine to `final` (0 to 1): final + (1 - final) (1 + cos(pi t/n)) / 2.

    Source: Loshchilov & Hutter 2017, arXiv:1608.03983. PyTorch's CosineAnnealingLR rises again beyond its end.

    >>> cosine(total=10).factor(0), cosine(total=10).factor(10)
    (1.0, 0.0)
    """
    return Schedule("cosine", total, warmup, warmup_shape, {"final": final})


@takes
def polynomial(
    total: Length | None = None,
    warmup: Length = 0,
    *,
    power: float = 2.0,
    final: float = 0.0,
    warmup_shape: WarmupShape = "linear",
) -> Schedule:
    """Fall as a power (above 0) to `final` (0 to 1): final + (1 - final) (1 - t/n) ** power.

    PyTorch's PolynomialLR has power 1 by default, which is `linear`.

    >>> polynomial(total=10).factor(5)
    0.25
    """
    return Schedule("polynomial", total, warmup, warmup_shape, {"power": power, "final": final})


@takes
def exponential(
    total: Length | None = None,
    warmup: Length = 0,
    *,
    final: float | None = None,
    gamma: float | None = None,
    warmup_shape: WarmupShape = "linear",
) -> Schedule:
    """Fall by the same ratio each step: final ** (t/n), or gamma ** t. Both lie between 0 and 1; default: final=0.01.

    Raises ScheduleError where both are given. With `gamma` the length may stay open, as in PyTorch's ExponentialLR.

    >>> exponential(total=10).factor(5), exponential(gamma=0.5).factor(3)
    (0.1, 0.125)
    """
    return Schedule("exponential", total, warmup, warmup_shape, {"final": final, "gamma": gamma})


@takes
def inverse_sqrt(
    total: Length | None = None,
    warmup: Length = 0,
    *,
    timescale: Length | None = None,
    warmup_shape: WarmupShape = "linear",
) -> Schedule:
    """Fall as one over the square root of the step: sqrt(timescale / (timescale + t)).

    `timescale` is the warm-up unless given (1 without one), so that the factor at step s is sqrt(warmup / s).
    Source: Vaswani et al. 2017, arXiv:1706.03762.

    >>> inverse_sqrt(warmup=100).factor(400)
    0.5
    """
    return Schedule("inverse_sqrt", total, warmup, warmup_shape, {"timescale": timescale})


@takes
def inverse_time(
    total: Length | None = None,
    warmup: Length = 0,
    *,
    timescale: Length = 0.1,
    warmup_shape: WarmupShape = "linear",
) -> Schedule:
    """Fall as one over the step: timescale / (timescale + t).

    Half is left after `timescale` steps (default: a tenth of the total). The sum over the steps grows with the logarithm of their
    number: a weight decay of this shape is one in log time. With a `timescale` in steps the length may stay open.

    >>> [inverse_time(timescale=2).factor(step) for step in (0, 2, 6)]
    [1.0, 0.5, 0.25]
    """
    return Schedule("inverse_time", total, warmup, warmup_shape, {"timescale": timescale})


@takes
def step(
    total: Length | None = None,
    warmup: Length = 0,
    *,
    milestones: Sequence[Length] | None = None,
    every: Length | None = None,
    gamma: float = 0.1,
    warmup_shape: WarmupShape = "linear",
) -> Schedule:
    """Drop to `gamma` (0 to 1) times itself at each milestone, or `every` so many steps after the warm-up.

    Milestones count from step 0, warm-up included, and increase; default: half and three quarters of the total.
    Raises ScheduleError where both are given. PyTorch: MultiStepLR and StepLR.

    >>> [step(milestones=[1, 3]).factor(s) for s in range(3)]
    [1.0, 0.1, 0.1]
    """
    return Schedule("step", total, warmup, warmup_shape, {"milestones": milestones, "every": every, "gamma": gamma})


@takes
def wsd(
    total: Length | None = None,
    warmup: Length = 0,
    *,
    decay: Length = 0.2,
    decay_shape: Literal["sqrt", "linear", "cosine"] = "sqrt",
    final: float = 0.0,
    warmup_shape: WarmupShape = "linear",
) -> Schedule:
    """Warm up, stay at the peak, and fall to `final` in the last `decay` steps: along 1 - sqrt(p), a line or a cosine.

    Source: Hu et al. 2024, arXiv:2404.06395; the shape 1 - sqrt: Hägele et al. 2024, arXiv:2405.18392.

    >>> [wsd(total=10, decay=4, decay_shape="linear").factor(step) for step in (5, 6, 7, 8, 9)]
    [1.0, 1.0, 0.75, 0.5, 0.25]
    """
    return Schedule("wsd", total, warmup, warmup_shape, {"decay": decay, "decay_shape": decay_shape, "final": final})


@takes
def one_cycle(
    total: Length | None = None,
    warmup: Length = 0,
    *,
    rise: Length = 0.3,
    start: float = 0.04,
    final: float = 4e-6,
    warmup_shape: WarmupShape = "linear",
) -> Schedule:
    """Rise from `start` along half a cosine for `rise` steps, then fall along half a cosine to `final` at the last step.

    Source: Smith & Topin 2018, arXiv:1708.07120. As PyTorch's OneCycleLR (pct_start, div_factor and final_div_factor at
    their defaults), which also cycles the momentum and raises after its end: ours does neither.

    >>> [round(one_cycle(total=10, rise=4).factor(step), 6) for step in (0, 3, 9)]
    [0.04, 1.0, 4e-06]
    """
    return Schedule("one_cycle", total, warmup, warmup_shape, {"rise": rise, "start": start, "final": final})


@takes
def cosine_restarts(
    total: Length | None = None,
    warmup: Length = 0,
    *,
    period: Length = 0.25,
    growth: float = 1.0,
    final: float = 0.0,
    warmup_shape: WarmupShape = "linear",
) -> Schedule:
    """Fall along half a cosine to `final`, again and again: each period is `growth` (1 or more) times the one before.

    Source: Loshchilov & Hutter 2017, arXiv:1608.03983. PyTorch's CosineAnnealingWarmRestarts takes whole `T_mult` only.

    >>> [round(cosine_restarts(period=2, growth=2).factor(step), 3) for step in range(7)]
    [1.0, 0.5, 1.0, 0.854, 0.5, 0.146, 1.0]
    """
    options = {
        "period": period,
        "growth": growth,
        "final": final,
    }
    return Schedule("cosine_restarts", total, warmup, warmup_shape, options)


@takes
def plateau(
    total: Length | None = None,
    warmup: Length = 0,
    *,
    factor: float = 0.1,
    patience: int = 10,
    threshold: float = 0.0001,
    threshold_mode: Literal["rel", "abs"] = "rel",
    mode: Literal["min", "max"] = "min",
    cooldown: int = 0,
    minimum: float = 0.0,
    warmup_shape: WarmupShape = "linear",
) -> Schedule:
    """Multiply by `factor` after more than `patience` validations in a row without a new best, never below `minimum`.

    A new best is better than the old one by `threshold`, as a share of it or absolute. After a reduction `cooldown` validations
    are not counted. A metric that is not finite is never a best. As PyTorch's ReduceLROnPlateau, except that a share is of the
    best's magnitude (PyTorch's test is the wrong way round for negative metrics) and that `minimum` is relative to the peak.

    >>> schedule = plateau(patience=0, factor=0.5)
    >>> schedule.factor(7, schedule.observe(schedule.observe(schedule.initial_state(), 1.0), 1.0))
    0.5
    """
    options = {
        "factor": factor,
        "patience": patience,
        "threshold": threshold,
        "threshold_mode": threshold_mode,
        "mode": mode,
        "cooldown": cooldown,
        "minimum": minimum,
    }
    return Schedule("plateau", total, warmup, warmup_shape, options)
