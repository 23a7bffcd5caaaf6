"""Whether a run could leave the place where it ended for a better one, and by which way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from thalweg.formatting import format_metric, printable
from thalweg.records import sealed_json
from thalweg.records.comparison import SAME_BASIN
from thalweg.records.kinds import anything, check, count, flag, listing, number, table, text

if TYPE_CHECKING:
    from thalweg.records.run import Run

STAY = "as before"
FORMAT = 1


@dataclass(frozen=True)
class Attempt:
    """One try to descend further from where a run ended.

    Attributes:
        way: "as before" for steps at the run's last rates, "along negative curvature", or "heated" with a factor.
        seed: of the order of its batches.
        temperature: of the noise, relative to that of the steps as before.
        learning_rate, batch_size: at which it began.
        value: the criterion at its end; NaN where it did not come there.
        loss: the training loss there, as of a survey.
        distance: from where the run ended.
        failure: why it did not come to its end; else empty.
    """

    way: str
    seed: int
    temperature: float
    learning_rate: float
    batch_size: int | None
    value: float = math.nan
    loss: float = math.nan
    distance: float = math.nan
    failure: str = ""


@dataclass(frozen=True)
class Escape:
    """What came of trying to leave the place where a run ended.

    Attributes:
        kind, reason: of that place, as in a `Survey`.
        criterion, mode: by which ends are compared, and whether less ("min") or more ("max") of it is better.
        validated: whether it is of validation data.
        value, loss: the criterion, and the training loss, where the run ended.
        steps: of each attempt.
        attempts: in the order in which they were made.
        way: that came furthest, and was tried with all seeds; empty where none was left.
        found: whether it ended better than where the run was, and than the steps as before, with every seed.
        barrier: how far the training loss rises on the straight way from the run's end to the best attempt's, above that of the
            higher end; NaN where that was not measured.
        run: the best attempt, where it is better than where the run was; else None.
        notes: sentences on what is to be known of it.
    """

    kind: str
    reason: str
    criterion: str
    mode: str
    validated: bool
    value: float
    loss: float
    steps: int
    attempts: tuple[Attempt, ...] = ()
    way: str = ""
    found: bool = False
    barrier: float = math.nan
    run: Run | None = field(default=None, repr=False, compare=False)
    notes: tuple[str, ...] = ()

    def better(self, first: float, second: float) -> bool:
        """Tell whether a value of the criterion is better than another; NaN never is."""
        return first > second if self.mode == "max" else first < second

    def mean(self, way: str) -> float:
        """Give the mean of the criterion over the attempts of a way that came to their end; NaN where none did."""
        values = [each.value for each in self.attempts if each.way == way and math.isfinite(each.value)]
        return fmean(values) if values else math.nan

    @property
    def is_other_basin(self) -> bool | None:
        """Whether the best attempt ended in another basin: a barrier lies on the straight way. None where that is not known."""
        return None if math.isnan(self.barrier) else self.barrier > SAME_BASIN * abs(self.loss)

    @property
    def verdict(self) -> str:
        """Say in a sentence or two what came of it."""
        here, stayed, went = (self._shown(value) for value in (self.value, self.mean(STAY), self.mean(self.way)))
        seeds = sum(each.way == self.way for each in self.attempts)
        if self.found:
            barrier = f"A barrier of {self.barrier:.3g} lies between, on the straight way."
            where = {
                None: "",
                True: f"It is another basin. {barrier}",
                False: "It is the same basin further down: no barrier lies between.",
            }[self.is_other_basin]
            return (
                f"A better place was found, with each of {seeds} seeds: {self.way} it ends at {went}, {STAY} at {stayed}; the"
                f" run had {here}. {where}"
            ).rstrip()
        if self.better(self.mean(STAY), self.value):
            return f"No way leads to a better place than more steps {STAY}, which end at {stayed}; the run had {here}."
        return f"No better place was found: {STAY} it ends at {stayed}, and the run had {here}."

    def __str__(self) -> str:
        """Say in some lines what was tried, and what came of it."""
        lines = [f"The run ended at a place of this kind: {self.kind}. {self.reason}".rstrip()]
        width = max((len(each.way) for each in self.attempts), default=0)
        for each in self.attempts:
            beside = "" if self._is_training_loss else f", training loss {each.loss:.4g}"
            what = each.failure or f"{self._shown(each.value)}{beside}, {each.distance:.3g} away"
            lines.append(f"{each.way:{width}}  seed {each.seed}: {what}")
        return "\n".join([*lines, self.verdict, *self.notes])

    def to_json(self) -> str:
        """Give it as JSON, with its own sum at the end; see docs/survey.md. `run` is left out."""
        entries: dict[str, Any] = {
            name: getattr(self, name) for name in KINDS if name not in ("format", "attempts", "notes")
        }
        attempts = [{name: getattr(each, name) for name in ATTEMPT} for each in self.attempts]
        return sealed_json.dump({"format": FORMAT, **entries, "attempts": attempts, "notes": list(self.notes)})

    @staticmethod
    def from_json(written: str) -> Escape:
        """Read what `to_json` gave. Raises ValueError, TypeError or KeyError for anything else."""
        entries = sealed_json.load(written)
        check(entries, KINDS, tuple(KINDS))
        if entries.pop("format") != FORMAT:
            raise ValueError("it is of another version")
        for each in entries["attempts"]:
            check(each, ATTEMPT, tuple(ATTEMPT))
        attempts = tuple(Attempt(**each) for each in entries.pop("attempts"))
        notes = tuple(entries.pop("notes"))
        return Escape(**entries, attempts=attempts, notes=notes)

    @property
    def _is_training_loss(self) -> bool:
        return self.criterion == "loss" and not self.validated

    def _shown(self, value: float) -> str:
        kind = "" if self.criterion != "loss" else "validation " if self.validated else "training "
        return f"{kind}{printable(self.criterion)} {format_metric(self.criterion, value)}"


ATTEMPT: Mapping[str, Any] = {
    "way": text,
    "seed": count,
    "temperature": number,
    "learning_rate": number,
    "batch_size": anything,
    "value": number,
    "loss": number,
    "distance": number,
    "failure": text,
}
KINDS: Mapping[str, Any] = {
    "format": count,
    "kind": text,
    "reason": text,
    "criterion": text,
    "mode": text,
    "validated": flag,
    "value": number,
    "loss": number,
    "steps": count,
    "attempts": listing(table(anything)),
    "way": text,
    "found": flag,
    "barrier": number,
    "notes": listing(text),
}
