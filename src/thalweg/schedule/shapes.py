"""The decay shapes: for each a function that makes its curve, a function of the steps since the warm-up.

A curve gives the factor on the peak rate. In the formulas t counts the steps since the warm-up and n = total - warmup is their
number. To add a shape, add its function here and run `make tables`: that writes the public constructor, with this docstring.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import Any

from thalweg.errors import ScheduleError
from thalweg.schedule.lengths import Option
from thalweg.schedule.shape import Curve, Span, of_peak, shape, with_unit

# p: the share of the warm-up, or of the decay, that has passed
WARMUPS: Mapping[str, Callable[[float], float]] = {
    "linear": lambda p: p,
    "cosine": lambda p: (1 - math.cos(math.pi * p)) / 2,
    "exponential": lambda p: 0.01 ** (1 - p),
}
DECAYS: Mapping[str, Callable[[float], float]] = {
    "sqrt": lambda p: 1 - math.sqrt(p),
    "linear": lambda p: 1 - p,
    "cosine": lambda p: (1 + math.cos(math.pi * p)) / 2,
}
FINAL = Option(0.0, high=1)


@shape("constant")
def constant(span: Span) -> Curve:
    """Stay at the peak.

    >>> [constant(warmup=3).factor(step) for step in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return lambda t: 1.0


@shape(lambda o: f"linear to {of_peak(o['final'])}", final=FINAL)
def linear(span: Span, *, final: float) -> Curve:
    """Fall in a straight line to `final` (0 to 1): final + (1 - final) (1 - t/n).

    >>> linear(total=10, final=0.5).factor(5)
    0.75
    """
    n = span.finite_length()
    return lambda t: final + (1 - final) * (1 - t / n)


@shape(lambda o: f"cosine to {of_peak(o['final'])}", final=FINAL)
def cosine(span: Span, *, final: float) -> Curve:
    """Fall along half a cosine to `final` (0 to 1): final + (1 - final) (1 + cos(pi t/n)) / 2.

    Source: Loshchilov & Hutter 2017, arXiv:1608.03983. PyTorch's CosineAnnealingLR rises again beyond its end.

    >>> cosine(total=10).factor(0), cosine(total=10).factor(10)
    (1.0, 0.0)
    """
    n = span.finite_length()
    return lambda t: final + (1 - final) * (1 + math.cos(math.pi * t / n)) / 2


@shape(
    lambda o: f"polynomial of power {o['power']:g} to {of_peak(o['final'])}",
    power=Option(2.0, exclusive=True),
    final=FINAL,
)
def polynomial(span: Span, *, power: float, final: float) -> Curve:
    """Fall as a power (above 0) to `final` (0 to 1): final + (1 - final) (1 - t/n) ** power.

    PyTorch's PolynomialLR has power 1 by default, which is `linear`.

    >>> polynomial(total=10).factor(5)
    0.25
    """
    n = span.finite_length()
    return lambda t: final + (1 - final) * (1 - t / n) ** power


@shape(
    lambda o: (
        f"exponential, times {o['gamma']:g} per step," if "gamma" in o else f"exponential to {of_peak(o['final'])}"
    ),
    final=Option(0.01, high=1, exclusive=True, unless="gamma"),
    gamma=Option(high=1, exclusive=True),
)
def exponential(span: Span, *, final: float = 0.01, gamma: float | None = None) -> Curve:
    """Fall by the same ratio each step: final ** (t/n), or gamma ** t. Both lie between 0 and 1; default: final=0.01.

    Raises ScheduleError where both are given. With `gamma` the length may stay open, as in PyTorch's ExponentialLR.

    >>> exponential(total=10).factor(5), exponential(gamma=0.5).factor(3)
    (0.1, 0.125)
    """
    if gamma is not None:
        ratio = gamma
        return lambda t: ratio**t
    n = span.finite_length()
    return lambda t: final ** (t / n)


@shape("inverse square root", timescale=Option(kind="length", low=1))
def inverse_sqrt(span: Span, *, timescale: int = 0) -> Curve:
    """Fall as one over the square root of the step: sqrt(timescale / (timescale + t)).

    `timescale` is the warm-up unless given (1 without one), so that the factor at step s is sqrt(warmup / s).
    Source: Vaswani et al. 2017, arXiv:1706.03762.

    >>> inverse_sqrt(warmup=100).factor(400)
    0.5
    """
    scale = timescale or span.warmup or 1
    return lambda t: math.sqrt(scale / (scale + t))


@shape(
    lambda o: f"one over the time, halved after {with_unit(o['timescale'])},",
    timescale=Option(0.1, kind="length", low=1),
)
def inverse_time(span: Span, *, timescale: int) -> Curve:
    """Fall as one over the step: timescale / (timescale + t).

    Half is left after `timescale` steps (default: a tenth of the total). The sum over the steps grows with the logarithm of their
    number: a weight decay of this shape is one in log time. With a `timescale` in steps the length may stay open.

    >>> [inverse_time(timescale=2).factor(step) for step in (0, 2, 6)]
    [1.0, 0.5, 0.25]
    """
    return lambda t: timescale / (timescale + t)


def _drops_in_words(o: Mapping[str, Any]) -> str:
    when = f"every {with_unit(o['every'])}" if "every" in o else f"at {', '.join(map(with_unit, o['milestones']))}"
    return f"constant but times {o['gamma']:g} {when},"


@shape(
    _drops_in_words,
    milestones=Option((0.5, 0.75), kind="lengths", low=1, unless="every"),
    every=Option(kind="length", low=1),
    gamma=Option(0.1, high=1, exclusive=True),
)
def step(span: Span, *, milestones: tuple[int, ...] = (), every: int = 0, gamma: float) -> Curve:
    """Drop to `gamma` (0 to 1) times itself at each milestone, or `every` so many steps after the warm-up.

    Milestones count from step 0, warm-up included, and increase; default: half and three quarters of the total.
    Raises ScheduleError where both are given. PyTorch: MultiStepLR and StepLR.

    >>> [step(milestones=[1, 3]).factor(s) for s in range(3)]
    [1.0, 0.1, 0.1]
    """
    if every:
        return lambda t: gamma ** (t // every)
    drops = [milestone - span.warmup for milestone in milestones]
    if drops != sorted(drops) or (drops and drops[0] < 0):
        raise ScheduleError(
            f"The milestones of the step schedule are {list(milestones)}: they must increase, and none may lie inside the "
            f"warm-up of {span.warmup} steps."
        )
    return lambda t: gamma ** bisect_right(drops, t)


@shape(
    lambda o: (
        f"constant, then {'1-sqrt' if o['decay_shape'] == 'sqrt' else o['decay_shape']} "
        f"to {of_peak(o['final'])} in the last {with_unit(o['decay'])},"
    ),
    decay=Option(0.2, kind="length", low=1),
    decay_shape=Option("sqrt", kind="choice", choices=tuple(DECAYS)),
    final=FINAL,
)
def wsd(span: Span, *, decay: int, decay_shape: str, final: float) -> Curve:
    """Warm up, stay at the peak, and fall to `final` in the last `decay` steps: along 1 - sqrt(p), a line or a cosine.

    Source: Hu et al. 2024, arXiv:2404.06395; the shape 1 - sqrt: Hägele et al. 2024, arXiv:2405.18392.

    >>> [wsd(total=10, decay=4, decay_shape="linear").factor(step) for step in (5, 6, 7, 8, 9)]
    [1.0, 1.0, 0.75, 0.5, 0.25]
    """
    stable = span.finite_length() - decay
    fall = DECAYS[decay_shape]
    if stable < 0:
        raise ScheduleError(
            f"The decay of {decay} steps is longer than the {span.length:g} steps after the warm-up: shorten `decay`."
        )
    return lambda t: 1.0 if t <= stable else final + (1 - final) * fall((t - stable) / decay)


@shape(
    lambda o: f"one cycle, up from {of_peak(o['start'])} for {with_unit(o['rise'])} and down to {of_peak(o['final'])},",
    rise=Option(0.3, kind="length", low=1),
    start=Option(0.04, high=1),
    final=Option(4e-6, high=1),
)
def one_cycle(span: Span, *, rise: int, start: float, final: float) -> Curve:
    """Rise from `start` along half a cosine for `rise` steps, then fall along half a cosine to `final` at the last step.

    Source: Smith & Topin 2018, arXiv:1708.07120. As PyTorch's OneCycleLR (pct_start, div_factor and final_div_factor at
    their defaults), which also cycles the momentum and raises after its end: ours does neither.

    >>> [round(one_cycle(total=10, rise=4).factor(step), 6) for step in (0, 3, 9)]
    [0.04, 1.0, 4e-06]
    """
    top, last = rise - 1, span.finite_length() - 1
    if top > last:
        raise ScheduleError(
            f"The rise of {rise} steps is longer than the {span.length:g} steps after the warm-up: shorten `rise`."
        )
    up, down = max(top, 1), max(last - top, 1)

    def curve(t: int) -> float:
        if t < top:
            return 1 + (start - 1) * (1 + math.cos(math.pi * t / up)) / 2
        return final + (1 - final) * (1 + math.cos(math.pi * min((t - top) / down, 1))) / 2

    return curve


@shape(
    lambda o: (
        f"cosine to {of_peak(o['final'])} restarted every {with_unit(o['period'])}"
        + f" (each {o['growth']:g} times as long)" * (o["growth"] != 1)
    ),
    period=Option(0.25, kind="length", low=1),
    growth=Option(1.0, low=1),
    final=FINAL,
)
def cosine_restarts(span: Span, *, period: int, growth: float, final: float) -> Curve:
    """Fall along half a cosine to `final`, again and again: each period is `growth` (1 or more) times the one before.

    Source: Loshchilov & Hutter 2017, arXiv:1608.03983. PyTorch's CosineAnnealingWarmRestarts takes whole `T_mult` only.

    >>> [round(cosine_restarts(period=2, growth=2).factor(step), 3) for step in range(7)]
    [1.0, 0.5, 1.0, 0.854, 0.5, 0.146, 1.0]
    """

    def factor(p: float) -> float:
        return final + (1 - final) * (1 + math.cos(math.pi * p)) / 2

    if growth == 1:
        return lambda t: factor(t % period / period)

    def start(cycle: int) -> float:
        return period * (growth**cycle - 1) / (growth - 1)

    def curve(t: int) -> float:
        cycle = int(math.log(t / period * (growth - 1) + 1) / math.log(growth))
        # The logarithm may round across a restart.
        cycle += (start(cycle + 1) <= t) - (start(cycle) > t)
        return factor((t - start(cycle)) / (period * growth**cycle))

    return curve


@shape(
    lambda o: (
        f"times {o['factor']:g} whenever the validation metric has not "
        f"{'fallen' if o['mode'] == 'min' else 'risen'} for more than {o['patience']} validations,"
    ),
    factor=Option(0.1, high=1, exclusive=True),
    patience=Option(10, kind="integer"),
    threshold=Option(1e-4),
    threshold_mode=Option("rel", kind="choice", choices=("rel", "abs")),
    mode=Option("min", kind="choice", choices=("min", "max")),
    cooldown=Option(0, kind="integer"),
    minimum=Option(0.0, high=1),
)
def plateau(span: Span, **options: Any) -> Curve:
    """Multiply by `factor` after more than `patience` validations in a row without a new best, never below `minimum`.

    A new best is better than the old one by `threshold`, as a share of it or absolute. After a reduction `cooldown` validations
    are not counted. A metric that is not finite is never a best. As PyTorch's ReduceLROnPlateau, except that a share is of the
    best's magnitude (PyTorch's test is the wrong way round for negative metrics) and that `minimum` is relative to the peak.

    >>> schedule = plateau(patience=0, factor=0.5)
    >>> schedule.factor(7, schedule.observe(schedule.observe(schedule.initial_state(), 1.0), 1.0))
    0.5
    """
    return lambda t: 1.0  # the rate is lowered through the schedule's state: `schedule/plateau.py`
