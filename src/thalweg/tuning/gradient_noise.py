"""The gradient noise scale of a task, measured in the first steps of a short descent that is then thrown away."""

from __future__ import annotations

import math
import time

from torch import Tensor

from thalweg.descent.gradient import backward, draw, squared_norm
from thalweg.descent.problem import Problem
from thalweg.descent.process_state import preserve_process_state, rng_lock
from thalweg.descent.state import Descent
from thalweg.descent.timing import PLACEHOLDER_STEPS
from thalweg.landscape.noise_scale import COMPARABLE, GradientNorms, NoiseScale, NoiseScaleMeter
from thalweg.records.plan import Plan
from thalweg.sampling import Draw

PARTS = 4  # of each step's batch, whose gradients are compared
BEFORE, BEFORE_SHARE = (5, 50), 0.05  # steps without measuring: of the run's, and the fewest and most
MEASUREMENTS = 24


def measure_noise_scale(problem: Problem, plan: Plan, steps: int, seconds: float = 1.0) -> NoiseScale | None:
    """Give the noise scale after the first steps of a run of so many `steps`; None where it cannot be measured.

    That is so where the loss of a batch is no mean over its examples, batches have fewer than eight, or the descent diverges.

    Arguments:
        problem: what is trained.
        plan: gives batch size and learning rate; the rate rises to it over the first steps.
        seconds: that it may take, about. Where they end before the first steps are over, there is no figure.
    """
    size, micro = plan.batch_size, 2
    if size is None or size < PARTS * micro or problem.objective.reduction.kind not in COMPARABLE:
        return None
    before = min(max(BEFORE[0], round(BEFORE_SHARE * steps)), BEFORE[1])
    plan = plan.replace(steps=plan.steps or PLACEHOLDER_STEPS, accumulate=PARTS)
    meter, until = NoiseScaleMeter(), time.perf_counter() + seconds
    descent = Descent(problem, plan)
    try:
        with preserve_process_state(plan.threads):
            for step in range(before + MEASUREMENTS):
                norms = _step(descent, plan.learning_rate * min(1.0, (step + 1) / before))
                if norms is None:
                    return None
                if step >= before and norms.small_batch * PARTS == norms.big_batch == size:
                    meter.add(norms)
                if time.perf_counter() > until:
                    break
    finally:
        descent.batches.close()
    return meter.estimate() if meter.count else None


def _step(descent: Descent, rate: float) -> GradientNorms | None:
    """Take a step on a batch whose parts' gradients are computed one by one; None where one of them is not finite."""
    with rng_lock:
        drawn = draw(descent)
        total = sum(drawn.sizes)
        is_sum = descent.problem.objective.reduction.kind == "sum"
        squared, mean = list[float](), list[Tensor | None]()
        for number, (part, size) in enumerate(zip(drawn.parts, drawn.sizes, strict=True)):
            epoch, within = descent.last_position
            loss = backward(descent, Draw([part], [size], None), (epoch, within * PARTS + number))
            if not math.isfinite(loss):
                return None
            gradients = [p.grad for p in descent.parameters]
            factor = 1.0 / size if is_sum else 1.0
            squared.append(factor**2 * squared_norm(gradients))
            mean = _added(mean or [None] * len(gradients), gradients, factor * size / total)
    whole = squared_norm(mean)
    if not math.isfinite(whole):
        return None
    for parameter, gradient in zip(descent.parameters, mean, strict=True):
        parameter.grad = gradient
    descent.set_rate(rate)
    descent.optimizer.step()
    if len(set(drawn.sizes)) > 1 or len(squared) < 2:  # an epoch's last batch
        return GradientNorms(1, 0.0, total, 0.0)._replace(small_batch=0.0)
    return GradientNorms.of_micro_batches(squared, whole, total)


def _added(sums: list[Tensor | None], gradients: list[Tensor | None], factor: float) -> list[Tensor | None]:
    added = list[Tensor | None]()
    for so_far, gradient in zip(sums, gradients, strict=True):
        scaled = None if gradient is None else gradient * factor
        added.append(scaled if so_far is None else so_far if scaled is None else so_far.add_(scaled))
    return added
