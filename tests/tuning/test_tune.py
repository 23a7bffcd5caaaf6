import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import thalweg as tw
from thalweg.descent.problem import open_task
from thalweg.errors import DivergedError, PlanError
from thalweg.records.request import Request
from thalweg.tuning import priors
from thalweg.tuning.candidates import Scored
from thalweg.tuning.race import Point
from thalweg.tuning.tune import (
    Cost,
    complete_plan,
    estimate_cost,
    lines,
    raced_decays,
    start_plan,
    with_priors,
    with_rule,
)

generator = torch.Generator().manual_seed(0)
X = torch.randn(120, 5, generator=generator)
Y = (X[:, :3] + 0.3 * torch.randn(120, 3, generator=generator)).argmax(1)


def accuracy(outputs, targets):
    return (outputs.argmax(1) == targets).float().mean()


def task(**parts):
    made = {
        "model": lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)),
        "loss": F.cross_entropy,
        "data": (X[:90], Y[:90]),
        "validation": (X[90:], Y[90:]),
        "metrics": {"accuracy": accuracy},
    }
    return tw.Task(**{**made, **parts})


def tuned(made=None, say=lambda _: None, **options):
    problem, request = open_task(made or task()), Request(**{"steps": 60, "effort": 4, **options})
    return complete_plan(problem, request, start_plan(problem, request, say), request.trainings, say).plan


def cost(**options):
    problem, request = open_task(task()), Request(**options)
    return estimate_cost(problem, request, start_plan(problem, request))


def test_every_knob_that_was_chosen_carries_its_evidence():
    plan = tuned(seed=3)
    sources = {knob: plan.why(knob).source for knob in plan.evidence}
    assert sources["learning_rate"] == "searched"
    assert sources["batch_size"] == "measured"
    assert sources["schedule"] == "derived"
    assert sources["rule"] in ("derived", "searched")
    assert sources["weight_decay"] in ("derived", "searched")
    assert sources["steps"] == sources["seed"] == "given"
    assert sources["clip_norm"] == "default"
    chosen = [name for name in plan.to_dict() if getattr(plan, name, None) != getattr(tw.Plan(), name, None)]
    assert all(sources[name] != "default" or plan.why(name).reason for name in set(chosen) - {"evidence"})
    assert all(plan.why(knob).reason for knob, source in sources.items() if source not in ("given", "default"))


@pytest.mark.parametrize("effort", [1.5, 2, 4, 7])
def test_the_searchs_figures_are_complete_and_it_costs_no_more_than_was_agreed(effort):
    plan = tuned(effort=effort)
    figures = plan.why("learning_rate").figures
    lengths = {len(figures[name]) for name in ("learning_rates", "steps", "scores")}
    assert len(lengths) == 1
    assert 1 < figures["price"] <= effort
    judged = zip(*(figures[name] for name in ("steps", "scores", "learning_rates")), strict=True)
    farthest = [one for one in judged if one[0] == max(figures["steps"])]
    assert plan.learning_rate == min(farthest, key=lambda one: one[1])[2]


@pytest.mark.effort_in_seconds
def test_a_named_effort_buys_some_seconds_of_search_and_a_number_none():
    assert cost(steps=60, effort="quick").trainings == 12
    assert cost(steps=60, effort=2).trainings == 2
    assert cost(seconds=1.0, effort="quick").trainings == 2


def test_an_effort_of_one_searches_nothing():
    plan = tuned(effort=1)
    assert plan.why("learning_rate").source == "default"
    assert "nothing was searched" in plan.why("learning_rate").reason


