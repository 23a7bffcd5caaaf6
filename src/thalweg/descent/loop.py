"""The loop: draw a batch, feel the slope, step downhill, watch, record. One page; what is around it are small objects."""

from __future__ import annotations

import math
import time

import torch

from thalweg.descent.ambient import alone, ambient
from thalweg.descent.keeper import Keeper
from thalweg.descent.precision import autocast
from thalweg.descent.problem import to_device
from thalweg.descent.progress import Progress
from thalweg.descent.state import Descent, default_validate_every
from thalweg.errors import DivergedError, NonFiniteError, TaskError
from thalweg.records.diagnosis import Diagnosis
from thalweg.sampling import Draw, mix
from thalweg.sampling.sources import seed_all

_STEP = 2  # keeps the random numbers of the steps apart from those of the initialisation
MOST_SKIPS = 3  # batches in a row without a finite gradient before giving up


def descend(descent: Descent, keeper: Keeper, progress: Progress, until: int | None = None) -> None:
    """Walk from the descent's present step to its end (or to step `until`), writing as it goes.

    Raises DivergedError where the cures at hand do not help, KeyboardInterrupt where the person stopped it (saved).
    """
    plan = descent.plan
    every = plan.validate_every or default_validate_every(descent.total, descent.epoch_steps)
    end = min(descent.total, until or descent.total)
    progress.begin(plan, descent.step)
    try:
        with ambient(plan.threads), keeper.interruptible():
            if descent.step == 0 and not descent.start:
                keeper.validate(descent, progress)
            if plan.snapshot_every and descent.snapshot is None:
                descent.take_snapshot()
            while descent.step < end and not keeper.stopped_early:
                started = time.perf_counter()
                rate = set_rate(descent)
                loss, examples = feel(descent, keeper, progress)
                descent.optimizer.step()
                felt = descent.optimizer.last
                assert felt is not None
                descent.scale.update(felt.skipped)
                if plan.watch and descent.scale.exhausted:
                    found = descent.monitor.observe(descent.step + 1, loss, felt.gradient_norm, rate, felt.skipped)
                    if found is not None:
                        respond(descent, keeper, progress, found)
                        continue
                if felt.skipped:
                    leave_out(descent, keeper, progress)
                    continue
                descent.skipped_in_row = 0
                descent.step += 1
                step = descent.step
                seconds = time.perf_counter() - started
                keeper.record(step, loss, rate, felt, examples, seconds)
                progress.step(step, loss, rate, examples)
                if step % every == 0 or step == end:
                    keeper.validate(descent, progress)
                if plan.digest_every and (step % plan.digest_every == 0 or step == end):
                    keeper.ledger.digest(step, descent.digest())
                if plan.snapshot_every and step % plan.snapshot_every == 0 and descent.monitor.healthy:
                    descent.take_snapshot()
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


def feel(descent: Descent, keeper: Keeper, progress: Progress) -> tuple[float, int]:
    """Leave the gradient of one step's mean loss in the parameters; give that loss and the number of examples.

    Out of memory halves the micro-batch and doubles the accumulation; the step's examples and its mean stay the same.
    """
    while True:
        batches = descent.batches
        place = batches.epoch, batches.within
        try:
            with alone:
                drawn = batches.draw()
                # Random numbers are a function of (seed, place), so that resuming and going back need none of their state.
                seed_all(mix(descent.plan.seed, _STEP, *place))
                return backward(descent, drawn), sum(drawn.sizes)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error) or not batches.can_split:
                raise
            descent.optimizer.zero_grad(set_to_none=True)
            descent.accumulate *= 2
            batches.split(descent.accumulate, place)
            keeper.tell(
                descent.step + 1,
                "out_of_memory",
                f"Memory ran out: steps of {batches.batch_size} examples now go in {descent.accumulate} parts of"
                f" {batches.micro}. Effective batch and schedule stay.",
                {"accumulate": descent.accumulate, "micro_batch": batches.micro},
                progress,
            )


