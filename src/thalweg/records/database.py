"""SQLite files that survive a killed writer, and that a reader never changes.

A writer uses write-ahead mode: readers never wait for it, and a process killed at any moment loses at most its last
transaction. A reader opens the file for one query at a time and never changes it, also on a disk where it may not write.

A file may come from elsewhere. What a view or a trigger in it would compute, without end perhaps, is not what was asked for: no
statement goes through one.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TypeVar

from thalweg.errors import RunError, error_text
from thalweg.records import files

READ_VERSION_OFFSET = 19  # byte of SQLite's file header that says which journal mode a reader must know
WRITE_AHEAD = 2  # its value in write-ahead mode
ATTEMPTS = 5  # to read a file that a writer opens meanwhile

Result = TypeVar("Result")


@contextmanager
def explain_errors(path: Path) -> Generator[None, None, None]:
    """Turn SQLite's and the system's errors into a RunError that says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        raise RunError(_error_message(path, error)) from error
    except UnicodeDecodeError as error:  # a name in a damaged file, in SQLite's own message
        raise RunError(f"{path} is damaged. Save what is left with: sqlite3 {path.name} .recover") from error
    except OSError as error:
        raise RunError(f"{path} cannot be used: {error.strerror or error}. Check its folder and the disk.") from error


@contextmanager
def explain_damage(path: Path) -> Generator[None, None, None]:
    """Turn an error in reading what rows hold, where it is not of the kind that belongs there, into a RunError."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise RunError(
            f"{path} is damaged: a row holds what does not belong there ({error_text(error)}). Save what is left with:"
            f" sqlite3 {path.name} .dump"
        ) from error


def open_writer(path: Path, *, kind: str, format: int, schema: str, busy_seconds: float) -> sqlite3.Connection:
    """Open a file of this kind for writing and make it where it is missing or empty; autocommit, any thread.

    Raises RunError where it is another kind of file, of a newer format, locked, damaged, or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"{path.parent} cannot be made: {error.strerror}. Choose a folder that can be written."
        ) from error
    _check_regular(path)
    with explain_errors(path):
        for name in beside(path):
            files.set_aside_unless_regular(name)
        for name in (*beside(path), path):
            files.make_own(name)
        connection = sqlite3.connect(path, timeout=busy_seconds, isolation_level=None, check_same_thread=False)
    try:
        with explain_errors(path):
            connection.set_authorizer(_tables_only)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            with transaction(connection):
                if _is_empty(connection):
                    for statement in schema.split(";\n"):
                        connection.execute(statement)
                check_kind(connection, path, kind=kind, format=format)
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Generator[None, None, None]:
    """Write everything within the block, or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def read(
    path: Path, query: Callable[[sqlite3.Connection], Result], *, kind: str, format: int, busy_seconds: float
) -> Result:
    """Open a file of this kind for reading, run one query on it, and close it.

    An empty file, whose writer was killed before it made the tables, is read as one without tables.

    Raises RunError where the file is missing, another kind of file, of a newer format, or damaged.
    """
    for _ in range(ATTEMPTS):
        before = _file_state(path, kind)
        try:
            result = _read_once(path, query, kind, format, busy_seconds)
        except RunError:
            if _has_log(before) or before == _file_state(path, kind):
                raise
            continue
        if _has_log(before) or before == _file_state(path, kind):
            return result
        # A writer opened the file while it was read as immutable: what was read may be a mixture of old and new.
    raise RunError(f"{path} changes faster than it can be read: try again.")


def check_kind(connection: sqlite3.Connection, path: Path, *, kind: str, format: int) -> None:
    """Raise RunError unless the file's `meta` table says this kind and a format that is known here."""
    try:
        meta = dict(connection.execute("SELECT key, value FROM meta"))
    except sqlite3.OperationalError as error:
        if error.sqlite_errorname != "SQLITE_ERROR":
            raise
        meta = dict[str, object]()
    if meta.get("kind") != kind:
        raise RunError(f"{path} is a database of another program, not a {kind}: give the folder of a run.")
    found = meta.get("format")
    if not isinstance(found, int) or found > format:
        raise RunError(f"{path} is of format {found}, this thalweg reads up to {format}: install a newer thalweg.")


