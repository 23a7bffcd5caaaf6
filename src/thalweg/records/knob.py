"""A knob of a plan is described once, at its field: the checks, the help and the words in a report come from there.

    clip_norm: float | None = setting(None, Knob("longest gradient that is let through", above=0))

The annotation says the rest: the type, whether None is allowed, and the choices of a `Literal`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from functools import cache
from textwrap import wrap
from types import NoneType, UnionType
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from thalweg.errors import PlanError, nearest, shown

LARGEST_INTEGER = 2**63 - 1  # of TOML and SQLite


@dataclass(frozen=True)
class Knob:
    """The description of one knob.

    Arguments:
        meaning: what it does, in one line.
        detail: further sentences for the documentation.
        unit: what its number counts or measures, such as "steps".
        above, least, most, below: its range; `above` and `below` themselves are excluded.
        out_of_range: what to say of a value outside the range, instead of the sentence made from the limits.
        unset: how None reads, and a default that depends on other knobs.
        zero: how zero reads, where it switches something off.
        empty: how an empty table reads.
        label: its name for people; default: the field's name with spaces.
        shown: "main": always; "chosen": where the user or a rule chose it; "report": likewise, but only in the report;
            "note": derived from the data, so no choice and never among the chosen.
        rank: its position among the main ones.

    The rest is read from the field by `knobs`: its name, default, type, whether it may be None, and its choices.
    """

    meaning: str
    detail: str = ""
    unit: str = ""
    above: float | None = None
    least: float | None = None
    most: int | None = None
    below: float | None = None
    out_of_range: str = ""
    unset: str = "off"
    zero: str = ""
    empty: str = ""
    label: str = ""
    shown: Literal["main", "chosen", "report", "note"] = "chosen"
    rank: int = 0

    name: str = ""
    default: Any = None
    kind: Any = object
    optional: bool = False
    choices: tuple[str, ...] = ()

    def range(self) -> str:
        """Say which values it takes.

        >>> Knob("examples", least=1, kind=int).range(), Knob("average", above=0, below=1, kind=float).range()
        ('whole number, at least 1', 'number between 0 and 1')
        >>> Knob("precision", choices=("float32", "bfloat16", "float16")).range()
        'float32, bfloat16 or float16'
        """
        if self.choices:
            return f"{', '.join(self.choices[:-1])} or {self.choices[-1]}"
        kind = self.unit or {int: "whole number", float: "number", bool: "true or false"}.get(self.kind, "")
        if self.above is not None:
            limit = (
                f" between {self.above:g} and {self.below:g}" if self.below is not None else f" above {self.above:g}"
            )
        else:
            limit = f", at least {self.least:g}" if self.least is not None else ""
        return f"{kind}{limit}" + (f", at most {self.most:,}" if self.most not in (None, LARGEST_INTEGER) else "")


def setting(default: Any, knob: Knob) -> Any:
    """Give a dataclass field with its description; a default that can be called makes a fresh value each time."""
    if callable(default):
        return field(default_factory=default, metadata={"knob": knob})
    return field(default=default, metadata={"knob": knob})


@cache
def knobs(record: type[Any]) -> dict[str, Knob]:
    """Give the knobs of a record by name; fields without a description are none."""
    hints = get_type_hints(record)
    described = [f for f in fields(record) if "knob" in f.metadata]
    return {f.name: _completed(f, hints[f.name]) for f in described}


def _completed(described: Field[Any], hint: Any) -> Knob:
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return replace(
        described.metadata["knob"],
        name=described.name,
        default=default_of(described),
        kind=kinds[0],
        optional=NoneType in kinds,
        choices=get_args(kinds[0]) if get_origin(kinds[0]) is Literal else (),
    )


def default_of(described: Field[Any]) -> Any:
    """Give a field's default, made anew where a function makes it."""
    return described.default if described.default_factory is MISSING else described.default_factory()


