"""The run's summary in the terminal: final figures, the plan and why, what happened, what to do next."""

from __future__ import annotations

import re
from typing import Any, cast

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from thalweg.formatting import format_number, group_digits, printable
from thalweg.records import files
from thalweg.records.paths import typed
from thalweg.records.run import Run
from thalweg.records.run_folder import REPORT
from thalweg.see import batch_sizes, events, plan_text, run_text
from thalweg.see.advice import next_steps
from thalweg.see.axes import Values
from thalweg.see.terminal_plot import plot
from thalweg.terminal import UnfailingStream, standard_output
from thalweg.watch.finished import FinishedHistory

MAX_EVENTS = 6
SOURCE_STYLES = {"searched": "green", "measured": "blue", "derived": "magenta", "given": "yellow", "default": "dim"}
MIN_STEPS = 10  # steps worth a plot
MARGIN = (0, 0, 0, 2)


def summary(run: Run, *, width: int = 80, unicode: bool | None = None) -> RenderableType:
    """Lay the summary out for a terminal of `width` columns.

    `unicode`: draw with braille dots; None: where the standard output can show them.
    """
    parts: list[RenderableType] = [Text(f"\n{run_text.headline(run)}", style="bold")]
    if weights := run_text.weights(run):
        parts.append(Text(weights, style="dim"))
    if training := run_text.on_training_data(run):
        parts.append(Text(training, style="dim"))
    if drift := run_text.drift(run):
        parts.append(Text(drift, style="dim"))
    if outlook := run_text.outlook(run):
        parts.append(Text(outlook, style="dim"))
    plot_text = _loss_plot(run, min(width, 100) - 4, unicode)
    parts += [_title("Loss"), Padding(Text(plot_text), MARGIN)] if plot_text else []
    parts += [_title("Plan"), Padding(_plan(run), MARGIN)]
    if event_lines := _events(run):
        parts += [_title("What happened"), *event_lines]
    parts += [_title("What to do next"), *[_bullet(_with_code(line)) for line in next_steps(run)]]
    if notes := [printable(str(note)) for note in run.summary.get("notes", [])]:
        parts += [_title("Notes"), *[_bullet(Text(group_digits(note))) for note in notes]]
    return Group(*parts, *_report_path(run))


def print_summary(run: Run, console: Console | None = None) -> None:
    """Print the summary to the standard output, which cannot fail, or to another console."""
    output = console or Console(file=cast(Any, standard_output()), highlight=False)
    encoding = output.encoding or "ascii"
    with output.capture() as captured:
        output.print(
            summary(run, width=output.width, unicode=encoding.lower().replace("-", "").startswith("utf")), crop=False
        )
    stream = UnfailingStream(lambda: output.file)
    stream.write("\n".join(line.rstrip() for line in captured.get().split("\n")))
    stream.flush()


def _title(text: str) -> Text:
    return Text(f"\n{text}", style="bold")


def _plan(run: Run) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name in plan_text.in_terminal(run.plan):
        why = run.plan.why(name)
        text = Text.assemble((plan_text.value(run.plan, name), "bold"), "  ", (why.source, SOURCE_STYLES[why.source]))
        if why.reason:
            text.append("\n" + group_digits(printable(why.reason)), style="dim")
        if name == "batch_size" and (measured := batch_sizes.in_a_line(run)):
            text.append(f"\n{measured}", style="dim")
        table.add_row(plan_text.label(name), text)
    return table


def _loss_plot(run: Run, width: int, unicode: bool | None) -> str:
    """Plot the losses over the steps; nothing where there are too few to see."""
    history = FinishedHistory.of(run)
    step, training, validation = (history.column(name) for name in ("step", "loss", "validation/loss"))
    if len(step) < MIN_STEPS or not np.isfinite(training).any():
        return ""
    losses = {"training": training}
    if history.validated and np.isfinite(validation).sum() > 2:
        losses["validation"] = fill_forward(validation)
    return plot(losses, width=width, height=9, ends=(step[0], step[-1]), unicode=unicode)


def fill_forward(values: Values) -> Values:
    """Repeat each value until the next, so that a sparse series is drawn as a line.

    >>> fill_forward(np.array([np.nan, 2.0, np.nan, 1.0])).tolist()
    [nan, 2.0, 2.0, 1.0]
    """
    index = np.maximum.accumulate(np.where(np.isnan(values), 0, np.arange(len(values))))
    return values[index]


def _events(run: Run) -> list[RenderableType]:
    described = events.event_sentences(run)
    lines: list[RenderableType] = [
        _bullet(Text(f"{events.event_step(e)}: {text}")) for e, text in described[:MAX_EVENTS]
    ]
    if len(described) > MAX_EVENTS:
        lines.append(
            _bullet(Text(f"and {format_number(len(described) - MAX_EVENTS)} more, in the report", style="dim"))
        )
    return lines


def _with_code(line: str) -> Text:
    text = Text()
    for k, part in enumerate(re.split(r"`([^`]+)`", line)):
        text.append(part, style="cyan" if k % 2 else "")
    return text


def _bullet(text: Text) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    grid.add_row("-", text)
    return Padding(grid, MARGIN)


def _report_path(run: Run) -> list[Any]:
    """Name the report's path, never broken over lines, so that it can be clicked and copied."""
    if run.folder is None or not files.is_regular(run.folder / REPORT):
        return []
    return [Text(f"\nReport: {printable(typed(run.folder / REPORT))}", no_wrap=True, overflow="ignore")]
