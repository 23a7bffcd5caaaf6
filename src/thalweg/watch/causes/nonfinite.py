"""Is the loss or the gradient still a number, and if not, is this batch at fault?"""

from __future__ import annotations

import math
from dataclasses import replace

from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.watch.cause import Cause, each_step
from thalweg.watch.cures import lower_rate_and_clip
from thalweg.watch.replay import Batch, Replay
from thalweg.watch.window import Window


def is_nonfinite(window: Window) -> Diagnosis | None:
    """Diagnose a loss or gradient norm that is NaN or infinite; the optimiser has left the weights untouched."""
    if window.is_finite:
        return None
    loss, norm = window.loss, window.gradient_norm
    part = "loss" if not math.isfinite(loss) else "gradient"
    return Diagnosis(
        symptom="non-finite",
        cause=f"the {part} is not finite ({loss if part == 'loss' else norm}); no weight took this step.",
        severity="critical",
        step=window.step,
        since=window.step,
        evidence={
            "loss": {"value": loss, "threshold": "finite"},
            "gradient_norm": {"value": norm, "threshold": "finite"},
            "learning_rate": {"value": window.rate},
        },
        not_measured=("which module gave it first",),
    )


def batch_or_rate(found: Diagnosis, batch: Batch, replay: Replay | None) -> Diagnosis:
    """Decide whether the batch is at fault, and is left out, or the learning rate, which `Cause.cure` lowers.

    The batch is where its own data are not finite, and where it gives no finite gradient at the last snapshot's weights either.
    Without a snapshot to replay from it is left out too.
    """
    rows = batch.nonfinite_rows()
    replayed = not rows and replay is not None
    if replayed and replay is not None:
        (figures,) = replay([batch])
        if math.isfinite(figures.loss) and not figures.nonfinite:
            return replace(found, ruled_out=("bad batch",))
    return replace(
        found,
        cause=f"{found.cause} {batch.fault(rows, replayed=replayed)}",
        examples=batch.examples(rows),
        ruled_out=("learning rate",) if rows or replayed else (),
        cure=Cure(action="Leave this batch out and continue.", skip_batch=True, rollback=replayed),
    )


nonfinite = Cause(
    name="nonfinite",
    meaning="the loss or the gradient is NaN or infinite",
    rank=10,
    during=each_step(is_nonfinite),
    test=batch_or_rate,
    cure=lower_rate_and_clip,
)
