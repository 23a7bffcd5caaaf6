"""Looking before walking: the cheap tests of `check`, on copies."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import replace

from torch import nn

from thalweg import optim
from thalweg.descent.ambient import alone, ambient
from thalweg.descent.problem import Problem, first_batch, start_model, to_device
from thalweg.landscape.start import Start, measure_start
from thalweg.sampling import mix
from thalweg.sampling.sources import seed_all

STEPS = 100
SECONDS = 10.0  # the fitting of one batch stops here, and then it is not judged


def look(problem: Problem, seed: int = 0) -> Start:
    """Measure the task's start: loss, gradients, reaction, scale, and whether one batch can be fitted."""
    with ambient(), alone:
        model = start_model(problem, seed)
        batch = to_device(first_batch(problem.train), problem.device)
        start = measure_start(problem.objective, copy.deepcopy(model), batch)
        loss, steps = _fit(problem, model, batch, seed)
    return replace(start, fitted_loss=loss, fitted_steps=steps)


def _fit(problem: Problem, model: nn.Module, batch: object, seed: int) -> tuple[float | None, int]:
    """Train on one batch without dropout, and give the loss reached; None where time ran out first."""
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.AlphaDropout | nn.Dropout2d):
            module.p = 0.0
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = optim.build("adamw", parameters, lr=3e-3, clip_norm=1.0, on_nonfinite="skip")
    best, started, step = math.inf, time.perf_counter(), 0
    for step in range(1, STEPS + 1):
        optimizer.zero_grad(set_to_none=True)
        seed_all(mix(seed, step))
        loss, _ = problem.objective.loss(model, batch)
        loss.backward()
        optimizer.step()
        best = min(best, float(loss.detach()))
        if time.perf_counter() - started > SECONDS:
            break
    return (best if step == STEPS else None), step
