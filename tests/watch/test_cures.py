import math

import pytest

from thalweg.watch import cures


@pytest.mark.parametrize(("attempt", "factor"), [(1, 0.5), (2, 0.25), (3, 0.125)])
def test_each_attempt_is_bolder(attempt, factor):
    assert cures.calm([], attempt, 1.0).rate_factor == factor


def test_the_clip_is_what_was_usual_while_all_was_well():
    norms = [float(n) for n in range(1, 101)] + [math.nan, math.inf, 0.0]
    assert cures.calm(norms, 1, 1.0).clip_norm == 90.0


def test_without_a_past_the_clip_is_one():
    assert cures.calm([50.0] * 5, 1, 1.0).clip_norm == 1.0


def test_leaving_a_batch_out_changes_nothing_else():
    cure = cures.skip()
    assert (cure.rollback, cure.rate_factor, cure.clip_norm) == (False, 1.0, None)
