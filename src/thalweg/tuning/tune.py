"""Choosing a plan: each knob from what is given, measured or searched, else from a stated rule, and its evidence with it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, SupportsFloat

import torch

from thalweg import rules
from thalweg.descent.budget import check_budget, check_seed, seconds_per_step, settle
from thalweg.descent.problem import Problem
from thalweg.errors import DivergedError, PlanError, nearest
from thalweg.records.plan import Evidence, Plan
from thalweg.sampling.sources import loader_knobs
from thalweg.tuning import batch_size, priors
from thalweg.tuning.search import Search

EFFORTS = {"quick": 2.0, "standard": 4.0, "thorough": 12.0}
GRID = 11  # half decades over five
FEWEST = 10  # steps of the shortest trial
Say = Callable[[str], None]


def price(effort: str | float) -> float:
    """Read an effort as a number of full trainings, the final one included.

    Raises PlanError for an unknown word or a number below one.
    """
    if isinstance(effort, str):
        if effort not in EFFORTS:
            raise PlanError(
                f"`effort` is '{effort}', which is none of {', '.join(EFFORTS)}, and no number.{nearest(effort, EFFORTS)}"
            )
        return EFFORTS[effort]
    if isinstance(effort, bool) or not isinstance(effort, SupportsFloat) or not math.isfinite(effort) or effort < 1:
        raise PlanError(
            f"`effort` is {effort}, but it is at least 1: one full training. 1 takes stated defaults alone."
        )
    return float(effort)


def tune_plan(
    problem: Problem,
    *,
    epochs: float | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    effort: str | float = "standard",
    seed: int = 0,
    fixed: Mapping[str, Any] | None = None,
    start: Plan | None = None,
    say: Say = lambda _: None,
) -> Plan:
    """Choose a plan for a problem.

    `fixed` holds knobs that the person has decided; the rest is chosen around them. `start` is what `measured_start` gave for
    the same arguments, where that is already known.

    Raises PlanError where a budget or a fixed knob cannot be, DivergedError where no learning rate trains at all.
    """
    paid, seed = price(effort), check_seed(seed)
    decided = check_fixed(fixed or {})
    plan = start or measured_start(
        problem, epochs=epochs, steps=steps, seconds=seconds, effort=effort, seed=seed, fixed=fixed, say=say
    )
    assert plan.steps is not None
    plan = with_length(plan, decided, plan.steps)
    if searches_rate(decided):
        plan = with_learning_rate(problem, plan, decided, paid, seed, say)
    return with_weight_decay(plan, decided)


def measured_start(
    problem: Problem,
    *,
    epochs: float | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    effort: str | float = "standard",
    seed: int = 0,
    fixed: Mapping[str, Any] | None = None,
    say: Say = lambda _: None,
) -> Plan:
    """Give the plan before anything is searched: threads and batch size measured, the budget in steps. Raises PlanError."""
    price(effort)
    seed = check_seed(seed)
    check_budget(epochs, steps, seconds)
    decided = check_fixed(fixed or {})
    plan = with_threads(problem, start_plan(problem, decided, seed), decided)
    plan = with_batch_size(problem, plan, decided, epochs, say)
    if seconds is not None:
        seconds = seconds / trainings(effort, decided)  # the search is part of what was asked for
    return settle(problem, plan, epochs=epochs, steps=steps, seconds=seconds)


def check_fixed(fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse knobs that do not exist. Raises PlanError with the nearest name."""
    known = [f.name for f in fields(Plan) if f.name != "evidence"]
    if not isinstance(fixed, Mapping):
        raise PlanError(f"`fixed` is {fixed!r}, but it is a table of knobs, such as {{'batch_size': 64}}.")
    if "steps" in fixed:
        raise PlanError("`fixed` has 'steps', which is the budget: give it as steps=….")
    for name in fixed:
        if name not in known:
            raise PlanError(
                f"`fixed` has '{name}', which is no knob of a plan.{nearest(str(name), known)} Knobs: {', '.join(known)}."
            )
    whole: dict[str, Any] = {"batch_size": None, **fixed}
    Plan(**whole)  # raises where a value cannot be
    return dict(fixed)


def searches_rate(decided: Mapping[str, Any]) -> bool:
    """Tell whether the learning rate is to be searched: nobody has decided it, and the rule does not find it itself."""
    return "learning_rate" not in decided and not rules.get(str(decided.get("rule", "adamw"))).finds_rate


def trainings(effort: str | float, decided: Mapping[str, Any]) -> float:
    """Give what is paid in full trainings, the final one included: the effort's price, or one where nothing is searched."""
    paid = price(effort)
    return paid if searches_rate(decided) else 1.0


def start_plan(problem: Problem, decided: Mapping[str, Any], seed: int) -> Plan:
    """Give a plan with all that is decided, and clipping, before anything is measured."""
    values: dict[str, Any] = {"seed": seed, "clip_norm": 1.0, **decided}
    rule = str(values.get("rule", "adamw"))
    if not rules.get(rule).finds_rate:
        values.setdefault("learning_rate", priors.usual_rate(rule))
    evidence = {name: Evidence("given") for name in decided}
    if "clip_norm" not in decided:
        evidence["clip_norm"] = Evidence("default", "gradients longer than 1 are shortened: one bad batch does no harm")
    count = problem.count
    if "batch_size" not in values and count is not None:
        values["batch_size"] = min(64, count)
        evidence["batch_size"] = Evidence("default", "64, or all where there are fewer")
    return Plan(**values, evidence={**evidence, "seed": Evidence("given") if seed else Evidence("default")})


