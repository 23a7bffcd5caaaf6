"""Choosing a plan: each knob from what is given, measured or searched, else from a stated rule, and its evidence with it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from thalweg import rules
from thalweg.descent.problem import Problem
from thalweg.descent.settle import Choice, settle, with_choices, with_fitting_batches
from thalweg.descent.their_objects import as_found
from thalweg.descent.timing import time_steps
from thalweg.errors import DivergedError
from thalweg.formatting import format_seconds
from thalweg.records.plan import Evidence, Plan
from thalweg.records.request import Request
from thalweg.sampling.sources import loader_knobs
from thalweg.tuning import batch_size, priors
from thalweg.tuning.search import Rung, Search
from thalweg.tuning.trial import run_trials

GRID = 11  # rates of the first rung: two per decade over five decades
FEWEST = 10  # steps of the shortest trial
Say = Callable[[str], None]


class Cost(NamedTuple):
    """Steps of one training, the price in trainings, and about how many seconds all of it takes."""

    steps: int
    batch_size: int | None
    trainings: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.steps:,} steps of {self.batch_size or 'all'} examples; with the search {self.trainings:g} trainings' worth:"
            f" about {format_seconds(self.seconds)}, validation not counted"
        )


def start_plan(problem: Problem, request: Request, say: Say = lambda _: None) -> Plan:
    """Give the plan before anything is searched: threads and batch size measured, the budget in steps.

    Raises PlanError where no budget is known, or a decided knob does not fit the data.
    """
    with as_found(problem.task):
        plan = stated_plan(problem, request)
        plan = with_threads(problem, request, plan)
        plan = with_batch_size(problem, request, plan, say)
        return settle(problem, plan, request)


def estimate_cost(problem: Problem, request: Request, start: Plan) -> Cost:
    """Estimate what a fit from a start plan costs, by timing a few steps; a budget of seconds is itself the cost."""
    steps, trainings = start.steps or 0, request.trainings
    with as_found(problem.task):
        seconds = request.seconds or steps * trainings * time_steps(problem, start).seconds
    return Cost(steps, start.batch_size, trainings, seconds)


def complete_plan(problem: Problem, request: Request, start: Plan, say: Say = lambda _: None) -> Plan:
    """Complete what `start_plan` gave: the learning rate is searched, and what depends on it and on the run's length set by rule.

    Raises DivergedError where no learning rate trains at all.
    """
    plan = with_learning_rate(problem, request, start, say) if request.searches_rate else start
    return with_priors(plan, request)


def stated_plan(problem: Problem, request: Request) -> Plan:
    """Give a plan with all that is decided, and the stated defaults around it."""
    values: dict[str, Any] = {"seed": request.seed, "clip_norm": 1.0, **request.fixed}
    evidence = {name: Evidence("given") for name in request.fixed}
    rule = values.get("rule", "adamw")
    if not rules.get(rule).finds_rate:
        values.setdefault("learning_rate", priors.usual_rate(rule))
    if "clip_norm" not in request.fixed:
        evidence["clip_norm"] = Evidence("default", "gradients longer than 1 are shortened: one bad batch does no harm")
    count = problem.count
    if "batch_size" not in values and count is not None:
        values["batch_size"] = min(64, count)
        evidence["batch_size"] = Evidence("default", "64, or all where there are fewer")
    return Plan(**values, evidence={**evidence, "seed": Evidence("given" if request.seed else "default")})


def with_threads(problem: Problem, request: Request, plan: Plan) -> Plan:
    """Take one CPU thread where more are no faster: small operations wait for each other longer than they work."""
    present = torch.get_num_threads()
    if "threads" in request.fixed or present == 1 or problem.device.type != "cpu":
        return plan
    fitting = with_fitting_batches(problem, plan)
    seconds = {n: time_steps(problem, fitting.replace(threads=n)).seconds for n in (1, present)}
    threads = 1 if seconds[1] <= 1.05 * seconds[present] else present
    figures = {"threads": list(seconds), "seconds_per_step": [float(f"{s:.3g}") for s in seconds.values()]}
    why = Evidence("measured", "the fewer where more are not at least 5 % faster", figures)
    return with_choices(plan, {"threads": (threads, why)})


def with_batch_size(problem: Problem, request: Request, plan: Plan, say: Say) -> Plan:
    """Measure batch sizes and choose one, unless the user or their DataLoader has."""
    if "batch_size" in request.fixed or loader_knobs(problem.task.data):
        return plan
    if problem.count is None and request.epochs is not None:
        return plan
    say("batch size: measuring throughput and memory")
    measured = batch_size.measure(problem, plan, request.epochs)
    return with_choices(plan, {"batch_size": batch_size.choose(measured, request.epochs, problem.count)})


def with_priors(plan: Plan, request: Request) -> Plan:
    """Set constants, schedule and weight decay by their rules for the plan's steps and rate, unless they are decided."""
    assert plan.steps is not None
    constants = priors.constants(plan.rule, plan.steps)
    known = plan.constants if "constants" in request.fixed else constants[0]
    choices: dict[str, Choice] = {
        "constants": constants,
        "schedule": priors.schedule(plan.rule, known, plan.steps),
        "weight_decay": priors.weight_decay(plan.rule, plan.learning_rate, plan.steps, known),
    }
    return with_choices(plan, {knob: choice for knob, choice in choices.items() if knob not in request.fixed})


