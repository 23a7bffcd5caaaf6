import math

import pytest
import torch

from thalweg.rules import RULES, rule
from thalweg.testing import check_rule
from thalweg.testing.rules import CLAIMS, variants

TABLE = [
    pytest.param(RULES[name], constants, id=f"{name}-{i}")
    for name in RULES
    for i, constants in enumerate(variants(RULES[name]))
]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
@pytest.mark.parametrize(("one", "constants"), TABLE)
def test_every_rule_keeps_the_contract(one, constants, claim):
    claim(one, constants)


def broken_by(equation, **described):
    one = rule(source="here", **described)(equation)
    with pytest.raises(AssertionError) as caught:
        check_rule(one)
    return str(caught.value)


def test_an_equation_that_climbs_is_caught():
    def climbing(w, g, *, lr):
        """Up."""
        return w + lr * g

    assert "it_goes_downhill" in broken_by(climbing)


def test_an_equation_that_only_knows_scalars_is_caught():
    def scalar_only(w, g, *, lr):
        """By the math module."""
        return w - lr * g / math.sqrt(g * g + 1.0)

    assert "it_is_elementwise" in broken_by(scalar_only)


def test_an_equation_that_mixes_entries_is_caught():
    def mixing(w, g, *, lr):
        """By the largest."""
        return w - lr * g / (g.max() if hasattr(g, "max") else g)

    assert "it_is_elementwise" in broken_by(mixing)


def test_an_equation_that_writes_into_its_state_is_caught():
    def writing(w, g, m, *, lr):
        """In place."""
        m = m.mul_(0.9) if isinstance(m, torch.Tensor) else 0.9 * m
        m = m + g
        return w - lr * m, m

    assert "it_does_not_write_into_its_arguments" in broken_by(writing, state=["m"])


def test_an_equation_that_remembers_is_caught():
    calls = []

    def remembering(w, g, *, lr):
        """By how often it was called."""
        calls.append(1)
        return w - lr * g / len(calls)

    assert "it_is_a_pure_function_of_scalars" in broken_by(remembering)


def test_state_keys_of_the_engine_are_refused():
    def colliding(w, g, m, *, lr):
        """Under the step's name."""
        return w - lr * g, m

    assert "it_says_where_it_comes_from" in broken_by(colliding, state={"m": ("step", "zeros")})


def test_state_that_the_equation_forgets_to_give_back_is_caught():
    def forgetting(w, g, m, *, lr):
        """Without m."""
        return w - lr * g

    assert "values for w and 1 of state" in broken_by(forgetting, state=["m"])


def test_an_equation_that_moves_on_level_ground_is_caught():
    def drifting(w, g, *, lr):
        """With the wind."""
        return w - lr * g - 1e-3 * lr

    assert "it_stands_still_where_gradients_are_zero" in broken_by(drifting)


def test_an_equation_that_divides_by_nothing_is_caught():
    def equal(w, g, *, lr):
        """Equally far, whatever the slope."""
        return w - lr * (g * g) / g

    assert "it_stays_finite_under_one_huge_gradient" in broken_by(equal)


def test_numbers_that_remember_how_often_they_were_asked_for_are_caught():
    calls = []

    def remembering(step, constants):
        calls.append(step)
        return {"share": 1.0 / len(calls)}

    def forgetful(w, g, *, lr, share):
        """By how often it was called."""
        return w - lr * share * g

    assert "it_moves_on_every_engine_as_in_its_plain_form" in broken_by(forgetful, scalars=remembering)
