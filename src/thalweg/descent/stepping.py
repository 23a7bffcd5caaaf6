"""One step of the optimiser."""

from __future__ import annotations

import math

from thalweg.descent.state import Descent
from thalweg.optim.optimizer import StepRecord

NOT_TAKEN = StepRecord(math.nan, 1.0, True, 0, ())  # no gradient norm, not clipped, skipped, nothing counted


def take_step(descent: Descent, loss: float) -> StepRecord:
    """Update the weights, unless the loss is not finite; the optimiser skips a gradient that is not finite itself."""
    if not math.isfinite(loss):
        return NOT_TAKEN
    descent.optimizer.step()
    return (descent.optimizer.last or NOT_TAKEN).on_host()