@pytest.mark.parametrize(
    "fixed",
    [
        {"learning_rate": 0.005},
        {"batch_size": 7},
        {"batch_size": None},
        {"weight_decay": 0.25},
        {"weight_decay_schedule": "constant"},
        {"weight_decay": 0.25, "weight_decay_schedule": tw.schedule.inverse_time(timescale=7), "rule": "adamw"},
        {"schedule": tw.schedule.cosine(warmup=3)},
        {"schedule": "constant"},
        {"constants": {"beta1": 0.5}},
        {"rule": "momentum"},
        {"rule": "gradient_descent", "learning_rate": 0.3},
        {"clip_norm": None},
        {"ema": 0.9, "precision": "bfloat16", "accumulate": 2},
    ],
)
def test_what_is_decided_stays(fixed):
    plan = tuned(fixed=fixed, steps=40, effort=2)
    wanted = tw.Plan(**fixed)
    for knob in fixed:
        assert getattr(plan, knob) == getattr(wanted, knob)
        assert plan.why(knob).source == "given"


DEEP = {"model": lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))}


@pytest.mark.parametrize("rule", ["muon", "adamw"])
@pytest.mark.parametrize("schedule", ["inverse_time", "constant", tw.schedule.cosine(final=0.5)])
def test_a_decay_whose_schedule_is_decided_shrinks_weights_over_the_run_as_much_as_one_that_falls_with_the_rate(
    rule, schedule
):
    fixed = {"rule": rule, "weight_decay_schedule": schedule}
    plan, usual = tuned(task(**DEEP), effort=1, fixed=fixed), tuned(task(**DEEP), effort=1, fixed={"rule": rule})
    assert usual.weight_decay_schedule is None
    assert usual.weight_decay == float(f"{min(1.0, 1 / (usual.learning_rate * 0.3 * 60)):.3g}")
    sums = [sum(one.resolve(60).factor(t) for t in range(60)) for one in (plan.weight_decay_schedule, plan.schedule)]
    assert plan.weight_decay * sums[0] == pytest.approx(usual.weight_decay * sums[1], rel=0.01)
    assert "by its own schedule" in plan.why("weight_decay").reason
    given = tuned(task(**DEEP), effort=1, fixed={**fixed, "weight_decay": 0.01})
    assert given.weight_decay == 0.01


def test_a_lower_rate_that_is_given_or_raced_has_a_decay_that_forgets_over_the_whole_run():
    plan = tuned(fixed={"rule": "adamw", "learning_rate": 0.02, "batch_size": 16})
    assert plan.weight_decay == float(f"{min(1.0, 1 / (0.02 * plan.steps)):.3g}")
    assert "over 100% of the run" in plan.why("weight_decay").reason or plan.weight_decay == 1.0
    request = Request(steps=600, effort=2.0, fixed={"rule": "adamw", "batch_size": 16})
    problem = open_task(task())
    line = lines(problem, start_plan(problem, request), request)[0]
    usual = priors.usual_rate("adamw", 600)
    assert [line.point(place).timescale for place in (-2, -1, 0, 1)] == [1.0, 1.0, 0.3, 0.3]
    decays = [with_priors(start_plan(problem, request).replace(learning_rate=usual * f), request) for f in (0.5, 1.0)]
    assert [one.weight_decay for one in decays] == pytest.approx(
        [1 / (0.5 * usual * 600), 1 / (usual * 0.3 * 600)], rel=0.01
    )
    free = lines(problem, start_plan(problem, request), Request(steps=600, effort=2.0, fixed={"batch_size": 16}))[1]
    assert [free.point(place).timescale for place in (-1, 0, 1)] == [1.0, 1.0, 1.0]
    given = Request(steps=600, effort=2.0, fixed={"rule": "adamw", "weight_decay": 0.1})
    assert {lines(problem, start_plan(problem, given), given)[0].point(place).timescale for place in (-1, 0)} == {0.3}


