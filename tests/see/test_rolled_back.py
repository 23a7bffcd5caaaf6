"""The steps that a rollback undid are read from the run's history, and drawn."""

from dataclasses import replace

import numpy as np
import pytest

from thalweg.records.history import FILE, History
from thalweg.records.run import HistoryColumns
from thalweg.see import curves
from thalweg.see.rolled_back import rolled_back_stretches


@pytest.fixture
def wild(make_run, tmp_path):
    """A run that was resumed from step 20, and rolled back from 35 to 30, with losses in the hundreds between."""
    with History(tmp_path / FILE) as history:
        record(history, 1, 25, 2.0)
        history.supersede(21)
        history.event(20, "resume", "Went on from step 20.")
        record(history, 21, 34, 2.0)
        record(history, 31, 34, 300.0)
        history.supersede(31)
        history.event(30, "rollback", "Went back.", {"from": 35, "to": 30, "rate_factor": 0.5, "clip_norm": 1.0})
        record(history, 31, 40, 1.0)
        events, columns = tuple(history.events()), HistoryColumns(history.columns())
    return replace(make_run(steps=40), history=columns, events=events, folder=tmp_path)


def record(history, first, last, loss):
    for step in range(first, last + 1):
        history.append(step, {"loss": loss, "learning_rate": 0.1, "gradient_norm": 3.0})


def test_steps_before_a_rollback_are_given_and_those_before_a_resume_are_not(wild):
    (part,) = rolled_back_stretches(wild)
    assert part["step"].tolist() == [31, 32, 33, 34]
    assert part["loss"].tolist() == [300.0] * 4


def test_the_losses_that_a_rollback_undid_are_in_the_charts(wild):
    for text in (curves.loss(wild), curves.rate(wild), curves.gradient(wild)):
        assert '<g class="rolled-back"><path class="line dashed"' in text
        assert "rolled-back steps" in text
    assert ">100</span>" in curves.loss(wild)  # the axis has room for them


def test_each_rollback_is_a_line_of_its_own(wild):
    with History(wild.folder) as history:
        history.supersede(36)
        history.event(35, "rollback", "", {"from": 41, "to": 35})
        wild = replace(wild, events=tuple(history.events()))
    assert [part["step"].tolist() for part in rolled_back_stretches(wild)] == [[31, 32, 33, 34], [36, 37, 38, 39, 40]]


def test_a_run_in_memory_or_without_its_history_has_none(wild, tmp_path):
    assert rolled_back_stretches(replace(wild, folder=None)) == []
    assert rolled_back_stretches(replace(wild, folder=tmp_path / "moved")) == []
    assert rolled_back_stretches(replace(wild, events=())) == []


def test_figures_that_were_not_recorded_are_nan(wild):
    with History(wild.folder) as history:
        history.append(36, {"loss": float("nan")})
        history.supersede(36)
        history.event(35, "rollback", "", {"from": 37, "to": 35})
        wild = replace(wild, events=tuple(history.events()))
    assert np.isnan(rolled_back_stretches(wild)[1]["loss"][0])
