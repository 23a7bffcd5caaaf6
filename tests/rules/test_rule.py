import copy
import math
import pickle

import pytest

from thalweg.errors import RuleError
from thalweg.rules import RULES, get, rule
from thalweg.rules.adam import adam
from thalweg.rules.adamw import adamw
from thalweg.rules.momentum import momentum
from thalweg.rules.rmsprop import rmsprop
from thalweg.rules.rule import Range


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("[0, 1)", [0.0, 0.5], [-1e-9, 1.0, math.nan]),
        ("(0, inf)", [1e-300, 1e300], [0.0, math.inf, math.nan]),
        ("[1, 2]", [1.0, 2.0], [0.999, 2.001]),
    ],
)
def test_a_range_holds_what_lies_inside_and_reads_as_written(text, inside, outside):
    range_ = Range.parse(text)
    assert all(range_.holds(x) for x in inside)
    assert not any(range_.holds(x) for x in outside)
    assert str(range_) == text


@pytest.mark.parametrize("bad", [1.0, -0.1, math.nan, math.inf, "0.9", True, None, [0.9]])
def test_a_constant_that_cannot_be_is_refused_with_its_range(bad):
    with pytest.raises(RuleError, match=r"momentum of momentum must be a number in \[0, 1\)"):
        momentum.complete({"momentum": bad})


def test_a_switch_takes_only_yes_or_no():
    with pytest.raises(RuleError, match="centered of rmsprop is True or False, not 1"):
        rmsprop.complete({"centered": 1})


def test_an_unknown_constant_is_refused_with_the_nearest_name():
    with pytest.raises(RuleError, match=r"adam has no constant 'beta_1'.*Did you mean 'beta1'"):
        adam.complete({"beta_1": 0.9})


@pytest.mark.parametrize("betas", [0.9, "ab", (0.9,), (0.9, 0.99, 0.999)])
def test_betas_are_two_numbers(betas):
    with pytest.raises(RuleError, match=r"betas of adam holds 2 numbers \(beta1, beta2\)"):
        adam.complete({"betas": betas})


def test_constants_go_to_a_group_and_come_back():
    constants = adamw.complete({"betas": [0.8, 0.95], "eps": 1e-6})
    group = adamw.to_group(constants)
    assert group == {"betas": (0.8, 0.95), "eps": 1e-6, "amsgrad": False}
    assert adamw.from_group(group) == constants


def test_decay_is_coupled_unless_the_equation_takes_it():
    assert adam.couples(adam.constants)
    assert not adamw.couples(adamw.constants)
    assert (adam.weight_decay, adamw.weight_decay) == (0.0, 0.01)


def test_state_exists_only_where_its_switch_is_on():
    plain = [s.key for s in rmsprop.states(rmsprop.complete({}))]
    both = [s.key for s in rmsprop.states(rmsprop.complete({"centered": True, "momentum": 0.5}))]
    assert plain == ["square_avg"]
    assert both == ["square_avg", "grad_avg", "momentum_buffer"]


def test_corrections_are_float64_and_exact_at_step_one():
    assert adam.scalars(1, adam.constants) == {"correction1": 1 - 0.9, "correction2": 1 - 0.999}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_pickled_by_name_and_never_copied(name):
    one = RULES[name]
    assert pickle.loads(pickle.dumps(one)) is one
    assert copy.deepcopy(one) is one
    assert copy.deepcopy({"rule": one})["rule"] is one


def test_an_equation_must_take_weight_gradient_and_its_state_in_order():
    with pytest.raises(RuleError, match=r"must take \(w, g, m\) before the star, not \(w, m, g\)"):

        @rule(state=["m"], source="here")
        def turned(w, m, g, *, lr):
            return w, m


def test_what_the_equation_needs_once_a_step_must_come_from_scalars():
    with pytest.raises(RuleError, match=r"needs \['correction'\] from `scalars`, which gives \[\]"):

        @rule(source="here")
        def lacking(w, g, *, lr, correction):
            return w - lr * g / correction


def test_what_depends_on_the_step_must_be_able_to_tell_which_it_is():
    with pytest.raises(RuleError, match="lost counts no steps and has no state"):

        @rule(source="here", scalars=lambda step, constants: {"now": 1.0 / step}, counts_steps=False)
        def lost(w, g, *, lr, now):
            """Nowhere."""
            return w - lr * now * g


def test_a_default_outside_its_own_range_is_refused_where_the_rule_is_made():
    with pytest.raises(RuleError, match="decay of wrong must be a number"):

        @rule(ranges={"decay": "[0, 1)"}, source="here")
        def wrong(w, g, *, lr, decay=2.0):
            return w - lr * decay * g


def test_a_rule_says_what_it_is():
    assert repr(get("sgd")).startswith("<rule gradient_descent: Gradient descent: a step straight downhill")
