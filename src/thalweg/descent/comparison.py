"""Several runs of one model beside each other: their ends, the ways between these, and their paths on one surface."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from thalweg.descent.course import CourseMeter
from thalweg.descent.problem import Problem
from thalweg.descent.run_surface import (
    MARGIN,
    POINTS,
    axis_names,
    complex_weights,
    looked_at,
    on_device,
    plane_slice,
    points_on,
    sample,
    seeded,
    step_of,
    surveyed,
)
from thalweg.errors import Interrupted, RunError
from thalweg.formatting import format_count, format_seconds
from thalweg.landscape.barrier import Barrier, barrier
from thalweg.landscape.curve import GRADIENTS, curve_length, on_curve, trained_bend
from thalweg.landscape.hidden_units import hidden_units, permuted
from thalweg.landscape.lanczos import eigenpairs
from thalweg.landscape.model_surface import ModelSurface
from thalweg.landscape.path import Array, principal_plane
from thalweg.landscape.slices import plane
from thalweg.landscape.surface import Slope
from thalweg.landscape.weight_matching import matched_orders
from thalweg.optim.recalibration import batch_statistics, gathers_statistics
from thalweg.records.comparison import CURVED, MATCHED, STRAIGHT, Comparison, Way
from thalweg.records.run import Run
from thalweg.records.survey import Slice, Walk

MOST_PRODUCTS = 40
FEW = 16  # examples by which hidden units are found
POINTS_OF_CURVE = 33  # that are drawn
PLANE_TOLERANCE = 0.02  # of the range of losses, in the plane of a curve
MOST_POINTS = 7  # of a run at which sharpness is measured
LOSSES_OF_WAY = 30  # about as many of each way


Say = Callable[[str], None]


def compare_runs(
    runs: Sequence[Run],
    problem: Problem,
    *,
    examples: int,
    curves: bool = True,
    seed: int,
    say: Say = lambda text: None,
) -> Comparison:
    """Compare the ends and paths of runs; see `verbs.compare`.

    Raises RunError where the runs' models have other weights, or differ in more than what is trained; `Interrupted`, whose
    `comparison` is what was measured until then.
    """
    comparison = _Comparison(runs, problem, examples, curves, seed, say)
    try:
        comparison.measure()
    except KeyboardInterrupt as stopped:
        kept = None if comparison.found is None else replace(comparison.found, complete=False)
        number = stopped.signal if isinstance(stopped, Interrupted) else Interrupted().signal
        message = "Interrupted: the comparison has what was measured until then."
        raise Interrupted(message, signal=number, comparison=kept) from stopped
    assert comparison.found is not None
    return comparison.found


class _Comparison:
    """Measures one thing after the other; `found` has what is known so far."""

    def __init__(self, runs: Sequence[Run], problem: Problem, examples: int, curves: bool, seed: int, say: Say) -> None:
        self.runs, self.problem, self.examples, self.curves = runs, problem.with_own_loss(), examples, curves
        self.seed, self.say = seed, say
        self.names = _names(runs)
        self.models = [run.model for run in runs]
        self.pairs = list(itertools.combinations(range(len(runs)), 2))
        self.found: Comparison | None = None

    def measure(self) -> None:
        """Measure all."""
        _check_alike(self.names, self.models)
        first = self.models[0]
        with looked_at(first, self.problem, self.runs[0].plan.threads):
            anew = gathers_statistics(first)
            parts, shown, _ = sample(self.problem, self.runs[0], self.examples, self.seed)
            surface = ModelSurface(first, self.problem.objective, parts, seed_for=seeded(self.seed), recalibrate=anew)
            ends = [surface.flat(_trained(model, first)) for model in self.models]
            with surface.put_back():
                surface.check_repeats()
                surface.check_symmetric()
                began = time.perf_counter()
                losses = tuple(surface.loss(end) for end in ends)
                each = (time.perf_counter() - began) / len(ends)
            _check_only_weights_differ(surface, self.names, self.models, losses, self.problem)
            count = range(len(ends))
            self.found = Comparison(
                self.names,
                losses,
                (math.nan,) * len(ends),
                tuple(tuple(float((ends[a] - ends[b]).double().norm()) for b in count) for a in count),
                tuple(tuple(0.0 if a == b else math.nan for b in count) for a in count),
                examples=shown,
            )
            if anew:
                self._note(
                    "Batch normalisation's statistics were estimated anew at every point, from the same examples."
                )
            if others := complex_weights(first):
                self._note(f"Complex weights are not compared: {', '.join(others)}.")
            with surface.put_back():
                self._measure(surface, ends, each)

    def _measure(self, surface: ModelSurface, ends: Sequence[Tensor], each: float) -> None:
        self.say("Largest curvature at each end.")
        self._add(
            sharpness=tuple(
                eigenpairs(
                    surface.hessian(end), end, top=1, bottom=0, tolerance=0.01, most=MOST_PRODUCTS, seed=self.seed
                ).top[0]
                for end in ends
            )
        )
        self.say(
            f"The straight way between {format_count(len(self.pairs), 'pair')} of ends:"
            f" about {format_seconds(LOSSES_OF_WAY * each * len(self.pairs))}."
        )
        for one, other in self.pairs:
            way = barrier(surface, ends[one], ends[other])
            self._keep(one, other, STRAIGHT, way, self.known.distances[one][other])
        self.say("All paths in the plane that holds most of them.")
        drawn = _plane(surface, self.runs, self.names, ends)
        if drawn is not None:
            self._add(slices=(drawn,))
        else:
            self._note("The paths are not drawn: too few points of them were kept, or they lie on one line.")
        if any(not self.known.same_basin(*pair) for pair in self.pairs):
            self._match(surface, ends, each)
        self._courses(surface, ends)
        if self.curves:
            self._curves(surface, ends, each)

    def _match(self, surface: ModelSurface, ends: Sequence[Tensor], each: float) -> None:
        """Follow the straight way again where it has a barrier, with the second run's hidden units in the order that is nearest
        to the first's."""
        apart = [pair for pair in self.pairs if not self.known.same_basin(*pair)]
        self.say(
            f"Hidden units are matched, and the straight way is followed again:"
            f" about {format_seconds(LOSSES_OF_WAY * each * len(apart))} for losses."
        )
        surface.move_to(ends[0])
        units = hidden_units(surface.model, self._call(surface.model), seed=self.seed)
        self._add(matched_units=sum(group.units for group in units.groups), left=units.left)
        if not units.groups:
            self._note("Hidden units were not matched: none were found that could be exchanged for each other.")
            return
        if units.left:
            named = f"{', '.join(units.left[:4])}{', …' if len(units.left) > 4 else ''}"
            self._note(f"Not all hidden units could be matched: those of {named} keep their order.")
        for one, other in apart:
            to, weights = (
                dict(zip(surface.names, surface.shaped(ends[number]), strict=True)) for number in (one, other)
            )
            orders = matched_orders(to, weights, units.groups, seed=self.seed)
            if all(np.array_equal(order, np.sort(order)) for order in orders):
                continue  # they are in the nearest order as they are
            moved = permuted(weights, units.groups, orders)
            end = surface.flat(moved[name] for name in surface.names)
            loss = surface.loss(end)
            if not math.isclose(loss, self.known.losses[other], rel_tol=1e-3, abs_tol=1e-6):
                self._note(
                    f"{self.names[other]} has another loss on this surface with its hidden units in another order ({loss:.4g}),"
                    f" so it was not matched."
                )
                continue
            way = barrier(surface, ends[one], end)
            self._keep(one, other, MATCHED, way, float((end - ends[one]).double().norm()))

    def _courses(self, surface: ModelSurface, ends: Sequence[Tensor]) -> None:
        """Measure how sharp it was on the way of each run, at a few points."""
        began = time.perf_counter()
        for number, (run, name, end) in enumerate(zip(self.runs, self.names, ends, strict=True)):
            points = _points(surface, run, end)
            meter, measured = CourseMeter(surface, run, None, seed=self.seed), _few(list(points))
            left = (time.perf_counter() - began) / max(number, 1) * (len(ends) - number)
            told = f", about {format_seconds(left)} left" if number else ""
            self.say(f"Sharpness along {name}, at {format_count(len(measured), 'point')}{told}.")
            for step in measured:
                meter.add(step, points[step])
            self._add(courses=(*self.known.courses, meter.course))

    def _call(self, model: nn.Module) -> Callable[[], Any]:
        """Give what calls the model on a few examples, always the same."""
        objective = self.problem.objective
        few = sample(self.problem, self.runs[0], FEW, self.seed)[0][0].batch
        seed_for = seeded(self.seed)

        def call() -> Any:
            seed_for(0)
            if objective.task.step is not None:
                return objective.loss(model, few)[0]
            return objective.outputs(model, few)[0]

        return call

    def _curves(self, surface: ModelSurface, ends: Sequence[Tensor], each: float) -> None:
        """Train a curve where nothing straight is low."""
        apart = [pair for pair in self.pairs if self.known.connection(*pair) == "apart"]
        for number, (one, other) in enumerate(apart, 1):
            name = f"{self.names[one]} to {self.names[other]}"
            began = time.perf_counter()

            def done(count: int, name: str = name, began: float = began, number: int = number) -> None:
                left = (time.perf_counter() - began) / count * (GRADIENTS * (len(apart) - number + 1) - count)
                self.say(f"A curve from {name}: {count} of {GRADIENTS} gradients, about {format_seconds(left)} left.")

            first, second = ends[one], ends[other]
            bend = trained_bend(surface, first, second, slope=_slope(surface), seed=self.seed, say=done)

            def at(share: float, first: Tensor = first, bend: Tensor = bend, second: Tensor = second) -> Tensor:
                return on_curve(first, bend, second, share)

            way = barrier(surface, first, second, at)
            self._keep(one, other, CURVED, way, curve_length(first, bend, second))
            self.say(f"The plane through {self.names[one]}, {self.names[other]} and the curve.")
            drawn = _plane_of_curve(surface, first, bend, second, (self.names[one], self.names[other]))
            if drawn is not None:
                self._add(slices=(*self.known.slices, drawn))

    @property
    def known(self) -> Comparison:
        """What is known so far."""
        assert self.found is not None
        return self.found

    def _keep(self, one: int, other: int, kind: str, way: Barrier, length: float) -> None:
        made = Way(one, other, kind, way.height, length, way.shares, way.losses)
        self._add(ways=(*self.known.ways, made))
        if kind == STRAIGHT:
            rows = [list(row) for row in self.known.barriers]
            rows[one][other] = rows[other][one] = way.height
            self._add(barriers=tuple(map(tuple, rows)))

    def _note(self, text: str) -> None:
        self._add(notes=(*self.known.notes, text))

    def _add(self, **fields: Any) -> None:
        self.found = replace(self.known, **fields)


