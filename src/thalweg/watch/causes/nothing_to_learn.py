"""Do the targets follow from the inputs?"""

from __future__ import annotations

from collections.abc import Iterator

from thalweg.landscape.initial_figures import InitialFigures
from thalweg.records.diagnosis import Diagnosis
from thalweg.watch.cause import Cause, finding

CARRIED = 0.98  # of the constant predictor's loss, on examples that were not learnt from


def uninformative_targets(figures: InitialFigures) -> Iterator[Diagnosis]:
    """Say so where all targets are alike, or where what is learnt from some examples says nothing about others."""
    if figures.target_alike:
        yield finding(
            "targets all alike",
            "all targets of a sample are one and the same, so there is nothing to tell apart.",
            "Check which column the targets come from, and whether a filter left one class only.",
            "warning",
            "different targets",
            1,
            2,
        )
    elif figures.held_out is not None and figures.held_out[0] > CARRIED * figures.held_out[1]:
        reached, constant = figures.held_out
        yield finding(
            "nothing carries over",
            f"what was learnt from some hundred examples says no more about others ({reached:.4g}) than one fixed answer for"
            f" all ({constant:.4g}).",
            "Check that labels belong to their examples and were not shuffled apart; a hard task may only need far more"
            " examples.",
            "note",
            "loss on other examples",
            reached,
            CARRIED * constant,
        )


nothing_to_learn = Cause(
    name="nothing-to-learn",
    meaning="the targets say nothing that could be learnt from the inputs",
    rank=80,
    before=uninformative_targets,
    refutable=("nothing carries over",),
)
