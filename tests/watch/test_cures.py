import math

import pytest

from thalweg.watch import cures
from thalweg.watch.window import Window


def after(norms, rate=1.0):
    window = Window()
    window.gradient_norms.extend(norms)
    window.rate = rate
    return window


@pytest.mark.parametrize(("attempt", "factor"), [(1, 0.5), (2, 0.25), (3, 0.125)])
def test_each_attempt_is_bolder(attempt, factor):
    assert cures.lower_rate_and_clip(after([]), attempt).rate_factor == factor


def test_the_clip_is_what_was_usual_while_all_was_well():
    norms = [float(n) for n in range(1, 101)] + [math.nan, math.inf, 0.0]
    assert cures.lower_rate_and_clip(after(norms), 1).clip_norm == 90.0


def test_without_a_past_the_clip_is_one():
    assert cures.lower_rate_and_clip(after([50.0] * 5), 1).clip_norm == 1.0
