"""The history of a run: figures of every step, arrays of some steps, digests of the weights and events, in one SQLite file.

Training appends to it, which takes a few microseconds per step; rows are written together, one transaction per flush, in
write-ahead mode: others can read while it grows, and a process killed at any moment leaves a file that opens again.

After a resume or a rollback some steps are taken again. Nothing is deleted: a new segment begins at the first of them, and
what earlier segments hold from there on is superseded. A row is live, that is part of the run as it now is, while its step
is below its segment's `live_until`.

Rows are summed in blocks (`records/history_sums.py`). Those of a damaged block are left out of what is read, and `damage` names
them.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, NamedTuple, ParamSpec, Self, SupportsFloat

import numpy as np
import numpy.typing as npt

from thalweg.errors import RunError, nearest
from thalweg.records import database, files, history_sums, json_values
from thalweg.records.database import Result
from thalweg.records.history_sums import Block, Row
from thalweg.records.kinds import Kind, anything, check, number, optional, record, table, text, whole

FORMAT = 2  # 1 had no sums
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
{history_sums.TABLE};
INSERT INTO sums VALUES ('segment', 0, 0, 1, {history_sums.one_sum("segment", (0, 0, 1, 0, ENDLESS))});
{LIVE.format(shown="step, nan")};
"""

BLOCK = history_sums.BLOCK
DAMAGED = {
    "figures": "The figures of steps {steps} in history.sqlite are damaged and left out.",
    "arrays": "The arrays of steps {steps} in history.sqlite are damaged and left out.",
    "digest": "The digests of steps {steps} in history.sqlite are damaged and left out.",
    "event": "The events of steps {steps} in history.sqlite are damaged and left out.",
}
P = ParamSpec("P")
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


