"""Progress in the terminal while a descent runs: a bar, or lines of text where the output goes to a file or pipe."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from thalweg.descent.projection import forecast_end
from thalweg.formatting import format_metric, format_number, format_seconds, group_digits, printable
from thalweg.records.forecast import Estimate
from thalweg.records.plan import Plan
from thalweg.records.step_figures import StepFigures
from thalweg.see.events import UNSAID
from thalweg.terminal import UnfailingStream, standard_output, tell

REFRESH_SECONDS = 0.1  # between two updates of the bar
LINE_SECONDS = 5.0  # between two lines
VALIDATION_SECONDS = 1.0  # least time from a line to one that is printed for a validation
LONG_SECONDS = 60.0  # of a run whose end is forecast, at least
WORK = "The training goes on."  # said where the display cannot be written
SMOOTHING = 0.95  # weight of the earlier losses in the running mean
WIDE_COLUMNS = 100  # of the terminal, from which the bar shows learning rate and speed too
Clock = Callable[[], float]


class Pace:
    """The figures of progress: a smoothed loss, the last validation, speed and remaining time in this process.

    `validation`: whether there are validation data; None where that is not known. `plan`: None forecasts no end.
    """

    def __init__(
        self,
        clock: Clock,
        step: int = 0,
        total: int | None = None,
        validation: bool | None = None,
        plan: Plan | None = None,
    ) -> None:
        self.clock, self.started = clock, clock()
        self.first, self.last, self.total = step, step, total
        self.loss, self.rate, self.examples = math.nan, math.nan, 0
        self.figures: Mapping[str, float] = {}
        self.validated_step = step
        self.validation, self.plan = validation, plan
        self.validated_losses = dict[int, float]()
        self._end: Estimate | None = None

    def add(self, step: int, loss: float, rate: float, examples: int) -> None:
        """Add a step; called every step."""
        # A number less itself is zero where it is finite; this costs less than a call.
        if loss - loss == 0 and self.loss - self.loss == 0 and step > self.last:
            self.loss = SMOOTHING * self.loss + (1 - SMOOTHING) * loss
        elif loss - loss == 0 or self.loss - self.loss != 0:
            self.loss = (
                loss  # the first finite loss, that of a step taken anew after a rollback, or there is no better one
            )
        self.last, self.rate = step, rate
        self.examples += examples

    def validate(self, step: int, figures: Mapping[str, float]) -> None:
        """Keep a validation's figures."""
        self.validated_step, self.figures = step, dict(figures)
        if self.validation and self.plan is not None and "loss" in figures:
            # A rollback takes back what was validated after it.
            known = {at: loss for at, loss in self.validated_losses.items() if at < step}
            self.validated_losses = {**known, step: float(figures["loss"])}
            self._end = forecast_end(self.plan, list(self.validated_losses), list(self.validated_losses.values()))

    def end_text(self) -> str:
        """Give the validation loss that is forecast for the end; nothing early, or in runs of less than a minute."""
        left = self.seconds_left()
        if self._end is None or left is None or left + self.clock() - self.started < LONG_SECONDS:
            return ""
        return f"at the end about {self._end.text('loss')}"

    def examples_per_second(self) -> float:
        """Examples per second."""
        return self.examples / max(1e-9, self.clock() - self.started)

    def seconds_left(self) -> float | None:
        """Seconds to the end, at the speed so far; None where the length is unknown or no step is done."""
        done = self.last - self.first
        if self.total is None or done <= 0:
            return None
        return (self.total - self.last) * (self.clock() - self.started) / done

    def figures_text(self) -> str:
        """Give the last evaluation as text: on validation data or, without any, of the training loss on a sample.

        It says of which step, where that is another than the last one. Nothing where no trained weights were evaluated yet, or
        those that were have been rolled back.
        """
        untrained = self.validated_step == 0 < self.last
        if not self.figures or untrained or self.validated_step > self.last:
            return ""
        validation = True if len(self.figures) > 1 else self.validation  # other metrics are of validation data alone
        loss = {True: "validation loss", False: "evaluated training loss", None: "evaluated loss"}[validation]
        texts = (
            f"{loss if name == 'loss' else printable(name)} {format_metric(name, float(value))}"
            for name, value in self.figures.items()
        )
        when = f" (step {self.validated_step:,})" if self.validated_step != self.last else ""
        return f"{', '.join(texts)}{when}"


def begun_pace(clock: Clock, plan: Plan, step: int, validation: bool | None) -> Pace:
    """Give the figures of a descent that goes on from a step."""
    return Pace(clock, step, plan.steps, validation, plan)


