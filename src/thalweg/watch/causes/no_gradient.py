"""Does a gradient reach the parameters?"""

from __future__ import annotations

import math
from collections.abc import Iterator

from thalweg.errors import few
from thalweg.formatting import printable
from thalweg.landscape.initial_figures import InitialFigures
from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.watch.cause import Cause, finding
from thalweg.watch.probe import NotMeasuredError, Probe
from thalweg.watch.symptom import Symptom
from thalweg.watch.window import Window

MOST = 0.5  # of the weights that are frozen: where the loss stands, they may be what should move
MANY = 0.3  # of the weights: where fewer get no gradient, it is not they that keep the loss where it is


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


def none_arrives(symptom: Symptom, window: Window, probe: Probe) -> Diagnosis | None:
    """Diagnose weights that no gradient reached in any of the last steps, or that no optimiser steps."""
    last = [norms for norms in window.by_parameter if len(norms) == len(window.places)]
    if not last or not window.places:
        raise NotMeasuredError("gradients of single parameters")
    sizes = [math.prod(place.shape) for place in window.places]
    idle = [index for index in range(len(sizes)) if not any(norms[index] > 0 for norms in last)]
    share = sum(sizes[index] for index in idle) / max(1, sum(sizes))
    if share <= MANY and not window.not_stepped:
        return _frozen(symptom, window)
    names = [printable(window.places[index].name) for index in idle] if share > MANY else []
    left_out = [printable(name) for name in window.not_stepped]
    said = [f"No gradient reaches {few(names)}"] if names else []
    said += [f"no optimiser steps {few(left_out)}"] if left_out else []
    return symptom.explained(
        f". {', and '.join(said)}",
        severity="critical" if share == 1 else "warning",
        evidence={"share of the weights without a gradient": {"value": share, "threshold": MANY}},
        cure=Cure(
            "See that they take part in the loss, are not cut off by detach() or no_grad(), want a gradient, and are given to the"
            " optimiser.",
            code="optimizer.add_param_group({'params': [...]})  # or requires_grad_(True) before the optimiser is made",
        ),
    )


def _frozen(symptom: Symptom, window: Window) -> Diagnosis | None:
    """Note frozen weights where the loss stands: it is often meant so."""
    if window.frozen <= MOST or not symptom.evidence:
        return None
    return symptom.explained(
        f". {window.frozen:.1%} of the model's weights are frozen: they want no gradient",
        severity="note",
        evidence={"share of the weights that are frozen": {"value": window.frozen, "threshold": MOST}},
        cure=Cure(
            "If they are to learn, unfreeze them before the optimiser is made.",
            code="layer.requires_grad_(True)  # and give its parameters to the optimiser",
        ),
    )


no_gradient = Cause(
    name="no-gradient",
    meaning="gradients are exactly zero, so no step moves the parameters",
    rank=10,
    symptoms=("stagnant",),
    question=none_arrives,
    early=16,
    before=zero_gradients,
    explains=("one batch cannot be fitted", "learning-rate-too-low", "nothing-to-learn"),
)
