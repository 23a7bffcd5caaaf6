"""The terminal's summary says what the report says, in any terminal and none."""

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from thalweg.records.history import Event
from thalweg.records.plan import Evidence, Plan
from thalweg.records.run import HistoryColumns, Run
from thalweg.see import run_text
from thalweg.see.report import write_report
from thalweg.see.summary import print_summary


def printed(run, width=80, encoding="utf-8", **options):
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding=encoding, write_through=True), width=width, **options)
    print_summary(run, console)
    return raw.getvalue().decode(encoding)


def test_says_the_result_the_plan_with_its_evidence_and_what_to_do(make_run):
    text = " ".join(printed(make_run()).split())
    assert run_text.headline(make_run()) in text
    assert "learning rate 0.003 searched best of 10 short runs" in text
    assert "schedule linear to zero over 400 steps, the first 40 in linear warm-up" in text
    assert "What to do next" in text


def test_a_reason_is_said_to_its_end(make_run):
    reason = f"warm-up: 200 steps ({'by a paper of many words, ' * 8}), at most a tenth of the run"
    plan = {"evidence": {"schedule": Evidence("derived", reason)}}
    assert reason in " ".join(printed(make_run(plan=plan)).split())


def test_without_a_terminal_there_are_no_control_characters(hostile):
    assert all(c.isprintable() or c == "\n" for c in printed(hostile))


def test_an_output_that_knows_ascii_alone_gets_ascii(make_run):
    assert printed(make_run(summary={"name": "é", "notes": ["naïve"]}), encoding="ascii").isascii()


@pytest.mark.parametrize("width", [30, 80, 200])
def test_lines_keep_within_the_terminal(make_run, width):
    assert max(map(len, printed(make_run(), width).splitlines())) <= width


def test_a_strangers_brackets_are_not_read_as_style(make_run):
    text = printed(make_run(summary={"notes": ["[bold red]x[/bold red]"]}), force_terminal=True)
    assert "[bold red]x[/bold red]" in text


def test_events_that_matter_are_told_and_counted(rescued, make_run):
    assert "step 120: Went back to step 100, with half the planned" in " ".join(printed(rescued).split())
    many = tuple(Event(s, "nonfinite", f"batch {s} left out", {}, 1, False) for s in range(1, 21))
    text = printed(make_run(events=(Event(1, "checkpoint", "written", {}, 1, False), *many)))
    assert "step 1: Batch 1 left out." in text
    assert "and 14 more" in text
    assert "written" not in text


def test_the_reports_path_is_one_word_to_copy(make_run, keep, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("thalweg.records.paths.STARTED_IN", tmp_path)
    folder = tmp_path / ("long-name-" * 12)
    run = keep(make_run(steps=20), folder)
    write_report(run)
    assert f"Report: {folder.name}/report.html\n" in printed(run)


def test_a_run_without_figures_is_summarised(make_run):
    text = printed(Run(plan=Plan(), history=HistoryColumns(), summary={"status": "running", "name": "x"}))
    assert "there are no figures yet" in text
    run = make_run(steps=1)
    assert "Loss" not in printed(replace(run, history=HistoryColumns({"step": np.array([0.0])})))