def test_decays_are_raced_in_the_schedule_that_is_decided():
    fixed = {"rule": "muon", "batch_size": 16, "weight_decay_schedule": "inverse_time"}
    problem, request = open_task(task(**DEEP)), Request(steps=40, effort=9.0, fixed=fixed)
    start = start_plan(problem, request)
    tried = [
        with_priors(start.replace(learning_rate=0.5), request, timescale).weight_decay
        for timescale in priors.TIMESCALES
    ]
    assert tried == pytest.approx([0.0, 0.3 * tried[2], tried[2], 3 * tried[2]], rel=0.01)
    plan = complete_plan(problem, request, start, request.trainings).plan
    assert plan.weight_decay_schedule == tw.schedule.inverse_time()
    assert len(plan.why("weight_decay").figures["weight_decays"]) > 1


@pytest.mark.parametrize("rule", ["schedule_free_adamw", "schedule_free_sgd"])
def test_a_rule_with_an_average_of_its_own_keeps_its_rate_after_the_warm_up(rule):
    plan = tuned(fixed={"rule": rule}, effort=2)
    assert (plan.schedule.shape, plan.schedule.warmup) == ("constant", 6)
    why = plan.why("schedule")
    assert why.source == "derived"
    assert why.reason.startswith(
        "constant: the rule's own average of the weights takes the place of a decay (arXiv:2405."
    )
    assert plan.why("learning_rate").source == "searched"


def test_a_rule_that_finds_its_own_rate_is_given_one_and_no_search():
    said = []
    plan = tuned(fixed={"rule": "prodigy"}, say=said.append)
    assert plan.learning_rate == 1.0
    assert str(plan.why("learning_rate")) == "default: the rule finds its own rate, which this only multiplies"
    assert not any("learning rate" in line for line in said)
    assert (plan.schedule.shape, plan.schedule.warmup) == ("cosine", 0)
    assert "arXiv:2306.06101" in plan.why("schedule").reason
    assert plan.weight_decay == 0.01
    assert plan.why("weight_decay").source == "default"


def test_a_rate_that_is_decided_for_a_rule_that_finds_its_own_stays():
    plan = tuned(fixed={"rule": "prodigy", "learning_rate": 0.5, "schedule": "constant"})
    assert (plan.learning_rate, plan.schedule.shape) == (0.5, "constant")
    assert plan.why("learning_rate").source == "given"


def test_the_same_seed_chooses_the_same_rate():
    options = {"fixed": {"batch_size": 16}, "effort": 3}
    rates = [tuned(seed=seed, **options).why("learning_rate").figures["scores"] for seed in (1, 1, 2)]
    assert rates[0] == rates[1] != rates[2]


def test_a_rate_that_diverges_is_never_chosen():
    # Plain descent on a parabola: above 2 / largest curvature every step overshoots.
    y = X @ torch.tensor([[1.0], [-2.0], [0.5], [0.0], [3.0]])
    made = task(model=lambda: nn.Linear(5, 1, bias=False), loss=F.mse_loss, data=(X, y), validation=None, metrics={})
    edge = 2 / float(torch.linalg.eigvalsh(2 * X.T @ X / len(X)).max())
    plan = tuned(made, fixed={"rule": "gradient_descent", "clip_norm": None, "batch_size": None})
    figures = plan.why("learning_rate").figures
    judged = list(zip(*(figures[name] for name in ("learning_rates", "scores")), strict=True))
    assert all(score == float("inf") for rate, score in judged if rate > 2 * edge)
    assert max(figures["learning_rates"]) > 2 * edge
    assert 0.05 * edge < plan.learning_rate < 2 * edge  # a schedule that decays is below the edge most of the time
    run = tw.train(made, plan)
    assert run.diagnoses == ()
    assert run.metrics["loss"] < 0.01 * run.summary["start"]["loss"]


