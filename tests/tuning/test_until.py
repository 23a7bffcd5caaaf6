import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thalweg.tuning.until import Finished, best_of, cost_of, judge, next_length

LENGTHS = [300, 600, 1200, 2400, 4800]


def runs(costs, lengths=LENGTHS, parts=None):
    return [
        Finished(steps, cost, () if parts is None else parts[number])
        for number, (steps, cost) in enumerate(zip(lengths, costs, strict=False))
    ]


@given(st.floats(0.1, 2.0), st.floats(-1.0, 1.0), st.floats(0.5, 10.0), st.integers(3, 5))
def test_under_a_power_law_with_a_floor_the_gain_is_projected_exactly(exponent, floor, factor, count):
    law = [floor + factor * (steps / 300) ** -exponent for steps in [*LENGTHS, 9600]]
    verdict = judge(runs(law[:count]), 0.0, 10**6)
    if 2.0**-exponent < 0.25 or abs(law[count - 1]) < 1e-6:
        return  # steeper than is believed, or no share of nothing
    assert verdict.next == 2 * LENGTHS[count - 1]
    assert verdict.gain == pytest.approx((law[count - 1] - law[count]) / abs(law[count - 1]), rel=1e-6, abs=1e-9)


def test_it_goes_on_as_long_as_the_projected_gain_pays():
    costs = [1.0, 0.8, 0.7]  # the next is projected at 0.65: 7.1 % less
    assert judge(runs(costs), 0.07, 10**6).next == 2400
    ended = judge(runs(costs), 0.072, 10**6)
    assert ended.next is None
    assert ended.reason == "2,400 steps are projected to gain 7.1%, and twice the steps pay from 7.2% on"
    assert ended.gain == pytest.approx(0.05 / 0.7)


def test_one_length_says_nothing_of_the_next():
    assert judge(runs([1.0]), 0.9, 10**6).next == 600


def test_one_whose_best_weights_are_of_before_its_decay_is_long_enough():
    assert judge([Finished(300, 1.0, is_past_best=True)], 0.0, 10**6).next is None


@pytest.mark.parametrize("costs", [[1.0, 1.0], [1.0, 1.1], [1.0, 0.5, 0.6]])
def test_a_length_that_is_no_better_ends_it(costs):
    verdict = judge(runs(costs), 0.0, 10**6)
    assert verdict.next is None
    assert "came to no more than" in verdict.reason
    assert best_of(runs(costs)).cost == min(costs)


@pytest.mark.parametrize("costs", [[0.1, 0.0], [0.1, 0.05, 0.0], [0.0, 0.0], [0.0, -0.0]])
def test_one_that_leaves_nothing_to_gain_ends_it(costs):
    verdict = judge(runs(costs), 0.05, 10**6)
    assert verdict.next is None
    assert verdict.reason.endswith(
        ("came to no more than 300", "steps came to a cost of 0, of which no share can be gained")
    )


def test_of_equal_runs_the_shortest_is_the_best():
    assert best_of(runs([1.0, 0.5, 0.5])).steps == 600


def test_a_gain_within_the_noise_is_none():
    even = [0.01] * 64
    spread = [0.01 - (0.03 if number == 0 else 0.0) for number in range(64)]  # one part of the examples alone
    clear = [0.0095] * 64
    within, beyond = (judge(runs([0.64, sum(last)], parts=[even, last]), 0.0, 10**6) for last in (spread, clear))
    assert within.next is None
    assert "within the noise" in within.reason
    assert beyond.next == 1200
    assert beyond.noise == pytest.approx(0.0)


def test_the_noise_is_that_of_the_difference_between_two_runs_over_the_same_examples():
    hard = [0.0] * 32 + [0.02] * 32  # examples differ far more than the runs do
    verdict = judge(runs([sum(hard), 0.9 * sum(hard)], parts=[hard, [0.9 * part for part in hard]]), 0.0, 10**6)
    assert verdict.next == 1200
    differences = [0.1 * part for part in hard]
    mean = sum(differences) / 64
    error = math.sqrt(sum((d - mean) ** 2 for d in differences) * 64 / 63)
    assert verdict.noise == pytest.approx(error / (0.9 * sum(hard)))


def test_it_goes_no_further_than_the_most():
    assert judge(runs([1.0, 0.5]), 0.0, 900).next == 900
    ended = judge(runs([1.0, 0.5, 0.3], lengths=[300, 600, 900]), 0.0, 900)
    assert ended.next is None
    assert "900 steps are the most" in ended.reason
    assert ended.gain > 0  # of what it might have gained


def test_a_last_length_that_is_less_than_twice_as_long_needs_to_gain_less():
    # Between 600 and 900 steps there are log2(1.5) doublings, in threshold and projection alike.
    assert judge(runs([1.0, 0.8, 0.7]), 0.07, 1800).next == 1800
    assert judge(runs([1.0, 0.8, 0.7]), 0.072, 1800).next is None


def test_while_nothing_is_learnt_it_goes_on_a_few_times():
    flat = [2.3, 2.3001, 2.2999, 2.3, 2.3]
    assert [judge(runs(flat[:count]), 0.05, 10**6, unlearnt=2.25).next for count in (2, 3, 4)] == [1200, 2400, 4800]
    ended = judge(runs(flat), 0.05, 10**6, unlearnt=2.25)
    assert ended.next is None
    assert "nothing was learnt" in ended.reason
    assert judge(runs(flat[:2]), 0.05, 10**6).next is None  # where that is not known


def test_a_length_that_diverged_ends_it_and_is_never_the_best():
    failed = runs([0.5, math.inf])
    assert judge(failed, 0.0, 10**6).next is None
    assert best_of(failed).steps == 300


def test_costs_fall_where_the_criterion_gets_better():
    assert cost_of("accuracy", "max", 0.99) == pytest.approx(0.01)
    assert cost_of("reward", "max", 3.0) < cost_of("reward", "max", 2.0)
    assert cost_of("accuracy", "max", 97.0) == -97.0  # in per cent
    assert cost_of("loss", "min", math.nan) == math.inf


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_lengths_grow_and_end(steps, most):
    count = 0
    while steps is not None:
        longer = next_length(steps, most)
        assert longer is None or steps < longer <= most
        steps, count = longer, count + 1
    assert count <= 25