def _slope(surface: ModelSurface) -> Callable[[Tensor], Slope]:
    """Give the gradient at a point, with batch normalisation's statistics as functions of the weights."""

    def slope(point: Tensor) -> Slope:
        with batch_statistics(surface.model) if surface.recalibrate else nullcontext():
            return surface.slope(point)

    return slope


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
    points, weights = list[Tensor](), list[float]()
    for run, name, end in zip(runs, names, ends, strict=True):
        kept = _points(surface, run, end)
        away = sum(float((each - ends[0]).double().square().sum()) for each in kept.values())
        # A short path counts as much as a long one, or it would lie across the plane.
        weights += [1 / math.sqrt(away) if away > 0 else 1.0] * len(kept)
        points += kept.values()
        walks.append((name, list(kept)))
    try:
        found = principal_plane(points, ends[0], weights)
    except ValueError:
        return None
    x, y = _square(found.coordinates)
    grid = plane(surface, ends[0], found.directions, x, y)
    drawn, first = list[Walk](), 0
    for name, steps in walks:
        drawn.append(Walk(name, found.coordinates[first : first + len(steps)], tuple(steps)))
        first += len(steps)
    return replace(plane_slice("the paths", axis_names(found.shares), grid), walks=tuple(drawn), shares=found.shares)


