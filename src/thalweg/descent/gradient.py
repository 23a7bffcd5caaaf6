"""The gradient of one step's mean loss, accumulated over as many micro-batches as fit into memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from thalweg.descent.out_of_memory import out_of_memory, release
from thalweg.descent.precision import autocast
from thalweg.descent.process_state import rng_lock
from thalweg.descent.recorder import Recorder
from thalweg.descent.state import Descent
from thalweg.descent.user_errors import naming_errors
from thalweg.errors import TaskError
from thalweg.landscape.objective import Losses, make_gradients_dense
from thalweg.sampling import Draw, joined, mix
from thalweg.sampling.sources import seed_all, to_device

CALLED = {
    True: "The model or the loss",
    False: "`step`",
}  # whether the loss is computed from outputs and targets -> place
STEP_SEED = 2  # mixed into the seeds of the steps, so that they differ from that of the initialisation


def compute_gradient(descent: Descent, recorder: Recorder) -> tuple[float, int]:
    """Leave the gradient of one step's mean loss in the parameters; give that loss and the number of examples.

    Out of memory halves the micro-batch and doubles the accumulation; the step's examples and its mean stay the same.
    Raises TaskError where model, loss or gradient fail, or memory runs out and there is nothing left to halve.
    """
    while True:
        try:
            with rng_lock:
                batch = draw(descent)
                if descent.batches.length_note is not None:
                    recorder.event(descent.step + 1, "note", descent.batches.length_note)
                    descent.batches.length_note = None
                loss = backward(descent, batch)
                _tell_failed_compiling(descent, recorder)
                return loss, sum(batch.sizes)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            _split_further(descent, recorder, error)


def draw(descent: Descent) -> Draw:
    """Draw the next batch that is not one of the skipped, or several where cures put them together to one step, and remember them
    and their positions."""
    batches, drawn, positions = descent.batches, list[Draw](), list[tuple[int, int]]()
    count = descent.batches_ahead
    while len(drawn) < count:
        batches.pass_left_out()
        position = batches.epoch, batches.within
        if drawn and position[0] != positions[0][0]:  # batches that are skipped have brought it to the epoch's end
            break
        batch = batches.draw()
        if position not in descent.skipped_batches:
            drawn.append(batch)
            positions.append(position)
        elif position not in descent.skipped_together:
            descent.consecutive_skips += 1
    descent.last_position, descent.last_positions, descent.last_draws = positions[0], positions, drawn
    descent.last_draw = joined(drawn)
    return descent.last_draw


def backward(
    descent: Descent, batch: Draw, position: tuple[int, int] | None = None, *, term: str | None = None
) -> float:
    """Accumulate the gradient over the micro-batches, each with its weight in the mean over the step's examples.

    `position` is the batch's epoch and its index within it; None: those of the last one drawn. Where the task's `step` returns
    a weight, that counts instead of the number of examples; a loss that is a sum over examples is summed over the parts of a
    batch too, and of several batches the mean of their sums is taken.
    Gives the mean loss; it is NaN, and there is no gradient, where nothing counts: every target is one that the loss ignores, or
    the weights are zero. The terms of the loss, where it has some, are left in `descent.terms`; to one that a part lacks that
    part adds nothing.

    `term`: only this term's gradient is computed, and its mean given; without it, or where it has no gradient, there is none.

    Raises TaskError where the weights add up to less than zero, and where the steps of the run have too many terms.
    """
    # Dropout and the like are seeded anew for every batch, by (seed, position in the data). So no state of a random generator
    # needs to be saved: a resumed run, or one that went back to a snapshot, draws the same numbers for the same batch.
    seed_all(mix(descent.plan.seed, STEP_SEED, *(position or descent.last_position)))
    for p in descent.parameters:
        p.grad = None
    objective, device, precision = descent.problem.objective, descent.problem.device, descent.plan.precision
    scale = descent.loss_scale.value
    computing = naming_errors(CALLED[objective.task.step is None], step=descent.step + 1)
    descending = naming_errors("The backward pass", step=descent.step + 1)
    if len(batch.parts) == 1:
        with computing, autocast(precision, device):
            loss, _, terms, _ = _chosen(objective.losses(descent.model, to_device(batch.parts[0], device)), term)
        with descending:
            if term is None or loss.requires_grad:
                (loss * scale if scale != 1.0 else loss).backward()
        _finish_gradients(descent, 1.0 / scale)
        value = loss.item()
        descent.terms = {name: each.item() for name, each in terms.items()}
        return value
    weighted_loss, weights, weighted_terms = 0.0, 0.0, dict[str, float]()
    for part, size in zip(batch.parts, batch.sizes, strict=True):
        counted = objective.weight(part, size)
        if not counted:  # the loss ignores all its targets, so it has no mean
            continue
        with computing, autocast(precision, device), objective.noting() as noted:
            loss, own, terms, _ = _chosen(objective.losses(descent.model, to_device(part, device)), term)
        weight = counted if noted is None and own is None else objective.weight_of(own, part, size, noted)
        if not weight:
            continue
        with descending:
            if term is None or loss.requires_grad:
                (loss * (scale * weight)).backward()
        weighted_loss, weights = weighted_loss + float(loss.detach()) * weight, weights + weight
        for name, each in terms.items():
            weighted_terms[name] = weighted_terms.get(name, 0.0) + each.item() * weight
    if objective.reduction.kind == "sum":
        weights = float(batch.batches)
    if weights == 0:
        descent.terms = {}
        return math.nan
    if weights < 0:
        raise TaskError(
            f"The weights that `step` returned for this step add up to {weights}; they must not be below zero."
        )
    _finish_gradients(descent, 1.0 / (scale * weights))
    descent.terms = {name: each / weights for name, each in weighted_terms.items()}
    return weighted_loss / weights


def _chosen(found: Losses, term: str | None) -> Losses:
    """Give what a batch gave, or with `term` that term in the place of the loss: zero where the batch has none."""
    if term is None:
        return found
    return found._replace(loss=found.terms.get(term, torch.zeros_like(found.loss.detach())))


def _finish_gradients(descent: Descent, factor: float) -> None:
    """Make the gradients dense, and multiply them."""
    if descent.problem.sparse_gradients:
        make_gradients_dense(descent.parameters)
    if factor == 1.0:
        return
    gradients = [p.grad for g in descent.optimizer.param_groups for p in g["params"] if p.grad is not None]
    torch._foreach_mul_(gradients, factor)  # pyright: ignore[reportPrivateImportUsage]


def squared_norm(gradients: Iterable[Tensor | None]) -> float:
    """Give the squared norm of all gradients together."""
    norms = [torch.linalg.vector_norm(g.to_dense()) for g in gradients if g is not None]
    return float(torch.stack([norm.double() for norm in norms]).square().sum()) if norms else 0.0


def product(gradients: Sequence[Tensor | None], others: Sequence[Tensor | None]) -> float:
    """Give the scalar product of two gradients of the same parameters, of all together."""
    pairs = zip(gradients, others, strict=True)
    parts = [
        torch.linalg.vecdot(one.to_dense().flatten(), other.to_dense().flatten()).real.double()
        for one, other in pairs
        if one is not None and other is not None
    ]
    return float(torch.stack(parts).sum()) if parts else 0.0


def _tell_failed_compiling(descent: Descent, recorder: Recorder) -> None:
    """Say once that the model could not be compiled."""
    compiled = descent.compiled
    if compiled is None or compiled.failure is None:
        return
    recorder.event(descent.step + 1, "note", f"The model is not compiled from here on: {compiled.failure}")
    compiled.undo()
    descent.compiled = None


_INEXACT = {
    "batch": (
        " This loss is no mean over its examples, so the parts do not give the gradient of the whole. Where it is a mean with"
        " weights, return (loss, weight) from step; where it compares the examples of a batch, take smaller batches."
    ),
    "misweighted": (
        " Averaged by the weights that `step` returns, the parts do not give the gradient of the whole. Return the count by which"
        " its loss is divided, or the loss alone."
    ),
    "unknown": (
        " Whether the parts give the gradient of the whole could not be tested: they do where the loss is a mean over examples;"
        " where it is one over tokens, say, return (loss, weight) from step."
    ),
}


def inexact_parts(descent: Descent) -> str:
    """Say that the parts of a step do not make up its whole, where that is so; else an empty text."""
    text = _INEXACT.get(descent.problem.objective.reduction.kind, "")
    if any(isinstance(module, _BatchNorm) and module.training for module in descent.model.modules()):
        text += " Batch normalisation takes its statistics of each part."
    return text


def _split_further(descent: Descent, recorder: Recorder, error: BaseException) -> None:
    """Double the accumulation, and draw the batch that did not fit again. Raises TaskError where nothing is left to halve."""
    batches = descent.batches
    if not batches.can_split:
        what = (
            "a single example"
            if batches.micro_batch_size == 1
            else f"the loader's own batches of {batches.micro_batch_size} examples"
        )
        raise TaskError(
            f"Memory ran out in step {descent.step + 1} with {what} ({error}). Give smaller batches or a smaller model."
        ) from error
    descent.optimizer.zero_grad(set_to_none=True)
    release(descent.problem.device)
    descent.accumulate *= 2
    batches.split(descent.accumulate, descent.last_position)
    message = (
        f"Memory ran out: steps of {batches.batch_size} examples now go in {descent.accumulate} parts of"
        f" {batches.micro_batch_size}. Effective batch and schedule stay.{inexact_parts(descent)}"
    )
    figures = {"accumulate": descent.accumulate, "micro_batch": batches.micro_batch_size}
    recorder.event(descent.step + 1, "out_of_memory", message, figures)
