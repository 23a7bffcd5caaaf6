"""Looking before walking: the cheap tests of `check`, on copies."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import torch
from torch import nn

from thalweg import optim
from thalweg.descent.ambient import alone, ambient
from thalweg.descent.problem import REHEARSED, Problem, first_batch, start_model, to_device
from thalweg.landscape.start import Start, alike, constant_loss, measure_start, reaction
from thalweg.sampling import Batches, mix, once
from thalweg.sampling.sources import seed_all

STEPS = 100
SECONDS = 10.0
EXAMPLES, MOST_BATCHES = 64, 16  # of the sample that shows whether anything carries over from some examples to others
ENOUGH = 8  # batches: below that a sample says little
ROUNDS = 25  # passes over the half of the sample that is learnt from


def look(problem: Problem, seed: int = 0, seconds: float = SECONDS) -> Start:
    """Measure the task's start: loss, gradients, reaction, scale, whether one batch can be fitted, and what carries over.

    Fitting one batch, drawing a sample and learning from it stop after `seconds` each, and are then not judged.
    """
    with ambient(), alone:
        problem = problem.private()
        model = start_model(problem, seed)
        sample = _sample(problem, seed, seconds)
        batch = to_device(_some(problem, seed), problem.device)
        start = measure_start(problem.objective, start_model(problem, seed), batch)
        learner = start_model(problem, seed)
        loss, steps = _fit(problem, model, batch, seed, start, seconds)
        heeds = reaction(
            problem.objective, model, batch
        )  # a last layer that starts at zero heeds its input from then on
        held_out = _carry_over(problem, learner, sample, seed, seconds)
        same = (
            None if problem.task.step else alike([problem.objective.split(part)[2] for part in sample or _all(problem)])
        )
    if start.reaction is not None and heeds is not None:
        start = replace(start, reaction=max(start.reaction, heeds))
    return replace(start, fitted_loss=loss, fitted_steps=steps, held_out=held_out, target_alike=same)


def _some(problem: Problem, seed: int) -> object:
    """Give a few examples from all over the data, which may lie sorted; of a stream its first."""
    if problem.count is None:
        return first_batch(problem.train)
    batches = Batches(problem.train, min(REHEARSED, problem.count), seed=seed)
    try:
        return batches.draw().parts[0]
    finally:
        batches.close()


def _sample(problem: Problem, seed: int, seconds: float) -> list[object]:
    """Draw some batches from all over the data; fewer where reading is slow, none where there are too few examples."""
    if problem.count is not None and problem.count < ENOUGH * EXAMPLES:
        return []
    batches = Batches(problem.train, EXAMPLES, seed=seed, drop_last=True)
    sample: list[object] = []
    started = time.perf_counter()
    while len(sample) < min(MOST_BATCHES, batches.steps_per_epoch or MOST_BATCHES):
        sample.append(to_device(batches.draw().parts[0], problem.device))
        if time.perf_counter() - started > seconds / 2:
            break
    batches.close()
    return sample if len(sample) >= ENOUGH else []


def _all(problem: Problem) -> list[object]:
    """Give all examples of a small data set as one batch, nothing for a stream."""
    if problem.count is None or problem.count >= ENOUGH * EXAMPLES:
        return []
    return [batch for batch, _ in once(problem.train, problem.count)]


def _carry_over(
    problem: Problem, model: nn.Module, sample: list[object], seed: int, seconds: float
) -> tuple[float, float] | None:
    """Learn from half of the sample, and give the best loss on the other half with the constant predictor's loss there.

    None where that one is not known, the sample is too small or time ran out: then it is not judged.
    """
    half = len(sample) // 2
    if not half or problem.task.step is not None:
        return None
    objective, learnt, others = problem.objective, sample[:half], sample[half:]
    optimizer = _optimizer(model)
    best, constant, started = math.inf, math.nan, time.perf_counter()
    for turn in range(ROUNDS):
        model.train()
        for number, batch in enumerate(learnt):
            seed_all(mix(seed, turn, number))
            optimizer.zero_grad(set_to_none=True)
            loss, _ = objective.loss(model, batch)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            seen = [(*objective.outputs(model, batch), float(objective.loss(model, batch)[0])) for batch in others]
        known = [constant_loss(objective, output, target) for output, target, _ in seen]
        if any(found is None for found in known):
            return None
        best = min(best, sum(loss for _, _, loss in seen) / len(seen))
        constant = sum(found[0] for found in known if found) / len(known)
        if best < 0.9 * constant:  # it does
            break
        if time.perf_counter() - started > seconds:
            return None
    return best, constant


def _optimizer(model: nn.Module) -> optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return optim.build("adamw", parameters, lr=3e-3, clip_norm=1.0, on_nonfinite="skip")


def _fit(
    problem: Problem, model: nn.Module, batch: object, seed: int, start: Start, seconds: float
) -> tuple[float | None, int]:
    """Train on one batch without dropout, and give the loss reached; None where time ran out first."""
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.AlphaDropout | nn.Dropout2d):
            module.p = 0.0
    model.train()
    optimizer = _optimizer(model)
    enough = 0.5 * min(start.loss, start.loss if start.constant_loss is None else start.constant_loss)
    best, started, step = math.inf, time.perf_counter(), 0
    for step in range(1, STEPS + 1):
        optimizer.zero_grad(set_to_none=True)
        seed_all(mix(seed, step))
        loss, _ = problem.objective.loss(model, batch)
        loss.backward()
        optimizer.step()
        best = min(best, float(loss.detach()))
        if 0 < best < enough:
            return best, step
        if time.perf_counter() - started > seconds:
            break
    return (best if step == STEPS else None), step
