"""Settling a plan: what depends on data, model and machine is filled in, and the budget becomes a number of steps.

From here on nothing that changes the trajectory reads the clock.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

import torch

from thalweg import rules
from thalweg.descent.problem import Problem
from thalweg.descent.process_state import preserve_process_state, rng_lock
from thalweg.descent.state import default_validate_every
from thalweg.descent.timing import time_steps
from thalweg.errors import PlanError
from thalweg.formatting import format_count
from thalweg.optim.engines import fastest_engine
from thalweg.records.plan import Evidence, Group, Plan
from thalweg.records.request import Request
from thalweg.sampling import Batches, StreamSource, count_examples, smallest_part
from thalweg.sampling.opening import first_batch

POSITIONS = {
    "exact": "the order of the data follows from seed and epoch, so a resumed run knows its position",
    "state_dict": "the loader's own state_dict holds its position",
    "fast-forward": "a stream is read again up to that position, with what its objects carried when the epoch began",
}
SHORTEST = 0.5  # steps that are still rounded to one
STEP_SHARE = 0.9  # of a budget in seconds; the rest is for validation, checkpoints and start-up
FIRST_LENGTH = 300, 2000  # steps of the shortest run of an open length: an epoch within these

Choice = tuple[object, Evidence]
"""A knob's value, and why it has it."""


