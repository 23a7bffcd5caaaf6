"""A branch that cools down: a copy of a run whose rate falls to zero within a few per cent of it.

It gives the figure of a finished run where an unfinished one's says little. The run itself goes on as if it had not been judged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from thalweg import schedule as shapes
from thalweg.descent.problem import Problem
from thalweg.descent.projection import COOL
from thalweg.descent.state import Descent
from thalweg.records.plan import Plan
from thalweg.schedule import Schedule

FEWEST = 2  # steps of a cool-down, and before it


def cooled_plan(plan: Plan, factor: float, at: int, length: int | None = None) -> Plan:
    """Give the plan of a branch that leaves a run at a step where its schedule stands at `factor`.

    It is `length` steps long, by default the share COOL of the run, and ends with the run at the latest. It validates at its end.
    A weight decay with a schedule of its own stays that of these steps in the run: in log time the decay of a step depends on how
    many went before, and not on when the run ends.
    """
    assert plan.steps is not None
    length = min(max(FEWEST, round(COOL * plan.steps) if length is None else length), plan.steps - at)
    decay_schedule = plan.weight_decay_schedule
    return plan.replace(
        steps=at + length,
        weight_decay_schedule=decay_schedule and decay_schedule.resolve(plan.steps, plan.steps_per_epoch),
        schedule=cooled_schedule(factor, at, length),
        validate_every=at + length,
        snapshot_every=0,
        digest_every=0,
        patience=None,
    )


def cooled_schedule(factor: float, at: int, length: int) -> Schedule:
    """Fall from a factor to zero in a straight line of `length` steps, from step `at` on; steps before it are never taken."""
    if math.isclose(factor, 0.0):
        return shapes.linear(total=at)
    return shapes.sequence(shapes.constant(total=at), shapes.linear(total=length).scaled(factor))


def branch(problem: Problem, plan: Plan, state: Mapping[str, Any]) -> tuple[Descent, list[str]]:
    """Give a descent that goes on from a checkpoint's state by another plan, and the objects that could not be put back.

    `plan`: with the same rule and groups. The state is left as it is; what was best before does not count for the branch.
    """
    descent = Descent(problem, plan)
    lost = descent.load_state_dict({name: part for name, part in state.items() if name != "snapshot"})
    descent.schedule_state = descent.schedule.initial_state()
    descent.best_validation = None
    return descent, lost
