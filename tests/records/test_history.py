import json
import math
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg.errors import RunError
from thalweg.records import history as module
from thalweg.records.history import Event, History, Segment

NAMES = ["loss", "Loss", "validation/loss", 'od"d', "c1", "nan", ""]


def by_hand(**columns):
    return {name: np.array(values) for name, values in columns.items()}


def equal(columns, expected):
    assert set(columns) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(columns[name], np.array(values, dtype=columns[name].dtype), err_msg=name)


def test_what_was_appended_is_read_as_columns(tmp_path):
    with History(tmp_path) as history:
        history.append(1, {"loss": 2.5, "rate": 1})
        history.append(2, {"loss": np.float32(0.5), "rate": None})
        history.append(4, {"loss": torch.tensor(0.25), "validation/loss": 3})
        columns = history.columns()
    nan = math.nan
    equal(
        columns, {"step": [1, 2, 4], "loss": [2.5, 0.5, 0.25], "rate": [1, nan, nan], "validation/loss": [nan, nan, 3]}
    )
    assert columns["step"].dtype == np.int64
    assert all(columns[name].dtype == np.float64 for name in columns if name != "step")
    assert all(column.flags.c_contiguous and column.flags.writeable for column in columns.values())


def test_an_empty_history_has_no_rows(tmp_path):
    with History(tmp_path) as history:
        equal(history.columns(), {"step": []})
        assert history.events() == []
        assert history.digests() == {}
        assert history.segments() == [Segment(1, 0, module.ENDLESS)]


FIGURES = st.floats() | st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 5e-324]) | st.none()
ACTIONS = st.one_of(
    st.tuples(st.just("append"), st.integers(0, 12), st.dictionaries(st.sampled_from(NAMES), FIGURES, max_size=4)),
    st.tuples(st.just("supersede"), st.integers(0, 12)),
    st.tuples(st.just("digest"), st.integers(0, 12), st.text(max_size=3)),
    st.tuples(st.just("flush")),
    st.tuples(st.just("reopen")),
)


class Model:
    """What a history is meant to do, on plain dicts."""

    def __init__(self):
        self.rows, self.digests, self.first = {}, {}, 0

    def append(self, step, values):
        given = {name: value for name, value in values.items() if value is not None}
        if step >= self.first:
            self.rows.setdefault(step, {}).update(given)

    def digest(self, step, text):
        if step >= self.first:
            self.digests[step] = text

    def supersede(self, step):
        self.first = step
        self.rows = {at: row for at, row in self.rows.items() if at < step}
        self.digests = {at: text for at, text in self.digests.items() if at < step}


@settings(max_examples=80)
@given(st.lists(ACTIONS, max_size=25))
def test_a_history_does_what_plain_dicts_would(actions):
    with tempfile.TemporaryDirectory() as folder:
        history, model = History(folder, flush_rows=3), Model()
        for action, *arguments in actions:
            if action == "reopen":
                history.close()
                history = History(folder, flush_rows=3)
                continue
            if action in ("append", "digest") and arguments[0] < model.first:
                continue
            getattr(history, action)(*arguments)
            if action != "flush":
                getattr(model, action)(*arguments)
        history.flush()
        with History(folder, readonly=True) as reader:
            columns = reader.columns()
            assert columns["step"].tolist() == sorted(model.rows)
            for name in columns.keys() - {"step"}:
                expected = [model.rows[step].get(name, math.nan) for step in sorted(model.rows)]
                assert list(map(repr, columns[name].tolist())) == list(map(repr, expected))
                kept = {step: row[name] for step, row in sorted(model.rows.items()) if name in row}
                series = reader.series(name)
                assert series.steps.tolist() == list(kept)
                assert list(map(repr, series.values.tolist())) == list(map(repr, kept.values()))
            assert {name for row in model.rows.values() for name in row} <= columns.keys()
            assert reader.digests() == dict(sorted(model.digests.items()))
        history.close()


def test_non_finite_figures_are_kept_and_told_from_none(tmp_path):
    with History(tmp_path) as history:
        for step, value in enumerate([1.0, math.nan, math.inf, -math.inf]):
            history.append(step, {"loss": value, "other": 0})
        history.append(4, {"other": 0})
    with History(tmp_path, readonly=True) as history:
        assert history.series("loss").steps.tolist() == [0, 1, 2, 3]
        np.testing.assert_array_equal(history.series("loss").values, [1, math.nan, math.inf, -math.inf])
        np.testing.assert_array_equal(history.columns()["loss"], [1, math.nan, math.inf, -math.inf, math.nan])


