"""Does the gradient grow from layer to layer, or from step to step, beyond all bounds?"""

from __future__ import annotations

import math

from thalweg.formatting import format_number
from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.watch.cause import Cause
from thalweg.watch.cures import matrices, restart
from thalweg.watch.depth import gradient_over_depth
from thalweg.watch.probe import NotMeasuredError, Probe
from thalweg.watch.symptom import Symptom
from thalweg.watch.window import Window

GROWTH = 1e3  # of the gradient per weight, from the last layer back to the first
LARGE = 20.0  # times the loss of an output of zero: a network of usual size begins with 1 to 6
USUAL = 1.5  # root mean square of a network's outputs at the start: more is large
EARLY = 60  # steps, after which the start explains nothing any more
FEWEST_NORMS = 20  # of the gradient, for a percentile


def grows(symptom: Symptom, window: Window, probe: Probe) -> Diagnosis | None:
    """Diagnose gradients that grow over depth, from the loss back to the input, and a network whose outputs were so large at the
    start that an output of zero has a far lower loss."""
    if (found := _starts_large(symptom, window, probe)) is not None:
        return found
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


def _starts_large(symptom: Symptom, window: Window, probe: Probe) -> Diagnosis | None:
    try:
        zero = probe.zero_output_loss()
    except NotMeasuredError:
        return None
    first = window.first
    if (
        first is None
        or window.has_few_examples
        or window.step > EARLY
        or not math.isfinite(zero)
        or not first > LARGE * zero > 0
    ):
        return None
    try:
        size = probe.output_size()
    except NotMeasuredError:
        return None
    if not size > USUAL:  # the targets are small, not the outputs large
        return None
    return symptom.explained(
        f". At the start the loss was {format_number(first)}, and is {format_number(zero)} with an output of zero: signals"
        " grow on their way through the network, and gradients with them",
        evidence={"loss at the start over that of an output of zero": {"value": first / zero, "threshold": LARGE}},
        cure=restart(matrices(window)[:-1], "Clip the gradient's norm, or normalise between layers.", variance=0.25),
    )


def clip(window: Window, attempt: int) -> Cure:
    """Go back and clip at the median of the gradient norms before; lower each time."""
    finite = sorted(norm for norm in window.gradient_norms if math.isfinite(norm) and norm > 0)
    norm = (finite[len(finite) // 2] if len(finite) >= FEWEST_NORMS else 1.0) * 0.5 ** (attempt - 1)
    return Cure(
        f"Go back to the last good snapshot and clip the gradient's norm at {norm:.3g}.",
        rollback=True,
        clip_norm=norm,
        code=f"watch.go_back(clip_norm={norm:.3g})",
    )


exploding_gradient = Cause(
    name="exploding-gradient",
    meaning="the gradient grows without bound over depth or time, at a learning rate that is fine elsewhere",
    rank=30,
    symptoms=("diverging", "non-finite", "stagnant"),
    question=grows,
    early=16,
    cure=clip,
    explains=("learning-rate-too-low", "learning-rate-too-high", "nothing-to-learn"),
)
