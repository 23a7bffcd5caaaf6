"""Leaving the place where a descent ended: along negative curvature, or by noise at a higher temperature.

Each way is some steps from there with new optimiser state: at a constant rate first, then down to zero, so that what it came to
is the bottom of where it is. Steps at the run's own last rates are the way to compare with. The way that comes furthest is
taken with more orders of the batches; only what is better with each of them counts.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from thalweg import schedule as shapes
from thalweg.descent.problem import Problem
from thalweg.descent.run_surface import is_noisy, looked_at, on_device, sample, seeded
from thalweg.descent.train import train_plan
from thalweg.errors import Interrupted, PlanError, RuleError, RunError, ThalwegError
from thalweg.formatting import format_count, format_seconds
from thalweg.landscape.barrier import barrier
from thalweg.landscape.lanczos import Eigenpairs, eigenpairs
from thalweg.landscape.line_search import lowest_along
from thalweg.landscape.model_surface import ModelSurface
from thalweg.landscape.place import GAIN, Place, find_place
from thalweg.records.escape import STAY, Attempt, Escape
from thalweg.records.plan import Plan
from thalweg.records.run import Run
from thalweg.records.run_folder import RunFolder
from thalweg.theory import stable_edge
from thalweg.watch.finished import FinishedHistory

SEEDS = 3  # orders of the batches, with each of which a way must be better
SHARE, FEWEST = 0.1, 20  # steps of an attempt, of the run's, and at least
LATE = 0.1  # of the run, its end, whose rates are those "as before"
HEATS = 3  # temperatures that are tried
LEAST_HEAT, MOST_HEAT = 8.0, 128.0  # times the last rate, up to which they go where it was never much higher
BELOW_EDGE = 0.8  # of the rate at which the rule becomes unstable
HELD = 0.5  # of an attempt, before its rate falls
WARM_UP = 0.05
PRODUCTS = 40
COARSEST_BATCH = 4.0  # a batch of all examples becomes so much smaller from one temperature to the next

Say = Callable[[str], None]


@dataclass(frozen=True)
class _Way:
    """One way to go on: from which weights, and by which plan; `temperature` of the noise, relative to that as before."""

    name: str
    model: nn.Module
    plan: Plan
    temperature: float = 1.0


def escape_run(
    run: Run,
    problem: Problem,
    *,
    steps: int | None = None,
    examples: int,
    seed: int = 0,
    out: Path | None = None,
    say: Say = lambda text: None,
) -> Escape:
    """Try to leave the place where a run ended; see `verbs.escape`.

    Raises RunError where the weights or the loss there are not finite, or the model trains nothing, and where attempts cannot be
    kept in `out`, as where it holds those of another request; Interrupted.
    """
    return _Escape(run, problem, steps, examples, seed, out, say).made()


class _Escape:
    def __init__(
        self, run: Run, problem: Problem, steps: int | None, examples: int, seed: int, out: Path | None, say: Say
    ) -> None:
        self.run, self.problem, self.examples, self.seed, self.out, self.say = run, problem, examples, seed, out, say
        ran = int(run.summary.get("steps") or run.plan.steps or 0)
        self.steps = max(FEWEST, round(SHARE * ran)) if steps is None else steps
        self.has_value = problem.validation is not None
        self.attempts = list[Attempt]()
        self.found: Escape | None = None
        self.best: Run | None = None
        self.best_value = math.nan
        self.point: Tensor | None = None  # where the run ended
        self.sharpness = 0.0

    def made(self) -> Escape:
        """Look at the place, try all ways once, and the best of them with more seeds."""
        place, moved, found = self._look()
        self.found = found
        ways = self._ways(place, moved)
        first, *others = ways
        count = len(ways) + (SEEDS - 1) * 2
        seconds = float(self.run.summary.get("seconds") or 0.0)
        each = seconds * self.steps / max(1, int(self.run.summary.get("steps") or 1))
        self.say(
            f"{place.kind}. {place.reason} {format_count(count, 'attempt')} of {format_count(self.steps, 'step')} follow, about"
            f" {format_seconds(count * each)} in all."
        )
        for way in ways:
            self._attempt(way, 0)
        tried = [(self._value_of(way), way) for way in others]
        finished = [(value, way) for value, way in tried if math.isfinite(value)]
        if not finished:
            return self._ended("")
        chosen = finished[0]
        for each_way in finished[1:]:
            chosen = each_way if found.better(each_way[0], chosen[0]) else chosen
        way = chosen[1]
        if not found.better(chosen[0], found.value) or not found.better(chosen[0], self._value_of(first)):
            return self._ended(way.name)  # one seed has shown that it is no better
        for number in range(1, SEEDS):
            self._attempt(first, number)
            self._attempt(way, number)
        return self._ended(way.name)

    def _ended(self, way: str) -> Escape:
        """Say whether the way was better with each seed, and how high the barrier to its end is."""
        assert self.found is not None
        found = replace(self.found, attempts=tuple(self.attempts), way=way, run=self.best)
        pairs = [
            (one.value, other.value)
            for one in self.attempts
            for other in self.attempts
            if one.way == way and other.way == STAY and one.seed == other.seed
        ]
        is_better = len(pairs) == SEEDS and all(
            found.better(one, other) and found.better(one, found.value) for one, other in pairs
        )
        if not is_better or self.best is None:
            return found
        with self._surface() as surface:
            rise = barrier(surface, surface.point, _weights(surface, self.best.model)).height
        return replace(found, found=True, barrier=rise)

    def _look(self) -> tuple[Place, Tensor | None, Escape]:
        """Find the kind of the place, and where the negative curvature leads, if it does."""
        with self._surface() as surface:
            surface.check_repeats()
            surface.check_symmetric()
            point = self.point = surface.point
            slope = surface.slope(point)
            if not math.isfinite(slope.loss) or not bool(torch.isfinite(slope.gradient).all()):
                raise RunError(
                    f"The training loss is {slope.loss:.4g} at the run's weights, or its gradient not finite, so there is nothing"
                    f" to leave. See `thalweg diagnose`."
                )
            pairs = eigenpairs(surface.hessian(point), point, most=PRODUCTS, seed=self.seed)
            self.sharpness = pairs.largest
            scale = slope.loss if slope.loss > 0 else None
            place = find_place(surface, point, slope, pairs, scale=scale)
            moved = _lowest_by_curvature(surface, point, slope.loss, pairs, GAIN * abs(slope.loss))
        criterion, mode = self.problem.task.select, self.problem.task.mode
        value = float(self.run.metrics.get(criterion, math.nan))
        if not self.has_value:
            criterion, mode, value = "loss", "min", slope.loss
        found = Escape(
            place.kind,
            place.reason,
            criterion,
            mode,
            self.has_value,
            value,
            slope.loss,
            self.steps,
            notes=self._notes(),
        )
        return place, moved, found

    def _notes(self) -> tuple[str, ...]:
        if self.has_value:
            return ()
        return ("There are no validation data: ends are compared by the training loss.",)

    def _ways(self, place: Place, moved: Tensor | None) -> list[_Way]:
        """Give the ways to try, the steps as before first."""
        run, model = self.run, self.run.model
        last, top = _rates(run)
        stay = _Way(STAY, model, self._plan(last, run.plan.batch_size))
        ways = [stay]
        if moved is not None:
            other = copy.deepcopy(model)
            with on_device(other, self.problem.device):
                self._surface_of(other).move_to(moved)
            ways.append(replace(stay, name="along negative curvature", model=other))
        if place.kind in ("saddle point", "maximum") and len(ways) > 1:
            return ways
        count = self.problem.count
        if not is_noisy(run) and isinstance(count, int):
            for number in range(1, HEATS + 1):
                size = max(1, round(count / COARSEST_BATCH**number))
                if size < count and ways[-1].plan.batch_size != size:
                    name = f"heated {count / size:.3g} times, by batches of {size:,}"
                    ways.append(_Way(name, model, self._plan(last, size), count / size))
            return ways
        highest = max(top, last * self._hottest(last))
        for number in range(1, HEATS + 1):
            factor = (highest / last) ** (number / HEATS)
            ways.append(
                _Way(f"heated {factor:.3g} times", model, self._plan(factor * last, run.plan.batch_size), factor)
            )
        return ways

    def _hottest(self, rate: float) -> float:
        """Give how many times a rate may be raised before steps in this place become unstable, as far as that is known."""
        try:
            edge = stable_edge(self.run.plan.rule, self.run.plan.constants, lr=rate)
        except RuleError:
            return LEAST_HEAT
        if edge.curvature is None or edge.scales or not self.sharpness > 0:
            return LEAST_HEAT  # the curvature in the rule's own measure is not known
        return min(MOST_HEAT, max(LEAST_HEAT, BELOW_EDGE * edge.curvature / self.sharpness))

    def _plan(self, rate: float, batch_size: int | None) -> Plan:
        """Give the plan of an attempt: the run's knobs, at a constant rate that then falls to zero."""
        held = max(1, round(HELD * self.steps))
        decay_schedule, plan = self.run.plan.weight_decay_schedule, self.run.plan
        if decay_schedule is not None and plan.steps is not None:
            decay_schedule = decay_schedule.resolve(plan.steps, plan.steps_per_epoch)
        return plan.replace(
            learning_rate=rate,
            batch_size=batch_size,
            steps=self.steps,
            schedule=shapes.sequence(shapes.constant(total=held, warmup=round(WARM_UP * self.steps)), shapes.linear()),
            weight_decay_schedule=decay_schedule,
            validate_every=self.steps,
            snapshot_every=0,
            digest_every=0,
            patience=None,
            keep="last",
            watch=False,
            compile=False,
        )

    def _attempt(self, way: _Way, number: int) -> None:
        """Go one way with the order of batches of one seed, and keep its run where it is the best."""
        assert self.found is not None
        plan = way.plan.replace(seed=self.run.plan.seed + self.seed + 1 + number)
        attempt = Attempt(way.name, number, way.temperature, plan.learning_rate, plan.batch_size)
        out = None if self.out is None else self.out / f"{'-'.join(way.name.replace(',', '').split())}-{number}"
        try:
            made = train_plan(_from(self.problem, way.model), plan, out)
        except Interrupted:
            raise
        except ThalwegError as error:
            why = str(error).split(". ")[0].rstrip(".") + "."
            if out is not None and _is_of_folder(error, out):  # nothing was tried, so nothing is known of this way
                raise RunError(
                    f"An attempt cannot be kept in {out}, or taken from there: {why} Attempts of another request, or from other"
                    f" weights, need a folder of their own: give one with out= (--out)."
                ) from error
            self.attempts.append(replace(attempt, failure=why))
            return
        assert self.point is not None
        with self._surface(made.model) as surface:
            loss = surface.loss(surface.point)
            distance = float((surface.point - self.point).double().norm())
        value = float(made.metrics.get(self.found.criterion, math.nan)) if self.has_value else loss
        attempt = replace(attempt, value=value, loss=loss, distance=distance)
        self.attempts.append(attempt)
        self.say(f"{way.name}, seed {number}: {self.found.criterion} {value:.4g}, training loss {loss:.4g}.")
        best = self.found.value if self.best is None else self.best_value
        if self.found.better(value, best):
            self.best, self.best_value = made, value

    def _value_of(self, way: _Way) -> float:
        return next(each.value for each in self.attempts if each.way == way.name and each.seed == 0)

    @contextmanager
    def _surface(self, model: nn.Module | None = None) -> Generator[ModelSurface]:
        """Within, a model (None: the run's) is in evaluation mode, and its loss surface is given."""
        model = self.run.model if model is None else model
        with looked_at(model, self.problem, self.run.plan.threads):
            surface = self._surface_of(model)
            with surface.put_back():
                yield surface

    def _surface_of(self, model: nn.Module) -> ModelSurface:
        problem = self.problem.with_own_loss()
        parts, shown, total = sample(problem, replace(self.run, trained=model), self.examples, self.seed)
        share = 1.0 if total is None else min(1.0, shown / total)
        return ModelSurface(model, problem.objective, parts, share_of_data=share, seed_for=seeded(self.seed))


