"""Lengths and options as people give them: checked, and turned into steps once it is known how long the run is."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from thalweg.errors import ScheduleError, nearest

Length = int | float | str


class Option(NamedTuple):
    """What an option may be; `strict` shuts its bounds out; a default of None, or `unless` the other is given, leaves it out."""

    default: Any = None
    kind: Literal["number", "count", "length", "lengths", "word"] = "number"
    low: float = 0
    high: float = math.inf
    strict: bool = False
    words: tuple[str, ...] = ()
    unless: str = ""


class Clock(NamedTuple):
    """What is known for turning lengths into steps: those of the whole, and those of an epoch."""

    whole: int | None
    epoch: int | None

    def steps(self, length: Length, name: str, least: int = 0) -> int:
        """Turn a checked length into steps, the nearest whole number, at least `least`."""
        if isinstance(length, int):
            return length
        if isinstance(length, float):
            if self.whole is None:
                raise ScheduleError(
                    f"{name} is the share {length:g} of a length that is open: give total_steps=…, or a total."
                )
            return max(round(length * self.whole), least)
        if self.epoch is None:
            raise ScheduleError(
                f'{name} is "{length}", but how many steps an epoch has is not known: give steps_per_epoch=….'
            )
        return max(round(float(length.split()[0]) * self.epoch), least)


def one_of(word: Any, choices: Iterable[str], what: str) -> str:
    """Check a word, with the nearest one in the message."""
    known = list(choices)
    if not isinstance(word, str) or word not in known:
        raise ScheduleError(
            f"{word!r} is no {what}.{nearest(word, known) if isinstance(word, str) else ''} Give one of {', '.join(known)}."
        )
    return str(word)


def number(value: Any, name: str, option: Option) -> float:
    """Check a number against an option's bounds."""
    try:
        figure = math.nan if isinstance(value, str | bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        figure = math.nan
    inside = option.low < figure < option.high if option.strict else option.low <= figure <= option.high
    if not inside or math.isinf(figure):
        raise ScheduleError(f"{name} is {value!r}, but it must be a number {_bounds(option)}.")
    return figure


def _bounds(option: Option) -> str:
    if math.isinf(option.high):
        return f"above {option.low:g}" if option.strict else f"of at least {option.low:g}"
    return f"between {option.low:g} and {option.high:g}" + (", neither of them" if option.strict else "")


def count(value: Any, name: str, option: Option) -> int:
    """Check a whole number against an option's bounds."""
    figure = number(value, name, option)
    if not figure.is_integer():
        raise ScheduleError(f"{name} is {value!r}, but it must be a whole number {_bounds(option)}.")
    return int(figure)


_WORDS = re.compile(r"\s*(\d*\.?\d+(?:e[+-]?\d+)?)\s*(steps?|epochs?|%)\s*", re.IGNORECASE | re.ASCII)


def length(value: Any, name: str, least: int = 0) -> Length:
    """Check a length: an int of steps, a float share between 0 and 1, or "N epochs" (also "N steps" and "N %").

    >>> length("5 %", "warmup"), length("3 Epochs", "total"), length(2e3, "total")
    (0.05, '3 epochs', 2000)
    """
    advice = f'{name} is {value!r}: give steps such as 2000, epochs such as "3 epochs", or a share between 0 and 1'
    if isinstance(value, str):
        return _length_in_words(value, name, least, advice)
    if isinstance(value, bool):
        raise ScheduleError(f"{advice}.")
    try:
        return _steps(operator.index(value), least, advice)
    except TypeError:
        return _length_from_float(value, least, advice)


def _length_in_words(text: str, name: str, least: int, advice: str) -> Length:
    match = _WORDS.fullmatch(text)
    if not match:
        raise ScheduleError(f"{advice}.")
    figure, unit = float(match[1]), match[2].lower()
    if not unit.startswith("epoch"):
        return length(figure / 100 if unit == "%" else count(figure, name, Option()), name, least)
    if figure == 0 or math.isinf(figure):
        raise ScheduleError(f"{advice}.")
    return f"{int(figure) if figure.is_integer() else figure} epoch{'s' * (figure != 1)}"


def _length_from_float(value: Any, least: int, advice: str) -> Length:
    try:
        figure = float(value)
    except (TypeError, ValueError):
        raise ScheduleError(f"{advice}.") from None
    if 0 < figure < 1:
        return figure
    if figure == 1:
        raise ScheduleError(f"{advice}. 1.0 might be one step or the whole: give 1, or leave it out for the whole run.")
    if not figure.is_integer():  # nan and the infinities are none either
        raise ScheduleError(f"{advice}.")
    return _steps(int(figure), least, advice)


def _steps(steps: int, least: int, advice: str) -> int:
    if steps < least:
        raise ScheduleError(f"{advice}; at least {least}.")
    return steps


def option(value: Any, name: str, spec: Option) -> Any:
    """Check one option's value and give it as a plain one."""
    if spec.kind == "word":
        return one_of(value, spec.words, f"value for {name}")
    if spec.kind == "length":
        return length(value, name, least=int(spec.low))
    if spec.kind == "lengths":
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise ScheduleError(f"{name} is {value!r}, but it must be a list of lengths, such as [0.5, 0.75].")
        return tuple(length(item, name, least=int(spec.low)) for item in value)
    return (count if spec.kind == "count" else number)(value, name, spec)


def say(length: Length) -> str:
    """Say a length in words.

    >>> say(0.05), say(200), say("3 epochs")
    ('5 %', '200', '3 epochs')
    """
    return f"{100 * length:g} %" if isinstance(length, float) else str(length)
