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
            "no slope",
            "every parameter's gradient is exactly zero: no step will move anything.",
            "Look for units that are all off (ReLU of negative inputs), an output that ignores the model, or a clamped loss.",
            "critical",
            "parameters whose gradient is zero",
            len(dead),
            0,
        )
    elif dead:
        yield finding(
            "zero gradient",
            f"{len(dead)} parameters' gradients are exactly zero: {', '.join(dead[:5])}.",
            "If they start at zero on purpose (a gate, a residual branch) all is well; else look at the units they feed.",
            "note",
            "parameters whose gradient is zero",
            len(dead),
            0,
        )


no_gradient = Cause(
    name="no-gradient",
    meaning="gradients are exactly zero, so no step moves the parameters",
    rank=10,
    before=zero_gradients,
    explains=("one batch cannot be fitted",),
)