def _is_empty(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0


def _read_once(
    path: Path, query: Callable[[sqlite3.Connection], Result], kind: str, format: int, busy_seconds: float
) -> Result:
    with ExitStack() as stack, explain_errors(path):
        connection = stack.enter_context(closing(_open_reader(path, stack, busy_seconds)))
        if not _is_empty(connection):
            check_kind(connection, path, kind=kind, format=format)
        return query(connection)


def _open_reader(path: Path, stack: ExitStack, busy_seconds: float) -> sqlite3.Connection:
    """Open a file with its write-ahead log; without a log nobody writes, and `immutable` leaves the file untouched."""
    if not log(path).exists() and _is_write_ahead(path):
        return _connect(path, "immutable=1", busy_seconds)
    try:
        return _connect(path, "mode=ro", busy_seconds)
    except sqlite3.OperationalError as error:
        # A killed process left a log in a folder that cannot be written: the log can be replayed only on a copy.
        if error.sqlite_errorname.startswith("SQLITE_BUSY") or not log(path).exists():
            raise
    copy = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="thalweg-"))) / path.name
    shutil.copyfile(path, copy)
    shutil.copyfile(log(path), log(copy))
    return _connect(copy, "mode=rw", busy_seconds)


def _connect(path: Path, options: str, busy_seconds: float) -> sqlite3.Connection:
    address = f"{path.absolute().as_uri()}?{options}"
    connection = sqlite3.connect(address, uri=True, timeout=busy_seconds, isolation_level=None, check_same_thread=False)
    try:
        connection.set_authorizer(_tables_only)
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _tables_only(action: int, first: str | None, second: str | None, base: str | None, through: str | None) -> int:
    """Allow a statement all but what a view or a trigger does in its place, `through` being its name."""
    return sqlite3.SQLITE_OK if through is None else sqlite3.SQLITE_DENY


def _file_state(path: Path, kind: str) -> tuple[int, int, bool]:
    """Length and time of the file, and whether there is a log: the same before and after means nobody wrote the file."""
    for name in (path, *beside(path)):
        _check_regular(name)
    try:
        status = path.stat()
        return status.st_size, status.st_mtime_ns, log(path).exists()
    except FileNotFoundError as error:
        raise RunError(f"there is no {kind} at {path}: give the folder of a run.") from error
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}. Check its permissions.") from error


def _has_log(state: tuple[int, int, bool]) -> bool:
    return state[2]


def _check_regular(path: Path) -> None:
    """Raise RunError where something else than a file is under the name: SQLite would follow a link and wait for a pipe."""
    try:
        files.check_regular(path)
    except OSError as error:
        raise RunError(f"{path} cannot be used: {error.strerror}. Put the file itself there.") from error


def beside(path: Path) -> list[Path]:
    """The files that SQLite makes beside one: write-ahead log, its index, and the journal of other modes."""
    return [path.with_name(f"{path.name}{ending}") for ending in ("-wal", "-shm", "-journal")]


def log(path: Path) -> Path:
    """The write-ahead log of a file."""
    return path.with_name(f"{path.name}-wal")


def _is_write_ahead(path: Path) -> bool:
    # Only asked while there is no log, so no writer of this process holds a lock that closing the file would drop.
    try:
        with open(path, "rb") as file:
            header = file.read(READ_VERSION_OFFSET + 1)
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}. Check its permissions.") from error
    return len(header) > READ_VERSION_OFFSET and header[READ_VERSION_OFFSET] == WRITE_AHEAD


def _has_views(path: Path) -> bool:
    """Tell whether a file has a view or a trigger at all, by its table of contents alone."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            found = connection.execute("SELECT count(*) FROM sqlite_master WHERE type IN ('view', 'trigger')")
            return bool(found.fetchone()[0])
    except sqlite3.Error:  # which the statement that failed would have told
        return True


def _error_message(path: Path, error: sqlite3.Error) -> str:
    name = getattr(error, "sqlite_errorname", "") or ""
    if name == "SQLITE_AUTH" and not _has_views(path):
        # SQLite takes an error in `_tables_only` for a refusal, and does not say which one it was.
        return f"{path} was being used when a signal's handler raised an error, which is lost. Try again."
    reasons = {
        "SQLITE_FULL": f"the disk that holds {path} is full: free some space and resume the run.",
        "SQLITE_BUSY": f"{path} is locked: another process is writing it. Stop that one, or give another folder.",
        "SQLITE_LOCKED": f"{path} is locked: another process is writing it. Stop that one, or give another folder.",
        "SQLITE_READONLY": f"{path} cannot be written: give this user permission to write there, or choose another folder.",
        "SQLITE_CANTOPEN": f"{path} cannot be opened: see that its folder exists, with permission to read and write there.",
        "SQLITE_AUTH": f"{path} is not as it was written: it has a view or a trigger in the place of a table. Save what is left"
        f" with: sqlite3 {path.name} .dump",
        "SQLITE_NOTADB": f"{path} is not a database: it is another kind of file. Give the folder of a run.",
        "SQLITE_CORRUPT": f"{path} is damaged. Save what is left with: sqlite3 {path.name} .recover",
        "SQLITE_IOERR": f"the disk that holds {path} does not read or write ({error}): check its space and its health.",
    }
    found = next((text for code, text in reasons.items() if name.startswith(code)), None)
    return found or f"{path} cannot be used: {error}."
