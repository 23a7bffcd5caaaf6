"""Is every trainable parameter used by the loss?"""

from __future__ import annotations

from collections.abc import Iterator

from thalweg.formatting import printable
from thalweg.landscape.initial_figures import InitialFigures
from thalweg.records.diagnosis import Diagnosis
from thalweg.watch.cause import Cause, finding
from thalweg.watch.finished import FinishedHistory

SYMPTOM = "parameter without gradient"


def without_gradient(figures: InitialFigures) -> Iterator[Diagnosis]:
    """Say which trainable parameters the first backward pass left without a gradient."""
    if figures.without_gradient:
        names = ", ".join(figures.without_gradient[:5]) + (" …" if len(figures.without_gradient) > 5 else "")
        yield finding(
            symptom=SYMPTOM,
            cause=f"{len(figures.without_gradient)} parameters got no gradient from the first batch: {names}.",
            cure="Use them in the forward pass, or freeze them with requires_grad_(False).",
            severity="warning",
            figure="parameters without gradient",
            value=len(figures.without_gradient),
            threshold=0,
            parameters=list(figures.without_gradient),
        )


def never_trained(history: FinishedHistory) -> Iterator[Diagnosis]:
    """Say which parameters got no gradient when the run was prepared."""
    unused = [printable(str(name)) for name in history.summary.get("idle_parameters", [])]
    if unused:
        more = f" and {len(unused) - 4} more" if len(unused) > 4 else ""
        yield finding(
            symptom=SYMPTOM,
            cause=f"No gradient reached {', '.join(unused[:4])}{more}: as good as frozen.",
            cure="Use them in the forward pass, or drop them.",
            severity="warning",
            figure="parameters without gradient",
            value=len(unused),
            threshold=0,
            parameters=unused,
        )


unused_parameter = Cause(
    name="unused-parameter",
    meaning="a trainable parameter takes no part in the loss, so it is never trained",
    rank=70,
    before=without_gradient,
    after=never_trained,
)
