"""Progress in a notebook: one line of text under the cell, which updates."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from thalweg.formatting import format_number, format_seconds, group_digits, printable
from thalweg.records.plan import Plan
from thalweg.records.step_figures import StepFigures
from thalweg.see.events import UNSAID
from thalweg.see.live import Clock, Pace, begun_pace
from thalweg.terminal import tell

REFRESH_SECONDS = 0.5  # between two updates, each of which is a message to the browser


class NotebookProgress:
    """A line with step, loss, validation, and time left; events are printed below it.

    Arguments:
        display: IPython's `display`, or what does the same.
        clock: gives seconds.
    """

    def __init__(self, display: Callable[..., Any], clock: Clock = time.monotonic) -> None:
        self.display, self.clock = display, clock
        self.pace, self.next_update = Pace(clock), 0.0
        self._line: Any = None  # the handle by which the line is updated

    def begin(self, plan: Plan, step: int, validation: bool | None = None) -> None:
        """Show the line."""
        self.pace, self.next_update = begun_pace(self.clock, plan, step, validation), self.clock() + REFRESH_SECONDS
        self._line = self.display(self._content(), raw=True, display_id=True)

    def step(self, figures: StepFigures) -> None:
        """Add a step."""
        self.pace.add(figures.step, figures.loss, figures.learning_rate, figures.examples)
        if self.clock() >= self.next_update:
            self._update()

    def validated(self, step: int, figures: Mapping[str, float]) -> None:
        """Keep the validation for the next update."""
        self.pace.validate(step, figures)

    def event(self, step: int, kind: str, message: str) -> None:
        """Print what happened."""
        if kind not in UNSAID:
            tell(group_digits(printable(message)))

    def end(self) -> None:
        """Show the last figures."""
        if self._line is not None:
            self._update()
            self._line = None

    def _update(self) -> None:
        self.next_update = self.clock() + REFRESH_SECONDS
        if self._line is not None:
            self._line.update(self._content(), raw=True)

    def _content(self) -> dict[str, str]:
        pace, seconds_left = self.pace, self.pace.seconds_left()
        total = f" of {pace.total:,}" if pace.total else ""
        parts = [f"loss {format_number(pace.loss)}"] if pace.last > pace.first else []
        if validated := pace.figures_text():
            parts.append(validated)
        if end := pace.end_text():
            parts.append(end)
        if seconds_left is not None and seconds_left >= 1:
            parts.append(f"{format_seconds(round(seconds_left))} left")
        return {"text/plain": f"step {pace.last:,}{total}{': ' if parts else ''}{', '.join(parts)}"}
