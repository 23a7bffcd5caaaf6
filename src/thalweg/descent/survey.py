"""A survey of where a run's descent ended: curvature, kind of place and slices of the training loss around the run's weights."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from thalweg.descent.course import CourseMeter, chosen, edge_at, rate_at
from thalweg.descent.last_step import last_directions, optimizer_state
from thalweg.descent.problem import Problem
from thalweg.descent.run_surface import (
    EXAMPLES,
    POINTS,
    SURVEY,
    around,
    axis_names,
    complex_weights,
    is_average,
    is_noisy,
    looked_at,
    noise_of,
    plane_slice,
    points_on,
    sample,
    scale_of,
    seeded,
    start_loss,
    step_of,
)
from thalweg.descent.second_moments import SecondMoments, noise_left, recursion
from thalweg.errors import Interrupted, RunError
from thalweg.formatting import format_count, format_seconds
from thalweg.landscape.basin_width import half_width
from thalweg.landscape.directions import random_directions
from thalweg.landscape.dots import dot, length
from thalweg.landscape.lanczos import MOST_PRODUCTS, Eigenpairs, eigenpairs
from thalweg.landscape.model_surface import ModelSurface, Part
from thalweg.landscape.noise_along import Variance, variances_along
from thalweg.landscape.path import principal_plane
from thalweg.landscape.place import DESCENDED, find_place
from thalweg.landscape.processes import Processes
from thalweg.landscape.slices import Grid, line, plane
from thalweg.landscape.spectral_density import spectral_density
from thalweg.landscape.surface import Product, Slope
from thalweg.landscape.trace import MOST_PROBES, SKETCH, trace
from thalweg.optim.preconditioner import preconditioner
from thalweg.optim.recalibration import gathers_statistics
from thalweg.records.run import Run
from thalweg.records.survey import Basin, Course, Slice, Survey, Walk
from thalweg.sampling import mix
from thalweg.watch.temperature import batch_size, is_without_noise, temperature

MOMENT_PARTS = 32  # that squared gradients are measured on: their spread is known to a quarter
BASIS_BYTES = 1 << 30  # of vectors that are kept for eigenvalues
FEWEST_VECTORS = 15  # of them, for five at each end
COPIES = 9  # of the weights, beside these vectors: of the point, the gradient, and within a product
MOST_LAYERS, DENSITY_PROBES = 12, 3
RISE = 0.1  # of what the run lowered the loss by: the height at which a basin's width is measured
WIDTHS, FARTHEST = 6, 16.0  # random directions for it, and how many lengths of the weights are gone at most
LATE = 0.9  # of the run: from there on is the way that it came last
HOTTER = 1.5  # times: a temperature that was higher than at the end by more is said too

KEEP_EVERY = 2.0  # seconds, after which what is known is kept

Say = Callable[[str], None]
Count = Callable[[str, int, int], None]
Keep = Callable[[Survey], None]


def survey_run(
    run: Run,
    problem: Problem,
    *,
    examples: int = EXAMPLES,
    slices: bool = True,
    seed: int = 0,
    say: Say = lambda text: None,
    keep: Keep = lambda found: None,
    processes: Processes | None = None,
    count: Count = lambda stage, done, most: None,
) -> Survey:
    """Survey the weights of a run's model; see `verbs.survey`.

    `count` is called with how much of a stage is done, of how much at most; `keep` now and then with what is known so far;
    `processes` share the examples.

    Raises RunError where the weights or the loss there are not finite, TaskError where the loss has no surface; `Interrupted`,
    whose `survey` is what was measured until then.
    """
    survey = _Surveyor(run, problem, examples, slices, seed, say, keep, processes, count)
    try:
        survey.measure()
    except KeyboardInterrupt as stopped:
        kept = replace(survey.found, complete=False)
        number = stopped.signal if isinstance(stopped, Interrupted) else Interrupted().signal
        message = "Interrupted: the survey has what was measured until then."
        raise Interrupted(message, signal=number, survey=kept) from stopped
    return survey.found


class _Surveyor:
    """Measures one thing after the other; `found` has what is known so far."""

    def __init__(
        self,
        run: Run,
        problem: Problem,
        examples: int,
        slices: bool,
        seed: int,
        say: Say,
        keep: Keep = lambda found: None,
        processes: Processes | None = None,
        count: Count = lambda stage, done, most: None,
    ) -> None:
        self.count = count
        self.run, self.problem, self.examples, self.slices = run, problem.with_own_loss(), examples, slices
        self.seed, self.say, self.keep, self.processes = seed, say, keep, processes
        self.kept_at = time.perf_counter()
        self.found = Survey(step=step_of(run), noise=noise_of(run))
        self.began = time.perf_counter()
        self.surface: ModelSurface | None = None
        self._fine: tuple[list[Part], int, int | None] | None = None
        self._estimated: Tensor | None = None

    def measure(self) -> None:
        """Measure all."""
        model = self.run.model
        with looked_at(model, self.problem, self.run.plan.threads):
            parts, shown, total = self._parts()
            share = 1.0 if total is None else min(1.0, shown / total)
            surface = ModelSurface(
                model,
                self.problem.objective,
                parts,
                share_of_data=share,
                seed_for=seeded(self.seed),
                processes=self.processes,
            )
            self.surface = surface
            self._add(parameters=surface.size, examples=shown, total=total)
            self._note_modes(model)
            with surface.put_back():
                self._measure(surface)

    def _measure(self, surface: ModelSurface) -> None:
        surface.check_repeats()
        surface.check_symmetric()
        point = surface.point
        megabytes = (self._vectors(surface) + COPIES) * surface.size * surface.dtype.itemsize / 1e6
        self.say(
            f"The survey looks at {format_count(surface.size, 'weight')} on {format_count(self.found.examples, 'example')}"
            f" in evaluation mode, and takes about {megabytes:,.0f} MB beside them."
        )
        began = time.perf_counter()
        slope = surface.slope(point)
        each = time.perf_counter() - began
        if not math.isfinite(slope.loss) or not bool(torch.isfinite(slope.gradient).all()):
            raise RunError(
                f"The training loss is {slope.loss:.4g} at the run's weights, or its gradient not finite, so there is nothing to"
                f" survey. See `thalweg diagnose`."
            )
        self._add(loss=slope.loss, gradient_norm=length(slope.gradient), gradient_error=math.sqrt(slope.squared_error))
        most = min(MOST_PRODUCTS, surface.size)
        self.say(f"Eigenvalues: up to {most} products, about {format_seconds(3 * each * most)}.")
        product = surface.hessian(point)

        def counted(products: int) -> bool:
            self.count("Eigenvalues: products", products, most)
            return False

        pairs = eigenpairs(product, point, most=most, vectors=self._vectors(surface), seed=self.seed, enough=counted)
        self._add(
            eigenvalues=(*pairs.top, *reversed(pairs.bottom)),
            residuals=(*pairs.top_residuals, *reversed(pairs.bottom_residuals)),
            largest=len(pairs.top),
        )
        if surface.differences:
            self._note(f"Products are differences of gradients, as {surface.differences}.")
        if not pairs.known:
            self._note(
                f"Not all eigenvalues are known after {pairs.products} products: `residuals` says how far each may be off."
            )
        along = {"gradient": slope.gradient, **last_directions(self.run, self.found.step, surface, slope.gradient)}
        self._add(along=_along(product, along))
        points = {step: each for step, each in points_on(surface, self.run).items() if step <= self.found.step}
        self._place(surface, product, point, slope, pairs, self._start(surface, slope.loss, points))
        self.say(f"{self.found.kind}. {self.found.reason}")
        self._course(surface, point, points)
        self._basin(surface, point, pairs)
        self._barriers(surface, point, pairs, points)
        if self.slices:
            self._slices(surface, point, pairs)
            self._path(surface, point, points)
        # Where there is room for few vectors, those that are known are no longer held.
        known = (
            torch.cat([pairs.top_vectors, pairs.bottom_vectors]) if pairs.known and self._has_room(surface) else None
        )
        del pairs
        self._spectrum(surface, product, point, known)
        self._layers(surface, product, point)

    def _start(self, surface: ModelSurface, loss: float, points: Mapping[int, Tensor]) -> tuple[float, float] | None:
        """Give loss and largest curvature where the run began, where it has come so little down that it may be on a plateau."""
        first = points.get(0)
        if first is None or not loss > DESCENDED * (start_loss(self.run) or math.inf):
            return None
        with surface.put_back():
            began = surface.loss(first)
            pairs = eigenpairs(surface.hessian(first), first, top=1, bottom=0, tolerance=0.1, most=20, seed=self.seed)
        return (began, pairs.largest) if math.isfinite(began) else None

    def _place(
        self,
        surface: ModelSurface,
        product: Product,
        point: Tensor,
        slope: Slope,
        pairs: Eigenpairs,
        began: tuple[float, float] | None,
    ) -> None:
        scale = scale_of(self.run, slope.loss)
        edge = self._edge(surface, product, point, pairs)
        place = find_place(surface, point, slope, pairs, scale=scale, began=began, edge=edge)
        self._add(
            kind=place.kind,
            reason=place.reason,
            index=place.index,
            index_is_exact=place.index_is_exact,
            figures=place.figures,
            thresholds=place.thresholds,
        )

    def _edge(
        self, surface: ModelSurface, product: Product, point: Tensor, pairs: Eigenpairs
    ) -> tuple[float, float] | None:
        """Give the largest curvature and that at which the rule becomes unstable; None where its own measure of it is not
        known."""
        edge = edge_at(self.run, rate_at(self.run, self.found.step))
        if edge is None or edge.curvature is None:
            return None
        self._add(edge=edge.curvature)
        curvature = pairs.largest
        if edge.scales:
            found = self._preconditioned(surface, product, point)
            if found is None:
                self._note(
                    "The rule becomes unstable by the curvature divided by the usual size of each gradient. That is not"
                    " known here: the run keeps it with its last checkpoint only, in a folder."
                )
                return None
            curvature = found
            self._add(along={**self.found.along, "preconditioned": curvature})
        if is_noisy(self.run):
            return None  # mini-batches leave the full loss's curvature below the edge, and hover there by noise
        return curvature, edge.curvature

    def _preconditioned(self, surface: ModelSurface, product: Product, point: Tensor) -> float | None:
        """Give the largest curvature in the rule's own measure, from the state of the optimiser after the surveyed step."""
        divided = self._known_preconditioner(surface)
        if divided is None:
            return None
        root = divided.sqrt_()
        found = eigenpairs(
            lambda v: root * product(root * v), point, top=1, bottom=0, tolerance=0.01, vectors=self._vectors(surface),
            seed=self.seed,
        )  # fmt: skip
        return found.top[0]

    def _preconditioner(self, surface: ModelSurface) -> Tensor | None:
        """Give by what the rule divides gradients: as it was kept, else as it was estimated along the run."""
        known = self._known_preconditioner(surface)
        return self._estimated if known is None else known

    def _known_preconditioner(self, surface: ModelSurface) -> Tensor | None:
        states = optimizer_state(self.run, self.found.step)
        if states is None:
            return None
        plan, parts = self.run.plan, list[Tensor]()
        for name, parameter in zip(surface.names, surface.parameters, strict=True):
            part = preconditioner(plan.rule, plan.constants, states.get(name) or {})
            if part is None or part.shape != parameter.shape:
                return None
            parts.append(part)
        return surface.flat(parts)

    def _spectrum(self, surface: ModelSurface, product: Product, point: Tensor, known: Tensor | None) -> None:
        self.say("Sum and spread of all eigenvalues.")
        steps, sketch = min(40, self._vectors(surface)), SKETCH if self._has_room(surface) else 0
        most, done = 2 * sketch + (0 if known is None else len(known)) + MOST_PROBES + DENSITY_PROBES * steps, 0

        def counted(vector: Tensor) -> Tensor:
            nonlocal done
            self.count("Sum and spread: products", done, most)
            done += 1
            return product(vector)

        found = trace(counted, point, known, sketch=sketch, seed=self.seed)
        self._add(trace=found.value, trace_error=found.error)
        spread = spectral_density(counted, point, steps=steps, probes=DENSITY_PROBES, seed=self.seed)
        order = np.argsort(spread.values, axis=None)
        shares = (spread.weights / len(spread.weights)).ravel()[order]
        self._add(density=(tuple(spread.values.ravel()[order].tolist()), tuple(shares.tolist())))

    def _layers(self, surface: ModelSurface, product: Product, point: Tensor) -> None:
        """Measure the largest eigenvalue within the weights of each of the largest layers."""
        spans = list(zip(surface.names, surface.sizes, itertools.accumulate(surface.sizes, initial=0), strict=False))
        spans = [
            (name, size, first) for (name, size, first), p in zip(spans, surface.parameters, strict=True) if p.dim() > 1
        ]
        layers = dict[str, float]()
        largest = sorted(spans, key=lambda span: -span[1])[:MOST_LAYERS]
        for number, (name, size, first) in enumerate(largest):
            self.count("Sharpest layers: layers", number, len(largest))

            def within(vector: Tensor, first: int = first, size: int = size) -> Tensor:
                whole = torch.zeros_like(point)
                whole[first : first + size] = vector
                return product(whole)[first : first + size]

            pairs = eigenpairs(
                within,
                point[first : first + size],
                top=1,
                bottom=0,
                tolerance=0.02,
                most=20,
                vectors=self._vectors(surface),
                seed=self.seed,
            )
            layers[name] = pairs.top[0]
            self._add(layers=dict(layers))

    def _slices(self, surface: ModelSurface, point: Tensor, pairs: Eigenpairs) -> None:
        at = np.linspace(-1, 1, POINTS)
        first, second = random_directions([p.detach() for p in surface.parameters], 2, self.seed)
        surface.move_to(point)
        extent = length(first) or length(point) or 1.0
        self.say("Slices along random directions, and along the most and the least curved one.")

        def grown(grid: Grid) -> None:
            self.count("Random directions: losses", int(grid.is_measured.sum()), grid.losses.size)
            self._keep(plane_slice("random directions", ("random, by filters", "another"), grid))

        grid = plane(surface, point, (first, second), at, at, grown=grown)
        self._keep(plane_slice("random directions", ("random, by filters", "another"), grid))
        named = [
            ("largest curvature", pairs.top_vectors, pairs.top),
            ("smallest curvature", pairs.bottom_vectors, pairs.bottom),
        ]
        # A parabola as curved as the first one rises by as much at the ends.
        rise = max(start_loss(self.run) or 0.0, 2 * abs(self.found.loss))
        reach = min(extent, math.sqrt(2 * rise / max(pairs.largest, 1e-12)))
        for name, vectors, values in named:
            if values:
                losses = line(surface, point, reach * vectors[0], at.tolist())
                self._keep(
                    Slice(name, (f"along the eigenvector of {values[0]:.3g}",), at, np.zeros(0), losses, len(at))
                )

    def _course(self, surface: ModelSurface, point: Tensor, points: Mapping[int, Tensor]) -> None:
        """Measure how sharp it was at some points of the trail, and last where the run ended."""
        if not points:
            return
        points = dict(sorted({**points, self.found.step: point}.items()))
        measured = chosen(list(points))
        self.say(f"Sharpness at {format_count(len(measured), 'point')} of the run.")
        meter = CourseMeter(surface, self.run, self._moments(surface), seed=self.seed)
        for number, (step, each) in enumerate(points.items()):
            self.count("Sharpness along the run: points", number, len(points))
            if step in measured:
                meter.add(step, each)
                self._add(course=meter.course)
            else:
                meter.pass_by(step, each)
        self._estimated = None if meter.moments is None else meter.moments.preconditioner()
        if meter.course.scaled:
            self._note(self._measure_of(meter.course))
        if self.run.plan.ema is not None and is_average(self.run):
            self._note("The weights that are surveyed are an average: the last point of the course is not on the way.")

    def _basin(self, surface: ModelSurface, point: Tensor, pairs: Eigenpairs) -> None:
        """Measure how far it is, in several directions, until the loss has risen by a tenth of what the run lowered it by."""
        course = self.found.course
        start = course.losses[0] if course.steps[:1] == (0,) else start_loss(self.run)
        fallen = (start or 0.0) - self.found.loss
        rise = RISE * (fallen if fallen > 0 else abs(self.found.loss))
        if not 0 < rise < math.inf:
            return
        self.say(f"How far it is until the loss has risen by {rise:.3g}.")
        level, random, curved = self.found.loss + rise, list[float](), list[float]()

        def both_ways(direction: Tensor, guess: float) -> list[float]:
            found = list[float]()
            with surface.over(point, [direction]) as loss_at:
                for sign in (1.0, -1.0):
                    guess = found[-1] if found and 0 < found[-1] < math.inf else guess
                    found.append(half_width(lambda a, sign=sign: loss_at(sign * a), level, guess, FARTHEST))
            return found

        surface.move_to(point)
        weights = [p.detach().clone() for p in surface.parameters]
        for number in range(WIDTHS):
            self.count("Width of the basin: directions", number, WIDTHS)
            (direction,) = random_directions(weights, 1, mix(self.seed, SURVEY, number))
            if not bool(direction.any()):  # of a model without matrices: all weights alike
                direction = torch.randn(surface.size, generator=torch.Generator().manual_seed(number)).to(point)
                direction *= length(point) / length(direction)
            last = random[-1] if random and 0 < random[-1] < math.inf else 0.25
            random += both_ways(direction, last)
        whole = length(point)
        if pairs.top and pairs.top[0] > 0 and whole > 0:
            curved = both_ways(whole * pairs.top_vectors[0], math.sqrt(2 * rise / pairs.top[0]) / whole)
        self._add(basin=Basin(rise, tuple(random), tuple(curved)))

    def _barriers(self, surface: ModelSurface, point: Tensor, pairs: Eigenpairs, points: Mapping[int, Tensor]) -> None:
        """Measure what barrier the noise of a step is worth, along the most curved direction and the way that it came last."""
        heat, size = temperature(self.run), batch_size(self.run)
        rate = rate_at(self.run, self.found.step)
        if heat is None or size is None or rate is None or is_without_noise(self.run):
            return
        unknown = "What barrier the noise of a step is worth is not known"
        if heat.gain is None:
            self._note(f"{unknown} of a rule whose steps have a length of their own.")
            return
        parts, shown, total = self._fine_parts()
        divided = self._preconditioner(surface) if heat.scaled else None
        if len(parts) < 2 or (heat.scaled and divided is None):
            self._note(f"{unknown}: that takes several batches, and the size of gradients that the rule keeps.")
            return
        named = {"along the most curved direction": pairs.top_vectors[0]} if pairs.top else {}
        before = [step for step in points if step <= LATE * self.found.step]
        if before and bool((way := point - points[before[-1]]).any()):
            named["along the way it came last"] = way / length(way)
        fine = ModelSurface(surface.model, self.problem.objective, parts, seed_for=seeded(self.seed))
        left = noise_left(shown / len(parts), size, total)
        variances = variances_along(fine, point, list(named.values()))
        now, hottest = heat.gain * rate / size, float(np.nanmax(heat.values))
        worth = dict[str, Variance]()
        for (name, direction), seen in zip(named.items(), variances, strict=True):
            measure = 1.0 if divided is None else dot(direction, direction / divided)
            worth[name] = seen.times(heat.gain * rate * left / (2 * measure))
        if hottest > HOTTER * now > 0:
            worth |= {f"{name}, at the highest rate": each.times(hottest / now) for name, each in worth.items()}
        self._add(barriers={name: (each.value, each.low, each.high) for name, each in worth.items()})

    def _fine_parts(self) -> tuple[list[Part], int, int | None]:
        """Give batches whose gradients' spread tells that of the run's."""
        if self._fine is None:
            self._fine = sample(self.problem, self.run, self.examples, self.seed, parts=MOMENT_PARTS)
        return self._fine

    def _moments(self, surface: ModelSurface) -> SecondMoments | None:
        """Give what follows the usual size of gradients along the trail, for a rule that divides by it."""
        plan = self.run.plan
        followed = recursion(plan.rule, plan.constants)
        if followed is None:
            return None
        parts, shown, total = self._fine_parts()
        fine = ModelSurface(surface.model, self.problem.objective, parts, seed_for=seeded(self.seed))
        return SecondMoments(
            plan.rule, plan.constants, followed, fine, batch=batch_size(self.run), examples=total, shown=shown
        )

    def _measure_of(self, course: Course) -> str:
        """Say which curvature the rule's edge is of, and how well the usual size of gradients is known on the way."""
        text = "The rule becomes unstable by the curvature divided by the usual size of each gradient."
        estimate, known = course.preconditioned[-1], self.found.along.get("preconditioned")
        if estimate is None:
            return f"{text} That is not known along the run."
        text += " Along the run that size is estimated from gradients at the points that were kept"
        return f"{text}; at the end it gives {estimate:.3g} for {known:.3g}." if known else f"{text}."

    def _path(self, surface: ModelSurface, point: Tensor, points: Mapping[int, Tensor]) -> None:
        """Draw the loss over the plane in which the path lies as far as a plane holds it."""
        if len(points) < 3:
            self._note(
                "The path is not drawn: fewer than three points of it are at hand, as of a large model, a short run, or a last"
                " checkpoint that is lost or damaged."
            )
            return
        try:
            found = principal_plane(list(points.values()), point)
        except ValueError as error:
            self._note(f"The path is not drawn: {str(error).rstrip('.').lower()}.")
            return
        x, y = (around(found.coordinates[:, axis]) for axis in range(2))
        axes = axis_names(found.shares)

        def made(grid: Grid) -> Slice:
            drawn = plane_slice("path of the descent", axes, grid)
            walk = Walk(str(self.run.summary.get("name") or "run"), found.coordinates, tuple(points))
            return replace(drawn, walks=(walk,), shares=found.shares)

        self.say("The path of the descent, in the plane that holds most of it.")
        self._keep(made(plane(surface, point, found.directions, x, y, grown=lambda grid: self._keep(made(grid)))))
        self._note(
            f"The plane holds {sum(found.shares):.0%} of the path's variance; the losses are those in the plane, which"
            f" differ from those along the path away from its end."
        )

    def _keep(self, made: Slice) -> None:
        self._add(slices=(*(each for each in self.found.slices if each.name != made.name), made))

    def _parts(self) -> tuple[list[Part], int, int | None]:
        if not self.problem.objective.reduction.splits_exactly:
            self._note(
                "The loss of a batch is no mean over its examples: it is averaged over batches of the run's size."
            )
        return sample(self.problem, self.run, self.examples, self.seed)

    def _has_room(self, surface: ModelSurface) -> bool:
        """Tell whether a vector is kept for every product."""
        return self._vectors(surface) >= min(MOST_PRODUCTS, surface.size)

    def _vectors(self, surface: ModelSurface) -> int:
        """Give how many vectors are kept for eigenvalues."""
        bytes_of_one = surface.size * surface.dtype.itemsize
        return max(FEWEST_VECTORS, min(MOST_PRODUCTS, surface.size, BASIS_BYTES // bytes_of_one))

    def _note_modes(self, model: nn.Module) -> None:
        if others := complex_weights(model):
            self._note(
                f"Complex weights stay as they are ({', '.join(others[:3])}{', …' if len(others) > 3 else ''}): kind, gradient"
                f" and curvature are those of the real ones only."
            )
        if gathers_statistics(model):
            self._note(
                "Batch normalisation has the statistics that training left, frozen; they are not measured anew elsewhere."
            )

    def _note(self, text: str) -> None:
        self._add(notes=(*self.found.notes, text))

    def _add(self, **fields: Any) -> None:
        counted: dict[str, Any] = {}
        if self.surface is not None:
            counted = {name: getattr(self.surface, name) for name in ("gradients", "products", "evaluations")}
        self.found = dataclasses.replace(self.found, seconds=time.perf_counter() - self.began, **counted, **fields)
        if self.found.kind and time.perf_counter() - self.kept_at > KEEP_EVERY:
            self.keep(replace(self.found, complete=False))
            self.kept_at = time.perf_counter()


def _along(product: Product, directions: Mapping[str, Tensor]) -> dict[str, float]:
    """Give the curvature along each direction that leads anywhere."""
    found = dict[str, float]()
    for name, direction in directions.items():
        norm2 = float(direction.double().square().sum())
        if norm2 > 0:
            found[name] = float((product(direction).double() * direction).sum()) / norm2
    return found
