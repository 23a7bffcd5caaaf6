"""Do the statistics of frozen layers move?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from thalweg.formatting import format_count, printable
from thalweg.landscape.initial_figures import InitialFigures
from thalweg.records.diagnosis import Diagnosis
from thalweg.watch.cause import Cause, finding
from thalweg.watch.finished import FinishedHistory

SHOWN = 4  # names of layers in the sentence


def will_move(figures: InitialFigures) -> Iterator[Diagnosis]:
    """Say which frozen normalisation layers are in training mode before the first step."""
    if figures.drifting_statistics:
        yield _found(figures.drifting_statistics, "will move with every step")


def have_moved(history: FinishedHistory) -> Iterator[Diagnosis]:
    """Say which frozen normalisation layers were in training mode, where nobody asked before training."""
    layers = history.summary.get("drifting_statistics") or []
    if layers:
        yield _found([str(layer) for layer in layers], "moved with every step")


def _found(layers: Sequence[str], what: str) -> Diagnosis:
    names = ", ".join(printable(layer) or "the model itself" for layer in layers[:SHOWN])
    more = f" and {len(layers) - SHOWN} more" if len(layers) > SHOWN else ""
    return finding(
        symptom="frozen statistics move",
        cause=(
            f"the running statistics of {format_count(len(layers), 'frozen normalisation layer')} ({names}{more}) {what}, as they"
            " are in training mode: what these layers give changes though their weights do not."
        ),
        cure=(
            "Put them into evaluation mode where the model is made (`model.trunk.eval()`) and in its `train()`, if it has one of"
            " its own; nothing is to be done where the statistics are meant to adapt to these data."
        ),
        severity="warning",
        figure="frozen normalisation layers in training mode",
        value=len(layers),
        threshold=0,
        layers=list(layers),
    )


drifting_statistics = Cause(
    name="drifting-statistics",
    meaning="frozen normalisation layers are in training mode, so their statistics move",
    rank=75,
    before=will_move,
    after=have_moved,
)