def _points(surface: ModelSurface, run: Run, end: Tensor) -> dict[int, Tensor]:
    """Give the points of a run's path that were kept, by step; the last is its end, which may be before its last step."""
    last = step_of(run)
    return {step: each for step, each in points_on(surface, run).items() if step < last} | {last: end}


def _plane_of_curve(
    surface: ModelSurface, first: Tensor, bend: Tensor, second: Tensor, names: tuple[str, str]
) -> Slice | None:
    """Draw the plane in which the curve lies, with the first end at the origin; None where it is straight."""
    length = float((second - first).double().norm())
    if not length > 0:
        return None
    across = (second - first) / length
    towards = bend - first
    shift = float((towards.double() * across).sum())
    towards = towards - shift * across
    height = float(towards.double().norm())
    if not height > 1e-6 * length:
        return None
    towards = towards / height
    t = np.linspace(0, 1, POINTS_OF_CURVE)
    curve = np.stack([2 * t * (1 - t) * shift + t**2 * length, 2 * t * (1 - t) * height], 1)
    straight = np.array([[0.0, 0.0], [length, 0.0]])
    x, y = _square(np.concatenate([curve, straight]))
    grid = plane(surface, first, (across, towards), x, y, tolerance=PLANE_TOLERANCE)
    axes = (f"from {names[0]} to {names[1]}", "towards the curve")
    walks = (Walk("straight way", straight, (0, 1)), Walk("curve", curve, tuple(range(len(curve)))))
    return replace(plane_slice(f"the curve from {names[0]} to {names[1]}", axes, grid), walks=walks)


def _square(coordinates: Array) -> tuple[Array, Array]:
    """Give the lines of a grid around points and the origin, of one scale on both axes."""
    low = np.minimum(coordinates.min(0), 0.0)
    high = np.maximum(coordinates.max(0), 0.0)
    half = (0.5 + MARGIN) * float((high - low).max())
    x, y = (np.linspace(middle - half, middle + half, POINTS) for middle in ((low + high) / 2).tolist())
    return x, y


def _few(steps: Sequence[int]) -> list[int]:
    """Choose at most some of the steps of a trail, the first and the last among them."""
    if len(steps) <= MOST_POINTS:
        return list(steps)
    return [steps[round(number * (len(steps) - 1) / (MOST_POINTS - 1))] for number in range(MOST_POINTS)]


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
