"""Steps that a run took and went back on: its history keeps them, though they are part of it no longer."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

import numpy as np

from thalweg.errors import RunError
from thalweg.records import database
from thalweg.records.history import FILE, FORMAT, KIND
from thalweg.records.run import Figures, Run

SHOWN = ("loss", "learning_rate", "gradient_norm")
BUSY_SECONDS = 10.0


def rolled_back_stretches(run: Run) -> list[Figures]:
    """Give each stretch of steps that a rollback undid, as columns; none for a run that is in memory only.

    Steps that were walked anew after a stop are left out: they came out the same.
    """
    went_back = {event.segment for event in run.events if event.kind == "rollback"}
    if run.folder is None or not went_back:
        return []
    try:
        stretches, rows = database.ask(
            run.folder / FILE, _superseded, kind=KIND, format=FORMAT, busy_seconds=BUSY_SECONDS
        )
    except (RunError, ValueError):  # the file was moved or is damaged: the rest of the run can be told all the same
        return []
    found: dict[tuple[int, int], list[Sequence[Any]]] = {}
    for segment, step, *values in rows:
        by = min(number for number, first in stretches.items() if number > segment and first <= step)
        if by in went_back and step > 0:
            found.setdefault((segment, by), []).append((step, *values))
    return [Figures(zip(("step", *SHOWN), np.array(part, np.float64).T, strict=True)) for part in found.values()]


def _superseded(connection: sqlite3.Connection) -> tuple[dict[int, int], list[tuple[Any, ...]]]:
    """Give each segment's first step, and the rows that live no longer."""
    columns = dict[str, int](connection.execute("SELECT name, id FROM name").fetchall())
    fields = ", ".join(f"c{columns[name]}" if name in columns else "NULL" for name in SHOWN)
    rows = connection.execute(
        f"SELECT segment, step, {fields} FROM figures JOIN segment ON segment = id"
        " WHERE step >= live_until ORDER BY segment, step"
    )
    return dict(connection.execute("SELECT id, first_step FROM segment").fetchall()), rows.fetchall()
