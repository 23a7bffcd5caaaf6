"""Does the gradient vanish on its way back to the first layers?"""

from __future__ import annotations

from thalweg.formatting import format_number
from thalweg.records.diagnosis import Diagnosis
from thalweg.watch.cause import Cause
from thalweg.watch.cures import matrices, restart
from thalweg.watch.depth import gradient_over_depth
from thalweg.watch.probe import NotMeasuredError, Probe
from thalweg.watch.symptom import Symptom
from thalweg.watch.window import Window

SHRINKS = 1e-3  # the first layer's gradient over the last one's, for each weight

ADVICE = (
    "Residual connections, normalisation, or ReLU-like activations instead of sigmoid or tanh keep its size over depth."
)


def vanishes(symptom: Symptom, window: Window, probe: Probe) -> Diagnosis | None:
    """Diagnose gradients that shrink over depth from the loss back to the input, along a line."""
    growth = gradient_over_depth(window)
    if growth is None:
        raise NotMeasuredError("gradients of single parameters")
    if not growth.is_line or growth.ratio > SHRINKS:
        return None
    layers = list(growth.layers.items())
    return symptom.explained(
        f". The gradient vanishes on its way back: for each weight it is {layers[-1][1]:.3g} in `{layers[-1][0]}` and"
        f" {layers[0][1]:.3g} in `{layers[0][0]}`, {format_number(1 / growth.ratio)} times less over {len(layers)} layers",
        evidence={
            "gradient of the first layer over that of the last": {"value": growth.ratio, "threshold": SHRINKS},
            "gradient per weight": {"value": growth.layers},
        },
        cure=restart(matrices(window)[:-1], ADVICE),
    )


vanishing_gradient = Cause(
    name="vanishing-gradient",
    meaning="gradients shrink from the last layer to the first, so that the first layers do not learn",
    rank=20,
    symptoms=("stagnant",),
    question=vanishes,
    early=16,
    explains=("learning-rate-too-low", "nothing-to-learn"),
)
