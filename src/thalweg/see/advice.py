"""What to do next: said from the run's figures, and only where they say something."""

from __future__ import annotations

import math

import numpy as np

from thalweg.records.run import Run

FIFTH = 0.8  # of the run: a best before it says that the rest taught the training data alone
FALLING = 0.01  # share of the loss that the last tenth of validations still took away


def next_steps(run: Run) -> list[str]:
    """Give a few sentences, most important first; there is always one."""
    found = [*_status(run), *_learnt(run), *_cures(run), *_overfitting(run), *_still_falling(run), *_clipping(run)]
    return found or ["Nothing stands out: the loss came down and flattened, and no step had to be corrected."]


def _status(run: Run) -> list[str]:
    status, folder = run.summary.get("status"), run.folder
    if status in ("interrupted", "running", "failed"):
        return [f"The run is not finished. Go on with: thalweg resume {folder}"]
    if status == "diverged":
        return [
            "The descent could not be saved. Run `thalweg check` on the task, then start with a far smaller learning rate."
        ]
    return []


def _learnt(run: Run) -> list[str]:
    start, end = run.summary.get("start", {}).get("loss"), run.metrics.get("loss")
    if start is None or end is None or not math.isfinite(end) or end < start - 0.02 * abs(start):
        return []
    return [
        "The loss ended hardly below its start: nothing was learnt. `thalweg check` looks for the cause before training."
    ]


def _cures(run: Run) -> list[str]:
    factor = run.summary.get("cures", {}).get("rate_factor", 1.0)
    if factor == 1.0:
        return []
    rate = run.plan.learning_rate * factor
    return [
        f"The watch lowered the learning rate to {rate:.3g} on the way. Plan the next run with that, or search anew."
    ]


def _overfitting(run: Run) -> list[str]:
    weights, steps = run.summary.get("weights"), run.summary.get("steps", 0)
    if not weights or not run.summary.get("validated") or not steps or weights["step"] >= FIFTH * steps:
        return []
    share = weights["step"] / steps
    return [
        f"Validation was best after {share:.0%} of the run; later steps fitted the training data alone. Those best weights were"
        f" kept. More data, more weight decay, dropout, or fewer epochs would serve."
    ]


def _still_falling(run: Run) -> list[str]:
    losses = run.history.get("validation/loss")
    if losses is None:
        return []
    seen = losses[np.isfinite(losses)]
    if len(seen) < 10 or seen[-1] > seen.min():
        return []
    before = seen[-1 - max(1, len(seen) // 10)]
    if before - seen[-1] < FALLING * abs(before):
        return []
    return ["Validation was still improving at the end: a longer run would probably end lower."]


def _clipping(run: Run) -> list[str]:
    scales = run.history.get("clip_scale")
    if scales is None or run.plan.clip_norm is None:
        return []
    seen = scales[np.isfinite(scales)]
    share = float((seen < 1).mean()) if len(seen) else 0.0
    if share <= 0.5:
        return []
    return [
        f"{share:.0%} of the steps were clipped, so the clip sets the step's length more than the rate does: try half the rate."
    ]
