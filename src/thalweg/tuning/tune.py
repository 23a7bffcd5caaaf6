"""Choosing a plan: each knob from what is given, measured or searched, else from a stated rule, and its evidence with it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from typing import Any, Literal, NamedTuple

from thalweg import rules
from thalweg.descent.problem import Problem
from thalweg.descent.recorder import Progress
from thalweg.descent.settle import STEP_SHARE, Choice, settle, with_choices, with_rest_groups
from thalweg.descent.suspended import Suspended
from thalweg.descent.their_objects import as_found
from thalweg.descent.timing import time_steps
from thalweg.errors import DivergedError
from thalweg.formatting import capitalized, format_seconds
from thalweg.records.diagnosis import Diagnosis
from thalweg.records.kinds import check, count, number, optional
from thalweg.records.plan import Evidence, Plan
from thalweg.records.request import Request
from thalweg.sampling import StreamSource
from thalweg.tuning import batch_size, priors, speed
from thalweg.tuning.candidates import Candidates, Scored
from thalweg.tuning.confidence import SURE, probability_of_better
from thalweg.tuning.doubts import doubts, why_none_trained
from thalweg.tuning.length import find_length
from thalweg.tuning.race import SPACING, Line, Point, course_for, race
from thalweg.tuning.search import Search, naming_damage
from thalweg.tuning.sensitivity import cost_of_another_rate, stable_edge
from thalweg.tuning.trunk import check_schedule, with_open_decay, with_settled_warmup

LEAST_SECONDS = {"quick": 10.0, "standard": 30.0, "thorough": 120.0}  # of search, whatever the price in trainings
MOST_TRAININGS = 12.0  # that these seconds buy
Say = Callable[[str], None]


class Cost(NamedTuple):
    """Steps of one training, the price in trainings, and about how many seconds all of it takes.

    Of an open length that is the shortest run with the search; `most` is then the steps of the longest one, and `most_seconds`
    what all of it takes with that.
    """

    steps: int
    batch_size: int | None
    trainings: float
    seconds: float
    most: int | None = None
    most_seconds: float = 0.0

    def __str__(self) -> str:
        if self.most is not None:
            search = f"a search worth {self.trainings:g} of these" if self.trainings > 1 else "no search"
            return (
                f"{self.steps:,} steps of {self.batch_size or 'all'} examples first, with {search}: about"
                f" {format_seconds(self.seconds)}; then on until it no longer pays, to {self.most:,} steps at most: about"
                f" {format_seconds(self.most_seconds)} in all, validation not counted"
            )
        return (
            f"{self.steps:,} steps of {self.batch_size or 'all'} examples; with the search {self.trainings:g} trainings' worth:"
            f" about {format_seconds(self.seconds)}, validation not counted"
        )


COST = {"steps": count, "batch_size": optional(count), "trainings": number, "seconds": number}
COST_OF_OPEN = {"most": optional(count), "most_seconds": number}
# Steps to a run of open length, with all shorter ones that were branched off, per step of it:
BRANCHES = 1 + priors.OPEN_DECAY


def start_plan(problem: Problem, request: Request, say: Say = lambda _: None, *, for_estimate: bool = False) -> Plan:
    """Give the plan before anything is searched: batch size and the knobs of speed measured, the budget in steps.

    `for_estimate`: without the knobs of speed but threads, whose trials take as long as suits a run that follows.

    Raises PlanError where no budget is known, or a decided knob does not fit the data.
    """
    if request.plan is not None:
        return _given_plan(problem, request, request.plan)
    with as_found(problem.task):
        stated = with_rest_groups(problem, stated_plan(problem, request))  # so that what is measured is what is trained
        usual = speed.with_threads(problem, request, stated)
        plan = with_batch_size(problem, request, usual, say)
        plan = speed.with_threads_for_batches(problem, request, plan, usual)
        settled = settle(problem, plan, request)
        if for_estimate:
            return settled
        fast = speed.with_speed(problem, request, settled, lambda per_step: _price(request, settled, per_step)[1], say)
        if request.seconds is None:
            return fast
        # In the same seconds there are more steps where these are faster.
        chosen: dict[str, Choice] = {knob: (getattr(fast, knob), fast.why(knob)) for knob in speed.CHOICES}
        return settle(problem, with_choices(plan, chosen), request)


def _given_plan(problem: Problem, request: Request, plan: Plan) -> Plan:
    """Give a plan whose knobs are decided and whose length alone is open, as its shortest run has it. Raises PlanError."""
    with as_found(problem.task):
        settled = settle(problem, plan, request)
    settled = with_open_decay(settled)
    assert settled.steps is not None
    if plan.why("schedule").source == "given":
        return _with_open_schedule(settled)
    schedule = priors.schedule(plan.rule, plan.constants, settled.steps, length_is_open=True)
    return with_choices(settled, {"schedule": schedule})


def _with_open_schedule(plan: Plan) -> Plan:
    """Give a plan whose given schedule has a warm-up of so many steps. Raises PlanError for one that depends on the length."""
    assert plan.steps is not None
    check_schedule(plan)
    schedule = with_settled_warmup(plan.schedule, plan.steps, plan.steps_per_epoch)
    return with_choices(plan, {"schedule": (schedule, plan.why("schedule"))})


def estimate_cost(problem: Problem, request: Request, start: Plan) -> Cost:
    """Find what a fit from a start plan costs, by timing a few steps.

    A named effort buys some seconds of search in any case: a training of a second cannot be tuned with another one. A budget of
    seconds is itself the cost.
    """
    if request.open is not None:
        return _cost_of_open(problem, request, start)
    with as_found(problem.task):
        per_step = 0.0 if request.seconds is not None else time_steps(problem, start).seconds
    return Cost(start.steps or 0, start.batch_size, *_price(request, start, per_step))


def _cost_of_open(problem: Problem, request: Request, start: Plan) -> Cost:
    """Find what a fit of an open length costs at most; a budget of seconds limits how long the longest run may be."""
    assert request.open is not None
    assert start.steps is not None
    with as_found(problem.task):
        per_step = time_steps(problem, start).seconds
    trainings, seconds = _price(request, start, per_step)
    most = request.open.most_steps(start.steps_per_epoch, request.seconds)
    search = (trainings - 1) * start.steps * per_step
    if request.seconds is not None:
        left = int((STEP_SHARE * request.seconds - search) / (per_step * BRANCHES))
        most = left if most is None else min(most, left)
    most = max(most or 0, start.steps)
    return Cost(start.steps, start.batch_size, trainings, seconds, most, search + most * BRANCHES * per_step)


def _price(request: Request, plan: Plan, per_step: float) -> tuple[float, float]:
    """Give the price in full trainings, and the seconds of it all where a step takes `per_step` of them."""
    trainings, once = request.trainings, (plan.steps or 0) * per_step
    if request.seconds is not None:
        return trainings, trainings * once if request.open is not None else request.seconds
    if request.searches_rate and isinstance(request.effort, str):
        trainings = min(max(trainings, 1 + LEAST_SECONDS[request.effort] / once), max(trainings, MOST_TRAININGS))
    return float(f"{trainings:.3g}"), once * trainings


class Begun(NamedTuple):
    """What is measured and found before a search, and what the search goes by."""

    start: Plan
    cost: Cost
    found: list[Diagnosis]

    def to_dict(self) -> dict[str, Any]:
        """Give it as built-in types."""
        return {
            "start": self.start.to_dict(),
            "cost": self.cost._asdict(),
            "found": [one.to_dict() for one in self.found],
        }

    @staticmethod
    def read(record: Mapping[str, Any]) -> Begun | None:
        """Read it from the record of a search; None where that is a new one."""
        if "begun" not in record:
            return None
        entries: Mapping[str, Any] = record["begun"]
        with naming_damage():
            check(entries["cost"], {**COST, **COST_OF_OPEN}, tuple(COST))
            found = [Diagnosis.from_dict(one) for one in entries["found"]]
            return Begun(Plan.from_dict(entries["start"]), Cost(**entries["cost"]), found)


class Chosen(NamedTuple):
    """A plan, and its run as far as the search has trained it already."""

    plan: Plan
    begun: Suspended | None = None


def complete_plan(
    problem: Problem,
    request: Request,
    start: Plan,
    price: float,
    say: Say = lambda _: None,
    *,
    anew: bool = False,
    search: Search | None = None,
    most: int | None = None,
    progress: Progress | None = None,
) -> Chosen:
    """Complete what `start_plan` gave: the learning rate is searched, and what depends on it and on the run's length set by rule.

    `price`: in full trainings, the final one included. `most`: the steps at most of an open length, which is found then; None: it
    is not open. `progress` shows its steps. `anew`: that one takes all its steps, also those of the search. `search`:
    what is known of it already, and where what is found is kept; None: nothing, in memory.

    Raises DivergedError where no learning rate trains at all.
    """
    if most is None and not request.searches_rate:
        return Chosen(with_priors(start, request))
    with closing(Search()) if search is None else nullcontext(search) as known:
        if request.searches_rate:
            return with_learning_rate(problem, request, start, price, say, known, anew, most, progress)
        assert most is not None
        plan = start if request.plan is not None else with_priors(start, request)
        return _with_length_alone(problem, request, plan, known, most, say, progress)


def stated_plan(problem: Problem, request: Request) -> Plan:
    """Give a plan with all that is decided, and the stated defaults around it."""
    values: dict[str, Any] = {"seed": request.seed, "clip_norm": 1.0, **request.fixed}
    evidence = {name: Evidence("given") for name in request.fixed}
    if "rule" not in values and "constants" not in values:
        values["rule"], evidence["rule"] = priors.usual_rule(problem.matrix_roles)
    rule = values.get("rule", "adamw")
    if not rules.get(rule).finds_rate:
        values.setdefault("learning_rate", priors.usual_rate(rule))
    if "clip_norm" not in request.fixed:
        evidence["clip_norm"] = Evidence("default", "gradients longer than 1 are shortened: one bad batch does no harm")
    count, held_out = problem.count, problem.held_out
    if "holdout" not in values and held_out.reason:
        values["holdout"] = held_out.share
        evidence["holdout"] = Evidence("derived", held_out.reason, held_out.figures)
    if "batch_size" not in values and count is not None:
        values["batch_size"] = min(64, count)
        evidence["batch_size"] = Evidence("default", "64, or all where there are fewer")
    return Plan(**values, evidence={**evidence, "seed": Evidence("given" if request.seed else "default")})


def with_batch_size(problem: Problem, request: Request, plan: Plan, say: Say) -> Plan:
    """Measure batch sizes and choose one, unless the user or their DataLoader has; cut steps that memory does not hold."""
    given = problem.loader_knobs.get("batch_size", request.fixed.get("batch_size"))
    own = isinstance(problem.train, StreamSource) and problem.train.gives_batches
    is_given = "batch_size" in request.fixed or bool(problem.loader_knobs) or own
    if is_given or (problem.count is None and request.epochs is not None):
        sized = plan if given is None else plan.replace(batch_size=given)
        memory = batch_size.memory_of(problem, sized, request)
    else:
        say("batch size: measuring throughput, memory and gradient noise")
        measured = batch_size.measure(problem, plan, request)
        plan = with_choices(plan, {"batch_size": batch_size.choose(measured, request, problem.count)})
        sized, memory = plan, measured.memory
    if memory is not None and not memory.holds_validation:
        say("memory: a validation batch may not fit. Give a validation loader with smaller batches.")
    parts = None if memory is None or "accumulate" in request.fixed else batch_size.parts(problem, sized, memory)
    if parts is None:
        return plan
    say(f"memory: {parts[1].reason}")
    return with_choices(plan, {"accumulate": parts})


def with_priors(
    plan: Plan,
    request: Request,
    timescale: float | Literal["usual"] | None = "usual",
    most_warmup: float = priors.MOST_WARMUP,
) -> Plan:
    """Set constants, schedule and weight decay by their rules for the plan's steps and rate, unless they are decided.

    `timescale`: share of the run in which decay shrinks weights by e; None: no decay; "usual": as `priors.usual_timescale` says.
    A decay with a decided schedule begins so high that it shrinks weights over the run as much as one that falls with the rate.
    """
    assert plan.steps is not None
    is_open, steps, decided = request.open is not None, plan.steps, request.fixed
    constants = priors.constants(plan.rule, steps)
    known = plan.constants if "constants" in decided else constants[0]
    choices: dict[str, Choice] = {
        "constants": constants,
        "schedule": priors.schedule(plan.rule, known, steps, most_warmup, length_is_open=is_open),
    }
    plan = with_choices(plan, {knob: choice for knob, choice in choices.items() if knob not in decided})
    if is_open:
        plan = with_open_decay(_with_open_schedule(plan) if "schedule" in decided else plan)
    if "weight_decay" in decided:
        return plan
    if timescale == "usual":
        timescale = priors.usual_timescale(plan.rule, plan.learning_rate, steps)
    length = round(priors.OPEN_LENGTHS * steps) if is_open else steps
    start = priors.decay_start(plan, length)
    decay, why = priors.weight_decay(plan.rule, plan.learning_rate, length, known, timescale, start)
    if is_open and "steps" in why.figures:
        of_which = f"; of {length:,} steps, {priors.OPEN_LENGTHS:g} of the shortest run, whatever the length"
        why = Evidence(why.source, why.reason + of_which, why.figures)
    return with_choices(plan, {"weight_decay": (decay, why)})


def with_rule(problem: Problem, plan: Plan, rule: str) -> Plan:
    """Give a settled plan under another rule, with the groups of parameters that it leaves to another."""
    if rule == plan.rule:
        return plan
    return settle(problem, plan.replace(rule=rule, evidence=plan.evidence), Request())  # as many steps as it has


def lines(problem: Problem, plan: Plan, request: Request) -> list[Line]:
    """Give the rules to choose among, the plan's own first, with their usual rates."""
    is_decided = {"rule", "constants"} & {*request.fixed}
    tried = (plan.rule,) if is_decided else priors.rules_for(problem.matrix_roles, request.fixed)
    return [_line(rule, plan, request) for rule in tried]


