"""Lengths and options as people give them: checked, and turned into steps once it is known how long the run is."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from thalweg.errors import ScheduleError, nearest, shown

Length = int | float | str


class Option(NamedTuple):
    """What an option of a shape may be.

    - `default`: taken where the option is not given; None: it is left out then.
    - `kind`: a number, a whole number, a length (such as 200, "3 epochs" or 0.05), several lengths, or one of `choices`.
    - `low`, `high`: bounds of numbers; the least of whole numbers and lengths. They are allowed themselves unless `exclusive`.
    - `unless`: another option that replaces this one: both at once are refused, and with the other this has no default.
    """

    default: Any = None
    kind: Literal["number", "integer", "length", "lengths", "choice"] = "number"
    low: float = 0
    high: float = math.inf
    exclusive: bool = False
    choices: tuple[str, ...] = ()
    unless: str = ""


class StepCounts(NamedTuple):
    """How many steps the whole has, of which shares are taken, and how many an epoch has; None where that is not known."""

    whole: int | None
    epoch: int | None

    def to_steps(self, length: Length, name: str, least: int = 0) -> int:
        """Turn a checked length into steps, the nearest whole number, at least `least`.

        Raises ScheduleError where what it is a share or a multiple of is not known.

        >>> StepCounts(whole=1000, epoch=50).to_steps("3 epochs", "`warmup`")
        150
        """
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


def check_choice(word: Any, choices: Iterable[str], what: str) -> str:
    """Check that a word is one of the choices; `what` says what they are. Raises ScheduleError with the nearest of them."""
    known = list(choices)
    if not isinstance(word, str) or word not in known:
        raise ScheduleError(
            f"{word!r} is no {what}.{nearest(word, known) if isinstance(word, str) else ''} Give one of {', '.join(known)}."
        )
    return str(word)  # a plain str: TOML documents have a kind of their own


def check_number(value: Any, name: str, option: Option) -> float:
    """Check that a value is a finite number within the option's bounds, and give it as a float."""
    try:
        number = math.nan if isinstance(value, str | bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    inside = option.low < number < option.high if option.exclusive else option.low <= number <= option.high
    if not inside or math.isinf(number):
        raise ScheduleError(f"{name} is {shown(value)}, but it must be a number {_bounds(option)}.")
    return number


def _bounds(option: Option) -> str:
    if math.isinf(option.high):
        return f"above {option.low:g}" if option.exclusive else f"of at least {option.low:g}"
    return f"between {option.low:g} and {option.high:g}" + (", neither of them" if option.exclusive else "")


def check_integer(value: Any, name: str, option: Option) -> int:
    """Check that a value is a whole number within the option's bounds, and give it as an int."""
    number = check_number(value, name, option)
    if not number.is_integer():
        raise ScheduleError(f"{name} is {shown(value)}, but it must be a whole number {_bounds(option)}.")
    return int(number)


_NUMBER_AND_UNIT = re.compile(r"\s*(\d*\.?\d+(?:e[+-]?\d+)?)\s*(steps?|epochs?|%)\s*", re.IGNORECASE | re.ASCII)


def check_length(value: Any, name: str, least: int = 0) -> Length:
    """Check a length: an int of steps, a float share between 0 and 1, or "N epochs" (also "N steps" and "N %").

    >>> check_length("5 %", "warmup"), check_length("3 Epochs", "total"), check_length(2e3, "total")
    (0.05, '3 epochs', 2000)
    """
    advice = f'{name} is {shown(value)}: give steps such as 2000, epochs such as "3 epochs", or a share between 0 and 1'
    if isinstance(value, str):
        return _length_from_text(value, name, least, advice)
    if isinstance(value, bool):
        raise ScheduleError(f"{advice}.")
    try:
        return _steps(operator.index(value), least, advice)
    except TypeError:
        return _length_from_float(value, least, advice)


def _length_from_text(text: str, name: str, least: int, advice: str) -> Length:
    match = _NUMBER_AND_UNIT.fullmatch(text)
    if not match:
        raise ScheduleError(f"{advice}.")
    number, unit = float(match[1]), match[2].lower()
    if not unit.startswith("epoch"):
        return check_length(number / 100 if unit == "%" else check_integer(number, name, Option()), name, least)
    if number == 0 or math.isinf(number):
        raise ScheduleError(f"{advice}.")
    return f"{int(number) if number.is_integer() else number} epoch{'s' * (number != 1)}"


def _length_from_float(value: Any, least: int, advice: str) -> Length:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise ScheduleError(f"{advice}.") from None
    if 0 < number < 1:
        return number
    if number == 1:
        raise ScheduleError(f"{advice}. 1.0 might be one step or the whole: give 1, or leave it out for the whole run.")
    if not number.is_integer():  # neither are nan and the infinities
        raise ScheduleError(f"{advice}.")
    return _steps(int(number), least, advice)


def _steps(steps: int, least: int, advice: str) -> int:
    if steps < least:
        raise ScheduleError(f"{advice}; at least {least}.")
    return steps


def check_option(value: Any, name: str, option: Option) -> Any:
    """Check the value of a shape's option, and give it as an int, float, str or tuple of lengths."""
    if option.kind == "choice":
        return check_choice(value, option.choices, f"value for {name}")
    if option.kind == "length":
        return check_length(value, name, least=int(option.low))
    if option.kind == "lengths":
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise ScheduleError(f"{name} is {shown(value)}, but it must be a list of lengths, such as [0.5, 0.75].")
        return tuple(check_length(item, name, least=int(option.low)) for item in value)
    return (check_integer if option.kind == "integer" else check_number)(value, name, option)


def length_in_words(length: Length) -> str:
    """Say a length.

    >>> length_in_words(0.05), length_in_words(200), length_in_words("3 epochs")
    ('5 %', '200', '3 epochs')
    """
    return f"{100 * length:g} %" if isinstance(length, float) else str(length)
