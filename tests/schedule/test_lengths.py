import math

import numpy as np
import pytest
import tomlkit
from hypothesis import given
from hypothesis import strategies as st

from thalweg.errors import ScheduleError
from thalweg.schedule.lengths import (
    Option,
    StepCounts,
    check_choice,
    check_integer,
    check_length,
    check_number,
    check_option,
)


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        (0, 0),
        (2000, 2000),
        (2e3, 2000),
        (0.0, 0),
        (np.int64(7), 7),
        (np.float32(0.5), 0.5),
        (tomlkit.item(12), 12),
        ("3 epochs", "3 epochs"),
        (" 1 EPOCH", "1 epoch"),
        ("1.0epochs", "1 epoch"),
        ("0.5 epochs", "0.5 epochs"),
        ("200 steps", 200),
        ("5 %", 0.05),
    ],
)
def test_a_length_becomes_a_plain_value(given, plain):
    found = check_length(given, "`total`")
    assert found == plain
    assert type(found) is type(plain)


TEXTS = ["three epochs", "3 parsecs", "0 epochs", "-1 epochs", "1e999 epochs", "1.5 steps", "150.5 %"]


@pytest.mark.parametrize(
    "given",
    [-1, -0.5, 1.5, math.nan, math.inf, -math.inf, True, None, [3], 10j, "", *TEXTS],
)
def test_a_length_that_cannot_be_is_refused_with_what_may_be(given):
    with pytest.raises(ScheduleError, match=r"`total` of linear is .*(steps such as 2000|whole number)"):
        check_length(given, "`total` of linear")


def test_one_as_a_float_is_refused_because_it_could_be_a_step_or_the_whole():
    with pytest.raises(ScheduleError, match="one step or the whole"):
        check_length(1.0, "`total`")


def test_a_length_below_the_least_is_refused():
    with pytest.raises(ScheduleError, match="at least 1"):
        check_length(0, "`total`", least=1)


@given(st.one_of(st.integers(0, 10**9), st.floats(0, 1, exclude_min=True, exclude_max=True), st.integers(1, 99)))
def test_checking_a_checked_length_changes_nothing(value):
    once = check_length(value, "x")
    assert check_length(once, "x") == once


@given(st.floats(0.001, 1e6, allow_nan=False))
def test_epochs_keep_their_number_exactly(epochs):
    found = check_length(f"{epochs!r} epochs", "x")
    assert float(str(found).split()[0]) == epochs


def test_shares_and_epochs_become_the_nearest_step_and_at_least_the_least():
    counts = StepCounts(whole=1000, epoch=30)
    assert counts.to_steps(0.05, "x") == 50
    assert counts.to_steps("2.5 epochs", "x") == 75
    assert counts.to_steps(7, "x") == 7
    assert counts.to_steps(1e-9, "x", least=1) == 1


@pytest.mark.parametrize(("given", "advice"), [(0.5, "total_steps"), ("1 epoch", "steps_per_epoch")])
def test_what_is_not_known_is_asked_for(given, advice):
    with pytest.raises(ScheduleError, match=advice):
        StepCounts(None, None).to_steps(given, "`warmup` of linear")


def test_numbers_are_held_to_their_bounds():
    assert check_number(np.float64(1), "x", Option(high=1)) == 1.0
    for bad in (-0.1, 1.1, math.nan, "0.5", True, None):
        with pytest.raises(ScheduleError, match="between 0 and 1"):
            check_number(bad, "x", Option(high=1))
    with pytest.raises(ScheduleError, match="neither of them"):
        check_number(1.0, "x", Option(high=1, exclusive=True))
    with pytest.raises(ScheduleError, match="above 0"):
        check_number(0, "x", Option(exclusive=True))
    with pytest.raises(ScheduleError, match="of at least 1"):
        check_number(math.inf, "x", Option(low=1))


def test_counts_are_whole():
    assert check_integer(3.0, "x", Option()) == 3
    with pytest.raises(ScheduleError, match="whole number"):
        check_integer(2.5, "x", Option())


def test_a_mistyped_word_gets_the_nearest_one():
    with pytest.raises(ScheduleError, match="Did you mean 'cosine'"):
        check_choice("cosin", ["linear", "cosine"], "shape")
    with pytest.raises(ScheduleError, match="3 is no shape"):
        check_choice(3, ["linear", "cosine"], "shape")


@pytest.mark.parametrize("bad", ["0.5", 3, None])
def test_milestones_are_a_list(bad):
    with pytest.raises(ScheduleError, match="list of lengths"):
        check_option(bad, "`milestones`", Option(kind="lengths"))