def _line(rule: str, plan: Plan, request: Request) -> Line:
    # A rate that scales with the loss may be anywhere.
    spacing = SPACING if priors.is_adaptive(rule) else SPACING**2
    has_timescale = "weight_decay" not in request.fixed and priors.has_timescale(rule, plan.constants)
    assert plan.steps is not None
    usual = priors.usual_rate(rule, plan.steps)
    if not has_timescale:
        return Line(rule, usual, spacing)
    timescale = priors.usual_timescale(rule, usual, plan.steps)
    return Line(rule, usual, spacing, priors.TIMESCALES, timescale, priors.LONG_TIMESCALE)


def with_learning_rate(
    problem: Problem,
    request: Request,
    plan: Plan,
    price: float,
    say: Say,
    search: Search,
    anew: bool = False,
    most: int | None = None,
    progress: Progress | None = None,
) -> Chosen:
    """Search learning rate and rule by a race, or take the usual ones where the price pays for none.

    `most`: of an open length, which is found then with these, the steps at most.

    Raises DivergedError where no rate trains.
    """
    assert plan.steps is not None
    tried = lines(problem, plan, request)
    course = course_for(price, plan.steps, len(tried), anew=anew)
    if course is None:
        reason = "a rate that serves most small networks under this kind of rule; nothing was searched at this effort"
        plan = with_choices(plan, {"learning_rate": (tried[0].usual, Evidence("default", reason))})
        plan = with_priors(plan, request)
        if most is None:
            return Chosen(plan)
        return _with_length_alone(problem, request, plan, search, most, say, progress)

    most_warmup = priors.warmup_share(course.stages[0].share)

    def plan_for(point: Point) -> Plan:
        under = with_rule(problem, plan, point.rule).replace(learning_rate=point.rate)
        return with_priors(under, request, point.timescale, most_warmup)

    started, track = time.perf_counter(), Candidates(problem, plan_for, say, search, most)
    won = race(track, tried, course, price)
    seconds = round(time.perf_counter() - started + track.seconds_before, 2)
    if won is None:
        lowest = min((one.point for one in track.scores), key=lambda point: point.rate)
        raise DivergedError(
            f"No learning rate trained: every run ended with a figure ('{problem.task.select}') that is not finite, or ran away."
            f" {why_none_trained(problem, plan_for(lowest))} Run `thalweg check` on the task; the loss, the metric or the data"
            f" are the likelier cause."
        )
    candidate = plan_for(won)
    begun = track.suspended(won) if most is None else None  # of an open length it is what `with_length` finds
    rest = 0 if most is not None else plan.steps - (0 if anew or begun is None else begun.step)
    doubtful = doubts(problem, list({one.point: one.score for one in track.scores}.values()))
    for text in doubtful:
        say(f"{capitalized(text)}.")
    why = _evidence(problem, track, won, candidate, rest, seconds, doubtful)
    choices: dict[str, Choice] = {"learning_rate": (won.rate, why)}
    if len({one.point.rule for one in track.scores}) > 1:
        choices["rule"] = won.rule, Evidence("searched", "that of the best candidate: see the learning rate")
    if decays := raced_decays(track.scores):
        rate = decays[0].point.rate
        figures = {
            "weight_decays": [plan_for(one.point).weight_decay for one in decays],
            "scores": [float(f"{one.score:.5g}") for one in decays],
        }
        forgets = "no decay" if won.timescale is None else f"weights forget over {won.timescale:.0%} of the run"
        reason = f"{forgets}: the best of those tried at a learning rate of {rate:.3g}, trained to the end"
        choices["weight_decay"] = candidate.weight_decay, Evidence("searched", reason, figures)
    chosen = with_choices(candidate, choices)
    if most is not None:
        return with_length(problem, request, track, won, chosen, search, most, say, progress)
    search.win(candidate, chosen)
    return Chosen(chosen, begun)


