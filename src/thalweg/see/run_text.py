"""Sentences and figures about a run that the report and the terminal both show."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

from thalweg import rules
from thalweg.descent.projection import forecast_end
from thalweg.descent.validation import SAMPLE
from thalweg.errors import ThalwegError
from thalweg.formatting import format_count, format_metric, format_seconds, printable
from thalweg.records import files
from thalweg.records.run import Run
from thalweg.records.run_folder import PLAN, TASK
from thalweg.records.step_figures import TERM
from thalweg.records.task import Source
from thalweg.watch.finished import FinishedHistory

EXAMPLES_PACKAGE = "thalweg.examples."


def name(run: Run) -> str:
    """Give the task's name."""
    return printable(str(run.summary.get("name") or "run"))


def headline(run: Run) -> str:
    """Give a sentence on how the run ended: final figures compared with those at the start, steps, time and device."""
    history = FinishedHistory.of(run)
    told = [m for m in run.metrics if f"{TERM}{m}" not in run.history]  # the terms of the loss are in the loss
    metrics = sorted(told, key=lambda m: (m == "loss", m != run.summary.get("select")))
    changes = [_change(history, metric) for metric in metrics[:3]]
    epochs = history.epochs(history.steps)
    seconds_taken = run.summary.get("seconds")
    cost = f"{format_count(history.steps, 'step')}{f' ({epochs})' if epochs else ''}"
    if seconds_taken is not None:
        cost += f" and {format_seconds(float(seconds_taken))} on {device(run)}"
    result = " and ".join([", ".join(changes[:-1]), changes[-1]] if len(changes) > 1 else changes)
    if not result:
        return f"{_status_sentence(run, history)}{cost}; there are no figures yet."
    return f"{_status_sentence(run, history)}{result[0].upper()}{result[1:]}, in {cost}."


def _status_sentence(run: Run, history: FinishedHistory) -> str:
    step = f"step {history.steps:,}{f' of {run.plan.steps:,}' if run.plan.steps else ''}"
    sentences = {
        "interrupted": f"Interrupted at {step}. ",
        "diverged": f"The descent was given up at {step}: it diverged. ",
        "failed": f"An error ended the run at {step}. ",
        "running": "Not finished when this was written. ",
        "stopped early": f"Stopped early, at {step}. ",
    }
    return sentences.get(history.status, "")


def _change(history: FinishedHistory, metric: str) -> str:
    before, after = history.initial.get(metric, math.nan), float(history.final[metric])
    label = history.metric_name(metric)
    if not math.isfinite(before):
        return f"{label} is {format_metric(metric, after)}"
    if not math.isfinite(after) or format_metric(metric, before) == format_metric(metric, after):
        verb = "stayed at" if math.isfinite(after) else "ended not finite, after"
        return f"{label} {verb} {format_metric(metric, before)}"
    verb = "rose" if after > before else "fell"
    return f"{label} {verb} from {format_metric(metric, before)} to {format_metric(metric, after)}"


def device(run: Run) -> str:
    """Name the device."""
    name = printable(str(run.summary.get("device", "cpu")))
    return "the CPU" if name == "cpu" else name


def weights(run: Run) -> str:
    """Say which weights the model has."""
    chosen = run.summary.get("weights")
    if not chosen:
        return ""
    history = FinishedHistory.of(run)
    kind = (rule_average(run) or "averaged weights (EMA)") if chosen.get("averaged") else "weights"
    why = "the last"
    if run.plan.keep == "best" and history.validated and math.isfinite(history.final.get(history.select, math.nan)):
        side = "highest" if history.mode == "max" else "lowest"
        why = f"those with the {side} {history.metric_name(history.select)}"
    return f"The model holds the {kind} of step {chosen['step']:,}, {why}."


def rule_average(run: Run) -> str:
    """Name the average of the weights that the update rule itself keeps, and that is validated; empty where it keeps none."""
    return "" if rules.get(run.plan.rule).average is None else f"averaged weights ({run.plan.rule})"


def outlook(run: Run) -> str:
    """Say what the validation loss of an unfinished run would be at its planned end; nothing where its validations do not say."""
    history = FinishedHistory.of(run)
    if history.status not in ("interrupted", "failed", "running") or not history.validated:
        return ""
    steps, losses = history.recorded("validation/loss")
    end = forecast_end(run.plan, steps.tolist(), losses.tolist())
    if end is None:
        return ""
    return (
        f"By the validations so far, the validation loss would be about {end.text('loss')} at step {run.plan.steps:,}."
    )


