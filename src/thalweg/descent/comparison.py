"""Several runs of one model beside each other: their ends, the barriers between these, and their paths on one surface."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from thalweg.descent.problem import Problem
from thalweg.descent.process_state import preserve_process_state, rng_lock
from thalweg.descent.survey import (
    around,
    axis_names,
    complex_weights,
    on_device,
    plane_slice,
    points_on,
    sample,
    seeded,
    surveyed,
)
from thalweg.descent.their_objects import as_found
from thalweg.errors import RunError
from thalweg.landscape.barrier import barrier
from thalweg.landscape.lanczos import eigenpairs
from thalweg.landscape.model_surface import ModelSurface
from thalweg.landscape.path import principal_plane
from thalweg.landscape.slices import plane
from thalweg.optim.recalibration import gathers_statistics
from thalweg.records.comparison import Comparison
from thalweg.records.run import Run
from thalweg.records.survey import Slice, Walk

MOST_PRODUCTS = 40


def compare_runs(
    runs: Sequence[Run], problem: Problem, *, examples: int, seed: int, say: Callable[[str], None] = lambda text: None
) -> Comparison:
    """Compare the ends and paths of runs; see `verbs.compare`.

    Raises RunError where the runs' models have other weights, or differ in more than what is trained.
    """
    names = _names(runs)
    models = [run.model for run in runs]
    _check_alike(names, models)
    problem, notes = problem.with_own_loss(), list[str]()
    first = models[0]
    anew = gathers_statistics(first)
    if anew:
        notes.append("Batch normalisation's statistics were estimated anew at every point, from the same examples.")
    if others := complex_weights(first):
        notes.append(f"Complex weights are not compared: {', '.join(others)}.")
    with (
        on_device(first, problem.device),
        preserve_process_state(runs[0].plan.threads),
        rng_lock,
        as_found(problem.task),
        surveyed(first, problem),
    ):
        parts, shown, _ = sample(problem, runs[0], examples, seed)
        surface = ModelSurface(first, problem.objective, parts, seed_for=seeded(seed), recalibrate=anew)
        ends = [surface.flat(_trained(model, first)) for model in models]
        with surface.put_back():
            surface.check_repeats()
            surface.check_symmetric()
            losses = tuple(surface.loss(end) for end in ends)
        _check_only_weights_differ(surface, names, models, losses, problem)
        with surface.put_back():
            say("Largest curvature at each end.")
            sharpness = tuple(
                eigenpairs(
                    surface.hessian(end), end, top=1, bottom=0, tolerance=0.01, most=MOST_PRODUCTS, seed=seed
                ).top[0]
                for end in ends
            )
            ways, slices = dict[tuple[int, int], float](), list[Slice]()
            for one, other in itertools.combinations(range(len(runs)), 2):
                say(f"The straight way from {names[one]} to {names[other]}.")
                found = barrier(surface, ends[one], ends[other])
                ways[one, other] = ways[other, one] = found.height
                name, axis = f"{names[one]} to {names[other]}", "share of the straight way"
                slices.append(Slice(name, (axis,), found.shares, found.shares[:0], found.losses, len(found.losses)))
            say("All paths in the plane that holds most of them.")
            drawn = _plane(surface, runs, names, ends)
            slices += [drawn] if drawn is not None else []
            if drawn is None:
                notes.append("The paths are not drawn: too few points of them were kept, or they lie on one line.")
    count = range(len(runs))
    return Comparison(
        names,
        losses,
        sharpness,
        tuple(tuple(float((ends[a] - ends[b]).double().norm()) for b in count) for a in count),
        tuple(tuple(ways.get((a, b), 0.0) for b in count) for a in count),
        tuple(slices),
        shown,
        tuple(notes),
    )


def _trained(model: nn.Module, first: nn.Module) -> list[Tensor]:
    """Give the weights of a model that the first one trains."""
    of = dict(model.named_parameters())
    return [of[name].detach() for name, p in first.named_parameters() if p.requires_grad and p.is_floating_point()]


def _check_only_weights_differ(
    surface: ModelSurface, names: Sequence[str], models: Sequence[nn.Module], losses: Sequence[float], problem: Problem
) -> None:
    """Raise RunError where a model's own loss is another than at its trained weights in the first model, as where what is not
    trained (frozen layers drawn by the seed, buffers, tensors in attributes) differs: that is no point of the same surface."""
    for name, model, there in zip(names[1:], models[1:], losses[1:], strict=True):
        with on_device(model, problem.device), surveyed(model, problem):
            for own, first in zip(model.parameters(), surface.model.parameters(), strict=True):
                own.requires_grad_(first.requires_grad)
            itself = surface.of(model)
            with itself.put_back():
                loss = itself.loss(itself.point)
        if not math.isclose(loss, there, rel_tol=1e-3, abs_tol=1e-6) and not math.isnan(loss):
            raise RunError(
                f"The models of {names[0]} and {name} differ in more than their trained weights: with its own frozen weights,"
                f" buffers and attributes {name} has a loss of {loss:.4g}, with those of {names[0]} {there:.4g}. So they are on"
                f" no common surface. Survey each alone."
            )


def _plane(surface: ModelSurface, runs: Sequence[Run], names: Sequence[str], ends: Sequence[Tensor]) -> Slice | None:
    """Draw all paths in one plane with the loss under them; its origin is the first run's end."""
    walks = list[tuple[str, list[int]]]()
    points = list[Tensor]()
    for run, name, end in zip(runs, names, ends, strict=True):
        kept = points_on(surface, run)
        points += kept.values()
        points.append(end)
        walks.append((name, [*kept, int(run.summary.get("steps") or max(kept, default=0))]))
    try:
        found = principal_plane(points, ends[0])
    except ValueError:
        return None
    x, y = (around(found.coordinates[:, axis]) for axis in range(2))
    grid = plane(surface, ends[0], found.directions, x, y)
    drawn, first = list[Walk](), 0
    for name, steps in walks:
        drawn.append(Walk(name, found.coordinates[first : first + len(steps)], tuple(steps)))
        first += len(steps)
    return replace(plane_slice("the paths", axis_names(found.shares), grid), walks=tuple(drawn), shares=found.shares)


def _names(runs: Sequence[Run]) -> tuple[str, ...]:
    """Give each run a name of its own: its folder's, or the task's with a number."""
    names = [run.folder.name if run.folder is not None else str(run.summary.get("name") or "run") for run in runs]
    if len(set(names)) < len(names) and all(run.folder is not None for run in runs):
        names = [str(run.folder) for run in runs]
    if len(set(names)) < len(names):
        names = [f"{name} {number}" for number, name in enumerate(names, 1)]
    return tuple(names)


def _check_alike(names: Sequence[str], models: Sequence[nn.Module]) -> None:
    shapes = [
        {name: tuple(p.shape) for name, p in model.named_parameters() if p.is_floating_point()} for model in models
    ]
    for name, other in zip(names[1:], shapes[1:], strict=True):
        if other != shapes[0]:
            differing = sorted({*shapes[0].items()} ^ {*other.items()})
            example = differing[0] if differing else ("", ())
            raise RunError(
                f"{names[0]} and {name} are runs of different models: {example[0]} is {example[1]} in one of them only."
                f" Compare runs of one model."
            )
    for name, model in zip(names, models, strict=True):
        if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
            raise RunError(f"The weights of {name} are not all finite. See `thalweg diagnose`.")
