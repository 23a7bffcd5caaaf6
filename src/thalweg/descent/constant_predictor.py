"""The loss of the best constant prediction on what a problem is validated on: what anything that learns must beat."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from thalweg.descent.problem import Problem, start_model
from thalweg.descent.process_state import preserve_process_state, rng_lock
from thalweg.descent.their_objects import as_found
from thalweg.descent.validation import LARGEST_BATCH, SAMPLE, in_evaluation_mode, validation_batches
from thalweg.landscape.initial_figures import constant_loss
from thalweg.sampling.sources import seed_all


def constant_predictor_loss(problem: Problem) -> tuple[float, str] | None:
    """Give that loss and what it is, of some thousand examples; None where it is not known for this loss, or such targets."""
    if problem.task.step is not None or problem.task.evaluate is not None:
        return None
    objective, targets, output = problem.validation_objective, list[Tensor](), None
    try:
        with preserve_process_state(), rng_lock, as_found(problem.task):
            model = start_model(problem, 0)
            seed_all(0)
            examples = 0
            for batch, size in validation_batches(problem, LARGEST_BATCH, own=True):
                target: Any = objective.split(batch)[2]
                if output is None:
                    with objective.gradient_mode(), in_evaluation_mode(model):
                        output = objective.outputs(model, batch)[0]
                targets.append(target.detach())
                examples += size
                if examples >= SAMPLE:
                    break
            return constant_loss(objective, output, torch.cat(targets))
    except Exception:
        return None  # targets that are no tensors of one shape, say