def on_training_data(run: Run) -> str:
    """Say the metrics on training data, which are to be compared with those on validation data; nothing where there are none."""
    measured = run.summary.get("training")
    if not measured:
        return ""
    history, examples = FinishedHistory.of(run), int(run.summary.get("examples") or 0)
    shown = ", ".join(
        f"{'loss' if name == 'loss' else history.metric_name(name)} {format_metric(name, float(value))}"
        for name, value in sorted(measured.items(), key=lambda item: item[0] == "loss")
    )
    sample = f"the first {SAMPLE:,} training examples" if examples > SAMPLE else "the training data"
    return f"On {sample}, in evaluation mode: {shown}."


def drift(run: Run) -> str:
    """Say how far the weights went from those that were handed over; nothing where a factory made them."""
    told = run.summary.get("drift")
    if not isinstance(told, dict) or "all" not in told:
        return ""
    text = f"The weights went {100 * float(told['all']):.3g} % of their length from those that you gave"
    if "farthest" in told:
        name, share = told["farthest"]
        text += f", farthest {printable(str(name))} ({100 * float(share):.3g} %)"
    return f"{text}."


def figures(run: Run) -> list[tuple[str, str, str]]:
    """Give (name, value, comparison) of each final metric, and of the training loss beside the validation loss."""
    history, rows = FinishedHistory.of(run), list[tuple[str, str, str]]()
    for metric, value in run.metrics.items():
        before = history.initial.get(metric, math.nan)
        comparison = f"{format_metric(metric, before)} at the start" if math.isfinite(before) else ""
        on_training = run.summary.get("training", {}).get(metric, math.nan)
        if metric != "loss" and math.isfinite(on_training):
            comparison += f"{'; ' if comparison else ''}{format_metric(metric, float(on_training))} on training data"
        rows.append((history.metric_name(metric), format_metric(metric, float(value)), comparison))
    chosen = run.summary.get("weights")
    training = history.training_loss(chosen["step"] if chosen else None)
    if history.validated and math.isfinite(training):
        when = f"around step {chosen['step']:,}" if chosen else "at the end"
        rows.append(("training loss", format_metric("loss", training), when))
    return rows


def commands(run: Run) -> list[tuple[str, str]]:
    """Give what to type to use, resume and repeat the run: (what for, code)."""
    if run.folder is None:
        return [("Keep the weights (this run was kept in memory)", 'torch.save(run.model.state_dict(), "weights.pt")')]
    folder, best = str(run.folder), run.folder / "checkpoints" / "best" / "model.safetensors"
    has_task = files.is_regular(run.folder / TASK)
    task, comment = ("", "") if has_task else (", task=task", "  # task: the Task that was trained")
    entries: list[tuple[str, str]] = []
    if FinishedHistory.of(run).status not in ("finished", "stopped early"):
        entries.append(("Resume where it stopped", resume(run)))
        if has_task:
            what = "What it is worth by now, cooled down, and at its planned end"
            entries.append((what, f"thalweg forecast {shlex.quote(folder)}"))
    if files.is_regular(best):
        entries.append(
            ("Use the trained model", f"import thalweg as tw\n\nmodel = tw.Run.open({folder!r}{task}).model{comment}")
        )
        load = f"from safetensors.torch import load_file\n\nweights = load_file({str(best)!r})"
        entries.append(("Its weights without thalweg", load))
    task_arguments = command_arguments(run.folder / TASK) if has_task else ""
    if task_arguments:
        plan, other = shlex.quote(str(run.folder / PLAN)), shlex.quote(f"{folder}-again")
        entries.append(
            ("Train this plan again from the start", f"thalweg train {task_arguments} --plan {plan} --out {other}")
        )
    return entries


def resume(run: Run) -> str:
    """Give what to type to resume a run."""
    if run.folder is None or files.is_regular(run.folder / TASK):
        return f"thalweg resume {shlex.quote(str(run.folder))}"
    return f"run = thalweg.resume({str(run.folder)!r}, task=task)"


def command_arguments(path: Path) -> str:
    """Give the arguments that name a recorded task on the command line; empty where it cannot, or somebody else recorded it.

    What somebody else recorded is not suggested to be run.
    """
    try:
        source, is_ours = Source.read(path)
    except ThalwegError:
        return ""
    if not is_ours:
        return ""
    if source.file:
        address = f"{source.file}:{source.name}"
    elif source.module and source.module.startswith(EXAMPLES_PACKAGE):
        address = source.module.removeprefix(EXAMPLES_PACKAGE)
    else:
        return ""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in source.arguments.items()]
    return shlex.join([address, *options])
