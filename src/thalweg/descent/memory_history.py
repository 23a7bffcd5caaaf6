"""What a descent needs of a history, and a history in memory, for trials and runs without a folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol, SupportsFloat

import numpy as np

from thalweg.records.history import Event, Float64s


class HistoryWriter(Protocol):
    """What a descent needs of a history."""

    def append(self, step: int, values: Mapping[str, SupportsFloat | None]) -> None:
        """Record figures of a step."""

    def digest(self, step: int, text: str) -> None:
        """Record a digest of the weights."""

    def event(self, step: int, kind: str, message: str, data: Mapping[str, Any] | None = None) -> None:
        """Record that something happened."""

    def supersede(self, from_step: int) -> None:
        """Mark everything from this step on as superseded."""

    def columns(self) -> dict[str, Float64s]:
        """Give all live figures as columns."""
        ...

    def events(self) -> list[Event]:
        """Give all events."""
        ...

    def flush(self, *, durable: bool = False) -> None:
        """Write what is buffered; `durable`: wait until the disk confirms it."""

    def close(self) -> None:
        """Flush and close."""


class MemoryHistory:
    """A history in memory, for trials and runs without a folder."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, Any]] = {}
        self.digests: dict[int, str] = {}
        self._events: list[Event] = []
        self._segment = 1

    def append(self, step: int, values: Mapping[str, SupportsFloat | None]) -> None:
        """Record figures of a step."""
        row = self.rows.get(step)
        if row is None:
            self.rows[step] = dict(values)
        else:
            row.update(values)

    def digest(self, step: int, text: str) -> None:
        """Record a digest of the weights."""
        self.digests[step] = text

    def event(self, step: int, kind: str, message: str, data: Mapping[str, Any] | None = None) -> None:
        """Record that something happened."""
        self._events.append(Event(step, kind, message, dict(data or {}), self._segment, False))

    def supersede(self, from_step: int) -> None:
        """Drop the figures from this step on; events stay, marked as superseded."""
        self.rows = {step: row for step, row in self.rows.items() if step < from_step}
        self.digests = {step: text for step, text in self.digests.items() if step < from_step}
        self._events = [e._replace(superseded=e.superseded or e.step >= from_step) for e in self._events]
        self._segment += 1

    def columns(self) -> dict[str, Float64s]:
        """Give all figures as columns of float64, NaN where there are none, with the column "step"."""
        steps = sorted(self.rows)
        names = dict.fromkeys(name for step in steps for name in self.rows[step])
        columns: dict[str, Float64s] = {"step": np.array(steps, dtype=np.float64)}
        for name in names:
            values = (self.rows[step].get(name) for step in steps)
            columns[name] = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
        return columns

    def events(self) -> list[Event]:
        """Give all events, in order."""
        return list(self._events)

    def flush(self, *, durable: bool = False) -> None:
        """Do nothing: nothing is buffered."""

    def close(self) -> None:
        """Do nothing: no file is open."""
