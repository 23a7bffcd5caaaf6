"""Is the loss a sum over the batch's examples, rather than their mean?"""

from __future__ import annotations

from collections.abc import Iterator

from thalweg.landscape.initial_figures import InitialFigures
from thalweg.records.diagnosis import Diagnosis
from thalweg.watch.cause import Cause, finding


def is_summed(figures: InitialFigures) -> Iterator[Diagnosis]:
    """Say where the loss of a whole batch is the sum of the losses of its parts."""
    if figures.reduction == "sum":
        yield finding(
            symptom="summed loss",
            cause=(
                "the loss of a batch is the sum over its examples, so loss and gradient grow with the batch size, and a learning"
                " rate fits one batch size only."
            ),
            cure="Return the mean: reduction='mean', or divide by the number of examples.",
            severity="warning",
            figure="loss of a batch over the sum of its parts' losses",
            value=1.0,
            threshold=None,
        )


summed_loss = Cause(
    name="summed-loss",
    meaning="the loss is summed over the batch's examples instead of averaged",
    rank=35,
    before=is_summed,
)
