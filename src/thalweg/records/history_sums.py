"""Sums over the rows of a history, by which a reader knows damaged ones: a flipped bit in a figure is another figure to SQLite.

Each table's rows are summed in blocks of 64 steps of a segment. A block's sum is that of its rows' own, modulo 2^64, so that a
row can be added, or replaced, without reading the others: what was damaged before stays a difference.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

BLOCK = 64  # steps
TABLE = """CREATE TABLE sums (part TEXT, segment INTEGER, block INTEGER, rows INTEGER NOT NULL, sum INTEGER NOT NULL,
  PRIMARY KEY (part, segment, block)) WITHOUT ROWID"""
ROWS: Mapping[str, str] = {
    "figures": "SELECT * FROM figures ORDER BY segment, step",  # segment, step, nan, c1, c2, …
    "arrays": "SELECT segment, step, name, shape, data FROM arrays ORDER BY name, segment, step",
    "digest": "SELECT segment, step, text FROM digest ORDER BY segment, step",
    "event": "SELECT segment, step, id, kind, message, data FROM event ORDER BY id",
    "segment": "SELECT 0, 0, id, first_step, live_until FROM segment ORDER BY id",
    "name": "SELECT 0, 0, id, name FROM name ORDER BY id",
}
"""Each table's rows, of which the first two entries are segment and step."""

Row = tuple[Any, ...]
Block = tuple[int, int]
"""A segment and a number of 64 steps."""
Uint64s = npt.NDArray[np.uint64]
_MASK = 2**64 - 1


def row_sums(part: str, rows: Sequence[Row]) -> list[int]:
    """Give the sum of each row of a table."""
    if part != "figures":
        return [_text_sum(row) for row in rows]
    try:
        return _figure_sums(rows).tolist()
    except (TypeError, ValueError, OverflowError):  # some row holds what is no number: a damaged one
        return [_sum_or_zero(row) for row in rows]


def one_sum(part: str, row: Row) -> int:
    """Give the sum of a block of one row, as SQLite stores it."""
    return _signed(row_sums(part, [row])[0])


def blocks(rows: Sequence[Row], sums: Sequence[int], sign: int = 1) -> dict[Block, tuple[int, int]]:
    """Give for each block how many of these rows it has, and their sum; with sign -1, to take them away."""
    found: dict[Block, tuple[int, int]] = {}
    for row, value in zip(rows, sums, strict=True):
        block = _block(row)
        count, total = found.get(block, (0, 0))
        found[block] = count + sign, total + sign * value
    return found


def add(connection: sqlite3.Connection, part: str, new: Sequence[Row], old: Sequence[Row] = ()) -> None:
    """Add rows to the sums of a table, and take away those that they replace."""
    changes = blocks(new, row_sums(part, new))
    for block, (count, total) in blocks(old, row_sums(part, old), -1).items():
        known = changes.get(block, (0, 0))
        changes[block] = known[0] + count, known[1] + total
    for (segment, block), (count, total) in changes.items():
        key = (part, segment, block)
        sql = "SELECT rows, sum FROM sums WHERE part = ? AND segment = ? AND block = ?"
        before = connection.execute(sql, key).fetchone() or (0, 0)
        after = (before[0] + count, _signed(before[1] + total))
        connection.execute("INSERT OR REPLACE INTO sums VALUES (?, ?, ?, ?, ?)", (*key, *after))


def add_all(connection: sqlite3.Connection) -> None:
    """Make the table of sums, over the rows that there are: a history of an earlier version has none."""
    connection.execute(TABLE)
    for part, sql in ROWS.items():
        add(connection, part, connection.execute(sql).fetchall())


def damaged(connection: sqlite3.Connection, part: str, rows: Sequence[Row]) -> set[Block]:
    """Give the blocks whose sums do not agree with these rows, which are all of a table."""
    found = {block: (count, _signed(total)) for block, (count, total) in blocks(rows, row_sums(part, rows)).items()}
    sql = "SELECT segment, block, rows, sum FROM sums WHERE part = ?"
    # A row of sums that is damaged itself, and names no block, leaves its block without one.
    read = [row for row in connection.execute(sql, (part,)) if isinstance(row[0], int) and isinstance(row[1], int)]
    written = {(segment, block): (count, total) for segment, block, count, total in read}
    return {block for block in {*found, *written} if found.get(block, (0, 0)) != written.get(block, (0, 0))}


def intact(rows: Iterable[Row], without: set[Block]) -> list[Row]:
    """Give the rows that lie in none of these blocks."""
    return [row for row in rows if _block(row) not in without] if without else list(rows)


def _block(row: Row) -> Block:
    segment, step = row[:2]
    return (segment, step // BLOCK) if isinstance(segment, int) and isinstance(step, int) else (0, 0)


def _text_sum(row: Row) -> int:
    """The first 8 bytes of the sha256 of the row as JSON, bytes as hexadecimal text."""
    values = [value.hex() if isinstance(value, bytes) else value for value in row]
    return int.from_bytes(hashlib.sha256(json.dumps(values).encode()).digest()[:8], "little")


def _figure_sums(rows: Sequence[Row]) -> Uint64s:
    """Mix the 64 bits of a row's figures, each multiplied with a number of its column's, with segment, step and `nan`."""
    values = np.array([row[3:] for row in rows], np.float64).reshape(len(rows), -1)  # NULL becomes NaN
    factors = _factors(values.shape[1] + 3)
    bits = (values + 0.0).view(np.uint64) + np.uint64(1)  # 0.0 counts too; -0.0 is 0.0
    total = np.where(np.isnan(values), np.uint64(0), bits * factors[3:]).sum(1, dtype=np.uint64)
    for place in (0, 1):  # segment and step
        total += np.array([row[place] for row in rows], np.int64).astype(np.uint64) * factors[place]
    names = [0 if row[2] is None else zlib.crc32(str(row[2]).encode("utf-8", "backslashreplace")) for row in rows]
    return _mixed(total + np.array(names, np.uint64) * factors[2])


def _factors(count: int) -> Uint64s:
    """The odd numbers by which columns are multiplied: those of `splitmix64`."""
    return _mixed(np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) | np.uint64(1)


def _mixed(values: Uint64s) -> Uint64s:
    """The last part of `splitmix64`: rows that exchange a figure have another sum together."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _sum_or_zero(row: Row) -> int:
    try:
        return int(_figure_sums([row])[0])
    except (TypeError, ValueError, OverflowError):
        return 0


def _signed(total: int) -> int:
    """Give a sum as the signed integer that SQLite stores."""
    total &= _MASK
    return total - 2**64 if total >= 2**63 else total