def _explained(read: Callable[Concatenate[History, P], Result]) -> Callable[Concatenate[History, P], Result]:
    """Decorate a method that reads, so that a row of wrong values is a RunError that names the file."""

    @functools.wraps(read)
    def explained(history: History, *arguments: P.args, **named: P.kwargs) -> Result:
        with database.explain_damage(history.path):
            return read(history, *arguments, **named)

    return explained


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
            with database.explain_damage(self.path):
                self._read(_columns)  # raises where the file cannot be read
            return
        self._connection = self._open_writer()
        with database.explain_errors(self.path), database.explain_damage(self.path):
            _add_sums(self._connection)
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
        message = message.encode(
            "utf-8", "backslashreplace"
        ).decode()  # an error's text may hold halves of surrogate pairs
        with self._lock:
            self._events.append((int(step), kind, message, text))
            self._try_to_flush()

    def supersede(self, from_step: int) -> None:
        """Begin a new segment at `from_step`: what was recorded from there on stays in the file, but is no longer live."""
        with self._lock:
            self.flush()
            connection = self._writer()
            with database.explain_errors(self.path), database.transaction(connection):
                before = _rows(connection, "segment")
                connection.execute("UPDATE segment SET live_until = min(live_until, ?)", (from_step,))
                new = connection.execute(
                    "INSERT INTO segment (first_step, live_until) VALUES (?, ?)", (from_step, ENDLESS)
                )
                history_sums.add(connection, "segment", _rows(connection, "segment"), before)
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

    @_explained
    def columns(self, *, from_step: int = 0) -> dict[str, npt.NDArray[Any]]:
        """Give the live figures as columns of equal length, by step: "step" (int64) and each name (float64).

        NaN stands where nothing was recorded and where NaN was; `series` tells the two apart.
        """

        names, segments, rows = self._read(_figures)
        live = [(row[1], *row[3:]) for row in _live(rows, segments) if row[1] >= from_step]
        values = np.array(live, dtype=np.float64).reshape(len(live), len(names) + 1).T
        named = {name: np.ascontiguousarray(column) for name, column in zip(names, values[1:], strict=True)}
        return {"step": values[0].astype(np.int64), **named}

    @_explained
    def series(self, name: str) -> Series:
        """Give the live values recorded under one name, by step; RunError where there is no such name."""

        names, segments, rows = self._read(_figures)
        if name not in names:
            known = f"it has: {', '.join(names) or 'nothing yet'}."
            raise RunError(f"the history has no {name!r};{nearest(name, names)} {known}")
        column = names[name] + 2
        recorded = [
            (row[1], float("nan") if row[column] is None else row[column])
            for row in _live(rows, segments)
            if row[column] is not None or (row[2] and name in json.loads(row[2]))
        ]
        steps, values = [step for step, _ in recorded], [value for _, value in recorded]
        return Series(np.array(steps, np.int64), np.array(values, np.float64))

    @_explained
    def superseded(self, names: Sequence[str]) -> list[Superseded]:
        """Give the figures that are superseded, by segment; NaN where nothing was recorded under a name."""

        columns, segments, rows = self._read(_figures)
        live_until = {segment.id: segment.live_until for segment in segments}
        places = [columns[name] + 2 if name in columns else None for name in names]
        found: dict[tuple[int, int], list[Row]] = {}
        for row in rows:
            segment, step = row[:2]
            if step >= live_until[segment]:
                by = min(later.id for later in segments if later.id > segment and later.first_step <= step)
                values = (None if place is None else row[place] for place in places)
                found.setdefault((segment, by), []).append((step, *values))
        return [
            Superseded(segment, by, dict(zip(("step", *names), np.array(part, np.float64).T, strict=True)))
            for (segment, by), part in found.items()
        ]

    @_explained
    def arrays(self, name: str) -> ArraySeries:
        """Give the live arrays recorded under a name, by step; RunError where there is no such name."""
        segments, found = self._read(lambda connection: (_segments(connection), _intact_rows(connection, "arrays")))
        rows = [(row[1], *row[3:]) for row in _live(found, segments) if row[2] == name]
        if not rows:
            raise RunError(f"the history has no array {name!r}.")
        values = [np.frombuffer(data, "<f4").reshape(json.loads(shape)) for _, shape, data in rows]
        return ArraySeries(np.array([row[0] for row in rows], np.int64), np.stack(values).astype(np.float32))

    @_explained
    def events(self) -> list[Event]:
        """List everything that happened, in order, superseded or not."""
        segments, rows = self._read(lambda connection: (_segments(connection), _intact_rows(connection, "event")))
        live_until = {segment.id: segment.live_until for segment in segments}
        return [
            _event(step, kind, message, json_values.decode(json.loads(data)), segment, step >= live_until[segment])
            for segment, step, _, kind, message, data in rows
        ]

    @_explained
    def digests(self, segment: int | None = None) -> dict[int, str]:
        """Give the live digests by step, or all that one segment recorded, superseded or not."""
        segments, rows = self._read(lambda connection: (_segments(connection), _intact_rows(connection, "digest")))
        shown = _live(rows, segments) if segment is None else [row for row in rows if row[0] == segment]
        return {step: text for _, step, text in shown}

    def damage(self) -> list[str]:
        """Say which rows are damaged, by their sums; what the other methods give is without them.

        Raises RunError where the tables that tell what all rows mean are damaged.
        """

        def query(connection: sqlite3.Connection) -> dict[str, set[Block]]:
            return {part: _damaged(connection, part, _rows(connection, part)) for part in DAMAGED}

        return [
            DAMAGED[part].format(steps=f"{max(0, block * BLOCK):,} to {block * BLOCK + BLOCK - 1:,}")
            for part, found in self._read(query).items()
            for _, block in sorted(found)
        ]

    def lost(self, reached: int) -> list[str]:
        """Say which steps have no row, of a run that is known to have come to step `reached`.

        A file that was emptied or put back from an older copy, or whose write-ahead log was damaged, lacks its last rows and is
        whole otherwise.
        """
        sql = "SELECT coalesce(max(step), -1) FROM figures"
        last = max([-1, *(row[0] for row in self._read(lambda connection: _all(connection, sql)))])
        if last >= reached or reached == 0:
            return []
        which = "before" if last < 0 else f"from step {last + 1:,} to"
        return [
            f"The figures {which} step {reached:,} are lost: {FILE} was removed, damaged or replaced by an older one."
        ]

    @_explained
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
        return database.read(
            self.path, lambda reader: _at_once(reader, query), kind=KIND, format=FORMAT, busy_seconds=self._busy_seconds
        )

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
            history_sums.add(connection, "name", [(0, 0, columns[name], name)])
            connection.execute(f"ALTER TABLE figures ADD COLUMN c{columns[name]}")
        named = [
            f"c{number} AS {_quoted(shown)}" for shown, number in zip(_apart(columns), columns.values(), strict=True)
        ]
        connection.execute("DROP VIEW IF EXISTS live")
        connection.execute(LIVE.format(shown=", ".join(["step", *named, "nan"])))
        return columns

    def _write_rows(self, connection: sqlite3.Connection, columns: dict[str, int]) -> None:
        marks = ", ".join("?" * (len(columns) + 3))
        rows, replaced = list[Row](), list[Row]()
        for step, values in self._rows.items():
            stored = None if step > self._last_step else self._stored_row(connection, step)
            if stored is not None:
                replaced.append(stored)
                values = _values(stored, columns) | values
            rows.append(self._row(step, values, columns))
        connection.executemany(f"INSERT OR REPLACE INTO figures VALUES ({marks})", rows)
        history_sums.add(connection, "figures", rows, replaced)

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

    def _stored_row(self, connection: sqlite3.Connection, step: int) -> Row | None:
        sql = "SELECT * FROM figures WHERE segment = ? AND step = ?"
        return connection.execute(sql, (self._segment, int(step))).fetchone()

    def _write_rest(self, connection: sqlite3.Connection) -> None:
        arrays = {(name, step): (self._segment, step, name, *rest) for step, name, *rest in self._arrays}
        self._replace(connection, "arrays", list(arrays.values()), " AND name = ?")
        digests = [(self._segment, step, text) for step, text in self._digests.items()]
        self._replace(connection, "digest", digests)
        sql = "INSERT INTO event (segment, step, kind, message, data) VALUES (?, ?, ?, ?, ?)"
        for step, *entry in self._events:
            number = connection.execute(sql, (self._segment, step, *entry)).lastrowid
            history_sums.add(connection, "event", [(self._segment, step, number, *entry)])

    def _replace(self, connection: sqlite3.Connection, table: str, rows: list[Row], key: str = "") -> None:
        """Write rows whose key is segment, step and, with `key`, what comes third."""
        if not rows:
            return
        marks, keys = ", ".join("?" * len(rows[0])), 3 if key else 2
        sql = f"SELECT * FROM {table} WHERE segment = ? AND step = ?{key}"
        replaced = [found for row in rows if (found := connection.execute(sql, row[:keys]).fetchone())]
        connection.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", rows)
        history_sums.add(connection, table, rows, replaced)


