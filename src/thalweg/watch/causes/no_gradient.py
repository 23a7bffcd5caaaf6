"""Does a gradient reach the parameters?"""

from __future__ import annotations

from collections.abc import Iterator

from thalweg.landscape.initial_figures import InitialFigures
from thalweg.records.diagnosis import Diagnosis
from thalweg.watch.cause import Cause, finding


def zero_gradients(figures: InitialFigures) -> Iterator[Diagnosis]:
    """Say which parameters have a gradient of exactly zero; critical where all do."""
    dead = [name for name, size in figures.gradients.items() if size == 0.0]
    if dead and len(dead) == len(figures.gradients):
        yield finding(
            symptom="no slope",
            cause="every parameter's gradient is exactly zero: no step will move anything.",
            cure="Look for dead units (ReLU of negative inputs), an output that ignores the model, or a clamped loss.",
            severity="critical",
            figure="parameters whose gradient is zero",
            value=len(dead),
            threshold=0,
        )
    elif dead:
        yield finding(
            symptom="zero gradient",
            cause=f"{len(dead)} parameters' gradients are exactly zero: {', '.join(dead[:5])}.",
            cure="If they start at zero on purpose (a gate, a residual branch) all is well; else look at the units they feed.",
            severity="note",
            figure="parameters whose gradient is zero",
            value=len(dead),
            threshold=0,
        )


no_gradient = Cause(
    name="no-gradient",
    meaning="gradients are exactly zero, so no step moves the parameters",
    rank=10,
    before=zero_gradients,
    explains=("one batch cannot be fitted",),
)