def _with_length_alone(
    problem: Problem, request: Request, plan: Plan, search: Search, most: int, say: Say, progress: Progress | None
) -> Chosen:
    """Find the length of a plan, whose rate is not searched, as `with_length` does."""
    track, point = Candidates(problem, lambda _: plan, say, search, most), Point(plan.rule, plan.learning_rate)
    return with_length(problem, request, track, point, plan, search, most, say, progress)


def with_length(
    problem: Problem,
    request: Request,
    track: Candidates,
    point: Point,
    plan: Plan,
    search: Search,
    most: int,
    say: Say,
    progress: Progress | None = None,
) -> Chosen:
    """Find the length of a candidate of open length, and give its plan with its run. Raises DivergedError where none trains.

    `plan`: of the shortest run.
    """
    assert request.open is not None
    track.progress = progress
    found = find_length(problem, request.open, track, point, plan, search, most, say)
    chosen = with_choices(plan, {"steps": (found.steps, found.why)})
    search.win(found.candidate, chosen)
    return Chosen(chosen, found.begun)


def _evidence(
    problem: Problem, track: Candidates, won: Point, plan: Plan, rest: int, seconds: float, doubtful: Sequence[str]
) -> Evidence:
    """Say how a learning rate was found; `rest` are the steps that remain, `doubtful` what the search could not tell."""
    assert plan.steps is not None
    task, points, last = problem.task, {one.point for one in track.scores}, max(one.steps for one in track.scores)
    scores = _best_decays(track.scores)
    figures: dict[str, Any] = {
        "learning_rates": [one.point.rate for one in scores],
        "steps": [one.steps for one in scores],
        "scores": [float(f"{one.score:.5g}") for one in scores],
        "price": round((track.steps_paid + rest) / plan.steps, 2),
        "seconds": seconds,
    }
    if len({point.rule for point in points}) > 1:
        figures["rules"] = [one.point.rule for one in scores]
    judged = "" if problem.validation is not None else ", judged by the training loss, as there are no validation data"
    if track.criterion not in (None, task.select):
        judged = f", judged by the loss, as {task.select} was no number in validation"
    elif task.select != "loss":
        judged = f", judged by {task.select}, of which {'more' if task.mode == 'max' else 'less'} is better"
    how = "trained to the end" if last == plan.steps else f"cooled down after up to {last:,} of {plan.steps:,} steps"
    reason = f"best of {len(points)} candidates, each this run itself, {how}{judged}"
    costs = _cost_of_another(scores, plan)
    if costs is not None:
        figures["cost_of_half"], figures["cost_of_double"] = costs
        reason += f"; half the rate costs {_per_cent(costs[0])}, twice the rate {_per_cent(costs[1])}"
    edge = stable_edge((one.point.rate, one.score) for one in track.scores if one.point.rule == won.rule)
    if edge is not None and edge[1] is not None:
        figures["highest_stable_rate"], figures["lowest_unstable_rate"] = edge
        reason += f"; stable up to {edge[0]:.3g}, not at {edge[1]:.3g}"
    last_scores = {one.point: one.score for one in track.scores if one.steps == last}
    sure = probability_of_better(last_scores, won, at_the_end=last == plan.steps)
    if sure is not None:
        other, figures["probability"] = sure
        name = f"{other.rate:.3g} by {other.rule}" + ("" if other.timescale == won.timescale else " with another decay")
        is_sure = figures["probability"] >= SURE
        reason += f"; on another seed {'' if is_sure else 'perhaps no '}better than {name} (probability {figures['probability']})"
    return Evidence("searched", "; ".join([reason, *doubtful]), figures)


