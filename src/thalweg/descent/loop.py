"""The loop: draw a batch, feel the slope, step downhill, watch, record. One page; what is around it are small objects."""

from __future__ import annotations

import math
import time

from thalweg.descent.ambient import ambient
from thalweg.descent.cure import respond
from thalweg.descent.gradient import feel
from thalweg.descent.keeper import Keeper
from thalweg.descent.progress import Progress
from thalweg.descent.state import Descent, default_validate_every
from thalweg.optim.engines import compiles_first_step
from thalweg.optim.optimizer import StepRecord

COMPILES = "The first step compiles the update rule for this accelerator: that may take some minutes, once a process."
STOOD_STILL = StepRecord(math.nan, 1.0, True, 0, ())


def descend(descent: Descent, keeper: Keeper, progress: Progress, until: int | None = None) -> None:
    """Walk from the descent's present step to its end (or to step `until`), writing as it goes.

    Raises DivergedError where the cures at hand do not help, KeyboardInterrupt where the person stopped it (saved).
    """
    plan = descent.plan
    every = plan.validate_every or default_validate_every(descent.total, descent.epoch_steps)
    end = min(descent.total, until or descent.total)
    progress.begin(plan, descent.step, descent.problem.validation is not None)
    try:
        with ambient(plan.threads), keeper.interruptible():
            if descent.step == 0 and not descent.start:
                keeper.validate(descent, progress)
            if plan.snapshot_every and descent.snapshot is None:
                descent.take_snapshot()
            if compiles_first_step(descent.problem.device):
                progress.event(descent.step, "note", COMPILES)
            while descent.step < end and not descent.out_of_patience:
                started = time.perf_counter()
                before = descent.before_gradient() if descent.snapshot_due else None
                rate = set_rate(descent)
                loss, examples = feel(descent, keeper, progress)
                if before is not None and descent.monitor.trusts(loss):
                    descent.take_snapshot(before)
                    keeper.checkpoint_snapshot(descent)
                felt = take_step(descent, loss)
                if descent.scale.overflowed(loss, felt.skipped):
                    message = f"float16 overflow: the loss scale is now {descent.scale.value:g}."
                    keeper.tell(descent.step + 1, "note", message, {}, progress)
                    continue
                found = None
                if plan.watch:
                    found = descent.monitor.observe(descent.step + 1, loss, felt.gradient_norm, rate, felt.skipped)
                if found is not None or felt.skipped:
                    keeper.record(descent.step + 1, loss, rate, felt, examples, time.perf_counter() - started)
                    respond(descent, keeper, progress, found)
                    continue
                descent.skipped_in_row = 0
                descent.step += 1
                step = descent.step
                seconds = time.perf_counter() - started
                keeper.record(step, loss, rate, felt, examples, seconds)
                progress.step(step, loss, rate, examples)
                if step % every == 0 or step == descent.total:
                    keeper.validate(descent, progress)
                if plan.digest_every and (step % plan.digest_every == 0 or step == descent.total):
                    keeper.ledger.digest(step, descent.digest())
                keeper.checkpoint_when_due(descent, progress)
            keeper.finish(descent, progress)
    finally:
        descent.batches.close()
        progress.end()


def set_rate(descent: Descent) -> float:
    """Write the next step's learning rate into the optimiser, and give it."""
    rate = descent.rate()
    for group, factor in zip(descent.optimizer.param_groups, descent.factors, strict=True):
        group["lr"] = rate * factor
    return rate


def take_step(descent: Descent, loss: float) -> StepRecord:
    """Step downhill; where the loss is not finite nothing moves, whatever its gradient is."""
    if not math.isfinite(loss):
        return STOOD_STILL
    descent.optimizer.step()
    return (descent.optimizer.last or STOOD_STILL).on_host()
