import importlib.metadata
import sys

import pytest

from thalweg import rules
from thalweg.errors import RuleError
from thalweg.rules.adam import adam


class Point:
    def __init__(self, name, value):
        self.name, self._value = name, value

    def load(self):
        return self._value


@pytest.fixture
def third_party(monkeypatch):
    points = [Point("theirs", rules.rule(source="them")(_theirs)), Point("no_rule", 3.0)]
    monkeypatch.setattr(rules, "entry_points", lambda group: points if group == "thalweg.rules" else [])


def _theirs(w, g, *, lr):
    return w - lr * g


def test_a_name_an_alias_and_a_rule_itself_are_found():
    assert rules.get("adam") is adam
    assert rules.get("heavy_ball") is rules.RULES["momentum"]
    assert rules.get(adam) is adam


def test_an_unknown_rule_is_refused_with_the_nearest_name():
    with pytest.raises(RuleError, match=r"no update rule 'adamww'.*Did you mean 'adamw'"):
        rules.get("adamww")


def test_a_third_partys_rule_is_found_by_its_entry_point(third_party):
    assert rules.get("theirs").source == "them"
    assert "theirs" in rules.names()


def test_an_entry_point_that_is_no_rule_is_named(third_party):
    with pytest.raises(RuleError, match=r"entry point 'no_rule'.*gives float, not a Rule"):
        rules.get("no_rule")


def test_entry_points_are_not_read_for_our_own_rules(monkeypatch):
    monkeypatch.setattr(rules, "entry_points", lambda group: pytest.fail("looked up"))
    assert rules.get("adamw").name == "adamw"


def test_no_equation_imports_torch_or_numpy():
    for name in rules.RULES:
        module = sys.modules[f"thalweg.rules.{name}"]
        assert not {"torch", "np", "numpy", "numba"} & set(vars(module))
    assert importlib.metadata.entry_points is rules.entry_points
