"""Replay: a cause has the descent take steps again, to decide what the figures leave open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from thalweg.errors import few
from thalweg.records.diagnosis import Cure
from thalweg.records.step_figures import StepFigures
from thalweg.sampling import Draw
from thalweg.sampling.sources import nonfinite_rows


class Batch(NamedTuple):
    """The examples of one step: what was drawn, and its position in the data (epoch, and index in it, both from 0)."""

    draw: Draw
    epoch: int
    index_in_epoch: int

    @property
    def label(self) -> str:
        """Name the batch for people, counted from 1."""
        return f"epoch {self.epoch + 1}, batch {self.index_in_epoch + 1}"

    def nonfinite_rows(self) -> list[int]:
        """Give the rows, counted within the batch, that hold NaN or infinity."""
        found, start = list[int](), 0
        for part, size in zip(self.draw.parts, self.draw.sizes, strict=True):
            found += [start + row for row in nonfinite_rows(part)]
            start += size
        return found

    def examples(self, rows: Sequence[int]) -> tuple[int, ...]:
        """Give the indices into the user's training data of some rows; nothing for a stream, which has none."""
        return self.draw.numbers(rows)

    def fault(self, rows: Sequence[int], *, replayed: bool) -> str:
        """Say in a sentence why the batch gave no finite gradient.

        `replayed`: it gave none at the last snapshot's weights either.
        """
        if not rows:
            more = (
                " It fails at the last snapshot's weights too, so the batch is at fault, not the rate."
                if replayed
                else ""
            )
            return f"Its loss or gradient is not finite.{more}"
        examples = self.examples(rows)
        named, where = (examples, "training examples") if examples else (rows, "rows of the batch")
        return f"Its data hold NaN or infinity: {where} {few(named)}."


class Replay(Protocol):
    """Takes steps again from the last snapshot. Afterwards the descent must return to that snapshot."""

    def __call__(self, batches: Sequence[Batch], change: Cure | None = None) -> list[StepFigures]:
        """Restore the snapshot, take a step on each batch with this change, and give the figures of each.

        Of the last step only loss and gradient are computed: no figure depends on what it would do to the weights.
        """
        ...
