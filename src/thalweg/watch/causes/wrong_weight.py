"""Is the second of (loss, weight) that `step` or `evaluate` returns a weight?"""

from __future__ import annotations

from collections.abc import Iterator

from thalweg.landscape.initial_figures import InitialFigures
from thalweg.records.diagnosis import Diagnosis
from thalweg.watch.cause import Cause, finding


def is_no_weight(figures: InitialFigures) -> Iterator[Diagnosis]:
    """Say where the losses of parts of a batch, weighted as they say, do not make up the loss of the whole."""
    if figures.reduction == "misweighted":
        yield finding(
            symptom="weights that do not fit",
            cause=(
                "`step` or `evaluate` returns (loss, weight), but the losses of parts of a batch, averaged by these weights, do"
                " not make up that of the whole; validation, and steps that go in parts, average so."
            ),
            cure=(
                "Return the loss alone where the second is no weight, or else the count that the loss is divided by; figures such"
                " as an accuracy come third, from evaluate: (loss, weight, {'accuracy': accuracy})."
            ),
            severity="warning",
            figure="loss of a batch less the weighted mean of its parts",
            value=None,
            threshold=0,
        )


wrong_weight = Cause(
    name="wrong-weight",
    meaning="what `step` or `evaluate` returns as the weight of its loss is none",
    rank=36,
    before=is_no_weight,
)