def test_a_later_figure_of_a_written_step_joins_its_row(tmp_path):
    with History(tmp_path) as history:
        history.append(1, {"loss": math.nan, "rate": 0.5})
        history.flush()
        history.append(1, {"validation/loss": 2.0, "rate": None})
        history.flush()
        history.append(1, {"loss": 3.0})
        equal(history.columns(), {"step": [1], "loss": [3], "rate": [0.5], "validation/loss": [2]})


def test_the_callers_mapping_is_copied(tmp_path):
    with History(tmp_path) as history:
        values = {"loss": 1.0}
        history.append(1, values)
        values["loss"] = 2.0
        history.append(2, values)
        assert history.columns()["loss"].tolist() == [1, 2]


def test_rows_wait_until_there_are_enough_of_them(tmp_path):
    with History(tmp_path, flush_rows=3, flush_seconds=1e9) as history, History(tmp_path, readonly=True) as reader:
        seen = []
        for step in range(7):
            history.append(step, {"loss": 0})
            seen.append(len(reader.columns()["step"]))
        assert seen == [0, 0, 3, 3, 3, 6, 6]
        history.flush()
        assert len(reader.columns()["step"]) == 7


def test_what_the_disk_has_confirmed_does_not_need_the_log(tmp_path):
    (tmp_path / "copy").mkdir()
    with History(tmp_path) as history:
        history.append(1, {"loss": 1})
        history.flush(durable=True)
        shutil.copy(tmp_path / "history.sqlite", tmp_path / "copy")
    assert History(tmp_path / "copy", readonly=True).columns()["loss"].tolist() == [1]


