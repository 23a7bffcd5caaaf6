import os
import sqlite3

import pytest

from thalweg.errors import RunError
from thalweg.records import database

KIND = {"kind": "shelf", "format": 1}
SCHEMA = """
CREATE TABLE meta (key TEXT, value);
INSERT INTO meta VALUES ('kind', 'shelf'), ('format', 1);
CREATE TABLE book (title TEXT);
"""


def opened(path):
    return database.open_writer(path, schema=SCHEMA, busy_seconds=1, **KIND)


def add(connection, title):
    with database.transaction(connection):
        connection.execute("INSERT INTO book VALUES (?)", (title,))


def titles(connection):
    return [row[0] for row in connection.execute("SELECT title FROM book")]


def read(path, query=titles):
    return database.read(path, query, busy_seconds=0, **KIND)


def test_what_is_written_is_read_while_and_after_it_is_open(tmp_path):
    writer = opened(tmp_path / "new" / "shelf")
    add(writer, "Valleys")
    assert read(tmp_path / "new" / "shelf") == ["Valleys"]
    writer.close()
    assert read(tmp_path / "new" / "shelf") == ["Valleys"]
    assert os.listdir(tmp_path / "new") == ["shelf"]


ENDLESS = "WITH RECURSIVE r(a, b) AS (SELECT 1, 2 UNION ALL SELECT a, b FROM r) SELECT a AS {}, b AS value FROM r"


@pytest.mark.parametrize("table", ["book", "meta"])
def test_what_is_planted_in_the_place_of_a_table_is_not_computed(tmp_path, table):
    writer = opened(tmp_path / "shelf")
    writer.execute(f"DROP TABLE {table}")
    writer.execute(f"CREATE VIEW {table} AS {ENDLESS.format('key' if table == 'meta' else 'title')}")
    writer.close()
    with pytest.raises(RunError, match="a view or a trigger in the place of a table"):
        read(tmp_path / "shelf")


def test_an_error_of_a_signals_handler_is_not_taken_for_what_was_planted(tmp_path, monkeypatch):
    add(opened(tmp_path / "shelf"), "Valleys")

    def interrupted(*what):  # as one that a handler raises at the beginning of a function
        raise TimeoutError

    monkeypatch.setattr(database, "_tables_only", interrupted)
    for use in (read, opened):
        with pytest.raises(RunError, match="a signal's handler raised an error"):
            use(tmp_path / "shelf")
    monkeypatch.undo()
    assert read(tmp_path / "shelf") == ["Valleys"]


def test_a_planted_trigger_does_nothing_and_a_view_of_ones_own_is_left(tmp_path):
    writer = opened(tmp_path / "shelf")
    add(writer, "Valleys")
    writer.execute("CREATE VIEW mine AS SELECT title FROM book")
    writer.close()
    writer = opened(tmp_path / "shelf")
    add(writer, "Hills")
    assert titles(writer) == ["Valleys", "Hills"]
    writer.execute("CREATE TRIGGER planted AFTER INSERT ON book BEGIN DELETE FROM book; END")
    with pytest.raises(sqlite3.Error, match=r"not authorized|prohibited"):
        add(writer, "Rivers")
    assert titles(writer) == ["Valleys", "Hills"]
    writer.close()


def test_a_copy_by_hard_links_is_not_written_to(tmp_path):
    writer = opened(tmp_path / "shelf")
    add(writer, "Valleys")
    for name in ("shelf", "shelf-wal"):  # as of a run that was killed: nothing is in the file itself yet
        (tmp_path / "copy").mkdir(exist_ok=True)
        os.link(tmp_path / name, tmp_path / "copy" / name)
    held = {name: (tmp_path / name).read_bytes() for name in ("shelf", "shelf-wal")}
    copied = opened(tmp_path / "copy" / "shelf")
    add(copied, "Hills")
    assert titles(copied) == ["Valleys", "Hills"]
    assert titles(writer) == ["Valleys"]
    assert {name: (tmp_path / name).read_bytes() for name in held} == held
    copied.close()
    writer.close()
    assert read(tmp_path / "shelf") == ["Valleys"]
    assert sorted(os.listdir(tmp_path / "copy")) == ["shelf"]


def test_a_transaction_that_fails_leaves_nothing(tmp_path):
    writer = opened(tmp_path / "shelf")

    def half():
        with database.transaction(writer):
            writer.execute("INSERT INTO book VALUES ('half')")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    add(writer, "whole")
    assert titles(writer) == ["whole"]
    writer.close()


def test_an_answer_from_a_file_that_changed_underneath_is_asked_for_again(tmp_path):
    opened(tmp_path / "shelf").close()
    asked = []

    def question(connection):
        asked.append(1)
        if len(asked) == 1:  # taken to be at rest, and now a writer comes and goes
            writer = opened(tmp_path / "shelf")
            for title in range(1000):
                add(writer, f"{title}" * 50)
            writer.close()
        return titles(connection)

    assert len(read(tmp_path / "shelf", question)) == 1000
    assert len(asked) == 2


def test_a_file_that_always_changes_underneath_is_given_up(tmp_path):
    opened(tmp_path / "shelf").close()

    def question(connection):
        writer = opened(tmp_path / "shelf")
        add(writer, "again")
        writer.close()

    with pytest.raises(RunError, match="changes faster than it can be read"):
        read(tmp_path / "shelf", question)


def test_a_file_without_a_log_of_writes_is_read_under_its_locks(tmp_path):
    """As on a disk where write-ahead mode does not work."""
    opened(tmp_path / "shelf").close()
    writer = sqlite3.connect(tmp_path / "shelf", isolation_level=None)
    writer.execute("PRAGMA journal_mode = DELETE")
    add(writer, "Valleys")
    assert read(tmp_path / "shelf") == ["Valleys"]
    writer.execute("BEGIN EXCLUSIVE")
    with pytest.raises(RunError, match="locked"):
        read(tmp_path / "shelf")
    writer.execute("ROLLBACK")
    writer.close()


def test_a_path_with_marks_of_an_address_is_a_path(tmp_path):
    path = tmp_path / "50% #1?mode=memory" / "shelf"
    writer = opened(path)
    add(writer, "Valleys")
    assert read(path) == ["Valleys"]
    writer.close()
    assert read(path) == ["Valleys"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("SQLITE_FULL", "is full: free some space"),
        ("SQLITE_IOERR_WRITE", "check its space"),
        ("SQLITE_READONLY_DBMOVED", "permission"),
        ("SQLITE_CORRUPT_VTAB", "recover"),
        ("SQLITE_BUSY_SNAPSHOT", "locked"),
        ("SQLITE_MISUSE", "cannot be used: oops"),
        (None, "cannot be used: oops"),
    ],
)
def test_each_failure_says_what_to_do(tmp_path, name, said):
    error = sqlite3.OperationalError("oops")
    if name:
        error.sqlite_errorname = name
    with pytest.raises(RunError, match=said), database.explain_errors(tmp_path / "shelf"):
        raise error
