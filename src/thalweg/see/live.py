"""A descent as it goes, in the terminal: a bar where there is one, plain lines where output goes to a file or pipe."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from thalweg.formatting import figure, format_number, grouped, printable, seconds
from thalweg.records.plan import Plan
from thalweg.records.step_figures import StepFigures
from thalweg.see.events import QUIET

REFRESH = 0.1  # seconds between two pictures of the bar
LINE = 5.0  # seconds between two plain lines
SOON = 1.0  # seconds after a plain line before a validation gives another
SMOOTHING = 0.95
NARROW = 100  # columns below which the bar says less
Clock = Callable[[], float]


class Pace:
    """Loss and speed as a person wants them: the loss smoothed, the speed and the time left from where this part began.

    `validation`: whether there are validation data; None where nobody has said.
    """

    def __init__(self, clock: Clock, step: int = 0, total: int | None = None, validation: bool | None = None) -> None:
        self.clock, self.started = clock, clock()
        self.first, self.last, self.total = step, step, total
        self.loss, self.rate, self.examples = math.nan, math.nan, 0
        self.figures: Mapping[str, float] = {}
        self.validation = validation

    def add(self, step: int, loss: float, rate: float, examples: int) -> None:
        """Take in a step; called every step."""
        before = self.loss
        if before != before or loss - loss != 0:  # the first, or one that is not finite: shown as it is, then forgotten
            self.loss = loss if loss - loss == 0 or before != before else before
        else:
            self.loss = SMOOTHING * before + (1 - SMOOTHING) * loss
        self.last, self.rate = step, rate
        self.examples += examples

    def speed(self) -> float:
        """Examples a second."""
        return self.examples / max(1e-9, self.clock() - self.started)

    def left(self) -> float | None:
        """Seconds to the end, at the pace so far; None while nothing says."""
        done = self.last - self.first
        if self.total is None or done <= 0:
            return None
        return (self.total - self.last) * (self.clock() - self.started) / done

    def figures_text(self) -> str:
        """Say the last evaluation: on validation data or, without any, of the training loss on a sample."""
        validation = True if len(self.figures) > 1 else self.validation  # other metrics are of validation data alone
        loss = {True: "validation loss", False: "evaluated training loss", None: "evaluated loss"}[validation]
        return ", ".join(
            f"{loss if name == 'loss' else printable(name)} {figure(name, float(value))}"
            for name, value in self.figures.items()
        )


class RichProgress:
    """A bar with loss, validation, learning rate, examples a second and time left."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        self.console, self.clock = console, clock
        self.pace, self.due = Pace(clock), 0.0
        self.bar: Progress | None = None
        self.task = TaskID(0)

    def begin(self, plan: Plan, step: int, validation: bool | None = None) -> None:
        """Show the bar. Nothing runs beside the descent: it draws from within its own steps."""
        self.end()
        columns = (
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=8, max_width=30)),
            TextColumn("{task.percentage:>3.0f}%", table_column=Column(no_wrap=True)),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
        )
        self.bar = Progress(*columns, console=self.console, auto_refresh=False, transient=True, expand=True)
        self.task = self.bar.add_task("", total=plan.steps, completed=step)
        self.pace, self.due = Pace(self.clock, step, plan.steps, validation), 0.0
        self.bar.start()

    def step(self, figures: StepFigures) -> None:
        """Take in a step; the picture changes ten times a second at most."""
        self.pace.add(figures.step, figures.loss, figures.learning_rate, figures.examples)
        now = self.clock()
        if now >= self.due:
            self.due = now + REFRESH
            self._draw()

    def validated(self, step: int, figures: Mapping[str, float]) -> None:
        """Remember the validation for the next picture."""
        self.pace.figures = dict(figures)

    def event(self, step: int, kind: str, message: str) -> None:
        """Say what happened above the bar."""
        if kind not in QUIET:
            self.console.print(Text(grouped(printable(message))))

    def end(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _draw(self) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=self.pace.last, description=self._told(), refresh=True)

    def _told(self) -> str:
        # Figures keep their width, else the bar would tremble.
        pace, left = self.pace, self.pace.left()
        parts = [f"loss {format_number(pace.loss):<7}"]
        if pace.figures:
            parts.append(pace.figures_text())
        if self.console.width >= NARROW:
            parts += [f"rate {format_number(pace.rate):<8}", f"{pace.speed():>7,.0f} examples/s"]
        return "  ".join([*parts, *([f"{seconds(round(left))} left"] if left is not None else [])])


class PlainProgress:
    """A line every few seconds, at validations and at events, without control characters."""

    def __init__(self, stream: IO[str], clock: Clock = time.monotonic) -> None:
        self.stream, self.clock = stream, clock
        self.pace, self.due, self.soon = Pace(clock), 0.0, 0.0
        self.untold = False

    def begin(self, plan: Plan, step: int, validation: bool | None = None) -> None:
        """Remember the length."""
        self.pace, self.untold = Pace(self.clock, step, plan.steps, validation), False
        self.due, self.soon = self.clock() + LINE, self.clock() + SOON

    def step(self, figures: StepFigures) -> None:
        """Take in a step."""
        self.pace.add(figures.step, figures.loss, figures.learning_rate, figures.examples)
        if self.clock() >= self.due:
            self._tell()

    def validated(self, step: int, figures: Mapping[str, float]) -> None:
        """Say the validation, unless a line has just been said: then with the next one."""
        self.pace.figures, self.untold = dict(figures), True
        if self.clock() >= self.soon:
            self._tell()

    def event(self, step: int, kind: str, message: str) -> None:
        """Say what happened."""
        if kind not in QUIET:
            self._say(grouped(message))

    def end(self) -> None:
        """Say the last validation, where it has not been said."""
        if self.untold and self.pace.last > self.pace.first:
            self._tell()

    def _tell(self) -> None:
        pace, now, left = self.pace, self.clock(), self.pace.left()
        self.due, self.soon, self.untold = now + LINE, now + SOON, False
        parts = [f"loss {format_number(pace.loss)}"] if pace.last > pace.first else []
        if pace.figures:
            parts.append(pace.figures_text())
        if pace.last > pace.first:
            parts += [f"rate {format_number(pace.rate)}", f"{pace.speed():,.0f} examples/s"]
        if left is not None and left >= 1:
            parts.append(f"{seconds(round(left))} left")
        total = f" of {pace.total:,}" if pace.total else ""
        self._say(f"step {pace.last:,}{total}: {', '.join(parts)}")

    def _say(self, line: str) -> None:
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        print(printable(line).encode(encoding, "replace").decode(encoding), file=self.stream, flush=True)


def make_progress(console: Console | None = None) -> RichProgress | PlainProgress:
    """Choose: a bar for a terminal, lines for anything else; default: the standard output."""
    shown = console or Console()
    if shown.is_terminal and not shown.is_dumb_terminal:
        return RichProgress(shown)
    return PlainProgress(sys.stdout if console is None else shown.file)
