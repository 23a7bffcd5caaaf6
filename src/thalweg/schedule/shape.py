"""What a decay shape is: a function that makes a curve, what its options may be, and how it is put into words.

`@shape` turns such a function into a `Shape`, a frozen value from which the record checks its options, `tools/tables.py` writes
the public constructor, and `thalweg.testing.check_shape` runs the contract.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from thalweg.errors import ScheduleError
from thalweg.schedule.lengths import Option, length_in_words

Curve = Callable[[int], float]
"""From the number of steps since the warm-up to the factor on the peak rate."""

Describe = Callable[[Mapping[str, Any]], str]
"""From a schedule's options to what it does, in words."""


class Span(NamedTuple):
    """The steps that a curve covers: from the warm-up's end to the schedule's.

    - `shape`: the shape's name, for messages.
    - `length`: number of these steps; infinite where the schedule has no end yet.
    - `warmup`: number of steps of the warm-up before them.
    """

    shape: str
    length: float
    warmup: int

    def finite_length(self) -> float:
        """Give the length to a shape that cannot do without one. Raises ScheduleError where it is still open."""
        if math.isinf(self.length):
            raise ScheduleError(
                f"How long this {self.shape} schedule lasts is open: give total=…, or the run's length with "
                "resolve(total_steps=…) or attach(optimizer, total_steps=…)."
            )
        return self.length


@dataclass(frozen=True)
class Shape:
    """A decay shape.

    - `name`: as plans and `Schedule` have it: the function's.
    - `curve(span, **options)` makes the curve. Lengths among the options are given to it in steps; an option without a value is
      not given to it.
    - `describe(options)`: what it does in words, to be followed by "over 2,000 steps".
    - `options`: name to what the option may be and its default.
    - `help`: the docstring, which becomes the public constructor's.
    """

    name: str
    curve: Callable[..., Curve]
    describe: Describe
    options: Mapping[str, Option]
    help: str


def shape(describe: Describe | str, **options: Option) -> Callable[[Callable[..., Curve]], Shape]:
    """Turn a function that makes a curve into a `Shape` of the function's name.

    Arguments:
        describe: what the shape does in words, or a function that gives them for a schedule's options.
        options: what each keyword argument of the function may be.

    Raises ScheduleError where the function's keyword arguments are not the options.

    >>> @shape(lambda o: f"halved every {o['every']} steps", every=Option(10, kind="integer", low=1))
    ... def halving(span, *, every):
    ...     '''Halve every so many steps.'''
    ...     return lambda t: 0.5 ** (t // every)
    >>> halving.name, halving.curve(Span("halving", 100, 0), every=10)(25)
    ('halving', 0.25)
    """

    def words(given: Mapping[str, Any]) -> str:
        return describe if isinstance(describe, str) else describe(given)

    def decorate(curve: Callable[..., Curve]) -> Shape:
        _check_signature(curve, options)
        return Shape(curve.__name__, curve, words, options, inspect.cleandoc(curve.__doc__ or ""))

    return decorate


def _check_signature(curve: Callable[..., Curve], options: Mapping[str, Option]) -> None:
    parameters = inspect.signature(curve).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    taken = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    if taken != {*options}:
        raise ScheduleError(
            f"The shape {curve.__name__} takes the options {sorted(taken)}, but @shape describes {sorted(options)}: "
            "give each keyword argument its Option."
        )


def of_peak(factor: float) -> str:
    """Say a factor on the peak rate.

    >>> of_peak(0.0), of_peak(0.1)
    ('zero', '0.1 of the peak')
    """
    return "zero" if factor == 0 else f"{factor:g} of the peak"


def with_unit(length: int | float | str) -> str:
    """Say a length with its unit.

    >>> with_unit(2000), with_unit(0.05)
    ('2,000 steps', '5 %')
    """
    return f"{length:,} steps" if isinstance(length, int) else length_in_words(length)
