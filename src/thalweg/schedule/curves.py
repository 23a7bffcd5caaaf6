"""The curves: one function a shape, from what it is laid over to a function of the steps since the warm-up.

Everything is relative to the peak. To add a shape: its curve here, entered with `@shape`, and its face in the package.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from thalweg.errors import ScheduleError
from thalweg.schedule.lengths import Option, say

Curve = Callable[[int], float]

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


class Span(NamedTuple):
    """What a curve is laid over: steps from the warm-up's end to `total` (perhaps infinitely many), and the warm-up's."""

    shape: str
    length: float
    warmup: int

    def closed(self) -> float:
        """Give the length, where the shape cannot do without one."""
        if math.isinf(self.length):
            raise ScheduleError(
                f"How long this {self.shape} schedule lasts is open: give total=…, or the run's length with "
                "resolve(total_steps=…) or attach(optimizer, total_steps=…)."
            )
        return self.length


class Shape(NamedTuple):
    """A curve, how it is said, and what its options may be."""

    curve: Callable[..., Curve]
    words: Callable[[Mapping[str, Any]], str]
    options: Mapping[str, Option]


SHAPES: dict[str, Shape] = {}


def shape(
    words: Callable[[Mapping[str, Any]], str], **options: Option
) -> Callable[[Callable[..., Curve]], Callable[..., Curve]]:
    """Enter a curve under its name."""

    def enter(curve: Callable[..., Curve]) -> Callable[..., Curve]:
        SHAPES[curve.__name__] = Shape(curve, words, options)
        return curve

    return enter


def level(figure: float) -> str:
    """Say a height.

    >>> level(0.0), level(0.1)
    ('zero', '0.1 of the peak')
    """
    return "zero" if figure == 0 else f"{figure:g} of the peak"


def steps(length: int | float | str) -> str:
    """Say a length with its unit."""
    return f"{length:,} steps" if isinstance(length, int) else say(length)


@shape(lambda o: "constant")
def constant(span: Span) -> Curve:
    """1."""
    return lambda t: 1.0


@shape(lambda o: f"linear to {level(o['final'])}", final=FINAL)
def linear(span: Span, *, final: float) -> Curve:
    """1 - t/n, raised to `final`."""
    n = span.closed()
    return lambda t: final + (1 - final) * (1 - t / n)


@shape(lambda o: f"cosine to {level(o['final'])}", final=FINAL)
def cosine(span: Span, *, final: float) -> Curve:
    """(1 + cos(pi t/n)) / 2, raised to `final`."""
    n = span.closed()
    return lambda t: final + (1 - final) * (1 + math.cos(math.pi * t / n)) / 2


@shape(
    lambda o: f"polynomial of power {o['power']:g} to {level(o['final'])}",
    power=Option(2.0, strict=True),
    final=FINAL,
)
def polynomial(span: Span, *, power: float, final: float) -> Curve:
    """(1 - t/n) ** power, raised to `final`."""
    n = span.closed()
    return lambda t: final + (1 - final) * (1 - t / n) ** power


@shape(
    lambda o: f"exponential, times {o['gamma']:g} a step," if "gamma" in o else f"exponential to {level(o['final'])}",
    final=Option(0.01, high=1, strict=True, unless="gamma"),
    gamma=Option(high=1, strict=True),
)
def exponential(span: Span, *, final: float = 1.0, gamma: float | None = None) -> Curve:
    """final ** (t/n), or gamma ** t."""
    if gamma is not None:
        ratio = gamma
        return lambda t: ratio**t
    n = span.closed()
    return lambda t: final ** (t / n)


@shape(lambda o: "inverse square root", timescale=Option(kind="length", low=1))
def inverse_sqrt(span: Span, *, timescale: int = 0) -> Curve:
    """sqrt(timescale / (timescale + t)); the timescale is the warm-up unless given."""
    scale = timescale or span.warmup or 1
    return lambda t: math.sqrt(scale / (scale + t))


def _say_drops(o: Mapping[str, Any]) -> str:
    when = f"every {steps(o['every'])}" if "every" in o else f"at {', '.join(map(steps, o['milestones']))}"
    return f"constant but times {o['gamma']:g} {when},"


@shape(
    _say_drops,
    milestones=Option((0.5, 0.75), kind="lengths", low=1, unless="every"),
    every=Option(kind="length", low=1),
    gamma=Option(0.1, high=1, strict=True),
)
def step(span: Span, *, milestones: tuple[int, ...] = (), every: int = 0, gamma: float) -> Curve:
    """gamma ** (drops so far)."""
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
        f"to {level(o['final'])} in the last {steps(o['decay'])},"
    ),
    decay=Option(0.2, kind="length", low=1),
    decay_shape=Option("sqrt", kind="word", words=tuple(DECAYS)),
    final=FINAL,
)
def wsd(span: Span, *, decay: int, decay_shape: str, final: float) -> Curve:
    """1, then final + (1 - final) * decay((t - stable) / (n - stable))."""
    stable = span.closed() - decay
    fall = DECAYS[decay_shape]
    if stable < 0:
        raise ScheduleError(
            f"The decay of {decay} steps is longer than the {span.length:g} steps after the warm-up: shorten `decay`."
        )
    return lambda t: 1.0 if t <= stable else final + (1 - final) * fall((t - stable) / decay)


@shape(
    lambda o: f"one cycle, up from {level(o['start'])} for {steps(o['rise'])} and down to {level(o['final'])},",
    rise=Option(0.3, kind="length", low=1),
    start=Option(0.04, high=1),
    final=Option(4e-6, high=1),
)
def one_cycle(span: Span, *, rise: int, start: float, final: float) -> Curve:
    """Half a cosine up to the last step of the rise, half a cosine down to the last step of all."""
    top, last = rise - 1, span.closed() - 1
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
        f"cosine to {level(o['final'])} restarted every {steps(o['period'])}"
        + f" (each {o['growth']:g} times as long)" * (o["growth"] != 1)
    ),
    period=Option(0.25, kind="length", low=1),
    growth=Option(1.0, low=1),
    final=FINAL,
)
def cosine_restarts(span: Span, *, period: int, growth: float, final: float) -> Curve:
    """Cosines one after the other, each `growth` times as long as the one before."""

    def height(p: float) -> float:
        return final + (1 - final) * (1 + math.cos(math.pi * p)) / 2

    if growth == 1:
        return lambda t: height(t % period / period)

    def begins(cycle: int) -> float:
        return period * (growth**cycle - 1) / (growth - 1)

    def curve(t: int) -> float:
        cycle = int(math.log(t / period * (growth - 1) + 1) / math.log(growth))
        # The logarithm may round across a restart.
        cycle += (begins(cycle + 1) <= t) - (begins(cycle) > t)
        return height((t - begins(cycle)) / (period * growth**cycle))

    return curve


@shape(
    lambda o: (
        f"times {o['factor']:g} whenever the validation figure has not "
        f"{'fallen' if o['mode'] == 'min' else 'risen'} for more than {o['patience']} validations,"
    ),
    factor=Option(0.1, high=1, strict=True),
    patience=Option(10, kind="count"),
    threshold=Option(1e-4),
    threshold_mode=Option("rel", kind="word", words=("rel", "abs")),
    mode=Option("min", kind="word", words=("min", "max")),
    cooldown=Option(0, kind="count"),
    minimum=Option(0.0, high=1),
)
def plateau(span: Span, **options: Any) -> Curve:
    """1: what lowers it is in its state."""
    return lambda t: 1.0


@shape(lambda o: "")
def sequence(span: Span) -> Curve:
    """Made of its parts: see `record`."""
    raise ScheduleError("A sequence has no curve of its own.")
