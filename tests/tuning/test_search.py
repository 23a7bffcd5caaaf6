import math

import pytest

from thalweg.records.plan import Plan
from thalweg.tuning.search import Rung, Search


def new(low, high, rungs, **options):
    rungs = [Rung(*rung) for rung in rungs]
    return Search(lambda rate, steps: Plan(learning_rate=rate, steps=steps), low, high, rungs, **options)


def run(made, score):
    """Run a search whose short runs are a formula."""
    while plans := made.ask():
        for plan in plans:
            made.tell(plan, {"loss": score(plan.learning_rate, plan.steps, plan.seed)})
    return made


def halve(score, low, high, rungs):
    return run(new(low, high, rungs), score).best


RUNGS = [(11, 10, 1), (4, 30, 1), (2, 30, 2)]


@pytest.mark.parametrize("best", [1e-4, 3.7e-3, 0.02, 0.4])
def test_the_bottom_of_a_valley_is_found_within_half_a_step_of_the_grid(best):
    found = halve(lambda rate, steps, seed: math.log(rate / best) ** 2, 1e-5, 1.0, RUNGS)
    assert abs(math.log10(found / best)) < 0.3


@pytest.mark.parametrize("best", [3e-6, 2.5])
def test_a_winner_at_the_edge_widens_the_range(best):
    found = halve(lambda rate, steps, seed: math.log(rate / best) ** 2, 1e-5, 1.0, RUNGS)
    assert abs(math.log10(found / best)) < 0.5


def test_the_range_does_not_widen_where_every_rate_failed():
    made = run(new(1e-5, 1.0, RUNGS), lambda rate, steps, seed: math.inf)
    assert {t.rate for t in made.scores if t.steps == 10} <= {10 ** (-5 + k / 2) for k in range(11)} | {
        t.rate for t in made.scores
    }
    assert max(t.rate for t in made.scores) < 2


def test_a_cliff_behind_the_best_is_not_stepped_over():
    found = halve(lambda rate, steps, seed: math.inf if rate > 0.1 else -rate, 1e-5, 1.0, RUNGS)
    assert found <= 0.1


def test_rates_are_compared_on_the_same_seeds():
    made = run(new(1e-5, 1.0, RUNGS), lambda rate, steps, seed: rate)
    last = [t for t in made.scores if t.steps == 30 and t.seed != 0]
    assert {t.seed for t in last} == {1000}
    assert len(last) == 2


def test_nothing_is_trained_twice():
    asked = []
    made = run(new(0.1, 1.0, [(2, 5, 1), (2, 5, 1), (2, 5, 2)]), lambda *trial: asked.append(trial) or trial[0])
    assert len(asked) == len(set(asked)) == len(made.scores)
    assert made.steps_paid == 5 * len(asked)


def test_a_grid_of_one_is_the_middle():
    assert halve(lambda rate, steps, seed: rate, 1e-4, 1.0, [(1, 5, 1)]) == pytest.approx(1e-2)


def test_what_was_asked_for_and_not_told_is_asked_for_again():
    made = new(1e-5, 1.0, RUNGS)
    first = made.ask()
    assert made.ask() == first
    made.tell(first[3], {"loss": 1.0})
    assert made.ask() == first[:3] + first[4:]


def test_the_order_in_which_figures_are_told_does_not_matter():
    def score(plan):
        return {"loss": math.log(plan.learning_rate / 3e-3) ** 2 + plan.seed / 1e5}

    here, elsewhere = new(1e-5, 1.0, RUNGS), new(1e-5, 1.0, RUNGS)
    for made, order in ((here, 1), (elsewhere, -1)):
        while plans := made.ask():
            for plan in plans[::order]:
                made.tell(plan, score(plan))
    assert here.best == elsewhere.best
    assert here.figures() == elsewhere.figures()


@pytest.mark.parametrize("count", [0, 5, 11, 14, 17])
def test_a_search_that_is_told_earlier_trials_goes_on_where_they_ended(count):
    def score(rate, steps, seed):
        return math.log(rate / 3e-3) ** 2 + seed / 1e5

    whole = run(new(1e-5, 1.0, RUNGS), score)
    resumed = new(1e-5, 1.0, RUNGS)
    for trial in list(whole.scores)[:count]:
        resumed.tell(Plan(learning_rate=trial.rate, steps=trial.steps, seed=trial.seed), {"loss": score(*trial)})
    asked = []
    run(resumed, lambda *trial: asked.append(trial) or score(*trial))
    assert asked == list(whole.scores)[count:]
    assert resumed.best == whole.best


def test_the_figure_that_is_selected_decides_and_a_run_without_it_has_failed():
    plan = Plan(learning_rate=0.1, steps=5)
    for figures, mode, score in (
        ({"loss": 1.0, "accuracy": 0.5}, "max", -0.5),
        ({"loss": 1.0, "accuracy": 0.5}, "min", 0.5),
        ({"loss": 1.0, "accuracy": math.nan}, "max", math.inf),
        ({}, "max", math.inf),
    ):
        made = new(0.1, 1.0, [(1, 5, 1)], select="accuracy", mode=mode)
        made.tell(plan, figures)
        assert list(made.scores.values()) == [score]


def test_each_rung_is_announced_once():
    said = []
    run(new(1e-5, 1.0, RUNGS, say=said.append), lambda rate, steps, seed: -rate if rate < 2 else 1.0)
    assert said == [
        "learning rate: 11 candidates over 10 steps",
        "learning rate: 4 candidates over 30 steps",
        "learning rate: 2 candidates over 30 steps",
    ]