def backward(descent: Descent, drawn: Draw) -> float:
    """Accumulate the gradient over the micro-batches, each weighted by its share of the step's examples (or own weight)."""
    for parameter in descent.parameters:  # what zero_grad does, without its profiler's entry
        parameter.grad = None
    objective, device, precision = descent.problem.objective, descent.problem.device, descent.plan.precision
    scale = descent.scale.value
    if len(drawn.parts) == 1:
        with autocast(precision, device):
            loss, _ = objective.loss(descent.model, to_device(drawn.parts[0], device))
        (loss * scale if scale != 1.0 else loss).backward()
        descend_scale(descent, 1.0 / scale)
        return float(loss.detach())
    total, weights = 0.0, 0.0
    for part, size in zip(drawn.parts, drawn.sizes, strict=True):
        with autocast(precision, device):
            loss, own = objective.loss(descent.model, to_device(part, device))
        weight = float(size if own is None else own)
        (loss * (scale * weight)).backward()
        total, weights = total + float(loss.detach()) * weight, weights + weight
    if weights <= 0:
        raise TaskError(f"The weights that `step` returned for this step add up to {weights}; they must be above zero.")
    descend_scale(descent, 1.0 / (scale * weights))
    return total / weights


def descend_scale(descent: Descent, factor: float) -> None:
    """Multiply all gradients by a factor."""
    if factor == 1.0:
        return
    gradients = [p.grad for p in descent.parameters if p.grad is not None]
    torch._foreach_mul_(gradients, factor)  # pyright: ignore[reportPrivateImportUsage]


def respond(descent: Descent, keeper: Keeper, progress: Progress, found: Diagnosis) -> None:
    """Do what the diagnosis proposes: leave a spoilt batch out, or go back, lower the rate and clip.

    Raises DivergedError where the cures at hand are used up.
    """
    step = descent.step + 1
    keeper.diagnose(found)
    keeper.tell(
        step, "nonfinite" if found.symptom == "non-finite" else "diverging", str(found), found.to_dict(), progress
    )
    repeated = (
        descent.monitor.attempts > 1
        and found.symptom == "non-finite"
        and not math.isfinite(found.evidence["loss"]["value"])
    )
    if descent.snapshot is None or (repeated and descent.skipped_in_row < MOST_SKIPS):
        # The same batch again, at a lower rate and from another state: the batch is at fault, not the descent.
        if found.symptom != "non-finite":
            raise DivergedError(f"{found} Snapshots are off, so there is nothing to go back to.")
        leave_out(descent, keeper, progress)
        return
    if descent.monitor.exhausted or found.cure is None:
        raise DivergedError(
            f"Step {step}: {found.cause} {descent.monitor.attempts - 1} attempts with lower rates and clipping did not help."
            f" Look at the data and the loss with `thalweg check`, or start with a far smaller learning rate."
        )
    cures = {
        "rate_factor": descent.cures["rate_factor"] * found.cure.rate_factor,
        "clip_norm": min(found.cure.clip_norm or math.inf, descent.cures["clip_norm"] or math.inf),
    }
    skipped = descent.skipped_in_row
    descent.load_state_dict(descent.snapshot, keep_attempts=True)
    descent.skipped_in_row = skipped
    descent.cures = cures
    descent.optimizer.clip_norm = cures["clip_norm"]
    keeper.ledger.supersede(descent.step + 1)
    message = f"Went back from step {step} to step {descent.step}. {found.cure.action}"
    keeper.tell(descent.step, "rollback", message, {"from": step, "to": descent.step, **cures}, progress)


def leave_out(descent: Descent, keeper: Keeper, progress: Progress) -> None:
    """Go on with the next batch; the optimiser has left weights and state as they were.

    Raises NonFiniteError after three batches in a row.
    """
    step = descent.step + 1
    if not descent.scale.exhausted:
        keeper.tell(step, "note", f"float16 overflow: the loss scale is now {descent.scale.value:g}.", {}, progress)
        return
    descent.skipped_in_row += 1
    if descent.skipped_in_row > MOST_SKIPS:
        raise NonFiniteError(
            f"Step {step}: {descent.skipped_in_row} batches in a row gave a loss or gradient that is not finite; no weight took"
            f" any of these steps. Look for log(0), division by zero or overflow in the loss, and for bad rows in the data."
        )
    keeper.tell(step, "nonfinite", f"step {step}: this batch was left out: its gradient is not finite.", {}, progress)


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out, on whatever device."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    text = str(error)
    return "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text