class RichProgress:
    """A bar with loss, validation, learning rate, examples per second and time left."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        self.console, self.clock = console, clock
        self.pace, self.next_update = Pace(clock), 0.0
        self.bar: Progress | None = None
        self.task = TaskID(0)

    def begin(self, plan: Plan, step: int, validation: bool | None = None) -> None:
        """Show the bar. No thread refreshes it: it is drawn in `step`."""
        self.end()
        columns = (
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=8, max_width=30)),
            TextColumn("{task.percentage:>3.0f}%", table_column=Column(no_wrap=True)),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
        )
        self.bar = Progress(*columns, console=self.console, auto_refresh=False, transient=True, expand=True)
        self.task = self.bar.add_task("", total=plan.steps, completed=step)
        self.pace, self.next_update = begun_pace(self.clock, plan, step, validation), 0.0
        self.bar.start()

    def step(self, figures: StepFigures) -> None:
        """Add a step; the bar is redrawn ten times per second at most."""
        self.pace.add(figures.step, figures.loss, figures.learning_rate, figures.examples)
        now = self.clock()
        if now >= self.next_update:
            self.next_update = now + REFRESH_SECONDS
            self._draw()

    def validated(self, step: int, figures: Mapping[str, float]) -> None:
        """Keep the validation for the next time the bar is drawn."""
        self.pace.validate(step, figures)

    def event(self, step: int, kind: str, message: str) -> None:
        """Print what happened above the bar."""
        if kind not in UNSAID:
            self.console.print(Text(group_digits(printable(message))))

    def end(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            shown = sys.stdout, sys.stderr
            self.bar.stop()  # puts back the streams that there were when it began
            sys.stdout, sys.stderr = (
                ended if hasattr(now, "rich_proxied_file") else now  # which the person's code may have replaced since
                for now, ended in zip(shown, (sys.stdout, sys.stderr), strict=True)
            )
            self.bar = None

    def _draw(self) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=self.pace.last, description=self._description(), refresh=True)

    def _description(self) -> str:
        # Each figure keeps its width, so that the bar beside it does not change its length with every step.
        pace, seconds_left = self.pace, self.pace.seconds_left()
        parts = [f"loss {format_number(pace.loss):<7}"]
        if validated := pace.figures_text():
            parts.append(validated)
        if self.console.width >= WIDE_COLUMNS:
            parts += [text] if (text := pace.end_text()) else []
            parts += [f"rate {format_number(pace.rate):<8}", f"{pace.examples_per_second():>7,.0f} examples/s"]
        return "  ".join(
            [*parts, *([f"{format_seconds(round(seconds_left))} left"] if seconds_left is not None else [])]
        )


class LineProgress:
    """A line every few seconds, at validations and at events, without control characters."""

    def __init__(self, stream: Any, clock: Clock = time.monotonic) -> None:
        self.stream, self.clock = UnfailingStream(lambda: stream, WORK), clock
        self.pace, self.next_update, self.next_validation = Pace(clock), 0.0, 0.0
        self.unprinted = False

    def begin(self, plan: Plan, step: int, validation: bool | None = None) -> None:
        """Start with the first step of this process."""
        self.pace, self.unprinted = begun_pace(self.clock, plan, step, validation), False
        self.next_update, self.next_validation = self.clock() + LINE_SECONDS, self.clock() + VALIDATION_SECONDS

    def step(self, figures: StepFigures) -> None:
        """Add a step."""
        self.pace.add(figures.step, figures.loss, figures.learning_rate, figures.examples)
        if self.clock() >= self.next_update:
            self._print_figures()

    def validated(self, step: int, figures: Mapping[str, float]) -> None:
        """Print the validation, unless a line was printed just before: then with the next one."""
        self.pace.validate(step, figures)
        self.unprinted = True
        if self.clock() >= self.next_validation:
            self._print_figures()

    def event(self, step: int, kind: str, message: str) -> None:
        """Print what happened."""
        if kind not in UNSAID:
            tell(group_digits(printable(message)), self.stream)

    def end(self) -> None:
        """Print the last validation, where it has not been printed."""
        if self.unprinted and self.pace.last > self.pace.first:
            self._print_figures()

    def _print_figures(self) -> None:
        pace, now, seconds_left = self.pace, self.clock(), self.pace.seconds_left()
        self.next_update, self.next_validation, self.unprinted = now + LINE_SECONDS, now + VALIDATION_SECONDS, False
        parts = [f"loss {format_number(pace.loss)}"] if pace.last > pace.first else []
        if validated := pace.figures_text():
            parts.append(validated)
        if end := pace.end_text():
            parts.append(end)
        if pace.last > pace.first:
            parts += [f"rate {format_number(pace.rate)}", f"{pace.examples_per_second():,.0f} examples/s"]
        if seconds_left is not None and seconds_left >= 1:
            parts.append(f"{format_seconds(round(seconds_left))} left")
        total = f" of {pace.total:,}" if pace.total else ""
        tell(f"step {pace.last:,}{total}: {', '.join(parts)}", self.stream)


def make_progress(console: Console | None = None) -> RichProgress | LineProgress:
    """Give a bar for a terminal, lines for anything else; default: the standard output."""
    stream: Any = standard_output(WORK) if console is None else console.file
    shown = console or Console(file=stream)
    if shown.is_terminal and not shown.is_dumb_terminal:
        return RichProgress(shown)
    return LineProgress(stream)
