"""Does weight decay pull more than the gradient does?"""

from __future__ import annotations

import math

import numpy as np

from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.watch.cause import Cause
from thalweg.watch.probe import NotMeasuredError, Probe
from thalweg.watch.symptom import Symptom
from thalweg.watch.window import Window

SHRUNK = 0.9  # of the norm at the first measurement: weights that keep more are not being pulled to zero
OUTWEIGHS = 0.5  # what decay takes in a step, over what the gradient moves: where both are in balance, 1


def outweighs(symptom: Symptom, window: Window, probe: Probe) -> Diagnosis | None:
    """Diagnose weights that shrink because a step's decay takes about as much as its gradient moves, or more."""
    first, weights, updates = window.first_weight_norms, window.weight_norms, window.update_norms
    decays = np.array([place.weight_decay for place in window.places])
    couples = np.array([place.couples for place in window.places], dtype=bool)
    if weights is None or updates is None or first is None or len(decays) != len(weights):
        raise NotMeasuredError("norms of weights and updates")
    decayed = decays > 0
    if not decayed.any() or not np.isfinite(window.rate):
        return None
    if couples[decayed].all():
        gradients = np.array([norms for norms in window.by_parameter if len(norms) == len(decays)])
        if not len(gradients):
            raise NotMeasuredError("gradients of single parameters")
        pulled = float(np.linalg.norm((decays * weights)[decayed]))
        moved = float(np.linalg.norm(np.nan_to_num(np.median(gradients, 0))[decayed]))
    else:
        pulled = window.rate * float(np.linalg.norm((decays * weights)[decayed]))
        # What decay took is part of the update; what is left of it is the gradient's, at least their difference.
        moved = abs(float(np.linalg.norm(updates[decayed])) - pulled)
    shrunk = float(np.linalg.norm(weights[decayed]) / max(np.linalg.norm(first[decayed]), 1e-30))
    if shrunk > SHRUNK or pulled <= OUTWEIGHS * moved:
        return None
    return symptom.explained(
        f". Weight decay pulls by {pulled:.3g}, the gradient by {moved:.3g}, and the weights have shrunk to {shrunk:.0%} of their"
        " norm before",
        evidence={
            "pull of the decay over that of the gradient": {
                "value": pulled / moved if moved > 0 else math.inf,
                "threshold": OUTWEIGHS,
            },
            "norm of the weights over that before": {"value": shrunk, "threshold": SHRUNK},
        },
    )


def lower_decay(window: Window, attempt: int) -> Cure:
    """Lower the decay."""
    most = max((place.weight_decay for place in window.places), default=0.0)
    return Cure(
        f"Lower the weight decay, for example to {most / 10:.3g}.",
        code=f"for g in optimizer.param_groups: g['weight_decay'] = {most / 10:.3g}",
    )


weight_decay_too_high = Cause(
    name="weight-decay-too-high",
    meaning="weight decay pulls the weights to zero faster than the gradient moves them",
    rank=14,
    symptoms=("stagnant",),
    question=outweighs,
    cure=lower_decay,
    explains=("nothing-to-learn", "learning-rate-too-low", "vanishing-gradient"),
)