def with_threads(problem: Problem, plan: Plan, decided: Mapping[str, Any]) -> Plan:
    """Take one CPU thread where more are no faster: small operations wait for each other longer than they work."""
    found = torch.get_num_threads()
    if "threads" in decided or found == 1 or problem.device.type != "cpu":
        return plan
    timed = {n: seconds_per_step(problem, plan.replace(threads=n, steps=1000)) for n in (1, found)}
    threads = 1 if timed[1] <= 1.05 * timed[found] else found
    figures = {"threads": list(timed), "seconds_per_step": [float(f"{t:.3g}") for t in timed.values()]}
    evidence = Evidence("measured", "the fewer where more are not at least 5 % faster", figures)
    return plan.replace(threads=threads, evidence={**plan.evidence, "threads": evidence})


def with_batch_size(problem: Problem, plan: Plan, decided: Mapping[str, Any], epochs: float | None, say: Say) -> Plan:
    """Measure batch sizes and choose one, unless the person or their loader has."""
    if "batch_size" in decided or loader_knobs(problem.task.data):
        return plan
    if problem.count is None and epochs is not None:
        return plan
    say("batch size: measuring throughput and memory")
    measured = batch_size.measure(problem, plan)
    size, evidence = batch_size.choose(measured, epochs, problem.count)
    return plan.replace(batch_size=size, evidence={**plan.evidence, "batch_size": evidence})


def with_length(plan: Plan, decided: Mapping[str, Any], steps: int) -> Plan:
    """Fit constants and schedule to a run's length."""
    evidence = dict(plan.evidence)
    changes: dict[str, Any] = {}
    constants = dict(plan.constants)
    if "constants" not in decided:
        constants, why = priors.constants(plan.rule, steps)
        changes["constants"] = constants
        evidence |= why
    if "schedule" not in decided:
        changes["schedule"], evidence["schedule"] = priors.schedule(plan.rule, constants, steps)
    return plan.replace(**changes, evidence=evidence) if changes else plan


def with_weight_decay(plan: Plan, decided: Mapping[str, Any]) -> Plan:
    """Set weight decay by its rule, unless it is decided."""
    if "weight_decay" in decided or plan.steps is None:
        return plan
    value, evidence = priors.weight_decay(plan.rule, plan.learning_rate, plan.steps, plan.constants)
    return plan.replace(weight_decay=value, evidence={**plan.evidence, "weight_decay": evidence})


def with_learning_rate(
    problem: Problem, plan: Plan, decided: Mapping[str, Any], paid: float, seed: int, say: Say
) -> Plan:
    """Search the learning rate for the price of `paid - 1` trainings, or take the stated default where that buys nothing."""
    assert plan.steps is not None
    full = plan.steps
    rungs = plan_rungs(full, paid - 1)
    if not rungs:
        reason = "a rate that serves most small networks under this kind of rule; nothing was searched at this effort"
        return plan.replace(evidence={**plan.evidence, "learning_rate": Evidence("default", reason)})

    def plan_for(rate: float, steps: int) -> Plan:
        short = with_length(plan.replace(steps=steps, learning_rate=rate), decided, steps)
        return with_weight_decay(short, decided)

    search = Search(problem, plan_for, seed, say)
    say(f"learning rate: {rungs[0][0]} candidates over {rungs[0][1]} steps")
    started = time.perf_counter()
    try:
        best = search.halve(*priors.rate_range(plan.rule), rungs)
    except KeyboardInterrupt as stopped:
        raise KeyboardInterrupt(
            "Interrupted while the learning rate was searched: nothing is trained yet, so start again. --effort 1 (effort=1)"
            " leaves the search out."
        ) from stopped
    if all(math.isinf(t.score) for t in search.trials):
        raise DivergedError(
            f"No learning rate trained: every short run ended with a figure ('{problem.task.select}') that is not finite, or ran"
            f" away. Run `thalweg check` on the task; the loss, the metric or the data are the likelier cause."
        )
    rate = float(f"{priors.shorter_runs_rate(best, rungs[-1][1], full):.3g}")
    figures = {
        **search.figures(),
        "best_of_short_runs": float(f"{best:.3g}"),
        "carried_by": "(short / full)^0.15",
        "price": round(1 + search.steps_paid / full, 2),
        "seconds": round(time.perf_counter() - started, 2),
    }
    reason = (
        f"best of {len(search.trials)} short runs, each a complete schedule, up to {rungs[-1][1]} steps;"
        f" {best:.3g} there, {rate:.3g} for {full} steps, as longer runs want lower rates"
        f"{'' if problem.validation is not None else '; judged by the training loss, as there are no validation data'}"
    )
    return plan.replace(
        learning_rate=rate, evidence={**plan.evidence, "learning_rate": Evidence("searched", reason, figures)}
    )


def plan_rungs(full: int, price: float) -> list[tuple[int, int, int]]:
    """Cut the search's price into rungs of (rates, steps, seeds), a third of it each; nothing where it buys too little.

    >>> plan_rungs(900, 3.0)
    [(11, 81, 1), (4, 225, 1), (2, 225, 2)]
    """
    budget = price * full
    rates = GRID if budget / 3 / GRID >= FEWEST else 6
    first = int(budget / 3 / rates)
    if min(first, full) < FEWEST:
        first = min(int(budget / rates), full)
        return [(rates, first, 1)] if first >= FEWEST // 2 else []
    later = min(full, int(budget / 12))
    return [(rates, min(first, full), 1), (4, later, 1), (2, later, 2)]
