"""The loop: draw a batch, compute its gradient, step downhill, watch, record. What is around it are small objects."""

from __future__ import annotations

import math
import time

from thalweg.descent.ambient import ambient
from thalweg.descent.cure import accept_step
from thalweg.descent.gradient import compute_gradient
from thalweg.descent.recorder import Recorder
from thalweg.descent.selection import keep_last, validate_and_select
from thalweg.descent.state import Descent, default_validate_every
from thalweg.optim.engines import keeps_waiting
from thalweg.optim.optimizer import StepRecord
from thalweg.records.step_figures import StepFigures

COMPILES = "The first step compiles the update rule for this accelerator: that may take some minutes, once a process."
NOT_TAKEN = StepRecord(math.nan, 1.0, True, 0, ())


def descend(descent: Descent, recorder: Recorder, until: int | None = None) -> None:
    """Take steps from the descent's present one to its end (or to step `until`), and record them.

    Raises DivergedError where the cures at hand do not help, KeyboardInterrupt where the person stopped it (saved).
    """
    plan = descent.plan
    every = plan.validate_every or default_validate_every(descent.total, descent.epoch_steps)
    end = min(descent.total, until or descent.total)
    recorder.begin(descent)
    try:
        with ambient(plan.threads), recorder.stop_request.listening():
            if descent.step == 0 and not descent.start:
                validate_and_select(descent, recorder)
            if plan.snapshot_every and descent.snapshot is None:
                descent.take_snapshot()
            if keeps_waiting(descent.problem.device):
                recorder.progress.event(descent.step, "note", COMPILES)
            while descent.step < end and not descent.out_of_patience:
                started = time.perf_counter()
                before = descent.before_gradient() if descent.snapshot_due else None
                rate = descent.rate()
                descent.set_rate(rate)
                loss, examples = compute_gradient(descent, recorder)
                if before is not None and descent.monitor.trusts(loss):
                    descent.take_snapshot(before)
                    recorder.checkpoint_snapshot(descent)
                taken = take_step(descent, loss)
                if descent.scale.overflowed(loss, taken.skipped):
                    message = f"float16 overflow: the loss scale is now {descent.scale.value:g}."
                    recorder.event(descent.step + 1, "note", message)
                    continue
                seconds = time.perf_counter() - started
                figures = step_figures(descent.step + 1, loss, rate, examples, seconds, taken)
                if not accept_step(descent, recorder, figures):
                    continue
                descent.skipped_in_row = 0
                descent.step = step = figures.step
                recorder.step(figures)
                if step % every == 0 or step == descent.total:
                    validate_and_select(descent, recorder)
                if plan.digest_every and (step % plan.digest_every == 0 or step == descent.total):
                    recorder.history.digest(step, descent.digest())
                recorder.checkpoint_when_due(descent)
            if descent.is_over and descent.best is None:
                keep_last(descent)
            recorder.finish(descent)
    finally:
        descent.batches.close()
        recorder.end()


def take_step(descent: Descent, loss: float) -> StepRecord:
    """Step downhill; where the loss is not finite nothing moves, whatever its gradient is."""
    if not math.isfinite(loss):
        return NOT_TAKEN
    descent.optimizer.step()
    return (descent.optimizer.last or NOT_TAKEN).on_host()


def step_figures(step: int, loss: float, rate: float, examples: int, seconds: float, taken: StepRecord) -> StepFigures:
    """Put together what one step saw and did, for history, progress and watch."""
    return StepFigures(
        step,
        loss,
        rate,
        taken.gradient_norm,
        taken.clip_scale,
        taken.skipped,
        taken.nonfinite,
        examples,
        seconds,
        taken.gradient_norms,
        taken.weight_norms,
        taken.update_norms,
        taken.gradient_ratios,
    )
