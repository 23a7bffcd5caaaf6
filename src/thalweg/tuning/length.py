"""Finding how long a run of open length is: finished runs of doubling lengths, as long as `until` says that it pays."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from thalweg.descent.problem import Problem
from thalweg.descent.suspended import Suspended
from thalweg.errors import DivergedError
from thalweg.formatting import capitalized
from thalweg.records.open_length import OpenLength
from thalweg.records.plan import Evidence, Plan
from thalweg.tuning import until
from thalweg.tuning.candidates import Candidates
from thalweg.tuning.doubts import nothing_learnt
from thalweg.tuning.race import Point
from thalweg.tuning.search import Search
from thalweg.tuning.trunk import branching_step, fits

Say = Callable[[str], None]


class FoundLength(NamedTuple):
    """The steps of a run of open length and why; the plan of its shortest run, and the run itself where it is here."""

    steps: int
    why: Evidence
    candidate: Plan
    begun: Suspended | None


def find_length(
    problem: Problem,
    length: OpenLength,
    track: Candidates,
    point: Point,
    plan: Plan,
    search: Search,
    most: int,
    say: Say,
) -> FoundLength:
    """Go on with a candidate as long as that pays, and give the best finished run; where the shortest is, shorter ones are tried.

    Arguments:
        track, point: where the candidate runs, and which it is.
        plan: of its shortest run.
        most: steps of the longest one.

    Raises DivergedError where not even the shortest trains.
    """
    assert plan.steps is not None
    runs, unlearnt = list[until.Finished](), nothing_learnt(problem)
    criterion = problem.task.select
    verdict = until.Verdict(plan.steps)
    while verdict.next is not None:
        if runs:
            say(_going_on(verdict, criterion, length.pays))
        runs.append(_finished(problem, track, point, plan, verdict.next))
        best = until.best_of(runs)
        for run in runs[-2:]:  # one finished run is kept: the best
            if run != best:
                track.drop(point, run.steps)
        verdict = until.judge(runs, length.pays, most, unlearnt)
    best = until.best_of(runs)
    if not math.isfinite(best.cost):
        raise DivergedError(
            f"The run of {plan.steps:,} steps ended with a figure ('{criterion}') that is not finite, or ran away, at a learning"
            f" rate of {plan.learning_rate:.3g}. Give a lower one, or leave it out: then it is searched."
        )
    used, candidate, taken = track, plan, track.steps_paid
    if best == runs[0] and (
        best.is_past_best or len(runs) > 1
    ):  # what is longer is no better, so what is shorter may be
        for steps in until.shorter_lengths(plan.steps):
            shorter = plan.replace(steps=steps, evidence=plan.evidence)
            if not fits(shorter):
                break
            say(f"trying {steps:,} steps: {best.steps:,} may be too many already")
            own = Candidates(problem, lambda _, shorter=shorter: shorter, say, search, steps, track.criterion)
            own.progress = track.progress
            runs.append(_finished(problem, own, point, shorter, steps))
            taken += own.steps_paid
            is_better, is_past_best = runs[-1].cost <= best.cost, runs[-1].is_past_best
            (used if is_better else own).stop(point)
            if is_better:
                best, used, candidate = runs[-1], own, shorter
            if not (is_better or is_past_best):
                break
    why = _evidence(sorted(runs), best, verdict, length.pays, most, taken)
    say(capitalized(f"{why.reason}."))
    return FoundLength(best.steps, why, candidate, used.finished(point, best.steps))


def _finished(problem: Problem, track: Candidates, point: Point, plan: Plan, steps: int) -> until.Finished:
    """Have a finished run of so many steps, and give what it came to."""
    assert plan.steps is not None
    task, share = problem.task, steps / plan.steps
    score, outcome = track.score(point, share), track.outcome(point, share)
    by_loss = track.criterion not in (None, task.select)
    cost = until.cost_of("loss" if by_loss else task.select, "min" if by_loss else task.mode, outcome.value)
    is_past_best = 0 <= outcome.kept < branching_step(plan, steps)
    return until.Finished(steps, cost if math.isfinite(score) else math.inf, tuple(outcome.parts), is_past_best)


def _going_on(verdict: until.Verdict, criterion: str, pays: float) -> str:
    """Say that a run of open length goes on, and why."""
    why = f"a gain of {verdict.gain:.1%} in {criterion} is projected, and from {pays:.1%} on twice the steps pay"
    return f"going on to {verdict.next:,} steps: {verdict.reason if math.isnan(verdict.gain) else why}"


def _evidence(
    runs: Sequence[until.Finished], best: until.Finished, verdict: until.Verdict, pays: float, most: int, taken: int
) -> Evidence:
    """Say why a run of open length has so many steps: what each length came to, and what the next would have gained.

    `taken`: the steps of it all, those of the search too.
    """
    figures: dict[str, Any] = {
        "lengths": [run.steps for run in runs],
        "costs": [float(f"{run.cost:.5g}") for run in runs],
        "pays": pays,
        "most": most,
        "steps_taken": taken,
    }
    reason = f"the best of {len(runs)} lengths; it did not go on, as {verdict.reason}"
    if math.isfinite(verdict.gain):
        figures["projected_gain"] = float(f"{verdict.gain:.3g}")
    if math.isfinite(verdict.noise):
        figures["noise"] = float(f"{verdict.noise:.3g}")
    return Evidence("searched", reason, figures)
