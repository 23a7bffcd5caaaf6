"""Every knob has a name, a value that can be typed in again, and a place."""

from dataclasses import fields

import pytest

from thalweg.records.knob import knobs
from thalweg.records.plan import Group, Plan
from thalweg.see import plan_text


def test_every_knob_is_shown_once():
    plan = Plan(ema=0.99, seed=3)
    first, rest = plan_text.split(plan)
    assert sorted(first + rest) == sorted(f.name for f in fields(plan) if f.name != "evidence")
    assert "ema" in first
    assert "seed" in first
    assert "patience" in rest
    assert "position" in plan_text.split(Plan(position="state_dict"))[1]


def test_every_knob_is_explained():
    assert set(knobs(Plan)) == {f.name for f in fields(Plan)} - {"evidence"}
    assert all(plan_text.meaning(name) for name in knobs(Plan))
    assert [name for name, _ in plan_text.help_lines()] == list(knobs(Plan))


@pytest.mark.parametrize(
    ("given", "knob", "told"),
    [
        ({"learning_rate": 0.0123456789}, "learning_rate", "0.0123456789"),
        ({"learning_rate": 1e-5}, "learning_rate", "1e-05"),
        ({"batch_size": None}, "batch_size", "the whole data set"),
        ({"steps": 12000}, "steps", "12,000"),
        ({"seed": 12000}, "seed", "12000"),
        ({"watch": False}, "watch", "no"),
        ({"constants": {"beta2": 0.95}}, "constants", "beta2 0.95"),
        ({}, "constants", "the rule's own"),
        ({}, "weight_decay_schedule", "as the rate does"),
        (
            {"weight_decay_schedule": "inverse_time"},
            "weight_decay_schedule",
            "one over the time, halved after 10 %, over the whole run",
        ),
        (
            {"weight_decay_schedule": "inverse_time", "steps": 4000},
            "weight_decay_schedule",
            "one over the time, halved after 400 steps, over 4,000 steps",
        ),
        ({"groups": {"head.*": Group(0.5, 0.0)}}, "groups", "head.*: rate x 0.5, decay x 0"),
        ({"groups": {"head.*": Group(rule="lion")}}, "groups", "head.*: by lion, rate x 1, decay x 1"),
        ({}, "clip_norm", "off"),
        ({}, "weight_decay", "none"),
        ({}, "checkpoint_seconds", "60 s"),
    ],
)
def test_a_value_is_said_in_full(given, knob, told):
    assert plan_text.value(Plan(**given), knob) == told
