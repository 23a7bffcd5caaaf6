"""Do the data of the batch hold NaN or infinity?"""

from __future__ import annotations

from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.watch.cause import Cause
from thalweg.watch.probe import Probe
from thalweg.watch.symptom import Symptom
from thalweg.watch.window import Window

KEEP = "keep = torch.isfinite(x).flatten(1).all(1); x, y = x[keep], y[keep]"


def holds_nonfinite(symptom: Symptom, window: Window, probe: Probe) -> Diagnosis | None:
    """Diagnose a batch whose own inputs or targets are not finite, with the rows."""
    batch = probe.batch()
    rows = batch.nonfinite_rows()
    if not rows:
        return None
    return symptom.explained(
        f". {batch.fault(rows, replayed=False)}",
        evidence={"rows of the batch that are not finite": {"value": rows, "threshold": []}},
        examples=batch.examples(rows),
        cure=Cure("Leave this batch out and continue.", skip_batch=True, code=KEEP),
    )


bad_data = Cause(
    name="bad-data",
    meaning="inputs or targets hold NaN or infinity",
    rank=5,
    symptoms=("non-finite",),
    question=holds_nonfinite,
)
