"""What the loop does when a step went wrong: leave a spoilt batch out, or go back, lower the rate and clip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from thalweg.descent.ambient import rng_lock
from thalweg.descent.gradient import backward
from thalweg.descent.recorder import Recorder
from thalweg.descent.state import Descent
from thalweg.errors import DivergedError, NonFiniteError, few
from thalweg.records.diagnosis import Diagnosis
from thalweg.records.weights import load_model_state
from thalweg.sampling import Draw
from thalweg.sampling.sources import spoilt_rows as rows_of
from thalweg.watch import cures

MOST_SKIPS = 3  # batches in a row without a finite gradient before giving up
MOST_SPOILT = 10  # likewise, where each holds NaN or infinity: with a few such rows three in a row happen by chance


def respond(descent: Descent, recorder: Recorder, found: Diagnosis | None) -> None:
    """Do what helps: leave the batch out where it is at fault, else what the diagnosis proposes.

    `found` is None where nobody watches and the gradient was not finite.

    Raises NonFiniteError after several spoilt batches in a row, DivergedError where the cures at hand are used up.
    """
    if found is None or found.symptom == "non-finite":
        rows = spoilt_rows(descent.last_draw)
        tried = found is not None and not rows and descent.snapshot is not None
        if not tried or _fails_from_snapshot(descent):
            leave_out(descent, recorder, found, rows, tried=tried)
            return
    assert found is not None
    _note(descent, recorder, found)
    go_back(descent, recorder, found)


def leave_out(
    descent: Descent, recorder: Recorder, found: Diagnosis | None, rows: Sequence[int], *, tried: bool
) -> None:
    """Go on with the next batch; the optimiser has left weights and state as they were.

    Where the batch was `tried` on the snapshot's weights, and where the forward pass has put NaN into running statistics
    (batch normalisation), the way on leads back to the snapshot and forward again without this batch.

    Raises NonFiniteError after three batches in a row (ten where it is the data that are spoilt), or where running statistics
    are lost.
    """
    step, place = descent.step + 1, f"epoch {descent.last_position[0] + 1}, batch {descent.last_position[1] + 1}"
    why = _blame(descent, rows, tried)
    descent.skipped_batches.append(descent.last_position)
    descent.consecutive_skips += 1
    if found is not None:
        descent.monitor.attempts -= 1  # the rate was not at fault
        examples = _examples(descent.last_draw, rows)
        found = replace(found, cause=f"{found.cause} {why}", examples=examples, cure=cures.skip())
        recorder.diagnose(found)
    figures = {"epoch": descent.last_position[0], "batch": descent.last_position[1], "rows": list(rows)}
    recorder.event(step, "nonfinite", f"Step {step}: the batch ({place}) was left out. {why}", figures)
    if descent.consecutive_skips >= (MOST_SPOILT if rows else MOST_SKIPS):
        raise NonFiniteError(
            f"Step {step}: {descent.consecutive_skips} batches in a row gave a loss or gradient that is not finite; no weight"
            f" took any of these steps. Look for log(0), division by zero or overflow in the loss, and for bad rows in the data."
        )
    if not tried and not _statistics_lost(descent):
        return
    if descent.snapshot is None:
        raise NonFiniteError(
            f"Step {step}: a batch ({place}) put NaN into running statistics of the model, such as batch normalisation's."
            f" {why} Mend the data, or plan with snapshot_every=50, so that there is a state to go back to."
        )
    _restore_snapshot(descent, recorder)


def go_back(descent: Descent, recorder: Recorder, found: Diagnosis) -> None:
    """Go back to the snapshot with a lower rate and clipping. Raises DivergedError where that was tried in vain."""
    step, kind = descent.step + 1, NonFiniteError if found.symptom == "non-finite" else DivergedError
    if descent.snapshot is None:
        raise kind(f"{found} Snapshots are off, so there is nothing to go back to.")
    if descent.monitor.exhausted or found.cure is None:
        raise kind(
            f"Step {step}: {found.cause} {descent.monitor.attempts - 1} attempts with lower rates and clipping did not help."
            f" Look at the data and the loss with `thalweg check`, or start with a far smaller learning rate."
        )
    descent.cures = {
        "rate_factor": descent.cures["rate_factor"] * found.cure.rate_factor,
        "clip_norm": min(found.cure.clip_norm or math.inf, descent.cures["clip_norm"] or math.inf),
    }
    _restore_snapshot(descent, recorder)
    rate, clip = descent.plan.learning_rate * descent.cures["rate_factor"], descent.cures["clip_norm"]
    gentler = f"with a rate of {rate:.3g} and gradients clipped at {clip:.3g}"
    message = f"Went back from step {step:,} to step {descent.step:,}, {gentler}."
    figures = {"from": step, "to": descent.step, **descent.cures}
    recorder.event(descent.step, "rollback", message, figures)


def spoilt_rows(drawn: Draw | None) -> list[int]:
    """Give the examples of a step, counted within it, that hold NaN or infinity."""
    found, start = list[int](), 0
    for part, size in zip(drawn.parts, drawn.sizes, strict=True) if drawn else ():
        found += [start + row for row in rows_of(part)]
        start += size
    return found


def _fails_from_snapshot(descent: Descent) -> bool:
    """Tell whether the batch has no finite loss and gradient at the snapshot's weights either, which did well before.

    The model is left at the snapshot's weights: whatever the answer, the way on starts there.
    """
    assert descent.snapshot is not None
    assert descent.last_draw is not None
    load_model_state(descent.model, descent.snapshot["model"])
    with rng_lock:
        loss = backward(descent, descent.last_draw)
    gradients = [p.grad for p in descent.model.parameters() if p.grad is not None]
    return not math.isfinite(loss) or not all(bool(torch.isfinite(g).all()) for g in gradients)


def _restore_snapshot(descent: Descent, recorder: Recorder) -> None:
    assert descent.snapshot is not None
    descent.load_state_dict(descent.snapshot, rollback=True)
    recorder.supersede(descent.step)


def _note(descent: Descent, recorder: Recorder, found: Diagnosis) -> None:
    recorder.diagnose(found)
    kind = "nonfinite" if found.symptom == "non-finite" else "diverging"
    recorder.event(descent.step + 1, kind, f"Step {descent.step + 1:,}: {found.cause}", found.to_dict())


def _blame(descent: Descent, rows: Sequence[int], tried: bool) -> str:
    if not rows:
        more = " It fails at the last snapshot's weights too, so the batch is at fault, not the rate." if tried else ""
        return f"Its loss or gradient is not finite.{more}"
    examples = _examples(descent.last_draw, rows)
    named, where = (examples, "training examples") if examples else (rows, "rows of the batch")
    return f"Its data hold NaN or infinity: {where} {few(named)}."


def _examples(drawn: Draw | None, rows: Sequence[int]) -> tuple[int, ...]:
    if drawn is None or drawn.indices is None:
        return ()
    return tuple(int(drawn.indices[row]) for row in rows)


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
