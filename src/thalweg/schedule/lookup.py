"""Decay shapes by name: those of `shapes.py`, and a third party's by an entry point of the group `thalweg.shapes`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from thalweg.errors import ScheduleError
from thalweg.schedule import shapes
from thalweg.schedule.lengths import check_choice
from thalweg.schedule.shape import Shape

SHAPES: Mapping[str, Shape] = {name: value for name, value in vars(shapes).items() if isinstance(value, Shape)}
SEQUENCE = "sequence"
"""The `shape` of a `Schedule` that is made of other schedules; it has no curve of its own."""


def names() -> list[str]:
    """List the names of all shapes: ours, third parties' (without importing them), and "sequence"."""
    third_party = {point.name for point in entry_points(group="thalweg.shapes")}
    return [*SHAPES, *sorted(third_party - {*SHAPES}), SEQUENCE]


def check_name(name: Any) -> str:
    """Check the name of a schedule's shape. Raises ScheduleError, with the nearest name, for one that nobody offers."""
    known = [*SHAPES, SEQUENCE]
    return check_choice(name, known if name in known else names(), "shape of a schedule")


def get(name: str) -> Shape:
    """Look a shape up by its name; third parties' are looked for only where the name is none of ours.

    Raises ScheduleError, with the nearest name, for one that nobody offers.

    >>> get("linear").options["final"].default
    0.0
    """
    if name in SHAPES:
        return SHAPES[name]
    check_choice(name, names(), "shape of a schedule")
    return next(_checked(name, point.load()) for point in entry_points(group="thalweg.shapes") if point.name == name)


def _checked(name: str, loaded: object) -> Shape:
    if isinstance(loaded, Shape) and loaded.name == name:
        return loaded
    kind = f"the shape {loaded.name!r}" if isinstance(loaded, Shape) else f"a {type(loaded).__name__}"
    raise ScheduleError(
        f"The entry point {name!r} of group thalweg.shapes gives {kind}; it must give a function of its own name, decorated"
        " with @shape."
    )
