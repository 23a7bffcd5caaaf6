"""The report's sections: each function gives a part of a run's report as HTML. Text that is not ours passes through `safe`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from thalweg.formatting import capitalized, format_count, format_number, format_seconds, group_digits, printable
from thalweg.records.diagnosis import Diagnosis
from thalweg.records.history import Event
from thalweg.records.run import Run
from thalweg.see import batch_sizes, curves, noise, plan_text, run_text
from thalweg.see.advice import next_steps
from thalweg.see.charts import MARKS, color_class, mark_sign
from thalweg.see.events import event_sentences, event_step, is_diagnosis, mark_kind, treatments
from thalweg.watch.finished import FinishedHistory

MAX_EVENTS, MAX_DIAGNOSES, MAX_FIGURES = 200, 40, 60
STATUS_CLASSES = {
    "finished": "",
    "stopped early": "",
    "running": "warn",
    "interrupted": "warn",
    "diverged": "bad",
    "failed": "bad",
}
TEST_NAMES = {  # names in `Diagnosis.not_measured`, for people
    "critical step": "how long a step may be here before the loss rises",
    "bad batch": "whether a single bad batch was at fault",
    "which module gave it first": "which layer gave it first",
}
FIGURE_NAMES = {  # names in `Evidence.figures`, for people
    "rules": "rule",
    "weight_decays": "weight decay",
    "learning_rates": "learning rate",
    "seeds": "seed",
    "scores": "score (lower is better)",
    "batch_sizes": "batch size",
    "examples_per_second": "examples per second",
    "megabytes": "memory needed, MB",
    "memory": "memory was",
    "fixed_megabytes": "memory for any batch, MB",
    "kilobytes_per_example": "memory per example, kB",
    "memory_limit_megabytes": "memory that may be taken, MB",
    "memory_limit": "memory is limited by",
    "noise_scale": "gradient noise scale, with its interval of 90 %, examples",
    "noise_scale_above": "gradient noise scale, at least, examples",
    "seconds_per_step": "seconds per step",
    "cost_of_half": "what half the rate costs, as a share of the score",
    "cost_of_double": "what twice the rate costs, as a share of the score",
    "highest_stable_rate": "highest rate that trained",
    "lowest_unstable_rate": "lowest rate above it, which diverged",
    "seconds_compiling": "seconds that compiling takes",
    "compile": "compiled",
    "float32_losses": "loss in float32",
    "bfloat16_losses": "loss in bfloat16",
    "probability": "probability that it is better than the next on another seed",
    "price": "price of search and training, in full trainings",
    "seconds": "duration, seconds",
}
VERIFIED = {True: "It was tried and works.", False: "It was tried and did not help.", None: ""}  # None: not tried


def safe(text: Any) -> str:
    """Escape a text that a task or a user chose for HTML.

    >>> safe("<b>\\x00'")
    '&lt;b&gt;&#x27;'
    """
    return escape(printable(str(text)))


def with_code(text: str) -> str:
    """Format words between backticks as code, and escape the text.

    >>> with_code("run `a < b`")
    'run <code>a &lt; b</code>'
    """
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", safe(text))


def heading(run: Run) -> str:
    """The task's name, the run's status, and how it ended."""
    status = FinishedHistory.of(run).status
    chip = f'<span class="state {STATUS_CLASSES.get(status, "warn")}">{safe(status)}</span>'
    told = [run_text.weights(run), run_text.on_training_data(run), run_text.drift(run), run_text.outlook(run)]
    details = safe(" ".join(filter(None, told)))
    return (
        f'<header><div class="top"><h1>{safe(run_text.name(run))}</h1>{chip}</div>'
        f'<p class="lead">{safe(run_text.headline(run))}</p>{f"<p class=dim>{details}</p>" if details else ""}</header>'
    )


def tiles(run: Run) -> str:
    """The final figures, large."""
    shown = [*run_text.figures(run), *_steps_and_time(run)]
    inside = "".join(
        f'<div class="tile"><span>{safe(name)}</span><b>{safe(value)}</b><small>{safe(comparison)}</small></div>'
        for name, value, comparison in shown
    )
    return f'<div class="tiles">{inside}</div>' if inside else ""


def _steps_and_time(run: Run) -> list[tuple[str, str, str]]:
    history, duration = FinishedHistory.of(run), run.summary.get("seconds")
    if not history.steps:
        return []
    shown = [("steps", f"{history.steps:,}", history.epochs(history.steps))]
    if duration is not None:
        search = run.plan.why("learning_rate").number("seconds")
        more = "" if search is None else f"; search {format_seconds(search)}"
        shown.append(("time", format_seconds(float(duration)), f"on {run_text.device(run)}{more}"))
    return shown


def advice(run: Run) -> str:
    """What to do next."""
    inside = "".join(f"<li>{with_code(line)}</li>" for line in next_steps(run))
    return f'<section class="card next"><h2>What to do next</h2><ul>{inside}</ul></section>'


def charts(run: Run) -> str:
    """The curves."""
    rest = [*curves.terms(run), *curves.metrics(run), curves.rate(run), curves.gradient(run)]
    first, rest = curves.loss(run), [c for c in rest if c]
    if not first and not rest:
        return section("How it went", '<p class="dim">No step has been recorded yet.</p>')
    large = f'<div class="tall">{first}</div>' if first else ""
    return section("How it went", f'{large}<div class="pair">{"".join(rest)}</div>')


def temperature(run: Run) -> str:
    """The noise of the steps: their temperature, and the noise scale of the gradients."""
    text, drawn = noise.summary(run), curves.noise(run)
    if not text:
        return ""
    if len(drawn) < 2 and (scale := noise.scale_text(run)):  # there is a sentence, and too little to draw
        text = f"{text} {scale}"
    charts_html = f'<div class="pair">{"".join(drawn)}</div>' if drawn else ""
    return section("The noise, as a temperature", f'<p class="note">{safe(text)}</p>{charts_html}')


def plan(run: Run) -> str:
    """Every knob with its value and its evidence, and charts of what was measured to choose it."""
    shown, rest = plan_text.split(run.plan)
    legend = "".join(
        f'<span><span class="chip {source}">{source}</span>{safe(meaning)}</span>'
        for source, meaning in plan_text.SOURCES.items()
    )
    title = f"{format_count(len(rest), 'more knob')}, which nobody had to choose"
    hidden = f"<details><summary>{title}</summary>{_knobs(run, rest)}</details>" if rest else ""
    drawn = "".join([curves.search(run), curves.length(run), batches(run), curves.throughput(run), curves.memory(run)])
    charts_html = f'<div class="pair">{drawn}</div>' if drawn else ""
    return section(
        "The plan, and why",
        f'<p class="note sources">{legend}</p><div class="card">{_knobs(run, shown)}{hidden}</div>{charts_html}',
    )


def _knobs(run: Run, names: Iterable[str]) -> str:
    return f'<table class="knobs"><tbody>{"".join(_knob(run, name) for name in names)}</tbody></table>'


def _knob(run: Run, name: str) -> str:
    why = run.plan.why(name)
    chip = f'<span class="chip {why.source}">{why.source}</span>'
    details = f"<details><summary>figures</summary>{figures_table(why.figures)}</details>" if why.figures else ""
    return (
        f"<tr><th scope=row>{safe(plan_text.label(name))}<small>{safe(plan_text.meaning(name))}</small></th>"
        f"<td>{safe(plan_text.value(run.plan, name))}</td><td>{chip}{safe(group_digits(why.reason))}{details}</td></tr>"
    )


def figures_table(figures: Mapping[str, Any]) -> str:
    """A table of figures by name; lists of one length become the columns of a second table."""
    lists = {key: list(v) for key, v in figures.items() if isinstance(v, list | tuple)}
    length = max(map(len, lists.values()), default=0)
    columns = {key: v for key, v in lists.items() if len(v) == length > 1}
    columns = columns if len(columns) > 1 else {}
    rows = "".join(
        f"<tr><th scope=row>{_column_name(key)}</th><td>{_value(v)}</td></tr>"
        for key, v in figures.items()
        if key not in columns
    )
    single = f'<table class="figures"><tbody>{rows}</tbody></table>' if rows else ""
    return single + (_columns(columns, length) if columns else "")


def _columns(columns: Mapping[str, list[Any]], length: int) -> str:
    head = "".join(f"<th scope=col>{_column_name(key)}</th>" for key in columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{_cell(key, v[row])}</td>" for key, v in columns.items()) + "</tr>"
        for row in range(min(length, MAX_FIGURES))
    )
    more = f"<p class=dim>and {length - MAX_FIGURES:,} more.</p>" if length > MAX_FIGURES else ""
    table = f'<table class="figures rows"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f'<div class="wide">{table}</div>{more}'


def _column_name(key: str) -> str:
    return safe(FIGURE_NAMES.get(key, key.replace("_", " ")))


def _cell(key: str, value: Any) -> str:
    if key == "scores" and value == math.inf:
        return "diverged"
    return safe(value) if key in ("seeds", "rules") else safe(format_number(value))


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        more = f", and {len(value) - MAX_FIGURES} more" if len(value) > MAX_FIGURES else ""
        return safe(", ".join(format_number(v) for v in value[:MAX_FIGURES]) + more)
    if isinstance(value, Mapping):
        return safe(", ".join(f"{k} {format_number(v)}" for k, v in value.items()))
    return safe(format_number(value))


def batches(run: Run) -> str:
    """The measured batch sizes, as bars of examples per second."""
    rows = batch_sizes.measured(run)
    if len(rows) < 2:
        return ""
    fastest = max([1.0, *(row.examples_per_second for row in rows)])
    with_memory = any(row.megabytes is not None for row in rows)
    inside = "".join(_bar(run, row, fastest, with_memory) for row in rows)
    memory_head = "<th scope=col>memory</th>" if with_memory else ""
    head = f"<th scope=col>batch size</th><th scope=col colspan=2>examples per second</th>{memory_head}"
    errors = " ".join(f"{row.batch_size:,} failed: {safe(row.error)}." for row in rows if row.error)
    note = " ".join(filter(None, [_why_not_fastest(run, rows), errors]))
    note_html = f'<p class="note">{note}</p>' if note else ""
    return (
        f"<figure><figcaption><b>Batch size</b></figcaption>{note_html}"
        f'<table class="bars"><thead><tr>{head}</tr></thead><tbody>{inside}</tbody></table></figure>'
    )


def _why_not_fastest(run: Run, rows: list[batch_sizes.Row]) -> str:
    """Say why a size was chosen that is not the fastest."""
    chosen, fastest = run.plan.batch_size, max(rows, key=lambda row: row.examples_per_second).batch_size
    if chosen not in [row.batch_size for row in rows] or fastest <= chosen or not run.plan.steps:
        return ""
    choice = f"{chosen:,} was chosen although {fastest:,} is faster"
    if run.plan.why("steps").source in ("given", "measured"):  # then a smaller batch gives no more steps
        return f"{choice}: it is {group_digits(safe(run.plan.why('batch_size').reason))}."
    return (
        f"{choice}: it gives {fastest / chosen:.3g} times as many steps"
        f" for the same examples, here {run.plan.steps:,}, and a short run lacks steps rather than speed."
    )


def _bar(run: Run, row: batch_sizes.Row, fastest: float, with_memory: bool) -> str:
    chosen = ' class="chosen"' if row.batch_size == run.plan.batch_size else ""
    memory_text = "" if row.megabytes is None else f"{format_number(row.megabytes)} MB"
    width = f'<span class="bar" style="width:{100 * row.examples_per_second / fastest:.1f}%"></span>'
    size_text = f"{row.batch_size:,}{' ◆' if chosen else ''}"
    memory = f"<td>{memory_text}</td>" if with_memory else ""
    return f"<tr{chosen}><td>{size_text}</td><td>{width}</td><td>{batch_sizes.speed_text(row)}</td>{memory}</tr>"


def events(run: Run) -> str:
    """The events of the run, in order."""
    described = event_sentences(run)
    if not described:
        return section("What happened", '<p class="dim">Nothing out of the ordinary: no step had to be corrected.</p>')
    rows = "".join(_event(event, text) for event, text in described[:MAX_EVENTS])
    more = (
        f"<p class=dim>and {len(described) - MAX_EVENTS:,} more, in the history.</p>"
        if len(described) > MAX_EVENTS
        else ""
    )
    return section(
        "What happened", f'<div class="card"><table class="events"><tbody>{rows}</tbody></table>{more}</div>'
    )


def _event(event: Event, text: str) -> str:
    row_class = ' class="superseded"' if event.superseded else ""
    undone = event.superseded and not is_diagnosis(event)  # a diagnosis is followed by an event of the rollback itself
    note = " <small>The run later continued from an earlier step.</small>" if undone else ""
    kind = mark_kind(event)
    marked = is_diagnosis(event) or kind in MARKS
    name, color = (mark_sign(kind)[1], color_class(kind)) if marked else (safe(kind.replace("_", " ")), safe(kind))
    kind = f'<small class="kind {color}">{name}</small>'
    return f"<tr{row_class}><th scope=row>{event_step(event)}{kind}</th><td>{safe(text)}{note}</td></tr>"


def diagnoses(run: Run) -> str:
    """The diagnoses, each with its evidence and what was done about it."""
    if not run.diagnoses:
        return ""
    cards = "".join(_diagnosis(diagnosis, done) for diagnosis, done in treatments(run)[:MAX_DIAGNOSES])
    more = len(run.diagnoses) - MAX_DIAGNOSES
    return section("Diagnoses", cards + (f"<p class=dim>and {more:,} more of the kind.</p>" if more > 0 else ""))


def _diagnosis(diagnosis: Diagnosis, done: str) -> str:
    when = f"Step {diagnosis.step:,}" if diagnosis.step is not None else "Before training"
    since = f", abnormal since step {diagnosis.since:,}" if diagnosis.since not in (None, diagnosis.step) else ""
    probability = f" ({diagnosis.probability:.0%} sure)" if diagnosis.probability is not None else ""
    parts = [
        f"<h3>{when}: {safe(diagnosis.symptom)}{since}{probability}</h3><p>{safe(capitalized(diagnosis.cause))}</p>"
    ]
    if done:
        parts.append(f"<p><b>Done:</b> {safe(done)} {VERIFIED[diagnosis.verified]}</p>")
    elif diagnosis.cure:
        parts.append(f"<p><b>What to do:</b> {safe(diagnosis.cure.action)} {VERIFIED[diagnosis.verified]}</p>")
    for word, names in (
        ("Ruled out", diagnosis.ruled_out),
        ("Follows from it", diagnosis.consequences),
        ("Training examples", diagnosis.examples[:MAX_FIGURES]),
    ):
        if names:
            parts.append(f"<p class=dim>{word}: {safe(', '.join(map(str, names)))}.</p>")
    not_measured = ", ".join(TEST_NAMES.get(name, name) for name in diagnosis.not_measured)
    not_measured_html = f"<p class=dim>Not measured: {safe(not_measured)}.</p>" if not_measured else ""
    if diagnosis.evidence or not_measured_html:
        parts.append(f"<details><summary>figures</summary>{_evidence(diagnosis)}{not_measured_html}</details>")
    return f'<div class="card found {diagnosis.severity}">{"".join(parts)}</div>'


def _evidence(diagnosis: Diagnosis) -> str:
    texts: dict[str, Any] = {}
    for name, entry in diagnosis.evidence.items():
        label = "measured" if name == diagnosis.symptom else name
        if isinstance(entry, Mapping) and "value" in entry:
            texts[label] = f"{format_number(entry['value'])}{_expected(entry)}"
        else:
            texts[label] = entry
    return figures_table(texts)


def _expected(entry: Mapping[str, Any]) -> str:
    """Say what value would have been normal: the measured one lies on the other side of the threshold."""
    value, limit = entry["value"], entry.get("threshold")
    if limit is None:
        return ""
    numbers = all(isinstance(part, int | float) for part in (value, limit))
    side = ("at most " if value > limit else "at least ") if numbers else ""
    return f" (expected: {side}{format_number(limit)})"


def use(run: Run) -> str:
    """How to use the model, resume the run or repeat it."""
    shown = "".join(
        f"<h3>{safe(title)}</h3><pre><code>{_code(code)}</code></pre>" for title, code in run_text.commands(run)
    )
    return section("Use it", shown)


def _code(code: str) -> str:
    return "\n".join(safe(line) for line in code.split("\n"))


def environment(run: Run) -> str:
    """The device, versions and sizes of the run."""
    summary = run.summary
    step_seconds = FinishedHistory.of(run).column("seconds")
    median = float(np.nanmedian(step_seconds)) if np.isfinite(step_seconds).any() else None
    entries = {
        "device": run_text.device(run),
        "torch": summary.get("torch"),
        "CPU threads": run.plan.threads,
        "precision": run.plan.precision,
        "parameters": _parameters(summary),
        "training examples": summary.get("examples"),
        "milliseconds per step (median)": None if median is None else 1000 * median,
        "folder": None if run.folder is None else Path(run.folder).absolute(),
        "report written by": _version(),
    }
    table = figures_table({key: value for key, value in entries.items() if value is not None})
    notes = "".join(f"<li>{with_code(group_digits(str(note)))}</li>" for note in summary.get("notes", []))
    return section("Environment", f'<div class="card">{table}{f"<ul>{notes}</ul>" if notes else ""}</div>')


def _parameters(summary: Mapping[str, Any]) -> str | None:
    """Say how many weights there are, and how many of them are trained where that is another number."""
    count, trained = summary.get("parameters"), summary.get("trainable_parameters")
    if count is None or trained in (None, count):
        return None if count is None else format_number(count)
    return f"{format_number(count)}, of which {format_number(trained)} are trained"


def _version() -> str:
    from importlib.metadata import (
        PackageNotFoundError,
        version,
    )  # tens of milliseconds that `import thalweg` can do without

    try:
        return f"thalweg {version('thalweg')}"
    except PackageNotFoundError:  # run from a source tree
        return "thalweg"


def section(title: str, inside: str) -> str:
    """A section of the report with its title."""
    return f"<section><h2>{escape(title)}</h2>{inside}</section>"
