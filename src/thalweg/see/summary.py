"""The run's summary in the terminal: what came out, the plan and why, what happened, what to do next."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from thalweg.records.plan import Plan
from thalweg.records.run import REPORT, Run
from thalweg.see.advice import next_steps
from thalweg.see.plot import plot, plot_schedule
from thalweg.see.wording import change, number, seconds

KNOBS = (
    *(
        "learning_rate",
        "schedule",
        "batch_size",
        "weight_decay",
        "rule",
        "constants",
        "steps",
        "clip_norm",
        "accumulate",
    ),
    *("ema", "precision", "seed"),
)
ALWAYS = ("learning_rate", "schedule", "batch_size", "weight_decay", "rule", "steps")


def knob_text(plan: Plan, knob: str) -> str:
    """Say a knob's value."""
    value: Any = getattr(plan, knob)
    if knob == "schedule":
        return (
            plan.schedule.resolve(plan.steps, plan.steps_per_epoch).describe()
            if plan.steps
            else plan.schedule.describe()
        )
    if knob == "batch_size":
        return "the whole data set" if value is None else number(value)
    if isinstance(value, dict):
        return ", ".join(f"{k} {number(v)}" for k, v in value.items()) or "the rule's defaults"
    return number(value)


def headline(run: Run) -> str:
    """Say in a sentence how the run ended."""
    summary = run.summary
    steps, took = summary.get("steps", 0), seconds(float(summary.get("seconds", 0.0)))
    status = {"finished": "Trained", "interrupted": "Interrupted after", "diverged": "Diverged after"}
    what = status.get(str(summary.get("status")), "Not finished:")
    where = "validation" if summary.get("validated") else "training"
    figures = ", ".join(
        f"{where if name == 'loss' else ''} {name} {change(name, summary.get('start', {}), run.metrics)}".strip()
        for name in run.metrics
        if math.isfinite(float(run.metrics[name])) or name == "loss"
    )
    return f"{what} {steps:,} steps in {took} on {summary.get('device', 'cpu')}: {figures or 'no figures yet'}."


def weights_text(run: Run) -> str:
    """Say which weights the model has."""
    weights = run.summary.get("weights")
    if not weights:
        return ""
    kind = "the average of the weights (EMA)" if weights["averaged"] else "the weights themselves"
    return f"The model has {kind} of step {weights['step']:,}, the best by {run.summary.get('select', 'loss')}."


def summary(run: Run) -> Group:
    """Lay the summary out for a terminal."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    for knob in KNOBS:
        why = run.plan.why(knob)
        if knob in ALWAYS or why.source not in ("default",):
            table.add_row(
                knob.replace("_", " "), Text(knob_text(run.plan, knob), style="bold"), Text(str(why), style="dim")
            )
    parts: list[Any] = [Text(headline(run), style="bold"), Text(weights_text(run)), Padding(table, (1, 0, 1, 2))]
    parts += [Text(picture) for picture in pictures(run)]
    told = [
        e for e in run.events if e.kind in ("rollback", "diverging", "nonfinite", "out_of_memory", "early_stop", "note")
    ]
    parts += [Text(f"- {e.message}") for e in told[:8]]
    parts += [Text(f"-> {line}") for line in next_steps(run)]
    parts += [Text(f"Note: {note}", style="dim") for note in run.summary.get("notes", [])]
    idle = run.summary.get("idle_parameters", [])
    if idle:
        parts.append(Text(f"Warning: no gradient reached {', '.join(idle[:5])}.", style="yellow"))
    if run.folder is not None and (run.folder / REPORT).exists():
        parts.append(Text(f"Report: {os.path.relpath(run.folder / REPORT)}"))
    return Group(*[part for part in parts if not (isinstance(part, Text) and not part.plain)])


def pictures(run: Run, *, unicode: bool | None = None) -> list[str]:
    """Plot the loss and the learning rate as text; nothing where there are too few steps to see."""
    steps, drawn = run.history.get("step", np.zeros(0)), list[str]()
    if len(steps) < 10:
        return drawn
    losses = {"training": run.history["loss"]} if "loss" in run.history else {}
    if np.isfinite(run.history.get("validation/loss", np.zeros(0))).sum() > 2:
        losses["validation"] = fill_forward(run.history["validation/loss"])
    if losses:
        drawn.append(plot(losses, title="loss", ends=(steps[0], steps[-1]), height=10, unicode=unicode))
    if run.plan.steps:
        rate = plot_schedule(
            run.plan.schedule,
            peak=run.plan.learning_rate,
            total_steps=run.plan.steps,
            steps_per_epoch=run.plan.steps_per_epoch,
            height=5,
            unicode=unicode,
        )
        drawn.append(rate)
    return drawn


def fill_forward(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Carry each value on until the next, so that a sparse series draws as a line.

    >>> fill_forward(np.array([np.nan, 2.0, np.nan, 1.0])).tolist()
    [nan, 2.0, 2.0, 1.0]
    """
    index = np.maximum.accumulate(np.where(np.isnan(values), 0, np.arange(len(values))))
    return values[index]


def print_summary(run: Run, console: Console | None = None) -> None:
    """Print the summary."""
    (console or Console(highlight=False, soft_wrap=False)).print(summary(run))
