"""Several runs beside each other on one loss surface: their ends, the ways between them, and their paths in one plane."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thalweg.errors import RunError
from thalweg.formatting import format_count
from thalweg.records import sealed_json
from thalweg.records.kinds import anything, check, count, flag, listing, number, table, text
from thalweg.records.paths import as_path
from thalweg.records.survey import Array, Course, Slice

SAME_BASIN = 0.05  # of the higher end's loss: a barrier that is lower hardly shows
STRAIGHT, MATCHED, CURVED = "straight", "matched", "curved"


@dataclass(frozen=True)
class Way:
    """The losses on a way from one run's end to another's.

    Attributes:
        first, second: numbers of the runs.
        kind: "straight" between the weights as they are, "matched" where the second's hidden units are first brought into the
            order that is nearest to the first's, or "curved" along a curve that was trained to be low.
        height: how far the loss rises above that of the higher end; 0 where it rises nowhere,
            infinite where the loss is no number.
        length: in the space of weights.
        shares: of the way, from 0 to 1, ascending, at which losses were measured.
        losses: there; infinite where the loss is no number.
    """

    first: int
    second: int
    kind: str
    height: float
    length: float
    shares: Array
    losses: Array

    def to_dict(self) -> dict[str, Any]:
        """Give it as values of JSON."""
        entries = {name: getattr(self, name) for name in ("first", "second", "kind", "height", "length")}
        return {**entries, "shares": self.shares.tolist(), "losses": self.losses.tolist()}

    @staticmethod
    def from_dict(entries: Mapping[str, Any]) -> Way:
        """Read what `to_dict` gave. Raises ValueError, TypeError or KeyError for anything else."""
        check(entries, WAY, tuple(WAY))
        known = {name: entries[name] for name in WAY}
        shares, losses = (np.array(known.pop(name), np.float64) for name in ("shares", "losses"))
        if shares.shape != losses.shape or not len(shares):
            raise ValueError(f"a way has {len(shares)} points and {len(losses)} losses")
        return Way(**known, shares=shares, losses=losses)


WAY: Mapping[str, Any] = {
    "first": count,
    "second": count,
    "kind": text,
    "height": number,
    "length": number,
    "shares": listing(number),
    "losses": listing(number),
}


@dataclass(frozen=True)
class Comparison:
    """Where several runs ended, and what lies between.

    All losses are training losses, without weight decay, in evaluation mode, over the same examples.

    Attributes:
        names: of the runs.
        losses: at their ends.
        sharpness: the largest eigenvalue of the Hessian there.
        distances: between their ends, by pairs.
        barriers: how far the loss rises above that of the higher end, on the straight way between their weights, by pairs; 0
            where it does nowhere, infinite where the loss is no number.
        slices: the loss over the plane of all paths, and over planes through two ends and the bend of the curve between them.
        examples: how many were looked at.
        notes: sentences on what is to be known of it.
        ways: the losses on the ways between two ends, of each kind that was looked at.
        matched_units: how many hidden units may change their order.
        courses: how sharp it was at some points of each run, and the learning rate there.
        left: the weights of hidden units that were left as they are, as they could not be matched.
        complete: whether all that was asked for was measured.
    """

    names: tuple[str, ...]
    losses: tuple[float, ...]
    sharpness: tuple[float, ...]
    distances: tuple[tuple[float, ...], ...]
    barriers: tuple[tuple[float, ...], ...]
    slices: tuple[Slice, ...] = ()
    examples: int = 0
    notes: tuple[str, ...] = ()
    ways: tuple[Way, ...] = ()
    matched_units: int = 0
    left: tuple[str, ...] = ()
    complete: bool = True
    courses: tuple[Course, ...] = ()

    def same_basin(self, first: int, second: int) -> bool:
        """Tell whether two runs ended in one basin: no barrier worth a twentieth of the higher end's loss lies between them."""
        return self._is_low(self.barriers[first][second], first, second)

    def way(self, first: int, second: int, kind: str) -> Way | None:
        """Give the way of a kind between two runs, in either order; None where it was not looked at."""
        pair = {first, second}
        return next((way for way in self.ways if {way.first, way.second} == pair and way.kind == kind), None)

    def connection(self, first: int, second: int) -> str:
        """Say how the ends of two runs are connected: "one basin", "one basin after matching", "one valley that bends", or
        "apart", as far as was looked; empty where it was not."""
        if math.isnan(self.barriers[first][second]):
            return ""
        if self.same_basin(first, second):
            return "one basin"
        for kind, what in ((MATCHED, "one basin after matching"), (CURVED, "one valley that bends")):
            way = self.way(first, second, kind)
            if way is not None and self._is_low(way.height, first, second):
                return what
        return "apart"

    def _is_low(self, height: float, first: int, second: int) -> bool:
        return height <= SAME_BASIN * max(self.losses[first], self.losses[second])

    def __str__(self) -> str:
        """Say in some lines what was found."""
        width = max(len(name) for name in self.names)
        lines = [
            f"{name:{width}}  loss {loss:.4g}, largest curvature {sharpness:.3g}"
            for name, loss, sharpness in zip(self.names, self.losses, self.sharpness, strict=True)
        ]
        for one in range(len(self.names)):
            for other in range(one + 1, len(self.names)):
                if self.way(one, other, STRAIGHT) is not None:
                    lines.append(f"{self.names[one]} and {self.names[other]}: {self.described(one, other)}")
        if all(map(math.isfinite, self.sharpness)):
            flattest = min(range(len(self.names)), key=lambda number: self.sharpness[number])
            lines.append(f"flattest: {self.names[flattest]}")
        return "\n".join([*lines, *self.notes])

    def described(self, first: int, second: int) -> str:
        """Say how the ends of two runs are connected, with the heights by which it was told."""
        what = self.connection(first, second)
        heights = [self._height(way) for kind in WORDS if (way := self.way(first, second, kind)) is not None]
        return f"{'apart, as far as was looked' if what == 'apart' else what}: {', '.join(heights)}"

    def _height(self, way: Way) -> str:
        if not math.isfinite(way.height):
            height = "the loss is no number"
        elif self._is_low(way.height, way.first, way.second):
            hardly = SAME_BASIN / 50 * max(self.losses[way.first], self.losses[way.second])
            height = "no barrier" if way.height <= hardly else f"no barrier ({way.height:.2g})"
        else:
            height = f"a barrier of {way.height:.3g}"
        words = WORDS[way.kind]
        if way.kind == MATCHED:
            words = f"after matching {format_count(self.matched_units, 'hidden unit')}"
        return f"{height} {words} ({way.length:.3g} long)"

    def to_json(self) -> str:
        """Give it as JSON, with its own sum at the end; see docs/survey.md."""
        entries: dict[str, Any] = {name: getattr(self, name) for name in ("names", "losses", "sharpness", "notes")}
        entries = {name: list(value) for name, value in entries.items()}
        for name in ("distances", "barriers"):
            entries[name] = [list(row) for row in getattr(self, name)]
        return sealed_json.dump(
            {
                "format": 2,
                **entries,
                "examples": self.examples,
                "matched_units": self.matched_units,
                "left": list(self.left),
                "complete": self.complete,
                "ways": [{**way.to_dict(), "connection": self.connection(way.first, way.second)} for way in self.ways],
                "courses": [course.to_dict() for course in self.courses],
                "slices": [s.to_dict() for s in self.slices],
            }
        )

    @staticmethod
    def from_json(written: str) -> Comparison:
        """Read what `to_json` gave. Raises ValueError, TypeError or KeyError for anything else."""
        entries = sealed_json.load(written)
        check(entries, KINDS, tuple(KINDS))
        if entries["format"] != 2:
            raise ValueError("it is of another version")
        ways = tuple(Way.from_dict(each) for each in entries["ways"])
        if any(max(way.first, way.second) >= len(entries["names"]) for way in ways):
            raise ValueError("a way leads to a run that is not there")
        return Comparison(
            tuple(entries["names"]),
            tuple(entries["losses"]),
            tuple(entries["sharpness"]),
            tuple(tuple(row) for row in entries["distances"]),
            tuple(tuple(row) for row in entries["barriers"]),
            tuple(Slice.from_dict(each) for each in entries["slices"]),
            entries["examples"],
            tuple(entries["notes"]),
            ways,
            entries["matched_units"],
            tuple(entries["left"]),
            entries["complete"],
            tuple(Course.from_dict(each) for each in entries["courses"]),
        )

    def figure(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw it as a matplotlib `Figure`, as `Survey.figure` does."""
        return importlib.import_module("thalweg.see.survey_figure").draw_comparison(self, path)

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Write it as one self-contained HTML page, with its pictures, and give the path.

        Raises RunError where the disk refuses, or another kind of file is there.
        """
        target = as_path(path, "the file of the page", "compared.html", RunError)
        return importlib.import_module("thalweg.see.comparison_page").write(self, target)


WORDS = {STRAIGHT: "on the straight way", MATCHED: "after matching", CURVED: "along a curve"}
KINDS: Mapping[str, Any] = {
    "format": count,
    "names": listing(text),
    "losses": listing(number),
    "sharpness": listing(number),
    "distances": listing(listing(number)),
    "barriers": listing(listing(number)),
    "slices": listing(table(anything)),
    "examples": count,
    "notes": listing(text),
    "ways": listing(table(anything)),
    "matched_units": count,
    "left": listing(text),
    "complete": flag,
    "courses": listing(table(anything)),
}