def _file(where: Path) -> Path:
    return where if where.suffix == ".sqlite" or os.path.isfile(where) else where / FILE


def _apart(names: Iterable[str]) -> list[str]:
    """Give names as columns of the view, which takes those that differ only in case for one: with a number behind the later one.

    >>> _apart(["loss", "Loss", "step"])
    ['loss', 'Loss (2)', 'step (2)']
    """
    given, taken = list[str](), {"step", "nan"}
    for name in names:
        shown = next(s for k in itertools.count(1) if (s := name if k == 1 else f"{name} ({k})").lower() not in taken)
        taken.add(shown.lower())
        given.append(shown)
    return given


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _all(connection: sqlite3.Connection, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All rows of a query; none where the tables were never made."""
    if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
        return []
    return connection.execute(sql, values).fetchall()


def _values(row: Row, columns: Mapping[str, int]) -> dict[str, float]:
    """Give the figures of a stored row by name, a recorded NaN included."""
    stored = {name: row[number + 2] for name, number in columns.items() if row[number + 2] is not None}
    return stored | dict.fromkeys(json.loads(row[2] or "[]"), float("nan"))


def _at_once(connection: sqlite3.Connection, query: Callable[[sqlite3.Connection], Result]) -> Result:
    """Run a query on one state of the file, so that rows and sums belong together while another process writes."""
    connection.text_factory = lambda data: data.decode("utf-8", "backslashreplace")  # a damaged text is no error yet
    connection.execute("BEGIN")
    try:
        return query(connection)
    finally:
        connection.execute("COMMIT")


def _add_sums(connection: sqlite3.Connection) -> None:
    """Give a history of format 1 its sums: what is in it now is what later readers compare with."""
    if _has_sums(connection) or _all(connection, "SELECT value FROM meta WHERE key = 'format'") != [(1,)]:
        return
    with database.transaction(connection):
        history_sums.add_all(connection)
        connection.execute(f"UPDATE meta SET value = {FORMAT} WHERE key = 'format'")


def _has_sums(connection: sqlite3.Connection) -> bool:
    return bool(connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'sums'").fetchone()[0])


def _rows(connection: sqlite3.Connection, part: str) -> list[Row]:
    return _all(connection, history_sums.ROWS[part])


def _damaged(connection: sqlite3.Connection, part: str, rows: Sequence[Row]) -> set[Block]:
    """Give the damaged blocks of a table; none where the history is of format 1, or has no tables yet."""
    if _has_sums(connection):
        return history_sums.damaged(connection, part, rows)
    if _all(connection, "SELECT value FROM meta WHERE key = 'format' AND value > 1"):
        raise RunError("the history is damaged: its sums are gone. Restore history.sqlite from a copy.")
    return set()


def _intact_rows(connection: sqlite3.Connection, part: str) -> list[Row]:
    rows = _rows(connection, part)
    return history_sums.intact(rows, _damaged(connection, part, rows))


def _key_rows(connection: sqlite3.Connection, part: str) -> list[Row]:
    """Give the rows of a table that tells what all others mean. Raises RunError where it is damaged."""
    rows = _rows(connection, part)
    if _damaged(connection, part, rows):
        raise RunError(
            f"the history is damaged: its table '{part}', by which figures are known, does not agree with its sum. Restore"
            f" history.sqlite from a copy."
        )
    return [row[2:] for row in rows]


def _columns(connection: sqlite3.Connection) -> dict[str, int]:
    columns = {name: column for column, name in _key_rows(connection, "name")}
    for name, column in columns.items():
        check({"name": name, "id": column}, {"name": text, "id": whole})
    return columns


def _segments(connection: sqlite3.Connection) -> list[Segment]:
    segments = [Segment(*row) for row in _key_rows(connection, "segment")]
    for segment in segments:
        check(segment._asdict(), dict.fromkeys(Segment._fields, whole))
    return segments


_EVENT: Mapping[str, Kind] = {
    "step": whole,
    **dict.fromkeys(("kind", "message"), text),
    "data": record(
        {
            **dict.fromkeys(("from", "to", "accumulate"), whole),
            **dict.fromkeys(("rate_factor", "clip_norm"), optional(number)),
            **dict.fromkeys(("cause", "symptom", "severity"), text),
            "evidence": optional(table(anything)),
        }
    ),
}
"""What of an event is read again."""


def _event(*parts: Any) -> Event:
    """Make an event of what is stored of it. Raises TypeError where that is something else."""
    event = Event(*parts)
    check(event._asdict(), _EVENT)
    return event


def _figures(connection: sqlite3.Connection) -> tuple[dict[str, int], list[Segment], list[Row]]:
    """Give the numbers of the columns by name, the segments, and all rows of figures that are not damaged."""
    return _columns(connection), _segments(connection), _intact_rows(connection, "figures")


def _live(rows: Sequence[Row], segments: Sequence[Segment]) -> list[Row]:
    """Give the live rows, which begin with segment and step, in order of steps."""
    ranges = {segment.id: (segment.first_step, segment.live_until) for segment in segments}
    live = [row for row in rows if ranges[row[0]][0] <= row[1] < ranges[row[0]][1]]
    return sorted(live, key=lambda row: row[1])
