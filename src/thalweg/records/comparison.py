"""Several runs beside each other on one loss surface: their ends, the barriers between them, and their paths in one plane."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from thalweg.records import sealed_json
from thalweg.records.kinds import anything, check, count, listing, number, table, text
from thalweg.records.survey import Slice

SAME_BASIN = 0.05  # of the higher end's loss: a barrier that is lower hardly shows


@dataclass(frozen=True)
class Comparison:
    """Where several runs ended, and what lies between.

    All losses are training losses, without weight decay, in evaluation mode, over the same examples.

    Attributes:
        names: of the runs.
        losses: at their ends.
        sharpness: the largest eigenvalue of the Hessian there.
        distances: between their ends, by pairs.
        barriers: how high the loss rises above the straight line from one end's loss to the other's, on the straight way
            between their weights, by pairs; 0 where it does nowhere, infinite where the loss is no number.
        slices: the loss on these ways, and over the plane of all paths.
        examples: how many were looked at.
        notes: sentences on what is to be known of it.
    """

    names: tuple[str, ...]
    losses: tuple[float, ...]
    sharpness: tuple[float, ...]
    distances: tuple[tuple[float, ...], ...]
    barriers: tuple[tuple[float, ...], ...]
    slices: tuple[Slice, ...] = ()
    examples: int = 0
    notes: tuple[str, ...] = ()

    def same_basin(self, first: int, second: int) -> bool:
        """Tell whether two runs ended in one basin: no barrier worth a twentieth of the higher end's loss lies between them."""
        return self.barriers[first][second] <= SAME_BASIN * max(self.losses[first], self.losses[second])

    def __str__(self) -> str:
        """Say in some lines what was found."""
        width = max(len(name) for name in self.names)
        lines = [
            f"{name:{width}}  loss {loss:.4g}, largest curvature {sharpness:.3g}"
            for name, loss, sharpness in zip(self.names, self.losses, self.sharpness, strict=True)
        ]
        for one in range(len(self.names)):
            for other in range(one + 1, len(self.names)):
                barrier = self.barriers[one][other]
                if self.same_basin(one, other):
                    what = "one basin: no barrier on the straight way"
                elif math.isfinite(barrier):
                    what = f"two basins, or one that bends: a barrier of {barrier:.3g} on the straight way"
                else:
                    what = "the loss is no number on the straight way"
                lines.append(
                    f"{self.names[one]} and {self.names[other]}: {what} ({self.distances[one][other]:.3g} long)"
                )
        flattest = min(range(len(self.names)), key=lambda number: self.sharpness[number])
        lines.append(f"flattest: {self.names[flattest]}")
        return "\n".join([*lines, *self.notes])

    def to_json(self) -> str:
        """Give it as JSON, with its own sum at the end; see docs/survey.md."""
        entries: dict[str, Any] = {name: getattr(self, name) for name in ("names", "losses", "sharpness", "notes")}
        entries = {name: list(value) for name, value in entries.items()}
        for name in ("distances", "barriers"):
            entries[name] = [list(row) for row in getattr(self, name)]
        return sealed_json.dump(
            {"format": 1, **entries, "examples": self.examples, "slices": [s.to_dict() for s in self.slices]}
        )

    @staticmethod
    def from_json(written: str) -> Comparison:
        """Read what `to_json` gave. Raises ValueError, TypeError or KeyError for anything else."""
        entries = sealed_json.load(written)
        check(entries, KINDS, tuple(KINDS))
        return Comparison(
            tuple(entries["names"]),
            tuple(entries["losses"]),
            tuple(entries["sharpness"]),
            tuple(tuple(row) for row in entries["distances"]),
            tuple(tuple(row) for row in entries["barriers"]),
            tuple(Slice.from_dict(each) for each in entries["slices"]),
            entries["examples"],
            tuple(entries["notes"]),
        )

    def figure(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw it as a matplotlib `Figure`, as `Survey.figure` does."""
        return importlib.import_module("thalweg.see.survey_figure").draw_comparison(self, path)


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
}
