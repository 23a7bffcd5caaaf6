"""The knobs of speed, each measured on this task and machine: threads, memory format, loader workers, precision, compiling.

What they save is weighed against what measuring them costs: each may take a twentieth of search and training together, but two
minutes at most, and what cannot pay within that is left alone. A choice by the clock is made once, here, and stands in the
plan with its figures. What it must not change is looked at too: channels last must give the same loss, workers the same
batches, and bfloat16 a loss that is no worse beyond chance. Each is tried with what was taken before it, and bfloat16 with both
memory formats, as the two may pay together where neither does alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import closing

import torch

from thalweg.descent.problem import Problem
from thalweg.descent.settle import with_choices, with_fitting_batches
from thalweg.descent.timing import WARM_UP, TimedDescent, time_steps
from thalweg.records.plan import Evidence, Plan
from thalweg.records.request import Request
from thalweg.tuning import compiling, half_precision, loader_workers, memory_format
from thalweg.tuning.comparison import PAYS, ROUNDS, Compared, Finding, Say, Trial, block, compared

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
    timed = compare_threads(problem, fitting, present)
    threads = present if timed.ratio < PAYS else 1
    figures = timed.figures("threads", (1, present))
    of = f", in steps of {fitting.batch_size:,} examples" if fitting.batch_size else ""
    why = Evidence("measured", f"the fewer where more are not at least 5 % faster{of}", figures)
    return with_choices(plan, {"threads": (threads, why)})


def compare_threads(problem: Problem, plan: Plan, threads: int) -> Compared:
    """Time steps on one thread and on several in turn. They are those of one descent: there may be no memory for another one."""
    counts = (1, threads)
    with closing(TimedDescent(problem, plan)) as timed:
        blocks = [block(timed.take(WARM_UP, threads=count)) for count in counts]
        rounds = [
            [statistics.median(timed.take(steps, threads=count)) for count, steps in zip(counts, blocks, strict=True)]
            for _ in range(ROUNDS)
        ]
    return compared(rounds)


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
    """Measure memory format, loader workers, precision and compiling, one after the other; what is decided stays, and what was
    taken is changed by a later knob only where that pays best with another value.

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
        found = choose(Trial(problem, plan, per_step, total, say, request.fixed.keys()))
        if found is None:
            continue
        for name, one in {**found.beside, knob: found}.items():
            if one.value != getattr(plan, name):
                per_step = None  # by which the next ones are weighed
            say(f"{name.replace('_', ' ')} {str(one.value).lower()}: {one.reason}")
            plan = with_choices(plan, {name: (one.value, Evidence("measured", one.reason, one.figures))})
    return plan
