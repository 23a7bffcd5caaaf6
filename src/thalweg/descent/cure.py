"""What is done about an abnormal step: leave its batch out, go back to a snapshot, or change rate and clipping from here on."""

from __future__ import annotations

import math

import torch

from thalweg.descent.recorder import Recorder
from thalweg.descent.replay import SnapshotReplay
from thalweg.descent.state import Descent
from thalweg.errors import DivergedError, NonFiniteError
from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.records.step_figures import StepFigures
from thalweg.watch.monitor import intervenes
from thalweg.watch.replay import Batch, Replay

MOST_SKIPS = 3  # batches in a row without a finite gradient before giving up
MOST_SPOILT = 10  # likewise, where each holds NaN or infinity: with a few such rows three in a row happen by chance


def accept_step(descent: Descent, recorder: Recorder, figures: StepFigures) -> bool:
    """Show a step to the watch, apply the cures of what it finds, and tell whether the step stands.

    Raises NonFiniteError after several spoilt batches in a row, DivergedError where the cures at hand are used up.
    """
    found = descent.monitor.observe(figures, lambda: _at_hand(descent)) if descent.plan.watch else []
    if not found and not figures.skipped:
        return True
    stands = not figures.skipped and not any(intervenes(diagnosis.cure) for diagnosis in found)
    if not stands:
        recorder.step(figures, taken=False)
    if not found:
        leave_out(descent, recorder, figures, None)
    for diagnosis in found:
        apply(descent, recorder, figures, diagnosis)
    return stands


def _at_hand(descent: Descent) -> tuple[Batch, Replay | None]:
    """Give the batch of the step just taken, and a replay where there is a snapshot."""
    assert descent.last_draw is not None
    replay = None if descent.snapshot is None else SnapshotReplay(descent)
    return Batch(descent.last_draw, *descent.last_position), replay


def apply(descent: Descent, recorder: Recorder, figures: StepFigures, found: Diagnosis) -> None:
    """Apply the cure of a diagnosis; one that changes nothing is recorded all the same."""
    cure = found.cure
    if cure is not None and cure.skip_batch:
        leave_out(descent, recorder, figures, found)
        return
    recorder.add_diagnosis(found)
    recorder.event(figures.step, found.name, f"Step {figures.step:,}: {found.cause}", found.to_dict())
    if cure is not None and cure.rollback:
        go_back(descent, recorder, figures, found)
    elif cure is not None:
        change_from_here(descent, recorder, figures, cure)


def leave_out(descent: Descent, recorder: Recorder, figures: StepFigures, found: Diagnosis | None) -> None:
    """Train on with the next batch; the optimiser has left weights and state as they were.

    `found` is None where nobody watches and the gradient was not finite. Where the batch was replayed, so that the model holds
    the snapshot's weights, and where the forward pass has put NaN into running statistics (batch normalisation), training
    continues from the snapshot, without this batch.

    Raises NonFiniteError after three batches in a row (ten where it is the data that are spoilt), or where running statistics
    are lost.
    """
    assert descent.last_draw is not None
    step, batch = figures.step, Batch(descent.last_draw, *descent.last_position)
    rows = batch.nonfinite_rows()
    back = found is not None and found.cure is not None and found.cure.rollback
    reason = batch.fault(rows, replayed=back)
    descent.skipped_batches.append(descent.last_position)
    descent.consecutive_skips += 1
    if found is not None:
        recorder.add_diagnosis(found)
    kind = "nonfinite" if found is None else found.name
    data = {"epoch": batch.epoch, "batch": batch.index_in_epoch, "rows": rows}
    recorder.event(step, kind, f"Step {step}: the batch ({batch.label}) was left out. {reason}", data)
    if descent.consecutive_skips >= (MOST_SPOILT if rows else MOST_SKIPS):
        raise NonFiniteError(
            f"Step {step}: {descent.consecutive_skips} batches in a row gave a loss or gradient that is not finite; no weight"
            f" took any of these steps. Look for log(0), division by zero or overflow in the loss, and for bad rows in the data."
        )
    if not back and not _statistics_lost(descent):
        return
    if descent.snapshot is None:
        raise NonFiniteError(
            f"Step {step}: a batch ({batch.label}) put NaN into running statistics of the model, such as batch normalisation's."
            f" {reason} Mend the data, or plan with snapshot_every=50, so that there is a state to go back to."
        )
    _restore_snapshot(descent, recorder)


def go_back(descent: Descent, recorder: Recorder, figures: StepFigures, found: Diagnosis) -> None:
    """Go back to the snapshot with a lower rate and clipping. Raises DivergedError where that was tried in vain."""
    step, kind = figures.step, NonFiniteError if found.symptom == "non-finite" else DivergedError
    if descent.snapshot is None:
        raise kind(f"{found} Snapshots are off, so there is nothing to go back to.")
    if descent.monitor.exhausted or found.cure is None:
        raise kind(
            f"Step {step}: {found.cause} {descent.monitor.attempts - 1} attempts with lower rates and clipping did not help."
            f" Look at the data and the loss with `thalweg check`, or start with a far smaller learning rate."
        )
    _take_in(descent, found.cure)
    _restore_snapshot(descent, recorder)
    rate, clip = descent.plan.learning_rate * descent.cures["rate_factor"], descent.cures["clip_norm"]
    gentler = f"with a rate of {rate:.3g} and gradients clipped at {clip:.3g}"
    message = f"Went back from step {step:,} to step {descent.step:,}, {gentler}."
    recorder.event(descent.step, "rollback", message, {"from": step, "to": descent.step, **descent.cures})


def change_from_here(descent: Descent, recorder: Recorder, figures: StepFigures, cure: Cure) -> None:
    """Change learning rate and clipping from the next step on, where the cure says so."""
    before = dict(descent.cures)
    _take_in(descent, cure)
    if descent.cures != before:
        recorder.event(figures.step, "cure", f"Step {figures.step:,}: {cure.action}", dict(descent.cures))


def _take_in(descent: Descent, cure: Cure) -> None:
    """Multiply a cure's factor into those so far, and clip at the lower of the two norms."""
    clip = min(cure.clip_norm or math.inf, descent.cures["clip_norm"] or math.inf)
    descent.cures = {
        "rate_factor": descent.cures["rate_factor"] * cure.rate_factor,
        "clip_norm": clip if clip < math.inf else None,
    }
    descent.optimizer.clip_norm = descent.cures["clip_norm"]


def _restore_snapshot(descent: Descent, recorder: Recorder) -> None:
    assert descent.snapshot is not None
    descent.load_state_dict(descent.snapshot, rollback=True)
    recorder.supersede(descent.step)


def _statistics_lost(descent: Descent) -> bool:
    before = descent.snapshot["model"] if descent.snapshot else {}
    for name, buffer in descent.model.named_buffers():
        if not buffer.is_floating_point():
            continue
        lost = ~torch.isfinite(buffer) if name in before else torch.isnan(buffer)
        if name in before:
            lost &= torch.isfinite(before[name])  # a mask may hold -inf on purpose
        if bool(lost.any()):
            return True
    return False
