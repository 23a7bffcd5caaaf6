import random

import pytest

from thalweg.schedule import SHAPES, Option, lookup, shape
from thalweg.testing import check_shape
from thalweg.testing.shapes import CLAIMS


class Point:
    def __init__(self, name, value):
        self.name, self._value = name, value

    def load(self):
        return self._value


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_keeps_the_contract(name, claim):
    claim(SHAPES[name])


@pytest.fixture
def broken_by(monkeypatch):
    def check(curve, **options):
        made = shape("a test", **options)(curve)
        monkeypatch.setattr(lookup, "entry_points", lambda group: [Point(curve.__name__, made)])
        with pytest.raises(AssertionError) as caught:
            check_shape(made)
        return str(caught.value)

    return check


def test_a_shape_that_nobody_can_look_up_is_caught():
    @shape("a test")
    def lost(span):
        """Stay."""
        return lambda t: 1.0

    with pytest.raises(AssertionError, match=r"it_is_found_by_its_name.*'lost' is no shape"):
        check_shape(lost)


def test_a_curve_above_the_peak_is_caught(broken_by):
    def rising(span):
        """Rise."""
        return lambda t: 1.0 + t

    assert "it_gives_finite_factors_between_zero_and_the_peak" in broken_by(rising)


def test_a_curve_that_divides_by_nothing_is_caught(broken_by):
    def short(span):
        """Fall, unless there is one step only."""
        return lambda t: 1 - t / (span.finite_length() - 1)

    assert "ZeroDivisionError" in broken_by(short)


def test_a_curve_that_draws_random_numbers_is_caught(broken_by):
    def noisy(span):
        """Jump."""
        return lambda t: random.random()

    assert "it_is_a_pure_function_of_the_step" in broken_by(noisy)


def test_a_shape_without_a_docstring_is_caught(broken_by):
    def silent(span):
        return lambda t: 1.0

    assert "it_says_what_it_does" in broken_by(silent)


def test_a_shape_that_is_fine_passes_with_options_of_every_kind(monkeypatch):
    @shape(
        "a test",
        a=Option(0.5, high=1),
        b=Option(2, kind="integer", low=1),
        c=Option(0.1, kind="length"),
        d=Option((0.5,), kind="lengths"),
        e=Option("up", kind="choice", choices=("up", "down")),
    )
    def fine(span, *, a, b, c, d, e):
        """Stay."""
        return lambda t: a

    monkeypatch.setattr(lookup, "entry_points", lambda group: [Point("fine", fine)])
    check_shape(fine)
