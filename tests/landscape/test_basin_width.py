"""Widths of basins, in closed form."""

import math

import pytest

from thalweg.landscape.basin_width import ACCURACY, half_width


@pytest.mark.parametrize("guess", [1e-6, 0.3, 1.0, 1e5])
@pytest.mark.parametrize("power", [1, 2, 4])
def test_of_a_power_it_is_the_root_whatever_the_guess(guess, power):
    seen = []

    def loss(distance):
        seen.append(distance)
        return distance**power

    assert half_width(loss, 5.0, guess) == pytest.approx(5 ** (1 / power), rel=ACCURACY)
    assert len(seen) < 40
    assert min(seen) > 0


def test_a_cliff_a_plain_and_a_point_that_is_no_basin():
    assert half_width(lambda a: math.nan if a > 0.25 else 0.0, 1.0, 1.0) == pytest.approx(0.25, rel=ACCURACY)
    assert half_width(lambda a: 0.0, 1.0, 1.0, farthest=10.0) == math.inf
    assert half_width(lambda a: 2.0, 1.0, 1.0) == 0.0
    assert half_width(lambda a: a, 1.0, 50.0, farthest=3.0) == pytest.approx(1.0, rel=ACCURACY)
