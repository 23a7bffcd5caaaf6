"""Are validation rows among the training rows?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from thalweg.landscape.initial_figures import InitialFigures
from thalweg.records.diagnosis import Diagnosis
from thalweg.watch.cause import Cause, finding

REPEATED = 0.01  # share of validation rows
FEW = 3  # validation rows that may have a twin by chance
CROWDED = 0.3  # share of validation rows that say little new, however natural their twins


def repeated_rows(figures: InitialFigures) -> Iterator[Diagnosis]:
    """Say which validation rows are training rows, beyond what such data have among themselves anyway."""
    seen = figures.repeats
    if seen is None or not seen.found:
        return
    share = seen.found / seen.compared
    expected = (
        seen.twins_in_training * seen.compared
    )  # as many twins as training rows have among themselves, give or take
    natural = seen.found <= expected + 3 * math.sqrt(expected)
    if natural and share < CROWDED:
        return
    pairs = ", ".join(f"{i} (training {j})" for i, j in seen.rows) + (" …" if seen.found > len(seen.rows) else "")
    told = f"; {seen.twins_in_training:.0%} of the training rows have a twin in training too" if natural else ""
    grave = not natural and seen.found >= FEW and share >= REPEATED
    found = finding(
        "validation repeats training",
        f"{seen.found} of {seen.compared} validation rows looked at are training rows, number for number: rows {pairs}{told}."
        f" Their loss does not tell how the model does on new examples.",
        "Drop double rows before splitting the data, and split by whatever several rows share (a person, a day, a source).",
        "warning" if grave else "note",
        "share of validation rows that are training rows",
        share,
        max(REPEATED, seen.twins_in_training),
    )
    yield replace(found, examples=tuple(j for _, j in seen.rows))


train_validation_leak = Cause(
    name="train-validation-leak",
    meaning="rows of the validation data are rows of the training data",
    rank=90,
    before=repeated_rows,
)
