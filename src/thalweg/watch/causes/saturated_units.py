"""Are units of bounded functions at their bounds?"""

from __future__ import annotations

from thalweg.records.diagnosis import Diagnosis
from thalweg.watch.cause import Cause
from thalweg.watch.cures import restart
from thalweg.watch.probe import Probe
from thalweg.watch.symptom import Symptom
from thalweg.watch.window import Window

MANY = 0.5  # of a layer's outputs


def are_at_bounds(symptom: Symptom, window: Window, probe: Probe) -> Diagnosis | None:
    """Diagnose hidden layers of sigmoid or tanh most of whose outputs lie where the slope is next to nothing."""
    layers = [layer for layer in probe.unit_activity() if layer.saturated > MANY and not layer.is_output]
    if not layers:
        return None
    worst = max(layers, key=lambda layer: layer.saturated)
    return symptom.explained(
        f". {worst.saturated:.0%} of the outputs of {worst.kind} after {worst.name} are at its bounds, where its slope is next to"
        " nothing",
        evidence={
            f"share saturated after {layer.name}": {"value": layer.saturated, "threshold": MANY} for layer in layers
        },
        cure=restart(
            [layer.module for layer in layers],
            "Smaller weights or inputs keep them between their bounds.",
            variance=0.25,
        ),
    )


saturated_units = Cause(
    name="saturated-units",
    meaning="outputs of sigmoid or tanh lie at their bounds, where hardly any gradient passes",
    rank=16,
    symptoms=("stagnant",),
    question=are_at_bounds,
    early=16,
    explains=("vanishing-gradient", "learning-rate-too-low", "nothing-to-learn"),
)
