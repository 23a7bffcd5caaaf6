"""Are units off on every example?"""

from __future__ import annotations

from collections.abc import Sequence

from thalweg.formatting import format_count
from thalweg.landscape.unit_activity import Layer
from thalweg.records.diagnosis import Diagnosis
from thalweg.watch.cause import Cause
from thalweg.watch.cures import restart
from thalweg.watch.probe import NotMeasuredError, Probe
from thalweg.watch.symptom import Symptom
from thalweg.watch.window import FEW_EXAMPLES, FIRST, Window

MANY = 0.5  # of a layer's units
NEARLY = 0.85  # of them, where few examples were seen
LARGE = 512  # examples that a share of dead units is judged by


def are_off(symptom: Symptom, window: Window, probe: Probe) -> Diagnosis | None:
    """Diagnose layers most of whose units gave nothing on any example."""
    activity = probe.unit_activity()
    if activity and max(layer.examples for layer in activity) < FEW_EXAMPLES:
        raise NotMeasuredError("batches of at least eight examples")
    layers = [layer for layer in activity if _is_off(layer)]
    if not layers or (symptom.step <= FIRST and _were_on(layers, probe)):
        return None
    worst = max(layers, key=lambda layer: layer.dead / layer.units)
    more = f"; so it is in {format_count(len(layers) - 1, 'more layer')}" if len(layers) > 1 else ""
    return symptom.explained(
        f". Of the {worst.units} units of {worst.kind} after {worst.name}, {worst.dead} gave nothing on any of {worst.examples}"
        f" examples{more}: no gradient passes a unit that is off",
        severity="critical" if worst.dead == worst.units else "warning",
        evidence={
            f"share of dead units after {layer.name}": {"value": layer.dead / layer.units, "threshold": MANY}
            for layer in layers
        },
        cure=restart(
            [layer.module for layer in layers], "A lower learning rate or a leaky activation keeps them alive."
        ),
    )


def _were_on(layers: Sequence[Layer], probe: Probe) -> bool:
    """Tell whether all of them were on at the start: then the first steps have put them off, and are the cause."""
    try:
        off = {layer.name for layer in probe.unit_activity(at_snapshot=True) if _is_off(layer)}
    except NotMeasuredError:
        return False
    return not any(layer.name in off for layer in layers)


def _is_off(layer: Layer) -> bool:
    return layer.dead / layer.units > (MANY if layer.examples >= LARGE else NEARLY)


dead_units = Cause(
    name="dead-units",
    meaning="units of ReLU-like functions give nothing on any example, so that no gradient passes them",
    rank=15,
    symptoms=("stagnant",),
    question=are_off,
    early=16,
    explains=("vanishing-gradient", "learning-rate-too-low", "nothing-to-learn", "no-gradient"),
)
