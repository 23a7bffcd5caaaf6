"""What a run is worth: cooled down from where it stands, and at its planned end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from thalweg.formatting import format_metric, printable


class Estimate(NamedTuple):
    """A figure and its standard error, in the same unit: 0 where it is known, NaN where the error is not."""

    value: float
    error: float = math.nan

    def text(self, name: str) -> str:
        """Give the figure as text, with as many digits as its error has to say.

        >>> Estimate(0.3123, 0.0213).text("loss"), Estimate(0.917).text("accuracy"), Estimate(1234.0, 56.0).text("loss")
        ('0.312 ± 0.021', '91.7 %', '1,234 ± 56')
        """
        if not math.isfinite(self.error) or self.error <= 0:
            return format_metric(name, self.value)
        digits = min(12, max(0, 1 - math.floor(math.log10(self.error))))
        return f"{self.value:,.{digits}f} ± {self.error:,.{digits}f}"


@dataclass(frozen=True)
class Forecast:
    """What a run is worth after `step` of `steps` steps.

    Attributes:
        step, steps: where the run stands, and where its plan ends.
        is_over: whether nothing more will come of it; then `now` and `end` are what it ended with.
        now: figures of a copy whose rate fell to zero from here. The loss's error is that over the validation examples, or of two
            orders of the batches where the loss of an example is not defined; metrics have none.
        end: the loss at the planned end, with the error that forecasts of other runs had; empty where it cannot be projected.
        validated: whether `now` is of validation data; else it is the loss on a sample of those of training.
        notes: sentences on what is to be known of it.
    """

    step: int
    steps: int
    is_over: bool
    now: Mapping[str, Estimate]
    end: Mapping[str, Estimate]
    validated: bool = True
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        """Say it in one sentence, and the notes after it."""
        place = f"step {self.step:,} of {self.steps:,}"
        if self.is_over:
            first = f"Over, after {place}: {_figures(self.end)}."
        else:
            kind = "" if self.validated else "training "
            end = f"; at the planned end: {_figures(self.end)}" if self.end else ""
            first = f"After {place}, cooled down now: {kind}{_figures(self.now)}{end}."
        return " ".join([first, *self.notes])


def _figures(figures: Mapping[str, Estimate]) -> str:
    return ", ".join(f"{printable(name)} {estimate.text(name)}" for name, estimate in figures.items()) or "no figures"
