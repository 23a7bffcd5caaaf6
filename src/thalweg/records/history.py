"""The history of a run: figures of every step, arrays of some steps, digests of the weights and events, in one SQLite file.

Training appends to it, which takes a few microseconds per step; rows are written together, one transaction per flush, in
write-ahead mode: others can read while it grows, and a process killed at any moment leaves a file that opens again.

After a resume or a rollback some steps are taken again. Nothing is deleted: a new segment begins at the first of them, and
what earlier segments hold from there on is superseded. A row is live, that is part of the run as it now is, while its step
is below its segment's `live_until`.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, SupportsFloat

import numpy as np
import numpy.typing as npt

from thalweg.errors import RunError, nearest
from thalweg.records import database, files, json_values
from thalweg.records.database import Result

FORMAT = 1
KIND = "thalweg history"  # in the file, to tell it from other SQLite files
FILE = "history.sqlite"
ENDLESS = 2**63 - 1  # `live_until` of the last segment
MOST_COLUMNS = 1900  # SQLite takes 2,000.
MOST_UNWRITTEN = 100_000  # rows that wait in memory for a disk that does not take them

LIVE = """CREATE VIEW live AS SELECT {shown} FROM figures JOIN segment ON segment = id
  WHERE step >= first_step AND step < live_until"""
SCHEMA = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
INSERT INTO meta VALUES ('kind', '{KIND}'), ('format', {FORMAT});
CREATE TABLE segment (id INTEGER PRIMARY KEY, first_step INTEGER NOT NULL, live_until INTEGER NOT NULL);
INSERT INTO segment VALUES (1, 0, {ENDLESS});
CREATE TABLE name (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE figures (segment INTEGER, step INTEGER, nan TEXT, PRIMARY KEY (segment, step)) WITHOUT ROWID;
CREATE TABLE arrays (segment INTEGER, step INTEGER, name TEXT, shape TEXT NOT NULL, data BLOB NOT NULL,
  PRIMARY KEY (name, segment, step)) WITHOUT ROWID;
CREATE TABLE digest (segment INTEGER, step INTEGER, text TEXT NOT NULL, PRIMARY KEY (segment, step)) WITHOUT ROWID;
CREATE TABLE event (id INTEGER PRIMARY KEY, segment INTEGER NOT NULL, step INTEGER NOT NULL, kind TEXT NOT NULL,
  message TEXT NOT NULL, data TEXT NOT NULL);
{LIVE.format(shown="step, nan")};
"""

Float64s = npt.NDArray[np.float64]
Steps = npt.NDArray[np.int64]


class Event(NamedTuple):
    """Something that happened at a step; `superseded` where the run later continued from an earlier step."""

    step: int
    kind: str
    message: str
    data: dict[str, Any]
    segment: int
    superseded: bool

    def __repr__(self) -> str:
        undone = ", superseded" if self.superseded else ""
        return f"<Event {self.kind}, step {self.step}{undone}: {self.message}>"


class Segment(NamedTuple):
    """Steps taken without a resume or a rollback between; its rows are live for first_step <= step < live_until."""

    id: int
    first_step: int
    live_until: int


class Series(NamedTuple):
    """What was recorded under one name: steps and values, a recorded NaN included."""

    steps: Steps
    values: Float64s


class Superseded(NamedTuple):
    """Figures of one segment that a later one, `by`, replaces: "step" and each name that was asked for."""

    segment: int
    by: int
    columns: dict[str, Float64s]


class ArraySeries(NamedTuple):
    """The arrays recorded under one name: `values[i]` (float32) belongs to `steps[i]`."""

    steps: Steps
    values: npt.NDArray[np.float32]


