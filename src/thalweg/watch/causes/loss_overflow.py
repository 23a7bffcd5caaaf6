"""Is a number that is not finite born in the model or the loss, from data and weights that are?"""

from __future__ import annotations

import math
from dataclasses import replace

from thalweg.formatting import capitalized
from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.watch.cause import Cause
from thalweg.watch.cures import back
from thalweg.watch.probe import NotMeasuredError, Probe
from thalweg.watch.symptom import Symptom
from thalweg.watch.window import UPSET, Window

SMALL_RANGE = 1e5  # a format that ends below is told apart by `low-precision`
LONG = 1.0  # times the weights' norm: a step so long may itself lead to what is not finite
STABLE = (
    "Compute the loss in a form that stays finite: from scores rather than probabilities, with an eps within logarithms, roots"
    " and divisions."
)


def overflows(symptom: Symptom, window: Window, probe: Probe) -> Diagnosis | None:
    """Diagnose a batch that gives no finite gradient at the last good weights either, and name the module where it begins; and
    what is not finite all at once, after losses that were as usual.

    Where there is no snapshot of such weights, the batch is left out all the same.
    """
    batch = probe.batch()
    try:
        (figures,) = probe.replay()([batch])
        replayed, unknown = True, ()
        if math.isfinite(figures.loss) and not figures.nonfinite:
            return _at_once(symptom, window)
    except NotMeasuredError:
        replayed, unknown = False, ("the batch at weights from before",)
    where = _where(probe)
    return symptom.explained(
        f". {batch.fault((), replayed=replayed)}{where}",
        ruled_out=("learning-rate-too-high",) if replayed else (),
        not_measured=unknown,
        cure=Cure(
            "Leave this batch out and continue.",
            skip_batch=True,
            rollback=replayed,
            code="if not torch.isfinite(loss): optimizer.zero_grad(); continue  # before loss.backward()",
        ),
    )


def _at_once(symptom: Symptom, window: Window) -> Diagnosis | None:
    """Diagnose what came without a sign: steps too long raise the loss first, until numbers end at 1e38."""
    start, recent = window.start, [loss for loss, _ in window.recent]
    if start is None or not recent or max(recent) > max(start, UPSET * abs(start)):
        return None
    if any(place.largest < SMALL_RANGE for place in window.places) or _moves_far(window):
        return None
    cure = back(window, 0.5)
    return symptom.explained(
        f", all at once: the losses before were {min(recent):.4g} to {max(recent):.4g}, after {start:.4g} at the start, and the"
        " batch gives a finite gradient at the last snapshot's weights. So it is a function that is not finite everywhere, such"
        " as a logarithm, root or division, rather than steps that ran away",
        evidence={"largest of the last losses": {"value": max(recent), "threshold": UPSET * abs(start)}},
        cure=replace(cure, action=f"{STABLE} {cure.action}"),
    )


def _moves_far(window: Window) -> bool:
    weights, updates = window.weight_norms, window.update_norms
    if weights is None or updates is None or len(weights) != len(updates):
        return False
    return not math.hypot(*updates) <= LONG * math.hypot(*weights)


def _where(probe: Probe) -> str:
    told: list[str] = []
    for tell in (probe.nonfinite_term, probe.first_nonfinite):
        try:
            told.append(f" {capitalized(tell())}")
        except NotMeasuredError:
            continue
    return "".join(told)


loss_overflow = Cause(
    name="loss-overflow",
    meaning="the model or the loss makes NaN or infinity out of finite numbers, at weights that were good",
    rank=10,
    symptoms=("non-finite",),
    question=overflows,
)
