"""The laws of a loss's end: power laws are continued, noise widens them, and what is no law gives none."""

import math

import pytest

from thalweg.descent.projection import AT_A_VALIDATION, COOLED, Law, trend

STEPS = [5.0 * k for k in range(1, 21)]


def power(exponent, scale=3.0):
    return [scale * step**-exponent for step in STEPS]


@pytest.mark.parametrize("exponent", [0.0, 0.2, 0.7, 1.0])
def test_a_power_laws_exponent_is_found_whatever_came_before(exponent):
    losses = power(exponent)
    losses[:5] = [1e3] * 5
    found = trend(STEPS, losses, until=60)
    assert found is not None
    assert found.exponent == pytest.approx(exponent, abs=1e-8)
    assert found.noise == pytest.approx(0, abs=1e-8)


def test_a_law_without_a_bias_continues_a_power_law_to_its_end():
    law = Law(0.0, usual=9.0, usual_spread=9.0, least=0.0, weight=1.0, spread=0.1, is_noisy=True)
    losses = power(0.6)
    value, error = law.end(losses[9], 0.5, trend(STEPS, losses, until=50))
    assert value == pytest.approx(losses[-1])
    assert error == pytest.approx(value * math.expm1(0.1 * math.log(2)))


def test_later_validations_do_not_count():
    changed = power(0.5)[:10] + [7.0] * 10
    assert trend(STEPS, changed, until=50) == trend(STEPS, power(0.5), until=50)


@pytest.mark.parametrize(
    ("steps", "losses"),
    [
        ([], []),
        ([10, 20], [1, 0.5]),
        ([10, 20, 30], [1, 0, 0.5]),
        ([10, 20, 30], [1, math.nan, 1]),
        ([20, 20, 20], [1, 1, 1]),
    ],
)
def test_what_makes_no_trend_gives_none(steps, losses):
    assert trend(steps, losses, until=20) is None


def test_a_rise_counts_as_no_fall_and_a_cliff_as_the_steepest():
    assert trend(STEPS, power(-0.5), until=100).exponent == 0
    assert trend(STEPS, power(4.0), until=100).exponent == 1


@pytest.mark.parametrize("law", [COOLED, AT_A_VALIDATION])
def test_the_nearer_the_end_the_surer(law):
    found = trend(STEPS, power(0.4), until=100)
    for recent in (None, found):
        ends = [law.end(1.0, share, recent) for share in (0.1, 0.3, 0.6, 0.9, 1.0)]
        assert [value for value, _ in ends] == sorted(value for value, _ in ends)
        assert [error for _, error in ends] == sorted((error for _, error in ends), reverse=True)
        assert ends[-1] == pytest.approx((1.0, 0.0), abs=1e-7)


def test_noise_of_validations_widens_what_follows_from_one_of_them():
    noisy = [loss * (1.1 if k % 2 else 0.9) for k, loss in enumerate(power(0.4))]
    calm, wild = (AT_A_VALIDATION.end(1.0, 0.9, trend(STEPS, losses, until=90)) for losses in (power(0.4), noisy))
    assert wild[1] > 2 * calm[1]
    assert COOLED.end(1.0, 0.9, trend(STEPS, noisy, until=90))[1] < wild[1]
