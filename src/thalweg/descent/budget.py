"""The budget: epochs, steps or seconds, turned into a number of steps when the plan is made."""

from __future__ import annotations

import glob
import math
import operator
import statistics
import time
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, SupportsFloat

import torch

from thalweg import rules
from thalweg.descent.ambient import ambient
from thalweg.descent.keeper import Keeper
from thalweg.descent.loop import feel, set_rate
from thalweg.descent.problem import Problem
from thalweg.descent.progress import Silent
from thalweg.descent.state import Descent, default_validate_every
from thalweg.errors import PlanError
from thalweg.optim.engines import fastest_engine
from thalweg.records.plan import Evidence, Group, Plan
from thalweg.sampling import Batches, smallest_part
from thalweg.sampling.sources import given_batch

TIMED = 12  # steps that are timed to turn seconds into steps
POSITIONS = {
    "exact": "the order of the data follows from seed and epoch, so a resumed run knows its place",
    "state_dict": "the loader keeps its place itself, and is asked for it",
    "fast-forward": "a stream is gone through again up to there, which is exact unless its own code carries"
    " random numbers from pass to pass",
}
SHARE = 0.9  # of the seconds, for steps; the rest is validation, checkpoints and start-up


def settle(
    problem: Problem,
    plan: Plan,
    *,
    epochs: float | None = None,
    steps: int | None = None,
    seconds: float | None = None,
) -> Plan:
    """Fill in what depends on data and model: batch size where the person's loader has one, steps, validation interval, threads,
    and what a rule of matrices leaves to another.

    Raises PlanError where no budget is known, several are given, or one is not above zero.
    """
    check_budget(epochs, steps, seconds)
    plan = with_fitting_batches(problem, _settle_batch(problem, plan))
    plan = _settle_groups(problem, plan)
    per_epoch = steps_per_epoch(problem, plan)
    plan = _noted(plan, "steps_per_epoch", per_epoch, Evidence("measured", "counted from the data and the batch size"))
    plan = _settle_steps(problem, plan, per_epoch, epochs, steps, seconds)
    if plan.validate_every is None and plan.steps is not None:
        every = default_validate_every(plan.steps, per_epoch)
        plan = _noted(plan, "validate_every", every, Evidence("derived", "an epoch, within 5 to 50 validations a run"))
    plan = _noted(plan, "position", problem.train.resume, Evidence("measured", POSITIONS[problem.train.resume]))
    if plan.engine == "auto":
        reason = f"the fastest there is for weights on {problem.device.type}"
        plan = _noted(plan, "engine", fastest_engine(problem.device), Evidence("derived", reason))
    if plan.threads is None and problem.device.type == "cpu":
        plan = _noted(plan, "threads", torch.get_num_threads(), Evidence("measured", "as found in this process"))
    return plan


def check_budget(epochs: float | None, steps: float | None, seconds: float | None) -> None:
    """Refuse several budgets at once, and any that is not above zero. Raises PlanError."""
    given = {"epochs": epochs, "steps": steps, "seconds": seconds}
    named = {name: value for name, value in given.items() if value is not None}
    if len(named) > 1:
        raise PlanError(f"Give one budget, not several: {', '.join(f'{k}={v}' for k, v in named.items())}.")
    for name, value in named.items():
        if isinstance(value, bool) or not isinstance(value, SupportsFloat) or not math.isfinite(value) or value <= 0:
            raise PlanError(f"`{name}` is {value!r}, but a budget must be a number above zero and finite.")
        if name == "steps" and value != int(value):
            raise PlanError(f"`steps` is {value}, but it is a whole number.")


def check_seed(seed: Any) -> int:
    """Give a seed as Python's whole number. Raises PlanError where it is none, or below zero."""
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if number < 0 or isinstance(seed, bool):
        raise PlanError(f"`seed` is {seed!r}, but it is a whole number, at least 0.")
    return number


def steps_per_epoch(problem: Problem, plan: Plan) -> int | None:
    """Count the steps of an epoch; None for a stream that does not know its length."""
    return Batches(
        problem.train,
        plan.batch_size,
        seed=plan.seed,
        accumulate=plan.accumulate,
        replacement=plan.replacement or problem.task.weights is not None,
        drop_last=plan.drop_last,
    ).steps_per_epoch


def seconds_per_step(problem: Problem, plan: Plan, count: int = TIMED) -> float:
    """Time steps of a throw-away descent: the median of `count`, after two."""
    plan = with_fitting_batches(problem, plan)
    descent = Descent(problem, plan if plan.steps else plan.replace(steps=1000))
    keeper, times = Keeper(), list[float]()
    with ambient(plan.threads):
        for _ in range(count + 2):
            start = time.perf_counter()
            set_rate(descent)
            feel(descent, keeper, Silent())
            descent.optimizer.step()
            times.append(time.perf_counter() - start)
    descent.batches.close()
    return statistics.median(times[2:])


