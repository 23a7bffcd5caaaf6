"""The figures of the watch's benchmark are those that its words say."""

import math

import pytest

from thalweg.examples import faults
from watch import runs, summary

FAULTY = faults.find("waves/deep/adamw/learning-rate-too-low/thousandfold")


def line(*found, loss=1.0, program=FAULTY.name):
    names = ("name", "severity", "step")
    made = [{**dict(zip(names, each, strict=True)), "symptom": "stagnant", "examples": []} for each in found]
    return {"program": program, "seed": 0, "loss": loss, "found": made}


@pytest.fixture
def lines(monkeypatch):
    def keep(own, twin):
        name = summary.twin_of(FAULTY).name
        off = [line(loss=loss) for loss in own] + [line(loss=loss, program=name) for loss in twin]
        monkeypatch.setattr(summary, "LINES", {"off": off, "twins": off})

    return keep


def test_the_first_diagnosis_is_the_first_warning_and_where_there_is_none_the_first_note():
    note, warning = ("bad-batch", "note", 3), ("learning-rate-too-low", "warning", 65)
    assert summary.first_name(line(note, warning)) == "learning-rate-too-low"
    assert summary.first_name(line(note)) == "bad-batch"
    assert summary.first_name(line()) == "(nothing)"
    assert summary.is_named(FAULTY, line(note, warning))
    assert not summary.is_named(FAULTY, line(note))


def test_a_note_is_no_alarm():
    assert summary.alarms(line(("bad-batch", "note", 3))) == []
    assert summary.alarms(line(("dead-units", "critical", 3))) == ["dead-units (critical, step 3)"]


@pytest.mark.parametrize(("loss", "repaired"), [(0.2, True), (0.22, True), (0.25, False), (math.nan, False)])
def test_repaired_is_within_a_tenth_of_the_median_twin(loss, repaired, lines):
    lines([4.0], [0.2, 0.2, 0.19])
    assert summary.is_repaired("cured", FAULTY, line(loss=loss)) is repaired


def test_repaired_is_also_what_one_of_the_twins_reaches(lines):
    lines([4.0], [0.2, 0.3, 0.19])
    assert summary.is_repaired("cured", FAULTY, line(loss=0.29))


def test_what_is_closed_is_half_the_way_in_logarithms(lines):
    lines([4.0], [1.0])
    assert summary.closed("cured", FAULTY, line(loss=2.0)) == pytest.approx(0.5)
    assert summary.closed("cured", FAULTY, line(loss=0.5)) == 1
    lines([math.inf], [1.0])
    assert summary.closed("cured", FAULTY, line(loss=10.0)) == pytest.approx(0.5)
    assert summary.closed("cured", FAULTY, line(loss=math.nan)) == pytest.approx(0)


def test_a_twin_that_is_a_program_of_the_suite_goes_by_its_name_there():
    assert runs.twin_of(FAULTY).name == "waves/deep/adamw/healthy"
    other = next(e for e in faults.candidates() if e.planted == "missing-warm-up")
    assert runs.twin_of(other).name == f"{other.name}/twin"


def test_a_loop_that_is_watched_without_cures_ends_where_the_unwatched_one_does():
    program = faults.find("waves/deep/momentum/healthy")
    watched = runs.RUN["closure"](program)
    assert watched["loss"] == runs.RUN["off"](program)["loss"]


def test_each_program_runs_with_each_seed_and_those_of_a_seed_come_together():
    for mode in ("off", "cured"):
        seeds = [each.seed for each in runs.jobs(mode, "development", 2)]
        assert seeds == sorted(seeds)
        assert set(seeds) == {0, 1}
    assert not any(each.own_loop_only for each in runs.jobs("train", None, 1))
