"""The loss surface of a run's model: the examples that are looked at, the mode that it is in meanwhile, and the points of the run
on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from thalweg.descent.problem import Problem
from thalweg.descent.process_state import preserve_process_state, rng_lock
from thalweg.descent.their_objects import as_found
from thalweg.descent.trail import points_of, trained_part
from thalweg.descent.validation import evaluating
from thalweg.errors import CheckpointError, DataError
from thalweg.landscape.model_surface import ModelSurface, Part
from thalweg.landscape.path import Array
from thalweg.landscape.slices import Grid
from thalweg.objects.state import ObjectState
from thalweg.records import checkpoint
from thalweg.records.run import Run
from thalweg.records.run_folder import RunFolder
from thalweg.records.survey import Slice
from thalweg.sampling import StreamSource, hold, iterate_once, mix
from thalweg.sampling.sources import seed_all, to_device
from thalweg.watch.finished import FinishedHistory

EXAMPLES = 2048  # that are looked at, where there are more
LARGEST_PART = 256  # examples of a batch
PARTS = 8  # batches at least, so that the gradient's sampling error is known
POINTS = 51  # of a line, and of each side of a plane
MARGIN = 0.2  # of the path's extent, around it
SURVEY = 6  # mixed into the seeds of what model and data draw


def sample(
    problem: Problem, run: Run, examples: int, seed: int, *, parts: int = PARTS, largest: int = LARGEST_PART
) -> tuple[list[Part], int, int | None]:
    """Give batches of training examples from all over the data, how many examples they hold, and how many there are: so many
    batches at least, where the loss of a batch is a mean over its examples.

    Raises DataError where there are none.
    """
    reduction, total, source = problem.objective.reduction, problem.count, problem.train
    wanted = min(examples, total or examples)
    size = max(1, min(largest, math.ceil(wanted / parts)))
    if not reduction.splits_exactly or reduction.depends_on_size:
        size = min(wanted, run.plan.batch_size or size)
    batches, shown = list[tuple[Any, int]](), 0
    seed_all(mix(seed, SURVEY))
    if isinstance(source, StreamSource):
        drawn: Iterator[tuple[Any, int]] = iter(hold(source, size, wanted))
    else:
        drawn = iterate_once(source, size, own=False, shuffle=True)
    for batch, count in drawn:
        batches.append((to_device(batch, problem.device), count))
        shown += count
        if shown >= wanted:
            break
    objective, weights = problem.objective, list[float]()
    for batch, count in batches:
        with objective.noting() as noted, objective.gradient_mode():
            own = objective.loss(run.model, batch)[1]
        weights.append(objective.weight_of(own, batch, count, noted) if reduction.splits_exactly else 1.0)
    whole = sum(weights)
    if not whole > 0:
        raise DataError("No training example that was looked at has a target that counts. Look at more of them.")
    found = [Part(batch, weight / whole) for (batch, _), weight in zip(batches, weights, strict=True) if weight]
    return found, shown, total


def seeded(seed: int) -> Callable[[int], None]:
    """Give what seeds the random numbers before each batch."""
    return lambda number: seed_all(mix(seed, SURVEY, number))


@contextmanager
def on_device(model: nn.Module, device: torch.device) -> Generator[None]:
    """Within, a model is on a device; afterwards where it was."""
    before = next((p.device for p in model.parameters()), device)
    model.to(device)
    try:
        yield
    finally:
        model.to(before)


@contextmanager
def surveyed(model: nn.Module, problem: Problem) -> Generator[None]:
    """Within, the model is in evaluation mode, with gradients; afterwards it has its own modes, buffers, gradients, and
    attributes in which it counts its calls."""
    gradients = [(p, p.grad) for p in model.parameters()]
    frozen = [(p, p.requires_grad) for p in model.parameters()]
    # A sparse gradient has no second derivative; the dense one is the same.
    sparse = [
        module for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse
    ]
    known = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    with ExitStack() as stack:
        stack.enter_context(ObjectState({"model": model}, known).unchanged())
        stack.enter_context(evaluating(model, problem.objective))
        stack.enter_context(torch.enable_grad())
        for module in sparse:
            module.sparse = False
        try:
            yield
        finally:
            for module in sparse:
                module.sparse = True
            for p, gradient in gradients:
                p.grad = gradient
            for p, needs in frozen:
                p.requires_grad_(needs)


@contextmanager
def looked_at(model: nn.Module, problem: Problem, threads: int | None) -> Generator[None]:
    """Within, a run's model is on the problem's device and can be surveyed; afterwards it, the task's objects and the process are
    as they were. `threads`: of the run's plan."""
    with (
        on_device(model, problem.device),
        preserve_process_state(threads),
        rng_lock,
        as_found(problem.task),
        surveyed(model, problem),
    ):
        yield