def with_learning_rate(problem: Problem, request: Request, plan: Plan, say: Say) -> Plan:
    """Search the learning rate for the price less the final training, or take the stated default where that is too little.

    Raises DivergedError where no rate trains.
    """
    assert plan.steps is not None
    rungs = plan_rungs(plan.steps, request.trainings - 1)
    if not rungs:
        reason = "a rate that serves most small networks under this kind of rule; nothing was searched at this effort"
        return with_choices(plan, {"learning_rate": (plan.learning_rate, Evidence("default", reason))})
    low, high = priors.rate_range(plan.rule)
    task = problem.task
    mode = "max" if task.mode == "max" else "min"
    search = Search(partial(trial_plan, plan, request), low, high, rungs, request.seed, task.select, mode, say)
    started = time.perf_counter()
    run_trials(search, problem)
    seconds = round(time.perf_counter() - started, 2)
    return with_choices(
        plan, {"learning_rate": _found_rate(search, plan.steps, seconds, problem.validation is not None)}
    )


def plan_rungs(full: int, price: float) -> list[Rung]:
    """Divide the search's price, in trainings of `full` steps, into rungs, a third of it each; none where it is too little.

    >>> [tuple(rung) for rung in plan_rungs(900, 3.0)]
    [(11, 81, 1), (4, 225, 1), (2, 225, 2)]
    """
    budget = price * full
    rates = GRID if budget / 3 / GRID >= FEWEST else 6
    first = int(budget / 3 / rates)
    if min(first, full) < FEWEST:
        first = min(int(budget / rates), full)
        return [Rung(rates, first, 1)] if first >= FEWEST // 2 else []
    later = min(full, int(budget / 12))
    return [Rung(rates, min(first, full), 1), Rung(4, later, 1), Rung(2, later, 2)]


def trial_plan(plan: Plan, request: Request, rate: float, steps: int) -> Plan:
    """Give the plan of a short run: a complete schedule of its own length, judged once, at its end."""
    short = with_priors(plan.replace(steps=steps, learning_rate=rate), request)
    return short.replace(watch=True, snapshot_every=0, digest_every=0, validate_every=steps, keep="last", ema=None)


def _found_rate(search: Search, full: int, seconds: float, validated: bool) -> tuple[float, Evidence]:
    """Carry the rate that a search found to `full` steps, and give its evidence."""
    if search.best is None or all(math.isinf(score) for score in search.scores.values()):
        raise DivergedError(
            f"No learning rate trained: every short run ended with a figure ('{search.select}') that is not finite, or ran"
            f" away. Run `thalweg check` on the task; the loss, the metric or the data are the likelier cause."
        )
    best, longest = search.best, search.rungs[-1].steps
    rate = float(f"{priors.rate_for_longer_run(best, longest, full):.3g}")
    figures = {
        **search.figures(),
        "best_of_short_runs": float(f"{best:.3g}"),
        "carried_by": "(short / full)^0.15",
        "price": round(1 + search.steps_paid / full, 2),
        "seconds": seconds,
    }
    judged = "" if validated else "; judged by the training loss, as there are no validation data"
    if search.select != "loss":
        judged = f"; judged by {search.select}, of which {'more' if search.mode == 'max' else 'less'} is better"
    carried = f", times ({longest} / {full})^0.15 = {rate:.3g} for {full} steps, as longer runs want lower rates"
    reason = (
        f"best of {len(search.scores)} short runs, each a complete schedule, up to {longest} steps: {best:.4g}"
        f"{carried if longest < full else ''}{judged}"
    )
    return rate, Evidence("searched", reason, figures)