def test_a_task_that_no_rate_trains_is_told():
    def always(output, target):
        loss = F.cross_entropy(output, target)
        return loss + 0 * loss.detach().log() if len(target) > 20 else loss * torch.nan

    with pytest.raises(DivergedError, match=r"No learning rate trained: .* Run `thalweg check` on the task"):
        tuned(task(loss=always, validation=None, metrics={}), fixed={"batch_size": 16})


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_criterion_that_the_person_selects_is_the_one(mode):
    # A metric that grows with the weights' size: "max" wants the largest rate, "min" the smallest.
    def size(outputs, targets):
        return outputs.abs().mean().clamp(max=1e6)

    plan = tuned(task(metrics={"size": size}, select="size", mode=mode), fixed={"weight_decay": 0.0}, effort=4)
    rates, usual = plan.why("learning_rate").figures["learning_rates"], priors.usual_rate("adamw")
    assert plan.learning_rate == max(rates) if mode == "max" else plan.learning_rate < 0.5 * usual


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_tiny_budgets_get_a_plan_too(steps):
    run = tw.fit(task(), steps=steps)
    assert run.plan.steps == steps
    assert np.isfinite(run.metrics["loss"])


def test_twenty_rows_get_a_plan_too():
    plan = tuned(task(data=(X[:20], Y[:20])), epochs=3, steps=None)
    assert plan.batch_size == 8
    assert plan.steps == 9


class Endless(IterableDataset):
    def __iter__(self):
        index = 0
        while True:
            yield X[index % 90], Y[index % 90]
            index += 1


def test_a_stream_is_tuned_by_steps_and_asks_for_them():
    plan = tuned(task(data=Endless()), steps=30, effort=2)
    assert plan.steps == 30
    assert plan.steps_per_epoch is None
    with pytest.raises(PlanError, match=r"epochs say nothing\. Give steps= or seconds=\."):
        tuned(task(data=Endless()), steps=None, epochs=2)


def test_a_loaders_batch_size_is_given():
    plan = tuned(
        task(data=DataLoader(TensorDataset(X, Y), batch_size=12, shuffle=True)), epochs=2, steps=None, effort=1
    )
    assert plan.batch_size == 12
    assert plan.why("batch_size").source == "given"
    assert plan.steps == 20


def test_a_budget_of_seconds_includes_the_search():
    plan = tuned(steps=None, seconds=1.0, effort=4)
    assert plan.why("steps").source == "measured"
    assert plan.why("steps").figures["seconds"] == pytest.approx(0.25)


@pytest.mark.parametrize("rule", ["adamw", "muon"])
def test_the_plan_under_another_rule_keeps_why_there_are_so_many_steps(rule):
    problem, request = open_task(task()), Request(seconds=1.0, effort=4)
    plan = with_rule(problem, start_plan(problem, request, lambda _: None), rule)
    assert plan.rule == rule
    assert plan.why("steps").source == "measured"


@pytest.mark.parametrize("fixed", [{"rule": "prodigy"}, {"learning_rate": 0.01}])
def test_where_nothing_is_searched_all_of_the_seconds_are_the_trainings(fixed):
    plan = tuned(steps=None, seconds=1.0, effort=4, fixed=fixed)
    assert plan.why("steps").figures["seconds"] == pytest.approx(1.0)


def test_several_budgets_are_refused_before_anything_is_measured():
    said = []
    with pytest.raises(PlanError, match="Give one budget, not several"):
        tuned(epochs=1, say=said.append)
    assert said == []


def test_the_cost_is_steps_times_trainings():
    found = cost(epochs=4, fixed={"batch_size": 30}, effort=2)
    assert found[:3] == (12, 30, 2.0)
    assert found.seconds > 0


@pytest.mark.parametrize("fixed", [{"rule": "prodigy"}, {"learning_rate": 0.01}])
def test_where_no_rate_is_searched_the_cost_is_one_training(fixed):
    assert cost(epochs=4, fixed={"batch_size": 30, **fixed}, effort="thorough").trainings == 1.0


def test_a_budget_of_seconds_is_the_cost():
    assert cost(seconds=2.0, effort=4, fixed={"batch_size": 30}).seconds == 2.0


def test_the_cost_is_told_in_a_sentence():
    told = str(Cost(1200, None, 4.0, 130.0))
    assert (
        told
        == "1,200 steps of all examples; with the search 4 trainings' worth: about 2 min 10 s, validation not counted"
    )


