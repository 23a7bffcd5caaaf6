"""Names that the user's code gives are kept as they are, apart from each other, or refused in a sentence before training."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import classes, network, plan
from torch import nn

import thalweg as tw
from thalweg.records.history import History

HARD = [
    *(
        "acc",
        "Acc",
        "step",
        "nan",
        'a"b',
        "a'b",
        "a;DROP TABLE name",
        "a\nb",
        "\U0001f600",
        "é",
        "e\u0301",
        "x" * 3000,
        "",
    ),
    *("\x1b[31mred", "<script>alert(1)<script>", "a\\b", "con", "c1", "\u202ertl", "__proto__"),
]


def test_metrics_of_any_names_do_not_meet(tmp_path: Path) -> None:
    metrics: dict[str, Any] = {name: lambda o, t, value=float(k): value for k, name in enumerate(HARD)}
    task = classes(metrics=metrics)
    tw.train(task, plan(steps=4), out=tmp_path / "r")
    run = tw.Run.open(tmp_path / "r", task)
    for number, name in enumerate(HARD):
        column = run.history[f"validation/{name}"]
        assert run.metrics[name] == number
        assert set(column[~np.isnan(column)]) == {number}
    assert "<script>alert(1)" not in (tmp_path / "r" / "report.html").read_text("utf-8")


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_name_that_no_file_takes_is_refused_before_training(name: str) -> None:
    with pytest.raises(tw.TaskError, match="it has characters that no file takes"):
        classes(metrics={name: lambda o, t: 0.0})

    def odd() -> nn.Module:
        model = network()
        model.register_buffer(name, model[0].weight.detach().clone())
        return model

    with pytest.raises(tw.TaskError, match="a name that no file takes"):
        tw.train(classes(model=odd), plan(steps=2))


def test_an_event_of_any_text_is_kept(tmp_path: Path) -> None:
    with History(tmp_path) as history:
        history.event(1, "note", "half \ud800, null \0")
        assert [event.message for event in history.events()] == ["half \\ud800, null \0"]


def test_names_that_differ_only_in_case_are_columns_of_their_own_for_other_programs(tmp_path: Path) -> None:
    with History(tmp_path) as history:
        history.append(1, {"acc": 1.0, "Acc": 2.0})
    with closing(sqlite3.connect(tmp_path / "history.sqlite")) as connection:
        assert connection.execute('SELECT "acc", "Acc (2)" FROM live').fetchall() == [(1.0, 2.0)]
