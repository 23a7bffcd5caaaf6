import pytest

from thalweg.rules import RULES, rule
from thalweg.rules.formula import as_text
from thalweg.theory.closed_forms import edge_form, temperature_form

EDGES = {
    "gradient_descent": "L ← 2 / η",
    "momentum": "L ← (2 + 2 · momentum) / η",
    "nesterov": "L ← (2 + 2 · momentum) / ((1 + 2 · momentum) η)",
    "rmsprop": "L ← (2 + 2 · momentum) / η",
    "adam": "L ← (2 + 2 β₁) / ((1 − β₁) η)",
    "nadam": "L ← (2 + 2 β₁) / ((1 + 2 β₁) (1 − β₁) η)",
    "schedule_free_sgd": "L ← 2 / ((1 − momentum) η)",
}


@pytest.mark.parametrize("name", EDGES)
def test_known_edges_are_recognised_from_the_equation(name):
    assert as_text(edge_form(name)) == EDGES[name]


def test_known_temperatures_are_recognised_from_the_equation():
    assert as_text(temperature_form("gradient_descent")) == "T ← η σ² / (2 − η L)"
    assert as_text(temperature_form("momentum")) == (
        "T ← η σ² (1 + momentum) / ((1 − momentum) (2 (1 + momentum) − η L))"
    )
    assert as_text(temperature_form("nesterov")).startswith("q ← 1 − η L\nT ← η σ² (1 + 2 · momentum + ")


@pytest.mark.parametrize("name", RULES)
def test_every_rule_can_be_asked(name):
    assert isinstance(edge_form(name), list)


@rule(source="here 2026")
def hurried(w, g, *, lr):
    """Go three times as far."""
    return w - 3 * lr * g


@rule(source="here 2026", state=["velocity"])
def waning(w, g, velocity, *, lr, momentum=0.9):
    """Roll with a momentum that is used twice."""
    velocity = momentum * momentum * velocity + g
    return w - lr * velocity, velocity


def test_no_form_is_given_where_none_agrees():
    for one in (hurried, waning):
        assert edge_form(one) == temperature_form(one) == []
    assert edge_form("muon") == temperature_form("muon") == temperature_form("lion") == []