def test_a_cost_needs_a_budget():
    with pytest.raises(PlanError, match="No budget"):
        cost()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_where_the_criterion_is_no_number_the_rate_is_chosen_by_the_loss_which_is_said(value):
    said = []
    made = task(metrics={"area": lambda outputs, targets: value}, select="area", mode="max")
    plan = tuned(made, say=said.append, effort=2)
    by_loss = tuned(task(metrics={}), effort=2)
    assert plan.learning_rate == by_loss.learning_rate
    assert "judged by the loss, as area was no number in validation" in plan.why("learning_rate").reason
    assert sum("judged by the loss instead" in text for text in said) == 1
    run = tw.fit(made, steps=60, effort=2)
    assert "`area` was not a number in any validation" in run.events[-1].message


def test_without_a_hidden_matrix_adamw_alone_is_tried():
    linear = tw.Task(model=lambda: torch.nn.Linear(5, 3), loss=F.cross_entropy, data=(X, Y), validation=(X, Y))
    plan = tuned(linear, effort=7)
    assert plan.rule == "adamw"
    assert "rules" not in plan.why("learning_rate").figures


@pytest.mark.parametrize("fixed", [{"ema": 0.9}, {"schedule": tw.schedule.cosine(warmup=5)}])
def test_where_a_schedule_or_an_average_is_decided_adamw_takes_the_place_of_the_rule_that_has_its_own(fixed):
    plan = tuned(fixed=fixed, effort=7)
    assert {*plan.why("learning_rate").figures["rules"]} == {"muon", "adamw"}
    assert [getattr(plan, knob) for knob in fixed] == [*fixed.values()]


def test_with_hidden_matrices_muon_and_schedule_free_adamw_are_tried_and_the_rule_of_the_best_is_taken():
    plan = tuned(effort=7)
    figures = plan.why("learning_rate").figures
    assert {*figures["rules"]} == {"muon", "schedule_free_adamw"}
    judged = zip(*(figures[name] for name in ("steps", "scores", "rules", "learning_rates")), strict=True)
    best = min((one for one in judged if one[0] == plan.steps), key=lambda one: one[1])
    assert (plan.rule, plan.learning_rate) == best[2:] or plan.why("weight_decay").source == "searched"


def test_decays_that_were_raced_are_those_of_one_rule_at_one_rate():
    usual, none = Point("muon", 0.02), Point("muon", 0.02, None)
    others = [Scored(Point("adamw", 0.02), 60, 0.4), Scored(usual, 6, 0.9), Scored(Point("muon", 0.03, None), 60, 0.2)]
    scores = [Scored(usual, 60, 0.5), Scored(none, 60, 0.3)]
    assert raced_decays([*others[:2], *scores, others[2]]) == scores
    assert raced_decays([others[0], scores[0], others[2]]) == []  # a lower rate has another decay from the start


def test_a_decay_that_is_fixed_is_not_raced():
    plan = tuned(effort=14, fixed={"weight_decay": 0.05})
    assert plan.weight_decay == 0.05
    assert plan.why("weight_decay").source == "given"
    raced = tuned(effort=14).why("weight_decay")
    assert raced.source == "searched"
    assert len(raced.figures["weight_decays"]) > 1


@pytest.mark.parametrize(("options", "warmup"), [({"effort": 1}, 12), ({"effort": 1.6}, 6), ({"effort": 2}, 6)])
def test_a_warm_up_is_over_where_candidates_are_first_judged(options, warmup):
    plan = tuned(fixed={"rule": "adamw"}, **options)
    assert (plan.steps, plan.schedule.warmup) == (60, warmup)
    assert f"{warmup / 60:.0%} of the run" in plan.why("schedule").reason


def test_a_given_rate_leaves_the_whole_warm_up():
    plan = tuned(fixed={"rule": "adamw", "learning_rate": 0.01}, effort=4)
    assert plan.schedule.warmup == 12