def complex_weights(model: nn.Module) -> list[str]:
    """Name the trained weights that are complex numbers, along which a surface does not go."""
    return [name for name, p in model.named_parameters() if p.requires_grad and p.is_complex()]


def plane_slice(name: str, axes: tuple[str, str], grid: Grid) -> Slice:
    """Make the record of a plane."""
    return Slice(
        name,
        axes,
        grid.x,
        grid.y,
        grid.losses,
        int(grid.is_measured.sum()),
        grid.error if math.isfinite(grid.error) else 1.0,
    )


def around(coordinates: Array) -> Array:
    """Give coordinates of a grid around a path and its end, with a margin."""
    low, high = min(0.0, float(coordinates.min())), max(0.0, float(coordinates.max()))
    margin = MARGIN * (high - low)
    return np.linspace(low - margin, high + margin, POINTS)


def points_on(surface: ModelSurface, run: Run) -> dict[int, Tensor]:
    """Give the points of a run's trail that lie on a surface, by step, ascending."""
    kept = {step: trained_part(each, surface.model) for step, each in sorted(_trail_of(run).items())}
    return {
        step: each.to(surface.device, surface.dtype)
        for step, each in kept.items()
        if each is not None and each.numel() == surface.size
    }


def axis_names(shares: tuple[float, float]) -> tuple[str, str]:
    """Name the axes of a principal plane, each with its share of the variance."""
    return f"first principal direction, {shares[0]:.0%}", f"second principal direction, {shares[1]:.0%}"


def _trail_of(run: Run) -> Mapping[int, Tensor]:
    """Give the run's weights after some steps, from memory or from its newest checkpoint."""
    if run.trail or run.folder is None:
        return run.trail
    try:
        return points_of(checkpoint.load(RunFolder(run.folder).checkpoints_path).state)
    except CheckpointError:
        return {}


def start_loss(run: Run) -> float | None:
    """Give the first training loss of a run that was a number."""
    losses = FinishedHistory.of(run).recorded("loss")[1]
    losses = losses[np.isfinite(losses)]
    return float(losses[0]) if len(losses) else None


def scale_of(run: Run, loss: float) -> float | None:
    """Give a change of the loss that a thousandth of matters, at the loss where a run ended: that which is left, or that by which
    it has fallen where this is less."""
    start = start_loss(run)
    left = loss if loss > 0 else None
    return left if start is None or left is None else min(left, max(start - loss, 0.0)) or left


def step_of(run: Run) -> int:
    """Give the step after which a run had the weights that it ended with."""
    weights = run.summary.get("weights")
    step = weights.get("step") if isinstance(weights, Mapping) else None
    return int(step if isinstance(step, int) else run.summary.get("steps") or 0)


def is_noisy(run: Run) -> bool:
    """Tell whether a run's batches are but a part of the examples."""
    size, count = run.plan.batch_size, run.summary.get("examples")
    return size is None or not isinstance(count, int) or size < count


def is_average(run: Run) -> bool:
    """Tell whether the weights that a run ended with are an average."""
    weights = run.summary.get("weights")
    return isinstance(weights, Mapping) and bool(cast("Mapping[str, Any]", weights).get("averaged"))


def noise_of(run: Run) -> dict[str, float]:
    """Give the gradient noise scale at the end of the run, in examples, and its interval, as far as they are known."""
    stretches = FinishedHistory.of(run).noise_scales()
    if not stretches:
        return {}
    scale = stretches[-1].scale
    return {"scale": scale.value, "low": scale.low, "high": scale.high} if scale.is_known else {"low": scale.low}
