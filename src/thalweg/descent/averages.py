"""Validating the average of the weights: batch normalisation layers get statistics for these weights first."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

import torch
from torch import nn

from thalweg.descent.precision import autocast
from thalweg.descent.process_state import rng_lock
from thalweg.descent.state import Descent
from thalweg.optim.recalibration import gathers_statistics, recalibrated
from thalweg.sampling import Batches, StreamSource, mix
from thalweg.sampling.sources import nonfinite_rows, seed_all, to_device

_STATISTICS = 4  # mixed into the seeds of these forward passes, so that they differ from those of the steps
MOST_BATCHES = 50  # from which statistics are estimated; fewer where validations are fewer steps apart
FEWEST_BATCHES = 10


@contextmanager
def averaged(descent: Descent) -> Generator[None]:
    """Within, the model holds the average of its weights, with batch statistics for it; afterwards its own weights again.

    The statistics come from forward passes over training batches. Their order and random numbers depend on (seed, step) only,
    and the position of training in the data does not move: training continues to the same bits with and without them. A model
    without batch normalisation needs no such pass.
    """
    descent.optimizer.zero_grad(set_to_none=True)  # not needed any more, and the passes may need the memory
    with descent.optimizer.averaged(), ExitStack() as stack:
        if gathers_statistics(descent.model):
            buffers = [(buffer, buffer.clone()) for buffer in descent.problem.objective.loss_buffers.values()]
            with rng_lock:
                stack.enter_context(recalibrated(descent.model, _batches(descent), _forward(descent)))
            # A `step` of the task may have called the loss, which may change its own buffers.
            for buffer, before in buffers:
                buffer.copy_(before)
        yield


def _forward(descent: Descent) -> Callable[[nn.Module, Any], None]:
    objective, device, precision = descent.problem.objective, descent.problem.device, descent.plan.precision

    def forward(model: nn.Module, batch: Any) -> None:
        with autocast(precision, device):
            if objective.task.step is None:
                objective.outputs(model, batch)
            else:
                with torch.enable_grad():  # a `step` of the task may take a gradient itself, of its inputs, say
                    objective.task.step(model, batch)

    return forward


def _batches(descent: Descent) -> Iterator[Any]:
    """Give training batches of a micro-batch's size on the device; random numbers are seeded before each."""
    plan = descent.plan
    most = min(MOST_BATCHES, max(FEWEST_BATCHES, plan.validate_every or MOST_BATCHES))
    for number, batch in enumerate(islice(_micro_batches(descent), most)):
        if not descent.problem.takes_nonfinite and nonfinite_rows(batch):
            continue
        seed_all(mix(plan.seed, _STATISTICS, descent.step, number))
        yield to_device(batch, descent.problem.device)


def _micro_batches(descent: Descent) -> Iterator[Any]:
    source, plan = descent.problem.train, descent.plan
    if isinstance(source, StreamSource):
        # A second iterator over a stream might disturb the one that training draws from, so the last batches are used again.
        yield from reversed([part for draw in descent.batches.recent for part in draw.parts])
        return
    batches = Batches(
        source,
        descent.batches.micro_batch_size,
        seed=mix(plan.seed, _STATISTICS, descent.step),
        replacement=plan.replacement,
        weights=descent.problem.weights,
        drop_last=True,
    )
    batches.leave_out(descent.batches.left_out)
    try:
        for _ in range(batches.steps_per_epoch or 0):
            yield from batches.draw().parts
    finally:
        batches.close()
