import math

import pytest

from thalweg.records.plan import Plan
from thalweg.tuning.search import Search


def search(score):
    """A search whose short runs are a formula."""
    made = Search(problem=None, plan_for=lambda rate, steps: Plan(learning_rate=rate, steps=steps), seed=0)
    made._score = lambda plan: score(plan.learning_rate, plan.steps, plan.seed)
    return made


RUNGS = [(11, 10, 1), (4, 30, 1), (2, 30, 2)]


@pytest.mark.parametrize("best", [1e-4, 3.7e-3, 0.02, 0.4])
def test_the_bottom_of_a_valley_is_found_within_half_a_step_of_the_grid(best):
    found = search(lambda rate, steps, seed: math.log(rate / best) ** 2).halve(1e-5, 1.0, RUNGS)
    assert abs(math.log10(found / best)) < 0.3


@pytest.mark.parametrize("best", [3e-6, 2.5])
def test_a_winner_at_the_edge_widens_the_range(best):
    found = search(lambda rate, steps, seed: math.log(rate / best) ** 2).halve(1e-5, 1.0, RUNGS)
    assert abs(math.log10(found / best)) < 0.5


def test_the_range_does_not_widen_where_every_rate_failed():
    made = search(lambda rate, steps, seed: math.inf)
    made.halve(1e-5, 1.0, RUNGS)
    assert {t.rate for t in made.trials if t.steps == 10} <= {10 ** (-5 + k / 2) for k in range(11)} | {
        t.rate for t in made.trials
    }
    assert max(t.rate for t in made.trials) < 2


def test_a_cliff_behind_the_best_is_not_stepped_over():
    found = search(lambda rate, steps, seed: math.inf if rate > 0.1 else -rate).halve(1e-5, 1.0, RUNGS)
    assert found <= 0.1


def test_rates_are_compared_on_the_same_seeds():
    made = search(lambda rate, steps, seed: rate)
    made.halve(1e-5, 1.0, RUNGS)
    last = [t for t in made.trials if t.steps == 30 and t.seed != 0]
    assert {t.seed for t in last} == {1000}
    assert len(last) == 2


def test_nothing_is_trained_twice():
    made = search(lambda rate, steps, seed: rate)
    assert made.run(0.1, 5) == made.run(0.1, 5)
    assert len(made.trials) == 1
    assert made.steps_paid == 5


def test_a_grid_of_one_is_the_middle():
    assert search(lambda rate, steps, seed: rate).halve(1e-4, 1.0, [(1, 5, 1)]) == pytest.approx(1e-2)
