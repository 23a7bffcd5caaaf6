import json
import math
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import thalweg as tw
from thalweg.errors import PlanError
from thalweg.records.request import Request


@pytest.mark.parametrize(
    ("effort", "trainings"), [("quick", 2), ("standard", 4), ("thorough", 12), (1, 1), (2.5, 2.5), (np.float32(3), 3)]
)
def test_an_effort_is_a_number_of_trainings(effort, trainings):
    assert Request(effort=effort).trainings == trainings


@pytest.mark.parametrize(
    ("effort", "told"),
    [
        (
            "thoroug",
            r"`effort` is 'thoroug', which is none of quick, standard, thorough, and no number\. Did you mean 'thorough'\?",
        ),
        (0.5, r"`effort` is 0\.5, but it is at least 1: one full training\. 1 takes stated defaults alone\."),
        (math.nan, r"`effort` is nan"),
        (math.inf, r"`effort` is inf"),
        (True, r"`effort` is True"),
        (None, r"`effort` is None"),
        ([4], r"`effort` is \[4\]"),
    ],
)
def test_an_effort_that_cannot_be_is_refused(effort, told):
    with pytest.raises(PlanError, match=told):
        Request(effort=effort)


def test_a_knob_that_does_not_exist_cannot_be_decided():
    with pytest.raises(
        PlanError, match=r"`fixed` has 'learning_rat', which is no knob of a plan\. Did you mean 'learning_rate'\?"
    ):
        Request(fixed={"learning_rat": 1})
    with pytest.raises(PlanError, match="'evidence', which is no knob"):
        Request(fixed={"evidence": {}})
    with pytest.raises(PlanError, match=r"`fixed` is \['batch_size'\], but it is a table of knobs"):
        Request(fixed=["batch_size"])


@pytest.mark.parametrize(
    ("budget", "told"),
    [
        ({"epochs": 2, "steps": 3}, r"Give one budget, not several: epochs=2, steps=3\."),
        ({"epochs": 0}, r"`epochs` is 0, but a budget must be a number above zero and finite\."),
        ({"epochs": "3"}, r"`epochs` is '3', but a budget must be a number"),
        ({"seconds": True}, r"`seconds` is True, but a budget must be a number"),
        ({"seconds": math.inf}, r"`seconds` is inf, but a budget must be a number above zero and finite\."),
        ({"steps": [3]}, r"`steps` is \[3\], but a budget must be a number"),
        ({"steps": 2.5}, r"`steps` is 2\.5, but it is a whole number\."),
    ],
)
def test_a_budget_that_cannot_be_is_refused(budget, told):
    with pytest.raises(PlanError, match=told):
        Request(**budget)


@pytest.mark.parametrize("seed", [-1, 1.0, "1", None, True])
def test_a_seed_that_cannot_be_is_refused(seed):
    with pytest.raises(PlanError, match=r"`seed` is .*, but it is a whole number, at least 0\."):
        Request(seed=seed)


@pytest.mark.parametrize(
    ("fixed", "told"),
    [
        ({"steps": 3}, r"`fixed` has 'steps', which is the budget: give it as steps=…\."),
        ({"batch_size": -1}, r"`batch_size` is -1"),
        ({"rule": "adamx"}, r"There is no update rule 'adamx'"),
    ],
)
def test_a_decided_knob_that_cannot_be_is_refused(fixed, told):
    with pytest.raises(PlanError, match=told):
        Request(fixed=fixed)


def test_numbers_of_other_libraries_become_pythons():
    request = Request(steps=np.float32(3), seed=np.int64(7), effort=np.float32(2), fixed={"batch_size": np.int32(8)})
    kinds = [type(value) for value in (request.steps, request.seed, request.effort, request.fixed["batch_size"])]
    assert kinds == [int, int, float, int]


def test_a_request_does_not_change():
    request = Request(steps=3)
    with pytest.raises(FrozenInstanceError):
        request.steps = 4


@pytest.mark.parametrize(
    ("fixed", "searched"),
    [
        ({}, True),
        ({"batch_size": 8}, True),
        ({"rule": "momentum"}, True),
        ({"rule": "prodigy"}, False),
        ({"learning_rate": 0.1}, False),
    ],
)
def test_the_rate_is_searched_where_nobody_and_no_rule_knows_it(fixed, searched):
    request = Request(fixed=fixed, effort="thorough", seconds=36)
    assert request.searches_rate == searched
    assert request.trainings == (12 if searched else 1)
    assert request.seconds_per_training == (3 if searched else 36)


def test_seconds_that_have_passed_are_taken_off_but_half_of_them_stays():
    assert Request(seconds=10).with_seconds_spent(3).seconds == 7
    assert Request(seconds=10).with_seconds_spent(8).seconds == 5
    assert Request(epochs=10).with_seconds_spent(8) == Request(epochs=10)


@given(
    st.fixed_dictionaries(
        {
            "effort": st.sampled_from(["quick", 1, 2.5]),
            "seed": st.integers(0, 2**40),
            "fixed": st.fixed_dictionaries(
                {},
                optional={
                    "batch_size": st.none() | st.integers(1, 99),
                    "clip_norm": st.none() | st.floats(0.1, 9),
                    "schedule": st.sampled_from(["constant", tw.schedule.cosine(warmup=3)]),
                    "constants": st.just({"beta1": 0.5}),
                    "groups": st.just({"head.*": tw.Group(learning_rate_factor=0.1)}),
                    "shuffle": st.booleans(),
                },
            ),
        },
        optional={"device": st.just("cpu")},
    ),
    st.sampled_from([{}, {"epochs": 0.5}, {"steps": 3}, {"seconds": 60}]),
)
def test_a_request_comes_back_from_json(options, budget):
    request = Request(**options, **budget)
    assert Request.from_dict(json.loads(json.dumps(request.to_dict()))) == request
