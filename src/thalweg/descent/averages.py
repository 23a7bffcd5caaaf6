"""The average of the weights, made ready to be judged: batch normalisation gets the statistics of these very weights."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

import torch
from torch import nn

from thalweg.descent.ambient import alone
from thalweg.descent.precision import autocast
from thalweg.descent.problem import to_device
from thalweg.descent.state import Descent
from thalweg.optim.recalibration import gathers_statistics, recalibrated
from thalweg.sampling import Batches, StreamSource, mix
from thalweg.sampling.sources import seed_all, spoilt_rows

_STATISTICS = 4  # keeps the draws and random numbers of these passes apart from those of the steps
MOST = 50  # batches that statistics are estimated from
FEWEST = 10  # likewise, where validations follow one another closely


@contextmanager
def averaged(descent: Descent) -> Generator[None]:
    """Within, the model holds the average of its weights, with statistics of its own; afterwards its own bits again.

    The passes over training data draw from (seed, step) alone, and leave the training's place in the data as it is, so the way
    on is the same with and without them. A model without batch normalisation makes none.
    """
    descent.optimizer.zero_grad(set_to_none=True)  # done with, and what follows may need the room
    with descent.optimizer.averaged(), ExitStack() as stack:
        if gathers_statistics(descent.model):
            memory = [(buffer, buffer.clone()) for buffer in descent.problem.objective.loss_buffers.values()]
            with alone:
                stack.enter_context(recalibrated(descent.model, _batches(descent), _forward(descent)))
            for buffer, before in memory:  # a task's own step may have called the loss
                buffer.copy_(before)
        yield


def _forward(descent: Descent) -> Callable[[nn.Module, Any], None]:
    objective, device, precision = descent.problem.objective, descent.problem.device, descent.plan.precision

    def forward(model: nn.Module, batch: Any) -> None:
        with autocast(precision, device):
            if objective.task.step is None:
                objective.outputs(model, batch)
            else:
                with torch.enable_grad():  # it may take a gradient itself, of its inputs, say
                    objective.task.step(model, batch)

    return forward


def _batches(descent: Descent) -> Iterator[Any]:
    """Give training batches as large as the steps' own parts, with the random numbers for each drawn from (seed, step)."""
    plan = descent.plan
    most = min(MOST, max(FEWEST, plan.validate_every or MOST))
    for number, part in enumerate(islice(_parts(descent), most)):
        if spoilt_rows(part):
            continue
        seed_all(mix(plan.seed, _STATISTICS, descent.step, number))
        yield to_device(part, descent.problem.device)


def _parts(descent: Descent) -> Iterator[Any]:
    source, plan = descent.problem.train, descent.plan
    if isinstance(source, StreamSource):  # a second pass beside the training's own might disturb it
        yield from reversed([part for draw in descent.batches.recent for part in draw.parts])
        return
    own = Batches(
        source,
        descent.batches.micro,
        seed=mix(plan.seed, _STATISTICS, descent.step),
        replacement=plan.replacement,
        weights=descent.problem.weights,
        drop_last=True,
    )
    try:
        for _ in range(own.steps_per_epoch or 0):
            yield from own.draw().parts
    finally:
        own.close()
