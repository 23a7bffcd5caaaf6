"""Bytes of a step are those that its equation reads and writes."""

import pytest

import rules
from thalweg.rules import RULES

SHAPES = [(40, 30), (30,)]
WEIGHTS = 1230


def bytes_of(name, full=False):
    one = rules.optimizer(RULES[name], SHAPES, full)
    one.step()
    return rules.bytes_moved(RULES[name], one) / WEIGHTS


@pytest.mark.parametrize(("name", "arrays"), [("gradient_descent", 0), ("momentum", 1), ("lion", 1), ("adamw", 2)])
def test_gradient_twice_weights_and_state_in_and_out_four_bytes_each(name, arrays):
    assert bytes_of(name) == 4 * (2 + 2 + 2 * arrays)
    assert bytes_of(name, full=True) == 4 * (2 + 2 + 2 * arrays + 2)


def test_what_prodigy_adds_up_is_read_beforehand():
    assert rules.arrays_of(RULES["prodigy"]) == {"g", "start", "w", "s"}
    assert bytes_of("prodigy") == 4 * (2 + 2 + 2 * 4 + 4)


def test_a_schedule_free_rule_keeps_no_other_average():
    assert bytes_of("schedule_free_sgd", full=True) == bytes_of("schedule_free_sgd") == 4 * (2 + 2 + 2)


def test_adafactor_keeps_a_number_per_row_and_per_column():
    assert bytes_of("adafactor") == pytest.approx(4 * (4 + 2 * (40 + 30 + 30) / WEIGHTS))


def test_a_measured_rule_gives_its_share_of_the_memorys_speed(monkeypatch):
    monkeypatch.setattr(rules, "SECONDS", 0.0)
    monkeypatch.setattr(rules, "REST", 0.0)
    samples = rules.measured(RULES["adamw"], SHAPES, rounds=2) + rules.kernel_samples(SHAPES, rounds=1)
    assert all(s["weights"] == WEIGHTS and s["share"] > 0 and s["nanoseconds"] > 0 for s in samples)
    assert {s["bytes"] for s in samples} == {32.0, 40.0, 28.0}
