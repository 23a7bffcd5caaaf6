"""Sentences and figures about a run, which the report and the terminal share."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from thalweg import rules
from thalweg.errors import ThalwegError
from thalweg.formatting import figure, printable, seconds, several
from thalweg.records.run import Run
from thalweg.records.run_folder import PLAN, TASK
from thalweg.records.task import Source
from thalweg.see.axes import Values

EXAMPLES_PACKAGE = "thalweg.examples."


def name(run: Run) -> str:
    """Give the task's name."""
    return printable(str(run.summary.get("name") or "run"))


def status(run: Run) -> str:
    """Give the run's status: "finished", "stopped early", "interrupted", "diverged", "failed" or "running"."""
    state = str(run.summary.get("status", "finished"))
    return "stopped early" if state == "finished" and run.summary.get("stopped_early") else state


def start(run: Run) -> Mapping[str, float]:
    """Give the figures before the first step."""
    return run.summary.get("start") or {}


def validated(run: Run) -> bool:
    """Tell whether there were validation data."""
    return bool(run.summary.get("validated"))


def steps(run: Run) -> int:
    """Give the steps that the run has taken."""
    known = run.summary.get("steps")
    return int(known) if known is not None else max([0, *column(run, "step").astype(int).tolist()[-1:]])


def epochs(run: Run, step: float) -> str:
    """Say a step in epochs, where an epoch's length is known."""
    length = run.plan.steps_per_epoch
    return f"{step / length:.3g} {'epoch' if step == length else 'epochs'}" if length else ""


def column(run: Run, key: str) -> Values:
    """Give a column of the history as float64, empty where there is none."""
    values = run.history.get(key)
    return np.zeros(0) if values is None else np.asarray(values, np.float64)


def recorded(run: Run, key: str) -> tuple[Values, Values]:
    """Give the steps and values of a figure where it was recorded, values that are not finite included."""
    x, y = column(run, "step"), column(run, key)
    if not len(y):
        return y, y
    there = ~np.isnan(y)
    if "/" not in key:  # recorded at every step: where a step has a rate, a NaN is a value and not a gap
        there |= np.isfinite(column(run, "learning_rate")) if "learning_rate" in run.history else there
    return x[there], y[there]


def metric_label(run: Run, metric: str) -> str:
    """Name a metric for people."""
    label = printable(metric.replace("_", " "))
    return f"{'validation' if validated(run) else 'evaluated training'} loss" if metric == "loss" else label


def headline(run: Run) -> str:
    """Give a sentence on how the run ended: final figures compared with those at the start, steps, time and device."""
    metrics = sorted(run.metrics, key=lambda m: (m == "loss", m != run.summary.get("select")))
    changes = [_change(run, metric) for metric in metrics[:3]]
    steps_text = several(steps(run), "step")
    epochs_text = epochs(run, steps(run))
    seconds_taken = run.summary.get("seconds")
    cost = f"{steps_text}{f' ({epochs_text})' if epochs_text else ''}"
    if seconds_taken is not None:
        cost += f" and {seconds(float(seconds_taken))} on {device(run)}"
    result = " and ".join([", ".join(changes[:-1]), changes[-1]] if len(changes) > 1 else changes)
    if not result:
        return f"{_status_sentence(run)}{cost}; there are no figures yet."
    return f"{_status_sentence(run)}{result[0].upper()}{result[1:]}, in {cost}."


def _status_sentence(run: Run) -> str:
    of = f" of {run.plan.steps:,}" if run.plan.steps else ""
    sentences = {
        "interrupted": f"Interrupted at step {steps(run):,}{of}. ",
        "diverged": f"The descent was given up at step {steps(run):,}{of}: it diverged. ",
        "failed": f"An error ended the run at step {steps(run):,}{of}. ",
        "running": "Not finished when this was written. ",
        "stopped early": f"Stopped early, at step {steps(run):,}{of}. ",
    }
    return sentences.get(status(run), "")


def _change(run: Run, metric: str) -> str:
    before, after = start(run).get(metric, math.nan), float(run.metrics[metric])
    label = metric_label(run, metric)
    if not math.isfinite(before):
        return f"{label} is {figure(metric, after)}"
    if not math.isfinite(after) or figure(metric, before) == figure(metric, after):
        verb = "stayed at" if math.isfinite(after) else "ended not finite, after"
        return f"{label} {verb} {figure(metric, before)}"
    verb = "rose" if after > before else "fell"
    return f"{label} {verb} from {figure(metric, before)} to {figure(metric, after)}"