def _settle_batch(problem: Problem, plan: Plan) -> Plan:
    knobs = given_batch(problem.task.data)
    for knob, value in knobs.items():
        if plan.why(knob).source == "given" and getattr(plan, knob) != value:
            raise PlanError(
                f"`{knob}` is {getattr(plan, knob)} in the plan, but the DataLoader has decided on {value}. Leave it out of the"
                f" plan, or give the data set instead of the loader."
            )
    if knobs:
        evidence = {**plan.evidence, **{knob: Evidence("given", "by the DataLoader") for knob in knobs}}
        return plan.replace(**knobs, evidence=evidence)
    count = problem.count
    if count is not None and plan.batch_size is not None and plan.batch_size > count and not plan.replacement:
        if plan.why("batch_size").source in ("default", "derived"):
            return _noted(plan, "batch_size", count, Evidence("derived", f"the data have {count} examples"))
        raise PlanError(f"`batch_size` is {plan.batch_size}, but the data have {count} examples. Give at most {count}.")
    return plan


def _settle_groups(problem: Problem, plan: Plan) -> Plan:
    """Enter the matrices at both ends of the network as groups, where the rule leaves them to another (Muon to AdamW).

    They come first, so that what the person says of the same weights holds; what was entered for another rule or model goes.
    """
    rest, before = rules.get(plan.rule).rest, plan.why("groups").figures.get("entered", {})
    given = {p: g for p, g in plan.groups.items() if p not in before or g != Group(rule=before[p])}
    decided = [pattern for pattern, group in given.items() if group.rule is not None]
    ends = {name: place for name, place in problem.matrices.items() if rest is not None and place != "hidden"}
    ends = {name: place for name, place in ends.items() if not any(fnmatchcase(name, pattern) for pattern in decided)}
    if rest is None or not ends:
        return _noted(plan, "groups", given, Evidence("given" if given else "default")) if before else plan
    entered = {glob.escape(name): Group(rule=rest.name) for name in ends}
    own = {p: replace(group, rule=rest.name) if p in entered else group for p, group in given.items()}
    hidden = sum(place == "hidden" for place in problem.matrices.values())
    moved = f"{hidden or 'no'} hidden {'matrix' if hidden == 1 else 'matrices'}"
    left = ", ".join(f"{name} ({place})" for name, place in ends.items())
    reason = (
        f"{plan.rule} moves {moved}; {rest.name} moves {left} and all that is no matrix, as {plan.rule}'s authors do"
    )
    evidence = Evidence("given" if given else "derived", reason, {"entered": dict.fromkeys(entered, rest.name)})
    return _noted(plan, "groups", {**{p: group for p, group in entered.items() if p not in own}, **own}, evidence)


def with_fitting_batches(problem: Problem, plan: Plan) -> Plan:
    """Leave out an epoch's last batch where it would hold a single example that batch normalisation cannot take.

    Raises PlanError where it was decided that it stays, or where every step has such a part.
    """
    count = problem.count
    if not problem.needs_two or count is None:
        return plan
    size = plan.batch_size or count
    if smallest_part(size, size, plan.accumulate) == 1:
        raise PlanError(
            f"Batches of {size} in {plan.accumulate} parts have a part of one example, which batch normalisation cannot take."
            f" Give another `batch_size` or `accumulate`."
        )
    if plan.drop_last or smallest_part(count, size, plan.accumulate) > 1:
        return plan
    reason = "an epoch's last batch has a part of one example, which batch normalisation cannot take"
    if plan.why("drop_last").source not in ("default", "derived"):
        raise PlanError(
            f"With {count} examples in batches of {size} {reason}. Set drop_last=True, or another batch size."
        )
    return _noted(plan, "drop_last", True, Evidence("derived", reason))


def _settle_steps(
    problem: Problem, plan: Plan, per_epoch: int | None, epochs: float | None, steps: int | None, seconds: float | None
) -> Plan:
    if steps is not None:
        return _noted(plan, "steps", int(steps), Evidence("given"))
    if epochs is not None:
        if per_epoch is None:
            raise PlanError("The data are a stream of unknown length, so epochs say nothing. Give steps= or seconds=.")
        reason = f"{epochs:g} epochs of {per_epoch} steps"
        return _noted(plan, "steps", max(1, round(epochs * per_epoch)), Evidence("derived", reason))
    if seconds is not None:
        each = seconds_per_step(problem, plan)
        reason = f"{seconds:g} seconds, less a tenth for validation, at {each * 1e3:.3g} ms a step"
        figures = {"seconds": float(seconds), "seconds_per_step": each}
        return _noted(plan, "steps", max(1, int(SHARE * seconds / each)), Evidence("measured", reason, figures))
    if plan.steps is None:
        raise PlanError("No budget is known. Give epochs=, steps= or seconds=.")
    return plan


def _noted(plan: Plan, knob: str, value: object, evidence: Evidence) -> Plan:
    if value is None:
        return plan
    return plan.replace(**{knob: value}, evidence={**plan.evidence, knob: evidence})