def settle(problem: Problem, plan: Plan, request: Request) -> Plan:
    """Fill in what depends on data and model: a DataLoader's batch size, steps, validation interval, threads, and the groups of
    parameters that a rule for matrices only leaves to another rule.

    Raises PlanError where no budget is known, or the batch size does not fit the data.
    """
    plan = with_fitting_batches(problem, _with_batch_size(problem, _with_holdout(problem, plan)))
    plan = with_rest_groups(problem, plan)
    per_epoch = steps_per_epoch(problem, plan)
    if request.open is not None and plan.patience is not None:
        raise PlanError(
            "`patience` ends a run early, and 'auto' goes on until it no longer pays. Leave one of them out."
        )
    steps, why = _steps(problem, plan, request, per_epoch)
    choices: dict[str, Choice] = {
        "steps": (steps, why),
        "position": (problem.train.resume, Evidence("measured", POSITIONS[problem.train.resume])),
    }
    if per_epoch is not None:
        choices["steps_per_epoch"] = per_epoch, Evidence("measured", "counted from the data and the batch size")
    if plan.validate_every is None:
        every, reason = default_validate_every(steps, per_epoch), ""
        if request.open is not None:
            every, reason = max(1, steps // 5), "a fifth of the shortest run that was looked at, whatever the length"
        choices["validate_every"] = every, Evidence("derived", reason or _why_every(every, steps, per_epoch))
    if plan.engine == "auto":
        reason = f"the fastest there is for weights on {problem.device.type}"
        choices["engine"] = fastest_engine(problem.device), Evidence("derived", reason)
    if plan.threads is None and problem.device.type == "cpu":
        choices["threads"] = torch.get_num_threads(), Evidence("measured", "as found in this process")
    return with_choices(plan, choices)


def with_choices(plan: Plan, choices: Mapping[str, Choice]) -> Plan:
    """Give the plan with these knobs set, each with its evidence."""
    values = {knob: value for knob, (value, _) in choices.items()}
    return plan.replace(**values, evidence={**plan.evidence, **{knob: why for knob, (_, why) in choices.items()}})


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


def _with_holdout(problem: Problem, plan: Plan) -> Plan:
    """Write down what the examples that are held out were chosen by, and how many there are."""
    held = problem.held_out
    if not held.share:
        return plan
    why = Evidence(plan.why("holdout").source, held.reason, held.figures)
    by = plan.why("holdout_by")
    if plan.holdout_by == "auto":
        by = Evidence("derived", "the first of group, time and class that the task has")
    return with_choices(plan, {"holdout": (held.share, why), "holdout_by": (held.by, by)})


def _with_batch_size(problem: Problem, plan: Plan) -> Plan:
    """Take the loader's batch size where it has one, and cut a default one down to the data."""
    knobs = problem.loader_knobs
    for knob, value in knobs.items():
        if plan.why(knob).source == "given" and getattr(plan, knob) != value:
            raise PlanError(
                f"`{knob}` is {getattr(plan, knob)} in the plan, but the DataLoader has decided on {value}. Leave it out of the"
                f" plan, or give the data set instead of the loader."
            )
    choices: dict[str, Choice] = {
        knob: (value, Evidence("given", "by the DataLoader")) for knob, value in knobs.items()
    }
    train, is_given = problem.train, plan.why("batch_size").source == "given"
    if isinstance(train, StreamSource) and train.gives_batches and "batch_size" not in knobs and not is_given:
        why = Evidence("given", "by the loader: so many examples are in its first batch")
        with preserve_process_state(), rng_lock:
            choices["batch_size"] = count_examples(first_batch(train, problem.device)), why
    if choices:
        return with_choices(plan, choices)
    count = problem.count
    if count is not None and plan.batch_size is not None and plan.batch_size > count and not plan.replacement:
        if plan.why("batch_size").source in ("default", "derived"):
            why = Evidence("derived", f"the data have {count} examples")
            return with_choices(plan, {"batch_size": (count, why)})
        held = " that are not held out" * bool(problem.held_out.share)
        raise PlanError(
            f"`batch_size` is {plan.batch_size}, but the data have {count} examples{held}. Give at most {count}."
        )
    return plan


def with_rest_groups(problem: Problem, plan: Plan) -> Plan:
    """Enter embeddings and output layer as groups, where the rule leaves them to another rule (Muon to AdamW).

    They come first, so that the user's own groups override them; groups entered for another rule or model are removed.
    """
    rest, before = rules.get(plan.rule).rest, plan.why("groups").table("entered")
    given = {p: g for p, g in plan.groups.items() if p not in before or g != Group(rule=str(before[p]))}
    decided = [pattern for pattern, group in given.items() if group.rule is not None]
    roles = {} if rest is None else problem.matrix_roles  # which costs a forward pass
    left_out = {
        name: role
        for name, role in roles.items()
        if role != "hidden" and not any(fnmatchcase(name, pattern) for pattern in decided)
    }
    if rest is None or not left_out:
        why = Evidence("given" if given else "default")
        return with_choices(plan, {"groups": (given, why)}) if before else plan
    entered = {glob.escape(name): Group(rule=rest.name) for name in left_out}
    own = {p: replace(group, rule=rest.name) if p in entered else group for p, group in given.items()}
    hidden = sum(role == "hidden" for role in problem.matrix_roles.values())
    moved = f"{hidden or 'no'} hidden {'matrix' if hidden == 1 else 'matrices'}"
    others = ", ".join(f"{name} ({role})" for name, role in left_out.items())
    reason = (
        f"{plan.rule} moves {moved}; {rest.name} moves {others} and all that is no matrix, as {plan.rule}'s authors do"
    )
    why = Evidence("given" if given else "derived", reason, {"entered": dict.fromkeys(entered, rest.name)})
    groups = {**{p: group for p, group in entered.items() if p not in own}, **own}
    return with_choices(plan, {"groups": (groups, why)})


def with_fitting_batches(problem: Problem, plan: Plan) -> Plan:
    """Leave out an epoch's last batch where it would hold a single example that batch normalisation cannot take.

    Raises DataError where the user's loader gives such a batch, PlanError where the plan's `drop_last` forbids leaving it out, or
    where every step has such a part.
    """
    problem.check_last_batch()
    count = problem.count
    if not problem.needs_two_examples or count is None:
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
    return with_choices(plan, {"drop_last": (True, Evidence("derived", reason))})


def _why_every(every: int, steps: int, per_epoch: int | None) -> str:
    if every == per_epoch:
        return "an epoch"
    if per_epoch is None:
        return "about 20 validations per run, as the data do not say how long an epoch is"
    return f"{'at least 5' if every < per_epoch else 'at most 50'} validations per run; an epoch has {per_epoch} steps"


def _steps(problem: Problem, plan: Plan, request: Request, per_epoch: int | None) -> tuple[int, Evidence]:
    """Turn the requested budget into steps; without one take the plan's own. Raises PlanError where there is neither."""
    if request.open is not None:
        return first_length(problem, plan, request, per_epoch)
    if request.steps is not None:
        return request.steps, Evidence("given")
    if request.epochs is not None:
        if per_epoch is None:
            raise PlanError("The data are a stream of unknown length, so epochs say nothing. Give steps= or seconds=.")
        reason = f"{request.epochs:g} epochs of {per_epoch} steps"
        if request.epochs * per_epoch < SHORTEST:
            raise PlanError(
                f"`epochs` is {request.epochs:g}, which is less than one step: an epoch has {format_count(per_epoch, 'step')}."
                f" Give at least {1 / per_epoch:.2g} epochs, or steps=1."
            )
        return max(1, round(request.epochs * per_epoch)), Evidence("derived", reason)
    seconds = request.seconds_per_training
    if seconds is not None:
        each = time_steps(problem, plan).seconds
        parts = (
            f" of the {request.seconds:.3g} s left, as search and training are {request.trainings:g} trainings' worth"
        )
        whole = f"{seconds:.3g} s{parts if request.trainings > 1 else ''}"
        reason = f"{whole}, less a tenth for validation, at {each * 1e3:.3g} ms per step"
        figures = {"seconds": seconds, "seconds_per_step": each}
        if STEP_SHARE * seconds < each:
            reason += ", which is less than one step: one is taken"
        return max(1, int(STEP_SHARE * seconds / each)), Evidence("measured", reason, figures)
    if plan.steps is None:
        raise PlanError("No budget is known. Give epochs=, steps= or seconds=.")
    return plan.steps, plan.why("steps")


def first_length(problem: Problem, plan: Plan, request: Request, per_epoch: int | None) -> tuple[int, Evidence]:
    """Give the steps of the shortest run of an open length, on which the plan is searched. Raises as `most_steps` does."""
    assert request.open is not None
    least, most = FIRST_LENGTH
    limit = request.open.most_steps(per_epoch, request.seconds)
    steps = min(max(per_epoch or 0, least), most, limit or most)
    if request.seconds is not None:
        each = time_steps(problem, plan).seconds
        steps = max(1, min(steps, int(STEP_SHARE * request.seconds / (each * request.trainings))))
    return steps, Evidence("derived", f"an epoch, from {least} to {most:,} steps: the shortest run of an open length")
