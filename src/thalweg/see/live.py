"""A descent as it goes, in the terminal: a bar where there is one, plain lines where output goes to a file or pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from thalweg.records.plan import Plan
from thalweg.see.wording import number

REFRESH = 0.1  # seconds between two pictures of the bar
LINE = 5.0  # seconds between two plain lines
SILENT = ("checkpoint", "start")


class Smooth:
    """Loss and speed as a person wants them: smoothed, and reset where the run begins."""

    def __init__(self) -> None:
        self.loss, self.examples, self.started = float("nan"), 0, time.perf_counter()

    def add(self, loss: float, examples: int) -> None:
        """Take in a step."""
        self.loss = loss if self.loss != self.loss else 0.95 * self.loss + 0.05 * loss
        self.examples += examples

    def speed(self) -> float:
        """Examples a second since the beginning."""
        return self.examples / max(1e-9, time.perf_counter() - self.started)


class RichProgress:
    """A bar with loss, validation, learning rate, examples a second and time left."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.smooth, self.due, self.validation = Smooth(), 0.0, ""
        self.bar: Progress | None = None

    def begin(self, plan: Plan, step: int) -> None:
        """Show the bar."""
        columns = (
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=self.console, auto_refresh=False, transient=True)
        self.bar.start()
        self.task = self.bar.add_task("", total=plan.steps, completed=step)
        self.smooth = Smooth()

    def step(self, step: int, loss: float, rate: float, examples: int) -> None:
        """Take in a step; the picture changes ten times a second at most."""
        self.smooth.add(loss, examples)
        now = time.perf_counter()
        if now < self.due or self.bar is None:
            return
        self.due = now + REFRESH
        told = f"loss {self.smooth.loss:.4g}{self.validation}  rate {rate:.2g}  {self.smooth.speed():,.0f} examples/s"
        self.bar.update(self.task, completed=step, description=told, refresh=True)

    def validated(self, step: int, figures: Mapping[str, float]) -> None:
        """Remember the validation."""
        self.validation = "  validation " + " ".join(f"{k} {number(float(v))}" for k, v in figures.items())

    def event(self, step: int, kind: str, message: str) -> None:
        """Say what happened above the bar."""
        if kind not in SILENT:
            self.console.print(message, markup=False, highlight=False)

    def end(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


class PlainProgress:
    """A line every few seconds, without control characters."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream
        self.smooth, self.due, self.total, self.validation = Smooth(), 0.0, 0, ""

    def begin(self, plan: Plan, step: int) -> None:
        """Remember the length."""
        self.total, self.smooth, self.due = plan.steps or 0, Smooth(), time.perf_counter() + LINE

    def step(self, step: int, loss: float, rate: float, examples: int) -> None:
        """Take in a step."""
        self.smooth.add(loss, examples)
        now = time.perf_counter()
        if now < self.due:
            return
        self.due = now + LINE
        speed = f"{self.smooth.speed():,.0f} examples/s"
        self._say(
            f"step {step} of {self.total}: loss {self.smooth.loss:.4g}{self.validation}, rate {rate:.2g}, {speed}"
        )

    def validated(self, step: int, figures: Mapping[str, float]) -> None:
        """Remember the validation."""
        self.validation = ", validation " + ", ".join(f"{k} {number(float(v))}" for k, v in figures.items())

    def event(self, step: int, kind: str, message: str) -> None:
        """Say what happened."""
        if kind not in SILENT:
            self._say(message)

    def end(self) -> None:
        """Nothing is open."""

    def _say(self, line: str) -> None:
        print(line, file=self.stream, flush=True)


def make_progress(console: Any = None) -> RichProgress | PlainProgress:
    """Choose: a bar for a terminal, lines for anything else."""
    shown: Console = console or Console()
    return RichProgress(shown) if shown.is_terminal else PlainProgress(sys.stdout)
