"""Does the gradient grow from layer to layer, or from step to step, beyond all bounds?"""

from __future__ import annotations

import math

from thalweg.formatting import format_number
from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.watch.cause import Cause
from thalweg.watch.depth import gradient_over_depth
from thalweg.watch.probe import NotMeasuredError, Probe
from thalweg.watch.symptom import Symptom
from thalweg.watch.window import Window

GROWTH = 1e3  # of the gradient per weight, from the last layer back to the first
FEWEST_NORMS = 20  # of the gradient, for a percentile


def grows(symptom: Symptom, window: Window, probe: Probe) -> Diagnosis | None:
    """Diagnose gradients that grow over depth, from the loss back to the input."""
    growth = gradient_over_depth(window)
    if growth is None:
        raise NotMeasuredError("gradients of single parameters")
    if not growth.is_line or growth.ratio < GROWTH:
        return None
    first, *_, last = growth.layers
    return symptom.explained(
        f". The gradient grows from layer to layer on its way back: for each weight that of `{first}` is"
        f" {format_number(growth.ratio)} times that of `{last}`",
        evidence={"gradient of the first layer over that of the last": {"value": growth.ratio, "threshold": GROWTH}},
    )


def clip(window: Window, attempt: int) -> Cure:
    """Go back and clip at the median of the gradient norms before; lower each time."""
    finite = sorted(norm for norm in window.gradient_norms if math.isfinite(norm) and norm > 0)
    norm = (finite[len(finite) // 2] if len(finite) >= FEWEST_NORMS else 1.0) * 0.5 ** (attempt - 1)
    return Cure(
        f"Go back to the last good snapshot and clip the gradient's norm at {norm:.3g}.",
        rollback=True,
        clip_norm=norm,
        code=f"torch.nn.utils.clip_grad_norm_(model.parameters(), {norm:.3g})  # before optimizer.step()",
    )


exploding_gradient = Cause(
    name="exploding-gradient",
    meaning="the gradient grows without bound over depth or time, at a learning rate that is fine elsewhere",
    rank=30,
    symptoms=("diverging", "non-finite"),
    question=grows,
    cure=clip,
)