def reference(record: type[Any], width: int = 120) -> str:
    """Give the knobs as the entries of an "Arguments:" section, indented as there."""
    lines: list[str] = []
    for knob in knobs(record).values():
        limits = ", or None" * knob.optional
        limits = f" ({knob.range()}{limits})" if knob.range() else ""
        text = f"{knob.name}: {knob.meaning}{limits}.{f' {knob.detail}' if knob.detail else ''}"
        lines += wrap(text, width, initial_indent=" " * 8, subsequent_indent=" " * 12, break_long_words=False)
    return "\n".join(lines)


def convert_types(record: Any) -> None:
    """Turn NumPy's and torch's scalars into Python's.

    Raises PlanError for None where a value is needed and for a value of another type.
    """
    for name, knob in knobs(type(record)).items():
        value = getattr(record, name)
        if value is None and not knob.optional:
            raise PlanError(f"`{name}` is None, but it needs a value. Leave it out for the default.")
    for name, knob in knobs(type(record)).items():
        value = getattr(record, name)
        if value is not None and knob.kind in (int, float, bool):
            object.__setattr__(record, name, _converted(name, value, knob.kind))


def _converted(name: str, value: Any, kind: Any) -> Any:
    if kind is bool:
        flag = builtin_value(value, name)
        if not isinstance(flag, bool):
            raise PlanError(f"`{name}` is {flag!r}, but it is true or false.")
        return flag
    try:
        if isinstance(value, bool | str):
            raise TypeError
        return _whole_number(value) if kind is int else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # RuntimeError: of a tensor without values
        wanted = "a whole number" if kind is int else "a number"
        raise PlanError(f"`{name}` is {shown(value)}, but it is {wanted}.") from error


def _whole_number(value: Any) -> int:
    return operator.index(cast(Any, int(value) if isinstance(value, float) and value.is_integer() else value))


def check_ranges(record: Any) -> None:
    """Raise PlanError, naming the knob, for a value outside its range or that is none of its choices."""
    for name, knob in knobs(type(record)).items():
        value = getattr(record, name)
        if knob.choices and value not in knob.choices:
            near = nearest(shown(value), knob.choices)
            raise PlanError(f"`{name}` is {shown(value)}, which is none of {list(knob.choices)}.{near}")
        if value is not None and (wrong := _out_of_range(value, knob)):
            raise PlanError(f"`{name}` is {shown(value)}, but {knob.out_of_range or wrong}.")


def _out_of_range(value: Any, knob: Knob) -> str:
    """Say what a value must be that is outside its range; nothing for one within."""
    if knob.above is not None and not (math.isfinite(value) and value > knob.above):
        return f"it must be above {knob.above or 'zero'} and finite"
    if knob.least is not None and not (value >= knob.least and (isinstance(value, int) or math.isfinite(value))):
        return f"it must be at least {knob.least} and finite"
    if knob.below is not None and not value < knob.below:
        return f"it must be below {knob.below}"
    if knob.most is not None and value > knob.most:
        return f"it is at most {knob.most:,}"
    return ""


def builtin_value(value: Any, name: str) -> Any:
    """Turn a value into built-in numbers, strings, lists and dicts, as TOML has them. Raises PlanError for anything else.

    >>> import numpy as np
    >>> builtin_value({"rates": np.array([0.5, 1.0])}, "figures")
    {'rates': [0.5, 1.0]}
    """
    if isinstance(value, Mapping):
        return {builtin_value(str(key), name): builtin_value(part, name) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [builtin_value(part, name) for part in value]
    if not isinstance(value, bool | int | float | str) and hasattr(value, "tolist"):
        try:
            listed = value.tolist()  # NumPy's and torch's numbers and arrays
        except RuntimeError as error:
            raise PlanError(f"`{name}` is a tensor without values. Give numbers.") from error
        return builtin_value(listed, name)
    if isinstance(value, str):
        return _utf8_text(value, name)
    for kind in (bool, int, float):
        if isinstance(value, kind):
            return kind(value)
    raise PlanError(f"`{name}` is a {type(value).__name__}. Give numbers, texts, or lists and tables of them.")


def _utf8_text(text: str, name: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair
        raise PlanError(
            f"`{name}` is {text!r:.80}, which has characters that no file takes. Give another text."
        ) from error
    return str(text)
