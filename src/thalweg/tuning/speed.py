"""The knobs of speed, each measured on this task and machine: threads, memory format, loader workers, precision, compiling.

What they save is weighed against what measuring them costs: each may take a twentieth of search and training together, but two
minutes at most, and what cannot pay within that is left alone. A choice by the clock is made once, here, and stands in the
plan with its figures. What it must not change is looked at too: channels last must give the same loss, workers the same
batches, and bfloat16 a loss that is no worse beyond chance.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from thalweg.descent.problem import Problem
from thalweg.descent.settle import with_choices, with_fitting_batches
from thalweg.descent.timing import time_steps
from thalweg.records.plan import Evidence, Plan
from thalweg.records.request import Request
from thalweg.tuning import compiling, half_precision, loader_workers, memory_format
from thalweg.tuning.comparison import Finding, Say, Trial

FEWEST_STEPS = 200  # of search and training together, below which nothing but threads is measured

CHOICES: dict[str, Callable[[Trial], Finding | None]] = {
    "memory_format": memory_format.choose,
    "workers": loader_workers.choose,
    "precision": half_precision.choose,
    "compile": compiling.choose,
}
"""How each knob is chosen, in this order; None: it does not matter for this task, or trying it cannot pay."""


def with_threads(problem: Problem, request: Request, plan: Plan) -> Plan:
    """Take one CPU thread where more are no faster, at the plan's batch size: small operations wait longer than they work."""
    present = torch.get_num_threads()
    if "threads" in request.fixed or present == 1 or problem.device.type != "cpu":
        return plan
    fitting = with_fitting_batches(problem, plan)
    seconds = {n: time_steps(problem, fitting.replace(threads=n)).seconds for n in (1, present)}
    threads = 1 if seconds[1] <= 1.05 * seconds[present] else present
    figures = {"threads": list(seconds), "seconds_per_step": [float(f"{s:.3g}") for s in seconds.values()]}
    of = f", in steps of {fitting.batch_size:,} examples" if fitting.batch_size else ""
    why = Evidence("measured", f"the fewer where more are not at least 5 % faster{of}", figures)
    return with_choices(plan, {"threads": (threads, why)})


def with_threads_for_batches(problem: Problem, request: Request, plan: Plan, before: Plan) -> Plan:
    """Measure threads again where the batch size that was chosen with them may ask for others: that of `before` was another.

    Threads pay where operations are large: one that was enough stays enough for smaller batches, and more stay worth it for
    larger ones, so that nothing is measured there.
    """
    sizes = before.batch_size, plan.batch_size
    if plan.threads is None or sizes[0] is None or sizes[1] is None or sizes[0] == sizes[1]:
        return plan
    return with_threads(problem, request, plan) if (sizes[1] > sizes[0]) == (plan.threads == 1) else plan


def with_speed(
    problem: Problem, request: Request, plan: Plan, seconds_of_all: Callable[[float], float], say: Say = lambda _: None
) -> Plan:
    """Measure memory format, loader workers, precision and compiling, one after the other; what is decided stays.

    Arguments:
        plan: with its batch size and steps.
        seconds_of_all: gives the seconds of search and training together from those of a step.
    """
    assert plan.steps is not None
    if plan.steps * request.trainings < FEWEST_STEPS and isinstance(request.effort, float):
        return plan
    per_step: float | None = None
    for knob, choose in CHOICES.items():
        if knob in request.fixed:
            continue
        if per_step is None:
            per_step = time_steps(problem, plan, count=4).seconds
        total = seconds_of_all(per_step)
        if total / per_step < FEWEST_STEPS:
            break
        found = choose(Trial(problem, plan, per_step, total, say))
        if found is None:
            continue
        if found.value != getattr(plan, knob):
            per_step = None  # by which the next ones are weighed
        say(f"{knob.replace('_', ' ')} {str(found.value).lower()}: {found.reason}")
        plan = with_choices(plan, {knob: (found.value, Evidence("measured", found.reason, found.figures))})
    return plan