def _lowest_by_curvature(
    surface: ModelSurface, point: Tensor, loss: float, pairs: Eigenpairs, least: float
) -> Tensor | None:
    """Give the lowest point along the direction that curves downwards most, on the better side; None where the loss falls by less
    than `least` along it."""
    if not pairs.bottom or not pairs.bottom[0] < 0:
        return None
    direction = pairs.bottom_vectors[0]
    sides = [(lowest_along(surface, point, sign * direction), sign * direction) for sign in (1.0, -1.0)]
    (distance, lowest), way = min(sides, key=lambda side: side[0][1])
    return point + distance * way if loss - lowest > least else None


def _is_of_folder(error: ThalwegError, folder: Path) -> bool:
    """Tell whether an error is about the folder, or the run that it holds, rather than about the steps."""
    return isinstance(error, RunError) or (isinstance(error, PlanError) and RunFolder(folder).holds_run)


def _from(problem: Problem, model: nn.Module) -> Problem:
    """Give the problem of descending from a model's present weights."""
    task = replace(problem.task, model=model)
    return replace(
        problem,
        task=task,
        objective=problem.objective.of(task),
        validation_objective=problem.validation_objective.of(task),
    )


def _weights(surface: ModelSurface, model: nn.Module) -> Tensor:
    """Give the point of another model on a surface."""
    of = dict(model.named_parameters())
    return surface.flat(of[name].detach() for name in surface.names)


def _rates(run: Run) -> tuple[float, float]:
    """Give the mean learning rate of the end of a run, and the highest that it had."""
    rates = FinishedHistory.of(run).recorded("learning_rate")[1]
    rates = rates[np.isfinite(rates) & (rates > 0)]
    if not len(rates):
        return run.plan.learning_rate, run.plan.learning_rate
    late = rates[-max(1, round(LATE * len(rates))) :]
    return float(late.mean()), float(rates.max())
