"""Are the targets what the loss takes?"""

from __future__ import annotations

from collections.abc import Iterator

from thalweg.landscape.initial_figures import InitialFigures
from thalweg.records.diagnosis import Diagnosis
from thalweg.watch.cause import Cause, finding


def unlike_targets(figures: InitialFigures) -> Iterator[Diagnosis]:
    """Say where targets, or the outputs compared with them, are of another kind than the loss takes."""
    for misfit in figures.misfits:
        yield finding(
            symptom="targets outside the loss's range" if misfit.certain else "targets of another kind",
            cause=misfit.fault[:1].lower() + misfit.fault[1:],
            cure=misfit.remedy,
            severity="critical" if misfit.certain else "warning",
            figure="rows of the sample where it is so",
            value=len(misfit.rows) or None,
            threshold=0,
        )
    if figures.stored_mask:
        yield finding(
            symptom="mask of 0 and 255",
            cause="targets are 0 and 255 alone, as image files hold a mask, and with them right outputs have a loss below zero.",
            cure="Give y / 255, so that they are 0 and 1.",
            severity="warning",
            figure="largest target",
            value=255,
            threshold=1,
        )


wrong_target = Cause(
    name="wrong-target",
    meaning="the targets are not what the loss takes, such as labels -1 and 1 where it takes probabilities",
    rank=20,
    before=unlike_targets,
    explains=("one batch cannot be fitted",),
)
