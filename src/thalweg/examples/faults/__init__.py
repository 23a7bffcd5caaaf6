"""Small training programs with a known fault, each with its healthy twin, and healthy ones that look faulty.

They are made by construction: a source of data, a network, a rule, a fault, its strength and a seed give one program, which is
the same for `tw.train` (`task()`, `plan()`) and for a loop of one's own (`loop()`). `programs` gives those whose fault does harm:
whose final loss is above the twin's by more than twice the spread over seeds, as `bench/watch` measured it (`gaps`).

The programs of the two halves, "development" and "held out", share neither a source of data nor a network: thresholds are set on
the one, figures quoted from the other.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from thalweg.errors import ArgumentError, nearest
from thalweg.examples.faults.planting import FAULTS, planted_programs
from thalweg.examples.faults.program import Batch, Half, Loop, Program, Recipe
from thalweg.examples.faults.traps import TRAPS, healthy_programs

__all__ = [
    "FAULTS",
    "TRAPS",
    "Batch",
    "Half",
    "Loop",
    "Program",
    "Recipe",
    "candidates",
    "find",
    "gaps",
    "programs",
]


@cache
def candidates() -> tuple[Program, ...]:
    """Give all programs with a fault, also those whose fault does no harm."""
    return tuple(planted_programs())


@cache
def gaps() -> dict[str, dict[str, float | None]]:
    """Give what was measured of each candidate with the watch off: the median final losses of it ("loss") and of its twin
    ("twin") over so many "seeds", None where they are not finite, and the larger of their spreads ("spread": the standard
    deviation; of one seed alone, a tenth of the twin's loss)."""
    return json.loads(Path(__file__).with_name("gaps.json").read_text("utf-8"))


def does_harm(gap: dict[str, float | None]) -> bool:
    """Tell whether a fault's final loss is above the twin's by more than twice the spread."""
    loss, twin, spread = gap["loss"], gap["twin"], gap["spread"]
    if twin is None:
        return False
    return loss is None or (spread is not None and loss - twin > 2 * spread)


@cache
def programs(half: Half | None = None) -> tuple[Program, ...]:
    """Give the suite: faulty programs whose fault does harm, then healthy ones.

    Arguments:
        half: "development" or "held out"; None: both.
    """
    measured = gaps()
    kept = [each for each in candidates() if each.name in measured and does_harm(measured[each.name])]
    return tuple(each for each in (*kept, *healthy_programs()) if half is None or each.half == half)


def find(name: str) -> Program:
    """Give a program by its name. Raises ArgumentError for one that does not exist, with the nearest name."""
    known = {each.name: each for each in (*candidates(), *healthy_programs())}
    if name not in known:
        raise ArgumentError(f"There is no program '{name}'.{nearest(name, known)}")
    return known[name]
