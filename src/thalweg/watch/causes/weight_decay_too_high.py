"""Does weight decay pull more than the gradient does?"""

from __future__ import annotations

import math

import numpy as np

from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.watch.cause import Cause
from thalweg.watch.probe import NotMeasuredError, Probe
from thalweg.watch.symptom import Symptom
from thalweg.watch.window import Window

# Of a decay that is part of the gradient (coupled): its pull over the gradient, and the weights' norm over that at first.
COUPLED, SHRUNK = 0.25, 0.8
# Of one that is a step of its own: its pull over the whole update. About 1 where it holds the gradient in balance, healthy 0.01.
DECOUPLED = 0.5
FAINT = 0.01  # of the first gradient, which a decay that is part of it is lowered to
RUNS = 3.0  # over which a decay that is a step of its own then takes a weight down


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
    shrunk = float(np.linalg.norm(weights[decayed]) / max(np.linalg.norm(first[decayed]), 1e-30))
    if couples[decayed].all():
        gradients = np.array([norms for norms in window.by_parameter if len(norms) == len(decays)])
        if not len(gradients):
            raise NotMeasuredError("gradients of single parameters")
        pulled = float(np.linalg.norm((decays * weights)[decayed]))
        against, limit = float(np.linalg.norm(np.nan_to_num(np.median(gradients, 0))[decayed])), COUPLED
    else:
        pulled = window.rate * float(np.linalg.norm((decays * weights)[decayed]))
        against, limit = float(np.linalg.norm(updates[decayed])), DECOUPLED
    if pulled <= limit * against or (limit == COUPLED and shrunk > SHRUNK):
        return None
    what = "the gradient" if limit == COUPLED else "the whole step"
    return symptom.explained(
        f". Weight decay pulls by {pulled:.3g}, where {what} is {against:.3g}; weights have {shrunk:.0%} of their norm before",
        evidence={
            f"pull of the decay over {what}": {
                "value": pulled / against if against > 0 else math.inf,
                "threshold": limit,
            },
            "norm of the weights over that before": {"value": shrunk, "threshold": SHRUNK},
        },
    )


def _first_pull(window: Window) -> float:
    """Give the pull of a decay that is part of the gradient, over that, as both were in the first step."""
    weights, gradients = window.first_weight_norms, window.first_by_parameter
    decays = np.array([place.weight_decay for place in window.places])
    if weights is None or gradients is None or not len(weights) == len(gradients) == len(decays):
        return math.nan
    against = float(np.linalg.norm(np.nan_to_num(np.asarray(gradients))[decays > 0]))
    return float(np.linalg.norm(decays * weights)) / against if against > 0 else math.inf


def lower_decay(window: Window, attempt: int) -> Cure:
    """Lower the decay: one that is a step of its own to where it takes a weight down over several runs rather than some steps,
    one that is part of the gradient to a small part of what that was at first."""
    most = max((place.weight_decay for place in window.places), default=0.0)
    if all(place.couples for place in window.places if place.weight_decay > 0):
        factor = min(0.03, FAINT / max(_first_pull(window), 1e-30))
    else:
        factor = min(0.1, 1 / max(RUNS * window.rate * most * (window.total or 10 * window.step), 1e-30))
    return Cure(
        f"Lower the weight decay from {most:.3g} by a factor of {factor:.3g}.",
        begin_again=True,
        decay_factor=factor,
        code=f"watch.begin_again(); watch.change(decay_factor={factor:.3g})",
    )


weight_decay_too_high = Cause(
    name="weight-decay-too-high",
    meaning="weight decay pulls the weights to zero faster than the gradient moves them",
    rank=14,
    symptoms=("stagnant",),
    question=outweighs,
    early=51,
    cure=lower_decay,
    explains=("nothing-to-learn", "learning-rate-too-low", "vanishing-gradient"),
)
