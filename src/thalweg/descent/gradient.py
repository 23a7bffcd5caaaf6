"""The gradient of one step's mean loss, in as many micro-batches as memory asks for."""

from __future__ import annotations

import math

import torch

from thalweg.descent.ambient import alone
from thalweg.descent.out_of_memory import out_of_memory, release
from thalweg.descent.precision import autocast
from thalweg.descent.problem import to_device
from thalweg.descent.recorder import Recorder
from thalweg.descent.state import Descent
from thalweg.errors import TaskError
from thalweg.sampling import Draw, mix
from thalweg.sampling.sources import seed_all

_STEP = 2  # keeps the random numbers of the steps apart from those of the initialisation


def compute_gradient(descent: Descent, recorder: Recorder) -> tuple[float, int]:
    """Leave the gradient of one step's mean loss in the parameters; give that loss and the number of examples.

    Out of memory halves the micro-batch and doubles the accumulation; the step's examples and its mean stay the same.
    Raises TaskError where memory runs out and there is nothing left to halve.
    """
    while True:
        try:
            with alone:
                drawn = draw(descent)
                return backward(descent, drawn), sum(drawn.sizes)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            _split_further(descent, recorder, error)


def draw(descent: Descent) -> Draw:
    """Draw the next batch that is not one of those left out, and remember it."""
    batches = descent.batches
    place = batches.epoch, batches.within
    drawn = batches.draw()
    while place in descent.left_out:
        descent.skipped_in_row += 1
        place = batches.epoch, batches.within
        drawn = batches.draw()
    descent.place, descent.drawn = place, drawn
    return drawn


def backward(descent: Descent, drawn: Draw, place: tuple[int, int] | None = None) -> float:
    """Accumulate the gradient over the micro-batches, each weighted by its share of the step's examples (or own weight).

    `place`: the batch's epoch and number; None: those of the last one drawn.
    """
    # Random numbers are a function of (seed, place), so that resuming and going back need none of their state.
    seed_all(mix(descent.plan.seed, _STEP, *(place or descent.place)))
    for p in descent.parameters:
        p.grad = None
    objective, device, precision = descent.problem.objective, descent.problem.device, descent.plan.precision
    scale = descent.scale.value
    if len(drawn.parts) == 1:
        with autocast(precision, device):
            loss, _ = objective.loss(descent.model, to_device(drawn.parts[0], device))
        (loss * scale if scale != 1.0 else loss).backward()
        _multiply(descent, 1.0 / scale)
        return loss.item()
    total, weights = 0.0, 0.0
    for part, size in zip(drawn.parts, drawn.sizes, strict=True):
        counted = objective.divisor(part, size)
        if not counted:  # all its targets are ignored, so it has no mean
            continue
        with autocast(precision, device):
            loss, own = objective.loss(descent.model, to_device(part, device))
        weight = counted if own is None else float(own)
        (loss * (scale * weight)).backward()
        total, weights = total + float(loss.detach()) * weight, weights + weight
    if weights <= 0 and objective.task.step is None:
        return math.nan
    if weights <= 0:
        raise TaskError(f"The weights that `step` returned for this step add up to {weights}; they must be above zero.")
    _multiply(descent, 1.0 / (scale * weights))
    return total / weights


def _multiply(descent: Descent, factor: float) -> None:
    if factor == 1.0:
        return
    gradients = [p.grad for g in descent.optimizer.param_groups for p in g["params"] if p.grad is not None]
    torch._foreach_mul_(gradients, factor)  # pyright: ignore[reportPrivateImportUsage]


def _split_further(descent: Descent, recorder: Recorder, error: BaseException) -> None:
    batches = descent.batches
    if not batches.can_split:
        what = "a single example" if batches.micro == 1 else f"the loader's own batches of {batches.micro} examples"
        raise TaskError(
            f"Memory ran out in step {descent.step + 1} with {what} ({error}). Give smaller batches or a smaller model."
        ) from error
    descent.optimizer.zero_grad(set_to_none=True)
    release(descent.problem.device)
    descent.accumulate *= 2
    batches.split(descent.accumulate, descent.place)
    message = (
        f"Memory ran out: steps of {batches.batch_size} examples now go in {descent.accumulate} parts of {batches.micro}."
        f" Effective batch and schedule stay."
    )
    figures = {"accumulate": descent.accumulate, "micro_batch": batches.micro}
    recorder.event(descent.step + 1, "out_of_memory", message, figures)
