"""Is a number that is not finite born in the model or the loss, from data and weights that are?"""

from __future__ import annotations

import math

from thalweg.formatting import capitalized
from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.watch.cause import Cause
from thalweg.watch.probe import NotMeasuredError, Probe
from thalweg.watch.symptom import Symptom
from thalweg.watch.window import Window


def overflows(symptom: Symptom, window: Window, probe: Probe) -> Diagnosis | None:
    """Diagnose a batch that gives no finite gradient at the last good weights either, and name the module where it begins.

    Where there is no snapshot of such weights, the batch is left out all the same.
    """
    batch = probe.batch()
    try:
        (figures,) = probe.replay()([batch])
        replayed, unknown = True, ()
        if math.isfinite(figures.loss) and not figures.nonfinite:
            return None
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
