"""Is the loss or the gradient still a number?"""

from __future__ import annotations

import math

from thalweg.records.diagnosis import Diagnosis
from thalweg.watch.window import Window


def nonfinite(window: Window) -> Diagnosis | None:
    """Say so where loss or gradient norm is NaN or infinite; the optimiser has already left the weights untouched."""
    loss, norm = window.loss, window.gradient_norm
    if math.isfinite(loss) and math.isfinite(norm) and not window.skipped:
        return None
    what = "loss" if not math.isfinite(loss) else "gradient"
    return Diagnosis(
        symptom="non-finite",
        cause=f"the {what} is not finite ({loss if what == 'loss' else norm}); no weight took this step.",
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
