"""Are validation rows among the training rows?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from thalweg.landscape.initial_figures import InitialFigures
from thalweg.records.diagnosis import Diagnosis
from thalweg.watch.cause import Cause, finding

REPEATED = 0.01  # share of validation rows that may be training rows
FEW = 3  # validation rows that may have a twin by chance
MANY_REPEATED = 0.3  # share of validation rows: with so many, validation says little, whatever the data are like


def repeated_rows(figures: InitialFigures) -> Iterator[Diagnosis]:
    """Say which validation rows are training rows, where more are than training rows repeat among themselves."""
    repeats = figures.repeats
    if repeats is None or not repeats.found:
        return
    share = repeats.found / repeats.compared
    expected = repeats.twins_in_training * repeats.compared  # as often as training rows repeat among themselves
    usual = repeats.found <= expected + 3 * math.sqrt(expected)
    if usual and share < MANY_REPEATED:
        return
    pairs = ", ".join(f"{i} (training {j})" for i, j in repeats.rows) + (
        " …" if repeats.found > len(repeats.rows) else ""
    )
    more = f"; {repeats.twins_in_training:.0%} of the training rows have a twin in training too" if usual else ""
    grave = not usual and repeats.found >= FEW and share >= REPEATED
    found = finding(
        symptom="validation repeats training",
        cause=(
            f"{repeats.found} of {repeats.compared} validation rows compared are training rows, number for number: rows"
            f" {pairs}{more}. Their loss does not tell how the model does on new examples."
        ),
        cure="Drop double rows before splitting the data, and split by whatever several rows share (a person, a day, a source).",
        severity="warning" if grave else "note",
        figure="share of validation rows that are training rows",
        value=share,
        threshold=max(REPEATED, repeats.twins_in_training),
    )
    yield replace(found, examples=tuple(j for _, j in repeats.rows))


train_validation_leak = Cause(
    name="train-validation-leak",
    meaning="rows of the validation data are rows of the training data",
    rank=90,
    before=repeated_rows,
)