def _per_cent(share: float) -> str:
    return f"{100 * share:+.{0 if abs(share) >= 0.1 else 1}f} %"


def raced_decays(scores: Sequence[Scored]) -> list[Scored]:
    """Give the first scores that differ in their decay alone; none where there are none."""
    same = defaultdict[tuple[str, float, int], list[Scored]](list)
    for one in scores:
        same[_but_for_decay(one)].append(one)
    return next((raced for raced in same.values() if len(raced) > 1), [])


def _best_decays(scores: Sequence[Scored]) -> list[Scored]:
    """Leave out of scores that differ in their decay alone all but the best."""
    best = dict[tuple[str, float, int], Scored]()
    for one in scores:
        key = _but_for_decay(one)
        best[key] = min(best.get(key, one), one, key=lambda scored: scored.score)
    return list(best.values())


def _but_for_decay(scored: Scored) -> tuple[str, float, int]:
    return scored.point.rule, scored.point.rate, scored.steps


def _cost_of_another(scores: Sequence[Scored], plan: Plan) -> tuple[float, float] | None:
    """Give what half and twice the rate cost, at the last stage that tells."""
    for steps in sorted({one.steps for one in scores}, reverse=True):
        near = {one.point.rate: one.score for one in scores if one.steps == steps and one.point.rule == plan.rule}
        costs = cost_of_another_rate(near, plan.learning_rate)
        if costs is not None:
            return costs
    return None
