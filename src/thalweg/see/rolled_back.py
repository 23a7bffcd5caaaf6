"""Steps that a rollback undid: the history keeps them, though the run's figures no longer contain them."""

from __future__ import annotations

from thalweg.errors import RunError
from thalweg.records.history import FILE, History
from thalweg.records.run import HistoryColumns, Run
from thalweg.see.axes import Values

SHOWN = ("loss", "learning_rate", "gradient_norm")


def rolled_back_stretches(run: Run) -> list[HistoryColumns]:
    """Give each stretch of steps that a rollback undid, as columns; none for a run that is in memory only.

    Steps that were repeated because a stopped run was resumed are left out: repeating them gave the same figures.
    """
    rollbacks = {event.segment for event in run.events if event.kind == "rollback"}  # each begins a segment
    if run.folder is None or not rollbacks:
        return []
    try:
        with History(run.folder / FILE, readonly=True) as history:
            stretches = history.superseded(SHOWN)
    except (RunError, ValueError):  # the file was moved or is damaged: the rest of the run can be shown all the same
        return []
    trained = [_without_start(stretch.columns) for stretch in stretches if stretch.by in rollbacks]
    return [columns for columns in trained if len(columns["step"])]


def _without_start(columns: dict[str, Values]) -> HistoryColumns:
    """Drop step 0, which is the validation before the first step."""
    return HistoryColumns((name, values[columns["step"] > 0]) for name, values in columns.items())