class History:
    """The history of one run, for the process that writes it and for any number that read it.

    where: the run's folder, or the path of its `history.sqlite`; a writer makes what is missing.
    readonly: only read; nothing is created or changed, and each query sees what has been flushed by then.
    flush_rows, flush_seconds: rows are written when so many are buffered or so long has passed, whichever is first.
    busy_seconds: how long to wait for another process's lock.

    Raises RunError where the file is missing (readonly), something else, of a newer format, locked, damaged or unwritable.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, History(folder) as history:
    ...     history.append(1, {"loss": 2.5})
    ...     history.append(2, {"loss": 1.5})
    ...     history.columns()["loss"]
    array([2.5, 1.5])
    """

    def __init__(
        self,
        where: str | os.PathLike[str],
        *,
        readonly: bool = False,
        flush_rows: int = 256,
        flush_seconds: float = 2.0,
        busy_seconds: float = 10.0,
    ) -> None:
        self.path = _file(Path(where)).absolute()
        self._flush_rows, self._flush_seconds, self._busy_seconds = flush_rows, flush_seconds, busy_seconds
        self._lock = threading.RLock()
        self._owner = os.getpid()
        self._rows: dict[int, dict[str, float]] = {}
        self._arrays: list[tuple[int, str, str, bytes]] = []
        self._digests: dict[int, str] = {}
        self._events: list[tuple[int, str, str, str]] = []
        self._next_flush = time.monotonic() + flush_seconds
        self._connection: sqlite3.Connection | None = None
        self._unwritten: RunError | None = None  # why the buffered rows could not be written the last time
        if readonly:
            self._read(_columns)  # raises where the file cannot be read
            return
        self._connection = self._open_writer()
        with database.explain_errors(self.path):
            self._columns = _columns(self._connection)
            self._segment, self._first_step, _ = _segments(self._connection)[-1]
            self._last_step = self._latest_step()
            self._shapes: dict[str, str] = dict(_all(self._connection, "SELECT DISTINCT name, shape FROM arrays"))

    # Writing

    def append(self, step: int, values: Mapping[str, SupportsFloat | None]) -> None:
        """Record figures of a step; a second call for the same step adds to the first. None is left out.

        Where the disk does not take them they stay in memory, and are tried again with later ones: `flush` raises.

        Raises RunError for what is not a number, a figure named "step", and a step before the present segment.
        """
        try:
            given = {name: float(value) for name, value in values.items() if value is not None}
        except (TypeError, ValueError, OverflowError) as error:
            raise RunError(f"a figure of step {step} is not a number: {error}. Give numbers or None.") from error
        with self._lock:
            if self._connection is None or step < self._first_step or "step" in given:
                self._refuse_figures(step)
            row = self._rows.get(step)
            if row is None:
                self._rows[step] = given
            else:
                row.update(given)
            full = len(self._rows) >= self._flush_rows and self._unwritten is None
            if full or time.monotonic() >= self._next_flush:
                self._try_to_flush()

    def append_array(self, step: int, name: str, array: npt.ArrayLike) -> None:
        """Record an array (as float32) under a name, such as one norm per tensor.

        Raises RunError where the name was used for another shape.
        """
        data, shape = np.ascontiguousarray(array, dtype="<f4"), json.dumps(np.shape(array))
        with self._lock:
            if self._shapes.setdefault(name, shape) != shape:
                raise RunError(
                    f"{name!r} was of shape {self._shapes[name]} and is now {shape}: use another name for it."
                )
            self._arrays.append((int(step), name, shape, data.tobytes()))

    def digest(self, step: int, text: str) -> None:
        """Record a digest of the weights after so many steps."""
        with self._lock:
            self._digests[int(step)] = text

    def event(self, step: int, kind: str, message: str, data: Mapping[str, Any] | None = None) -> None:
        """Record that something happened, and flush where the disk takes it. `data`: built-in types, NaN and infinities included.

        Raises RunError for data of other types.
        """
        try:
            text = json.dumps(json_values.encode(dict(data or {})), allow_nan=False)
        except json_values.NotJsonError as error:
            raise RunError(f"the data of the event {kind!r} cannot be stored: {error}") from error
        with self._lock:
            self._events.append((int(step), kind, message, text))
            self._try_to_flush()

    def supersede(self, from_step: int) -> None:
        """Begin a new segment at `from_step`: what was recorded from there on stays in the file, but is no longer live."""
        with self._lock:
            self.flush()
            connection = self._writer()
            with database.explain_errors(self.path), database.transaction(connection):
                connection.execute("UPDATE segment SET live_until = min(live_until, ?)", (from_step,))
                new = connection.execute(
                    "INSERT INTO segment (first_step, live_until) VALUES (?, ?)", (from_step, ENDLESS)
                )
                segment = new.lastrowid
            self._segment, self._first_step, self._last_step = segment or 1, from_step, from_step - 1

    def flush(self, *, durable: bool = False) -> None:
        """Write the buffered rows in one transaction. If that fails they stay buffered, and the file is as it was.

        A killed process loses nothing that was flushed. A power cut may lose it unless the disk has confirmed it (`durable`, a
        few milliseconds): use that before a checkpoint, so that the history is never behind it.
        """
        with self._lock:
            self._next_flush = time.monotonic() + self._flush_seconds
            connection = self._writer()
            if self._rows or self._arrays or self._digests or self._events:
                self._write(connection)
            self._unwritten = None
            if durable:
                with database.explain_errors(self.path):
                    connection.execute("PRAGMA wal_checkpoint").fetchall()

    def restore(self) -> bool:
        """Write the file anew where somebody removed or replaced it while it is open, and give whether that was so.

        Nothing is lost: the system keeps a removed file's contents as long as it is open. What was put under its name is moved
        aside. Raises RunError where the file cannot be written.
        """
        with self._lock:
            if self._connection is None or self._in_place():
                return False
            with database.explain_errors(self.path):
                for path in (self.path, *database.beside(self.path)):
                    if os.path.lexists(path):
                        files.set_aside(path)
            self.detach()
            kept, self._connection = self._writer(), self._open_writer()
            with database.explain_errors(self.path):
                kept.backup(self._connection)
            kept.close()
            return True

    def detach(self) -> None:
        """Go on in memory, with all that the file holds: it cannot be written any more."""
        with self._lock, database.explain_errors(self.path):
            memory = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
            connection = self._writer()
            connection.backup(memory)
            connection.close()
            self._connection = memory
            self.flush()

    def copy_to(self, path: Path) -> None:
        """Write all that is recorded into a new file. Raises RunError."""
        with self._lock, database.explain_errors(path), closing(sqlite3.connect(path)) as copy:
            self._writer().backup(copy)

    def close(self) -> None:
        """Flush and close; closing twice is harmless, and a forked child closes nothing of its parent's."""
        with self._lock:
            if self._connection is None or self._owner != os.getpid():
                return
            try:
                self.flush()
            finally:
                self._connection.close()
                self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Reading

    def columns(self, *, from_step: int = 0) -> dict[str, npt.NDArray[Any]]:
        """Give the live figures as columns of equal length, by step: "step" (int64) and each name (float64).

        NaN stands where nothing was recorded and where NaN was; `series` tells the two apart.
        """

        def query(connection: sqlite3.Connection) -> tuple[list[str], list[tuple[Any, ...]]]:
            names = _columns(connection)
            fields = ", ".join(["step", *(f"c{number}" for number in names.values())])
            return list(names), _live_rows(connection, fields, from_step)

        names, rows = self._read(query)
        values = np.array(rows, dtype=np.float64).reshape(len(rows), len(names) + 1).T
        named = {name: np.ascontiguousarray(column) for name, column in zip(names, values[1:], strict=True)}
        return {"step": values[0].astype(np.int64), **named}

    def series(self, name: str) -> Series:
        """Give the live values recorded under one name, by step; RunError where there is no such name."""

        def query(connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
            names = _columns(connection)
            if name not in names:
                known = f"it has: {', '.join(names) or 'nothing yet'}."
                raise RunError(f"the history has no {name!r};{nearest(name, names)} {known}")
            return _live_rows(connection, f"step, c{names[name]}, nan", 0)

        rows = self._read(query)
        recorded = [
            (step, value) for step, value, nan in rows if value is not None or (nan and name in json.loads(nan))
        ]
        steps, values = [step for step, _ in recorded], [value for _, value in recorded]
        return Series(np.array(steps, np.int64), np.array(values, np.float64))

    def superseded(self, names: Sequence[str]) -> list[Superseded]:
        """Give the figures that are superseded, by segment; NaN where nothing was recorded under a name."""

        def query(connection: sqlite3.Connection) -> tuple[list[Segment], list[tuple[Any, ...]]]:
            columns = _columns(connection)
            fields = ", ".join(f"c{columns[name]}" if name in columns else "NULL" for name in names)
            sql = f"""SELECT segment, step, {fields} FROM figures JOIN segment ON segment = id
                        WHERE step >= live_until ORDER BY segment, step"""
            return _segments(connection), _all(connection, sql)

        segments, rows = self._read(query)
        found: dict[tuple[int, int], list[tuple[Any, ...]]] = {}
        for segment, step, *values in rows:
            by = min(later.id for later in segments if later.id > segment and later.first_step <= step)
            found.setdefault((segment, by), []).append((step, *values))
        return [
            Superseded(segment, by, dict(zip(("step", *names), np.array(part, np.float64).T, strict=True)))
            for (segment, by), part in found.items()
        ]

    def arrays(self, name: str) -> ArraySeries:
        """Give the live arrays recorded under a name, by step; RunError where there is no such name."""
        sql = """SELECT step, shape, data FROM arrays JOIN segment ON segment = id
                   WHERE name = ? AND step >= first_step AND step < live_until ORDER BY step"""
        rows = self._read(lambda connection: _all(connection, sql, (name,)))
        if not rows:
            raise RunError(f"the history has no array {name!r}.")
        values = [np.frombuffer(data, "<f4").reshape(json.loads(shape)) for _, shape, data in rows]
        return ArraySeries(np.array([row[0] for row in rows], np.int64), np.stack(values).astype(np.float32))

    def events(self) -> list[Event]:
        """List everything that happened, in order, superseded or not."""
        sql = """SELECT step, kind, message, data, segment, step >= live_until
                   FROM event JOIN segment ON segment = segment.id ORDER BY event.id"""
        return [
            Event(step, kind, message, json_values.decode(json.loads(data)), segment, bool(superseded))
            for step, kind, message, data, segment, superseded in self._read(lambda connection: _all(connection, sql))
        ]

    def digests(self, segment: int | None = None) -> dict[int, str]:
        """Give the live digests by step, or all that one segment recorded, superseded or not."""
        sql = "SELECT step, text FROM digest JOIN segment ON segment = id WHERE "
        live = "step >= first_step AND step < live_until"
        which, values = (live, ()) if segment is None else ("id = ?", (segment,))
        return dict(self._read(lambda connection: _all(connection, f"{sql}{which} ORDER BY step", values)))

    def segments(self) -> list[Segment]:
        """List the segments, in order."""
        return self._read(_segments)

    def first_difference(self, other: History) -> int | None:
        """Find the first step, of those of which both have a digest, at which the weights differ; None: at none."""
        theirs = other.digests()
        return next((step for step, text in self.digests().items() if theirs.get(step, text) != text), None)

    # Internals

    def _open_writer(self) -> sqlite3.Connection:
        connection = database.open_writer(
            self.path, kind=KIND, format=FORMAT, schema=SCHEMA, busy_seconds=self._busy_seconds
        )
        self._opened = self._identities()
        return connection

    def _identities(self) -> list[tuple[int, int] | None]:
        return [files.identity(path) for path in (self.path, database.log(self.path))]

    def _in_place(self) -> bool:
        """Whether the files that are open are still those under their names."""
        return all(now == then for now, then in zip(self._identities(), self._opened, strict=True) if then is not None)

    def _try_to_flush(self) -> None:
        """Flush; where the disk refuses, everything stays buffered, and is tried again after `flush_seconds`."""
        if self._connection is None or self._owner != os.getpid():
            self._writer()  # raises
        try:
            self.flush()
        except RunError as error:
            refused = isinstance(error.__cause__, sqlite3.Error | OSError)
            if not refused or len(self._rows) > MOST_UNWRITTEN:
                raise
            self._unwritten = error

    def _writer(self) -> sqlite3.Connection:
        if self._connection is None:
            raise RunError(f"{self.path} is closed or open for reading only: open it with History(folder) to write.")
        # Writing over a connection inherited through a fork would damage the file.
        if self._owner != os.getpid():
            raise RunError(f"{self.path} was opened by the parent of this process, which alone may write it.")
        return self._connection

    def _read(self, query: Callable[[sqlite3.Connection], Result]) -> Result:
        """Run a query: a writer over its own connection, so that it sees all; a reader opens the file for each."""
        with self._lock:
            if self._connection is not None:
                self.flush()
                with database.explain_errors(self.path):
                    return query(self._connection)
        return database.read(self.path, query, kind=KIND, format=FORMAT, busy_seconds=self._busy_seconds)

    def _refuse_figures(self, step: int) -> None:
        """Raise the RunError that says why `append` cannot record these."""
        self._writer()
        if step < self._first_step:
            begins = f"where this segment begins: call supersede({step}) first"
            raise RunError(f"step {step} lies before {self._first_step}, {begins}.")
        raise RunError("a figure cannot be named 'step', which is the name of the column of steps.")

    def _latest_step(self) -> int:
        sql = "SELECT coalesce(max(step), ?) FROM figures WHERE segment = ?"
        return self._writer().execute(sql, (self._first_step - 1, self._segment)).fetchone()[0]

    def _write(self, connection: sqlite3.Connection) -> None:
        with database.explain_errors(self.path), database.transaction(connection):
            columns = self._with_new_columns(connection)
            self._write_rows(connection, columns)
            self._write_rest(connection)
        self._columns = columns
        self._last_step = max([self._last_step, *self._rows])
        for buffered in (self._rows, self._arrays, self._digests, self._events):
            buffered.clear()

    def _with_new_columns(self, connection: sqlite3.Connection) -> dict[str, int]:
        """Add a column for each name that is new, and show it in the view `live`, which is for other programs."""
        new = dict.fromkeys(name for row in self._rows.values() for name in row if name not in self._columns)
        if not new:
            return self._columns
        columns = self._columns | {name: number for number, name in enumerate(new, len(self._columns) + 1)}
        if len(columns) > MOST_COLUMNS:
            raise RunError(
                f"the history has room for {MOST_COLUMNS} figures per step: record more as one array (append_array)."
            )
        for name in new:
            connection.execute("INSERT INTO name VALUES (?, ?)", (columns[name], name))
            connection.execute(f"ALTER TABLE figures ADD COLUMN c{columns[name]}")
        named = [f"c{number} AS {_quoted(name)}" for name, number in columns.items()]
        connection.execute("DROP VIEW IF EXISTS live")
        connection.execute(LIVE.format(shown=", ".join(["step", *named, "nan"])))
        return columns

    def _write_rows(self, connection: sqlite3.Connection, columns: dict[str, int]) -> None:
        marks = ", ".join("?" * (len(columns) + 3))
        rows = [
            self._row(
                step, values if step > self._last_step else self._stored(connection, step, columns) | values, columns
            )
            for step, values in self._rows.items()
        ]
        connection.executemany(f"INSERT OR REPLACE INTO figures VALUES ({marks})", rows)

    def _row(self, step: int, values: Mapping[str, float], columns: dict[str, int]) -> tuple[Any, ...]:
        row: list[Any] = [self._segment, int(step), None, *[None] * len(columns)]
        nan = list[str]()
        for name, value in values.items():
            row[columns[name] + 2] = value
            # SQLite stores NaN as NULL, which also means "not recorded": so the names of NaN values are stored in a column.
            if value != value:
                nan.append(name)
        if nan:
            row[2] = json.dumps(nan)
        return tuple(row)

    def _stored(self, connection: sqlite3.Connection, step: int, columns: dict[str, int]) -> dict[str, float]:
        sql = "SELECT * FROM figures WHERE segment = ? AND step = ?"
        row = connection.execute(sql, (self._segment, int(step))).fetchone()
        if row is None:
            return {}
        stored = {name: row[number + 2] for name, number in columns.items() if row[number + 2] is not None}
        return stored | dict.fromkeys(json.loads(row[2] or "[]"), float("nan"))

    def _write_rest(self, connection: sqlite3.Connection) -> None:
        arrays = [(self._segment, *entry) for entry in self._arrays]
        connection.executemany("INSERT OR REPLACE INTO arrays VALUES (?, ?, ?, ?, ?)", arrays)
        digests = [(self._segment, step, text) for step, text in self._digests.items()]
        connection.executemany("INSERT OR REPLACE INTO digest VALUES (?, ?, ?)", digests)
        events = [(self._segment, *entry) for entry in self._events]
        connection.executemany("INSERT INTO event (segment, step, kind, message, data) VALUES (?, ?, ?, ?, ?)", events)


def _file(where: Path) -> Path:
    return where if where.suffix == ".sqlite" or where.is_file() else where / FILE


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _all(connection: sqlite3.Connection, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All rows of a query; none where the tables were never made."""
    if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
        return []
    return connection.execute(sql, values).fetchall()


def _columns(connection: sqlite3.Connection) -> dict[str, int]:
    return dict(_all(connection, "SELECT name, id FROM name ORDER BY id"))


def _segments(connection: sqlite3.Connection) -> list[Segment]:
    return [Segment(*row) for row in _all(connection, "SELECT id, first_step, live_until FROM segment ORDER BY id")]


def _live_rows(connection: sqlite3.Connection, fields: str, from_step: int) -> list[tuple[Any, ...]]:
    """Each segment's live rows; the segments' live ranges follow one another, so the whole is in order of steps."""
    sql = f"SELECT {fields} FROM figures WHERE segment = ? AND step >= ? AND step < ? ORDER BY step"
    rows = list[tuple[Any, ...]]()
    for segment, first_step, live_until in _segments(connection):
        rows += _all(connection, sql, (segment, max(first_step, from_step), live_until))
    return rows