def device(run: Run) -> str:
    """Name the device."""
    name = printable(str(run.summary.get("device", "cpu")))
    return "the CPU" if name == "cpu" else name


def weights(run: Run) -> str:
    """Say which weights the model has."""
    held = run.summary.get("weights")
    if not held:
        return ""
    kind = (own_average(run) or "averaged weights (EMA)") if held["averaged"] else "weights"
    best = run.plan.keep == "best" and validated(run)
    select = (
        "validation loss" if run.summary.get("select", "loss") == "loss" else metric_label(run, run.summary["select"])
    )
    why = (
        f"those with the {'highest' if run.summary.get('mode') == 'max' else 'lowest'} {select}" if best else "the last"
    )
    return f"The model holds the {kind} of step {held['step']:,}, {why}."


def own_average(run: Run) -> str:
    """Name the average that the rule itself keeps, which is what validations are of; nothing where it keeps none."""
    return "" if rules.get(run.plan.rule).average is None else f"averaged weights ({run.plan.rule})"


def training_loss(run: Run, step: int | None = None) -> float:
    """Give the training loss around a step, or at the end: the mean over the last fiftieth of the run before it."""
    x, y = recorded(run, "loss")
    if step is not None:
        x, y = x[x <= step], y[x <= step]
    y = y[np.isfinite(y)]
    return float(y[-max(1, steps(run) // 50) :].mean()) if len(y) else math.nan


def figures(run: Run) -> list[tuple[str, str, str]]:
    """Give (name, value, comparison) of each final metric, and of the training loss beside the validation loss."""
    tiles: list[tuple[str, str, str]] = []
    for metric, value in run.metrics.items():
        before = start(run).get(metric, math.nan)
        comparison = f"{figure(metric, before)} at the start" if math.isfinite(before) else ""
        tiles.append((metric_label(run, metric), figure(metric, float(value)), comparison))
    held = run.summary.get("weights")
    training = training_loss(run, held["step"] if held else None)
    if validated(run) and math.isfinite(training):
        tiles.append(
            ("training loss", figure("loss", training), f"around step {held['step']:,}" if held else "at the end")
        )
    return tiles


def commands(run: Run) -> list[tuple[str, str]]:
    """Give what to type to use, resume and repeat the run: (what for, code)."""
    if run.folder is None:
        return [("Keep the weights (this run was kept in memory)", 'torch.save(run.model.state_dict(), "weights.pt")')]
    folder, best = str(run.folder), run.folder / "checkpoints" / "best" / "model.safetensors"
    recorded = (run.folder / TASK).is_file()
    task, comment = ("", "") if recorded else (", task=task", "  # task: the Task that was trained")
    found: list[tuple[str, str]] = []
    if status(run) not in ("finished", "stopped early"):
        found.append(("Resume where it stopped", resume(run)))
    if best.is_file():
        found.append(
            ("Use the trained model", f"import thalweg as tw\n\nmodel = tw.Run.open({folder!r}{task}).model{comment}")
        )
        load = f"from safetensors.torch import load_file\n\nweights = load_file({str(best)!r})"
        found.append(("Its weights without thalweg", load))
    words = task_words(run.folder / TASK) if recorded else ""
    if words:
        plan, other = shlex.quote(str(run.folder / PLAN)), shlex.quote(f"{folder}-again")
        found.append(("Train this plan again from the start", f"thalweg train {words} --plan {plan} --out {other}"))
    return found


def resume(run: Run) -> str:
    """Give what to type to resume a run."""
    if run.folder is None or (run.folder / TASK).is_file():
        return f"thalweg resume {shlex.quote(str(run.folder))}"
    return f"run = thalweg.resume({str(run.folder)!r}, task=task)"


def task_words(path: Path) -> str:
    """Give the words that name a recorded task on the command line; none where it cannot be named there."""
    try:
        source = Source.read(path)
    except ThalwegError:
        return ""
    if source.file:
        address = f"{source.file}:{source.name}"
    elif source.module and source.module.startswith(EXAMPLES_PACKAGE):
        address = source.module.removeprefix(EXAMPLES_PACKAGE)
    else:
        return ""
    options = "".join(f" --{k.replace('_', '-')}={shlex.quote(str(v))}" for k, v in source.arguments.items())
    return shlex.quote(address) + options


def is_better(run: Run, first: float, second: float) -> bool:
    """Tell whether the first value of the criterion is better than the second."""
    return first > second if run.summary.get("mode") == "max" else first < second


def format_criterion(run: Run, value: float) -> str:
    """Say a value of the criterion."""
    return figure(str(run.summary.get("select", "loss")), value)