def test_rows_wait_no_longer_than_told(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    with History(tmp_path, flush_rows=1000, flush_seconds=2.0) as history, History(tmp_path, readonly=True) as reader:
        history.append(1, {"loss": 0})
        now = 1.9
        history.append(2, {"loss": 0})
        assert len(reader.columns()["step"]) == 0
        now = 2.0
        history.append(3, {"loss": 0})
        assert len(reader.columns()["step"]) == 3


def test_reading_from_a_step_on(tmp_path):
    with History(tmp_path) as history:
        for step in range(10):
            history.append(step, {"loss": step})
        assert history.columns(from_step=7)["loss"].tolist() == [7, 8, 9]


def test_columns_make_a_data_frame(tmp_path):
    pandas = pytest.importorskip("pandas")
    with History(tmp_path) as history:
        history.append(1, {"loss": 2.0})
        frame = pandas.DataFrame(history.columns())
    assert frame.to_dict("list") == {"step": [1], "loss": [2.0]}


# Segments


def test_after_a_resume_the_rows_behind_it_live_no_longer_but_are_kept(tmp_path):
    with History(tmp_path) as history:
        for step in range(5):
            history.append(step, {"loss": step})
            history.digest(step, f"first {step}")
            history.append_array(step, "norms", [step])
        history.supersede(3)
        for step in (3, 4, 5):
            history.append(step, {"loss": 10 * step})
            history.digest(step, f"second {step}")
            history.append_array(step, "norms", [10 * step])
        assert history.columns()["loss"].tolist() == [0, 1, 2, 30, 40, 50]
        assert history.arrays("norms").values[:, 0].tolist() == [0, 1, 2, 30, 40, 50]
        assert list(history.digests().values()) == [f"first {i}" for i in range(3)] + [f"second {i}" for i in (3, 4, 5)]
        assert history.digests(segment=1) == {step: f"first {step}" for step in range(5)}
        assert history.digests(segment=2) == {step: f"second {step}" for step in (3, 4, 5)}
        assert history.segments() == [Segment(1, 0, 3), Segment(2, 3, module.ENDLESS)]
    with sqlite3.connect(tmp_path / "history.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM figures").fetchone() == (8,)
    connection.close()


def test_going_back_further_ends_what_came_between(tmp_path):
    with History(tmp_path) as history:
        for begin in (0, 6, 2):
            if begin:
                history.supersede(begin)
            for step in range(begin, begin + 8):
                history.append(step, {"from": begin})
        assert history.columns()["from"].tolist() == [0, 0, *[2] * 8]
        assert [segment.live_until for segment in history.segments()] == [2, 2, module.ENDLESS]


def test_superseded_figures_name_the_segment_that_took_their_place(tmp_path):
    with History(tmp_path) as history:
        for begin in (0, 6, 2):
            if begin:
                history.supersede(begin)
            for step in range(begin, begin + 8):
                history.append(step, {"from": begin} if step != 7 else {"other": 1.0})
        found = history.superseded(["from", "unknown"])
    assert [(part.segment, part.by, part.columns["step"].tolist()) for part in found] == [
        (1, 3, [2, 3, 4, 5]),
        (1, 2, [6, 7]),
        (2, 3, list(range(6, 14))),
    ]
    np.testing.assert_array_equal(found[1].columns["from"], [0, math.nan])
    assert all(np.isnan(part.columns["unknown"]).all() for part in found)


def test_a_history_without_a_rollback_has_no_superseded_figures(tmp_path):
    with History(tmp_path) as history:
        history.append(1, {"loss": 2.0})
        assert history.superseded(["loss"]) == []
    (tmp_path / "empty.sqlite").touch()
    assert History(tmp_path / "empty.sqlite", readonly=True).superseded(["loss"]) == []


def test_a_writer_that_opens_again_goes_on_in_the_last_segment(tmp_path):
    with History(tmp_path) as history:
        history.append(1, {"loss": 1, "rate": 7})
        history.supersede(1)
        history.append(1, {"loss": 2, "rate": 7})
    with History(tmp_path) as history:
        history.append(1, {"loss": 3})
        history.append(2, {"loss": 4})
        equal(history.columns(), {"step": [1, 2], "loss": [3, 4], "rate": [7, math.nan]})


def test_the_first_step_at_which_two_runs_differ_is_found(tmp_path):
    with History(tmp_path / "a") as one, History(tmp_path / "b") as other:
        for step in range(0, 50, 10):
            one.digest(step, f"{step}")
            other.digest(step, f"{step}" if step < 30 else "else")
        one.digest(25, "only here")
        assert one.first_difference(other) == other.first_difference(one) == 30
        assert one.first_difference(one) is None


# Arrays and events


def test_arrays_are_kept_as_float32_with_their_shape(tmp_path):
    arrays = {0: np.array([[1, 2], [3, math.nan]]), 10: np.array([[math.inf, -0.0], [0.1, 1e30]])}
    with History(tmp_path) as history:
        for step, array in arrays.items():
            history.append_array(step, "norms", array)
        history.append_array(3, "scalar", torch.tensor(2.0))
        history.append_array(3, "none", [])
        table = history.arrays("norms")
        assert history.arrays("scalar").values.tolist() == [2.0]
        assert history.arrays("none").values.shape == (1, 0)
    assert table.steps.tolist() == [0, 10]
    assert table.values.dtype == np.float32
    np.testing.assert_array_equal(table.values, np.stack(list(arrays.values())).astype(np.float32))


def test_an_array_of_another_shape_is_refused_at_once(tmp_path):
    with History(tmp_path) as history:
        history.append_array(1, "norms", [1, 2])
    with History(tmp_path) as history:
        with pytest.raises(RunError, match="use another name"):
            history.append_array(2, "norms", [1, 2, 3])
        assert history.arrays("norms").values.shape == (1, 2)


def test_events_come_back_in_order_with_their_data(tmp_path):
    data = {"before": math.nan, "after": -math.inf, "steps": [1, 2**70], "by": {0: None, "~x": True}, "text": "naïve ✓"}
    with History(tmp_path) as history:
        history.event(7, "cure", "lowered the rate", data)
        history.event(2, "note", "an older step, told later")
        with History(tmp_path, readonly=True) as reader:  # an event is flushed at once
            first, second = reader.events()
        history.supersede(5)
        history.event(7, "finish", "done")
        assert [event.superseded for event in history.events()] == [True, False, False]
        assert [event.segment for event in history.events()] == [1, 1, 2]
    assert repr(first) == repr(Event(7, "cure", "lowered the rate", data, 1, False))
    assert second == Event(2, "note", "an older step, told later", {}, 1, False)


def test_what_an_event_cannot_hold_is_refused_by_name(tmp_path):
    with History(tmp_path) as history:
        with pytest.raises(RunError, match="the event 'note' cannot be stored: place is a tuple"):
            history.event(1, "note", "", {"place": (1, 2)})
        assert history.events() == []


# Whatever is refused


@pytest.mark.parametrize(
    ("step", "values", "said"),
    [
        (9, {"loss": "high"}, "step 9 is not a number"),
        (9, {"loss": 10**400}, "step 9 is not a number"),
        (9, {"step": 1}, "cannot be named 'step'"),
        (2, {"loss": 1}, "step 2 lies before 5"),
    ],
)
def test_a_figure_that_cannot_be_is_refused_and_spoils_nothing(tmp_path, step, values, said):
    with History(tmp_path) as history:
        history.supersede(5)
        with pytest.raises(RunError, match=said):
            history.append(step, values)
        history.append(9, {"loss": 1})
        equal(history.columns(), {"step": [9], "loss": [1]})


def test_an_unknown_name_is_an_error_with_the_nearest(tmp_path):
    with History(tmp_path) as history:
        history.append(1, {"loss": 1})
        with pytest.raises(RunError, match="Did you mean 'loss'"):
            history.series("los")
        with pytest.raises(RunError, match="no array 'norms'"):
            history.arrays("norms")


def test_more_figures_than_a_row_holds_are_refused(tmp_path):
    history = History(tmp_path)
    history.append(1, {f"weight {i}": 0.0 for i in range(2001)})
    with pytest.raises(RunError, match="append_array"):
        history.close()


@pytest.mark.parametrize("close", [True, False])
def test_nothing_is_written_to_one_that_is_closed_or_readonly(tmp_path, close):
    history = History(tmp_path)
    history.append(1, {"loss": 1})
    history.close()
    history.close()
    if not close:
        history = History(tmp_path, readonly=True)
    for attempt in (
        lambda: history.append(2, {"loss": 1}),
        lambda: history.event(2, "note", ""),
        lambda: history.supersede(1),
        history.flush,
    ):
        with pytest.raises(RunError, match="closed or open for reading only"):
            attempt()
    assert history.columns()["step"].tolist() == [1]


def test_a_missing_history_is_said(tmp_path):
    with pytest.raises(RunError, match=r"there is no thalweg history at .*give the folder of a run"):
        History(tmp_path, readonly=True)
    assert os.listdir(tmp_path) == []


def test_a_file_of_another_kind_is_left_alone(tmp_path):
    file = tmp_path / "history.sqlite"
    file.write_bytes(b"step,loss\n1,2.0\n" * 100)
    for readonly in (True, False):
        with pytest.raises(RunError, match="not a database"):
            History(tmp_path, readonly=readonly)
    assert file.read_bytes() == b"step,loss\n1,2.0\n" * 100


@pytest.mark.parametrize(
    "statements", ["CREATE TABLE mine (x)", "CREATE TABLE meta (key, value)", "CREATE TABLE meta (a)"]
)
def test_another_programs_database_is_left_alone(tmp_path, statements):
    file = tmp_path / "history.sqlite"
    with sqlite3.connect(file) as connection:
        connection.executescript(statements)
    connection.close()
    for readonly in (True, False):
        with pytest.raises(RunError, match="database of another program"):
            History(tmp_path, readonly=readonly)
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (1,)
    connection.close()


def test_a_newer_format_is_refused(tmp_path):
    with History(tmp_path) as history:
        history.append(1, {"loss": 1})
    with sqlite3.connect(tmp_path / "history.sqlite") as connection:
        connection.execute("UPDATE meta SET value = 3 WHERE key = 'format'")
    connection.close()
    for readonly in (True, False):
        with pytest.raises(RunError, match="format 3, this thalweg reads up to 2: install a newer"):
            History(tmp_path, readonly=readonly)


def test_a_damaged_file_is_said(tmp_path):
    with History(tmp_path) as history:
        for step in range(3000):
            history.append(step, {"loss": 1})
    file = tmp_path / "history.sqlite"
    data = bytearray(file.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    file.write_bytes(data)
    with pytest.raises(RunError, match=r"is damaged.*\.recover"):
        History(tmp_path, readonly=True).columns()


def test_a_locked_history_is_said_and_nothing_is_lost(tmp_path):
    with History(tmp_path, busy_seconds=0) as history:
        history.append(1, {"loss": 1})
        other = sqlite3.connect(tmp_path / "history.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RunError, match="locked: another process"):
            history.flush()
        with pytest.raises(RunError, match="locked: another process"):
            History(tmp_path, busy_seconds=0)
        other.execute("ROLLBACK")
        other.close()
        assert history.columns()["loss"].tolist() == [1]


def test_a_full_disk_is_said_and_what_waits_is_written_once_there_is_room(tmp_path):
    with History(tmp_path, flush_rows=10**6, flush_seconds=1e9) as history:
        history.append(0, {"loss": 0})
        history.flush()
        history._connection.execute("PRAGMA max_page_count = 20")
        for step in range(1, 5000):
            history.append(step, {"loss": step})
        history.digest(4999, "abc")
        for _ in range(2):
            with pytest.raises(RunError, match=r"disk .* is full: free some space"):
                history.flush()
        with History(tmp_path, readonly=True) as reader:
            assert reader.columns()["step"].tolist() == [0]
        history._connection.execute("PRAGMA max_page_count = 100000")
        assert history.columns()["loss"].tolist() == list(range(5000))
        assert history.digests() == {4999: "abc"}


def test_a_flush_that_fails_half_way_writes_nothing_and_can_be_tried_again(tmp_path, monkeypatch):
    with History(tmp_path) as history, History(tmp_path, readonly=True) as reader:
        history.append(1, {"loss": 1})
        with monkeypatch.context() as patch:
            patch.setattr(history, "_write_rest", lambda connection: connection.execute("SELECT nonsense"))
            with pytest.raises(RunError, match="nonsense"):
                history.flush()
        equal(reader.columns(), {"step": []})
        history.append(1, {"rate": 2})
        equal(history.columns(), {"step": [1], "loss": [1], "rate": [2]})


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be made"):
        History(tmp_path / "file" / "run")


# Others who look


def test_a_reader_leaves_no_trace_beside_a_file_at_rest(tmp_path):
    with History(tmp_path) as history:
        history.append(1, {"loss": 1})
    before = (tmp_path / "history.sqlite").read_bytes()
    with History(tmp_path, readonly=True) as reader:
        reader.columns()
        reader.events()
    assert os.listdir(tmp_path) == ["history.sqlite"]
    assert (tmp_path / "history.sqlite").read_bytes() == before


def test_a_reader_that_stays_sees_a_writer_come_and_go(tmp_path):
    History(tmp_path).close()
    with History(tmp_path, readonly=True) as reader:
        for step in range(3):
            assert len(reader.columns()["step"]) == step
            with History(tmp_path) as history:
                history.append(step, {"loss": 1})
                history.flush()
                assert len(reader.columns()["step"]) == step + 1


def test_a_file_without_tables_is_an_empty_history_and_can_be_written(tmp_path):
    (tmp_path / "history.sqlite").touch()
    with History(tmp_path, readonly=True) as reader:
        equal(reader.columns(), {"step": []})
        assert reader.events() == []
    with History(tmp_path) as history:
        history.append(1, {"loss": 1})
        assert len(reader.columns()["step"]) == 0
    assert len(reader.columns()["step"]) == 1


def test_other_programs_read_the_live_rows_by_name(tmp_path):
    with History(tmp_path) as history:
        for step in (1, 2):
            history.append(step, {"loss": 1.5 * step, 'od"d/name': math.nan})
        history.supersede(2)
        history.append(2, {"loss": 9.0, "later": 4.0})
    with sqlite3.connect(tmp_path / "history.sqlite") as connection:
        cursor = connection.execute("SELECT * FROM live ORDER BY step")
        assert [column[0] for column in cursor.description] == ["step", "loss", 'od"d/name', "later", "nan"]
        assert cursor.fetchall() == [(1, 1.5, None, None, json.dumps(['od"d/name'])), (2, 9.0, None, 4.0, None)]
        assert dict(connection.execute("SELECT * FROM meta")) == {"kind": "thalweg history", "format": 2}
    connection.close()


def test_another_thread_may_write_too(tmp_path):
    with History(tmp_path, flush_rows=5) as history:

        def write(name):
            for step in range(200):
                history.append(step, {name: step})
                history.digest(step, name)

        threads = [threading.Thread(target=write, args=(f"thread {i}",)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        columns = history.columns()
        assert len(columns) == 4
        assert all(columns[name].tolist() == list(range(200)) for name in columns)


def test_a_path_may_be_the_file_itself(tmp_path):
    with History(tmp_path / "mine.sqlite") as history:
        history.append(1, {"loss": 1})
    assert os.listdir(tmp_path) == ["mine.sqlite"]
    assert History(tmp_path / "mine.sqlite", readonly=True).path == tmp_path / "mine.sqlite"


@pytest.mark.parametrize("what", ["history", "follow"])
def test_killed_writers_forks_and_other_processes(tmp_path, what):
    """Killed anywhere in its flushes it opens again with every flushed row; a fork can read, but not write."""
    mortal(what, tmp_path)


def test_where_nothing_may_be_written_everything_can_still_be_read():
    # Not in pytest's folder, which no other user may enter.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        mortal("without-rights", folder)


def mortal(what, folder):
    script = Path(__file__).with_name("mortal.py")
    done = subprocess.run([sys.executable, str(script), what, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def recorded(where, steps=200):
    """A history with figures, a segment that replaces another, digests, arrays and events."""
    random = np.random.default_rng(0)
    with History(where, flush_rows=32) as history:
        for step in range(1, steps + 1):
            history.append(
                step, {"loss": random.random(), "learning_rate": 0.01, "odd": math.nan if step % 7 else None}
            )
            if step % 50 == 0:
                history.append(step, {"validation/loss": random.random()})
                history.digest(step, f"{step:032x}")
                history.append_array(step, "norms", random.random(3))
                history.event(step, "note", f"half way, {step}", {"step": step, "found": [0.5, math.inf]})
        history.supersede(steps - 20)
        for step in range(steps - 20, steps + 1):
            history.append(step, {"loss": -random.random()})
    return where / "history.sqlite"


def content(where):
    """All that is in a history, by step, and what it says of damage."""
    with History(where, readonly=True) as history:
        columns = history.columns()
        rows = {
            int(step): [(name, repr(float(column[place]))) for name, column in columns.items()]
            for place, step in enumerate(columns["step"])
        }
        series = {name: dict(zip(*map(list, history.series(name)), strict=True)) for name in columns if name != "step"}
        return rows, series, history.events(), history.digests(), history.damage()


def flipped(path, bits, tmp_path):
    """Flip bits of a history one at a time: each is said, or no figure has changed."""
    whole, data = content(path), path.read_bytes()
    (tmp_path / "flipped").mkdir()
    copy, noticed = tmp_path / "flipped" / "history.sqlite", 0
    for bit in bits:
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        copy.write_bytes(changed)
        try:
            rows, series, events, digests, damage = content(copy)
        except RunError:
            noticed += 1
            continue
        if (rows, repr(series), events, digests) == (whole[0], repr(whole[1]), whole[2], whole[3]):
            continue
        noticed += 1
        assert damage, bit
        assert all(whole[0][step] == row for step, row in rows.items()), bit
        assert all(
            repr(whole[1][name][step]) == repr(v) for name, found in series.items() for step, v in found.items()
        ), bit
        assert all(event in whole[2] for event in events), bit
        assert all(whole[3][step] == text for step, text in digests.items()), bit
    return noticed


def test_a_flipped_bit_in_a_figure_is_noticed_and_its_steps_are_named(tmp_path):
    path = recorded(tmp_path)
    data = path.read_bytes()
    with History(tmp_path, readonly=True) as history:
        assert history.damage() == []
        losses = history.series("loss").values
    for step in (1, 100, 199):
        place = data.index(np.array(losses[step - 1], ">f8").tobytes())
        changed = bytearray(data)
        changed[place + 7] ^= 1  # the smallest change there is
        path.write_bytes(changed)
        with History(tmp_path, readonly=True) as history:
            first = step // 64 * 64
            told = f"The figures of steps {first} to {first + 63} in history.sqlite are damaged and left out."
            assert history.damage() == [told]
            steps = history.columns()["step"].tolist()
        assert not set(steps) & (set(range(first, first + 64)) - (set(range(180, 201)) if step < 180 else set()))
        assert len(steps) >= 100


def test_flipped_bits_anywhere_change_no_figure_silently(tmp_path):
    path = recorded(tmp_path)
    written = np.flatnonzero(np.frombuffer(path.read_bytes(), np.uint8))  # most of a small file is empty
    random = np.random.default_rng(1)
    bits = 8 * random.choice(written, 40) + random.integers(0, 8, 40)
    assert flipped(path, bits.tolist(), tmp_path) > 20


@pytest.mark.heavy
def test_no_flipped_bit_of_many_changes_a_figure_silently(tmp_path):
    path = recorded(tmp_path)
    bits = np.random.default_rng(2).integers(0, 8 * path.stat().st_size, 4000)
    assert flipped(path, bits.tolist(), tmp_path) > 400


def test_rows_that_are_lost_or_exchanged_are_noticed(tmp_path):
    path = recorded(tmp_path)
    for change in (
        "DELETE FROM figures WHERE step = 70",
        "UPDATE figures SET c1 = (SELECT c1 FROM figures AS other WHERE other.step = 141 - figures.step) WHERE step IN (70, 71)",
        "DELETE FROM sums WHERE part = 'figures' AND block = 1",
    ):
        copy = tmp_path / change[:3]
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        shutil.copy(path, copy)
        with sqlite3.connect(copy / "history.sqlite") as connection:
            connection.execute(change)
        connection.close()
        with History(copy, readonly=True) as history:
            assert history.damage()[0].startswith("The figures of steps 64 to 127 ")
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE segment SET live_until = 90 WHERE id = 1")
    connection.close()
    with History(path, readonly=True) as history, pytest.raises(RunError, match=r"table 'segment', .* does not agree"):
        history.columns()


def test_what_is_written_later_stays_right_and_hides_no_damage(tmp_path):
    path = recorded(tmp_path)
    with History(tmp_path) as history:
        history.append(200, {"validation/loss": 3.0, "later": 1.0})  # joins a row that was written
        history.digest(200, "another")
        history.supersede(190)
        history.append(190, {"loss": 1.0})
        assert history.damage() == []
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE figures SET c1 = 5.0 WHERE segment = 3 AND step = 190")
    connection.close()
    with History(tmp_path) as history:
        history.append(190, {"later": 2.0})
        assert history.damage() == ["The figures of steps 128 to 191 in history.sqlite are damaged and left out."]


def test_a_history_of_the_first_format_is_read_and_gets_sums_when_it_is_written(tmp_path):
    path, whole = recorded(tmp_path), content(tmp_path)
    with sqlite3.connect(path) as connection:
        connection.executescript("DROP TABLE sums; UPDATE meta SET value = 1 WHERE key = 'format'")
    connection.close()
    assert repr(content(tmp_path)) == repr(whole)
    with History(tmp_path) as history:
        history.append(201, {"loss": 1.0})
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT value FROM meta WHERE key = 'format'").fetchone() == (2,)
        connection.execute("UPDATE figures SET c1 = 5.0 WHERE step = 3")
    connection.close()
    with History(tmp_path, readonly=True) as history:
        assert "steps 0 to 63" in history.damage()[0]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE segment SET first_step = 'x'",
        "UPDATE name SET name = x'ff'",
        "UPDATE figures SET c1 = 'x'",
        "UPDATE event SET data = '[['",
        "UPDATE event SET data = '[]'",
        """UPDATE event SET data = '{"~int": 3}'""",
        """UPDATE event SET data = '{"to": "x"}'""",
        "UPDATE event SET step = 'x'",
        "UPDATE arrays SET shape = '[3, 9]'",
    ],
)
def test_a_row_of_other_values_is_told_and_no_traceback(tmp_path, statement):
    with History(tmp_path) as history:
        history.append(1, {"loss": 2.0})
        history.append_array(1, "norms", [1.0, 2.0])
        history.digest(1, "a")
        history.event(1, "note", "said")
    connection = sqlite3.connect(tmp_path / "history.sqlite")
    connection.executescript("DROP TABLE sums; UPDATE meta SET value = 1 WHERE key = 'format'")  # which had no sums
    connection.execute(statement)
    connection.commit()
    connection.close()
    with pytest.raises(RunError, match=r"history\.sqlite is damaged: a row holds what does not belong there"):
        read_all(tmp_path)


def read_all(folder):
    history = History(folder, readonly=True)
    history.columns(), history.events(), history.arrays("norms"), history.segments(), history.series("loss")
