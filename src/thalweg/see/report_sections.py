"""The report's sections, each from a run to HTML. Whatever a person or a task named passes through `safe`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from thalweg.formatting import format_number, grouped, printable, seconds, sentence, several
from thalweg.records.diagnosis import Diagnosis
from thalweg.records.history import Event
from thalweg.records.run import Run
from thalweg.see import curves, plan_text, run_text
from thalweg.see.advice import next_steps
from thalweg.see.charts import MARKS, color_class, mark_sign
from thalweg.see.events import event_place, event_sentences, is_diagnosis, mark_kind, treatments

MOST_EVENTS, MOST_FOUND, MOST_FIGURES = 200, 40, 60
STATES = {
    "finished": "",
    "stopped early": "",
    "running": "warn",
    "interrupted": "warn",
    "diverged": "bad",
    "failed": "bad",
}
UNMEASURED = {
    "critical step": "how long a step the loss allows at this place",
    "bad batch": "whether a single bad batch was at fault",
    "which module gave it first": "which layer gave it first",
}
COLUMNS = {  # names in the figures, where they say too little by themselves
    "learning_rates": "learning rate",
    "seeds": "seed",
    "scores": "score (lower is better)",
    "batch_sizes": "batch size",
    "examples_per_second": "examples a second",
    "peak_megabytes": "memory, MB",
    "seconds_per_step": "seconds a step",
    "best_of_short_runs": "best learning rate of the short runs",
    "price": "price of search and training, in full trainings",
    "seconds": "seconds that it took",
}
VERIFIED = {True: "It was seen to work.", False: "It was tried and did not help.", None: ""}


def safe(text: Any) -> str:
    """Make a stranger's text harmless in HTML.

    >>> safe("<b>\\x00'")
    '&lt;b&gt;&#x27;'
    """
    return escape(printable(str(text)))


def with_code(text: str) -> str:
    """Turn words between backticks into code, and make the rest harmless.

    >>> with_code("run `a < b`")
    'run <code>a &lt; b</code>'
    """
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", safe(text))


def heading(run: Run) -> str:
    """The task's name, how the run stands, and how it ended."""
    state = run_text.status(run)
    chip = f'<span class="state {STATES.get(state, "warn")}">{safe(state)}</span>'
    kept = run_text.weights(run)
    return (
        f'<header><div class="top"><h1>{safe(run_text.name(run))}</h1>{chip}</div>'
        f'<p class="lead">{safe(run_text.headline(run))}</p>{f"<p class=dim>{safe(kept)}</p>" if kept else ""}</header>'
    )


def tiles(run: Run) -> str:
    """The final figures, large."""
    shown = [*run_text.figures(run), *_effort(run)]
    inside = "".join(
        f'<div class="tile"><span>{safe(name)}</span><b>{safe(value)}</b><small>{safe(told)}</small></div>'
        for name, value, told in shown
    )
    return f'<div class="tiles">{inside}</div>' if inside else ""


def _effort(run: Run) -> list[tuple[str, str, str]]:
    steps, took = run_text.steps(run), run.summary.get("seconds")
    if not steps:
        return []
    return [("steps", f"{steps:,}", run_text.epochs(run, steps))] + (
        [("time", seconds(float(took)), f"on {run_text.device(run)}")] if took is not None else []
    )


def advice(run: Run) -> str:
    """What to do next."""
    inside = "".join(f"<li>{with_code(line)}</li>" for line in next_steps(run))
    return f'<section class="card next"><h2>What to do next</h2><ul>{inside}</ul></section>'


def charts(run: Run) -> str:
    """The curves."""
    rest = [*curves.metrics(run), curves.rate(run), curves.gradient(run)]
    first, rest = curves.loss(run), [c for c in rest if c]
    if not first and not rest:
        return section("How it went", '<p class="dim">No step has been recorded yet.</p>')
    large = f'<div class="tall">{first}</div>' if first else ""
    return section("How it went", f'{large}<div class="pair">{"".join(rest)}</div>')


def plan(run: Run) -> str:
    """Every knob with its value and its evidence; what was measured for it is drawn."""
    shown, rest = plan_text.split(run.plan)
    legend = "".join(
        f'<span><span class="chip {source}">{source}</span>{safe(told)}</span>'
        for source, told in plan_text.SOURCES.items()
    )
    hidden = (
        f"<details><summary>{several(len(rest), 'more knob')}, which nobody had to choose</summary>"
        f"{_knobs(run, rest)}</details>"
        if rest
        else ""
    )
    pictures = "".join(c for c in (curves.search(run), batches(run)) if c)
    drawn = f'<div class="pair">{pictures}</div>' if pictures else ""
    return section(
        "The plan, and why",
        f'<p class="note sources">{legend}</p><div class="card">{_knobs(run, shown)}{hidden}</div>{drawn}',
    )


def _knobs(run: Run, names: Iterable[str]) -> str:
    return f'<table class="knobs"><tbody>{"".join(_knob(run, name) for name in names)}</tbody></table>'


def _knob(run: Run, name: str) -> str:
    why = run.plan.why(name)
    chip = f'<span class="chip {why.source}">{why.source}</span>'
    seen = f"<details><summary>figures</summary>{figures(why.figures)}</details>" if why.figures else ""
    about = f"<small>{safe(plan_text.ABOUT[name])}</small>" if name in plan_text.ABOUT else ""
    return (
        f"<tr><th scope=row>{safe(plan_text.label(name))}{about}</th><td>{safe(plan_text.value(run.plan, name))}</td>"
        f"<td>{chip}{safe(grouped(why.reason))}{seen}</td></tr>"
    )


def figures(seen: Mapping[str, Any]) -> str:
    """Numbers and texts by name; lists of one length are columns of a table beneath."""
    lists = {key: list(v) for key, v in seen.items() if isinstance(v, list | tuple)}
    long = max(map(len, lists.values()), default=0)
    columns = {key: v for key, v in lists.items() if len(v) == long > 1}
    columns = columns if len(columns) > 1 else {}
    rows = "".join(
        f"<tr><th scope=row>{_named(key)}</th><td>{_value(v)}</td></tr>"
        for key, v in seen.items()
        if key not in columns
    )
    single = f'<table class="figures"><tbody>{rows}</tbody></table>' if rows else ""
    return single + (_columns(columns, long) if columns else "")


def _columns(columns: Mapping[str, list[Any]], length: int) -> str:
    head = "".join(f"<th scope=col>{_named(key)}</th>" for key in columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{_entry(key, v[row])}</td>" for key, v in columns.items()) + "</tr>"
        for row in range(min(length, MOST_FIGURES))
    )
    more = f"<p class=dim>and {length - MOST_FIGURES:,} more.</p>" if length > MOST_FIGURES else ""
    table = f'<table class="figures rows"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f'<div class="wide">{table}</div>{more}'


def _named(key: str) -> str:
    return safe(COLUMNS.get(key, key.replace("_", " ")))


def _entry(key: str, value: Any) -> str:
    if key == "scores" and value == math.inf:
        return "diverged"
    return safe(value) if key == "seeds" else safe(format_number(value))


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        more = f", and {len(value) - MOST_FIGURES} more" if len(value) > MOST_FIGURES else ""
        return safe(", ".join(format_number(v) for v in value[:MOST_FIGURES]) + more)
    if isinstance(value, Mapping):
        return safe(", ".join(f"{k} {format_number(v)}" for k, v in value.items()))
    return safe(format_number(value))


def batches(run: Run) -> str:
    """The measured batch sizes, as bars of examples a second."""
    seen = run.plan.why("batch_size").figures
    sizes, speeds = seen.get("batch_sizes", []), seen.get("examples_per_second", [])
    memory = list(seen.get("peak_megabytes", []))
    memory += [None] * (len(sizes) - len(memory))
    if len(sizes) < 2 or len(sizes) != len(speeds):
        return ""
    top = max([1.0, *(float(s) for s in speeds)])
    rows = "".join(_bar(run, *measured, top) for measured in zip(sizes, speeds, memory, strict=False))
    return (
        '<figure><figcaption><b>Batch size</b></figcaption><p class="note">Examples a second at each size, and the process\'s'
        f' largest memory until then.{_slower(run, sizes, speeds)}</p><table class="bars"><tbody>{rows}</tbody></table></figure>'
    )


def _slower(run: Run, sizes: list[Any], speeds: list[Any]) -> str:
    """Say why a size was chosen that is not the fastest."""
    chosen, fastest = run.plan.batch_size, sizes[int(np.argmax(np.array(speeds, np.float64)))]
    if chosen not in sizes or fastest <= chosen or not run.plan.steps:
        return ""
    return (
        f" {chosen:,} was chosen although {format_number(fastest)} is faster: it gives {fastest / chosen:.3g} times as many steps"
        f" for the same examples, here {run.plan.steps:,}, and a short run lacks steps rather than speed."
    )


def _bar(run: Run, size: Any, speed: Any, memory: Any, top: float) -> str:
    chosen = ' class="chosen"' if size == run.plan.batch_size else ""
    told = f"{float(speed):,.0f}/s" if speed else "out of memory"
    room = f"<td>{safe(format_number(memory))} MB</td>" if memory is not None else "<td></td>"
    width = f'<span class="bar" style="width:{100 * float(speed) / top:.1f}%"></span>'
    return f"<tr{chosen}><td>{safe(format_number(size))}{' ◆' if chosen else ''}</td><td>{width}</td><td>{told}</td>{room}</tr>"


def events(run: Run) -> str:
    """What happened on the way, in order."""
    told = event_sentences(run)
    if not told:
        return section("What happened", '<p class="dim">Nothing out of the ordinary: no step had to be corrected.</p>')
    rows = "".join(_event(event, said) for event, said in told[:MOST_EVENTS])
    more = f"<p class=dim>and {len(told) - MOST_EVENTS:,} more, in the history.</p>" if len(told) > MOST_EVENTS else ""
    return section(
        "What happened", f'<div class="card"><table class="events"><tbody>{rows}</tbody></table>{more}</div>'
    )


def _event(event: Event, said: str) -> str:
    gone = ' class="gone"' if event.superseded else ""
    told = event.superseded and not is_diagnosis(event)  # after these, that goes without saying
    later = " <small>The run went on from an earlier step afterwards.</small>" if told else ""
    kind = mark_kind(event)
    marked = is_diagnosis(event) or kind in MARKS
    name, color = (mark_sign(kind)[1], color_class(kind)) if marked else (safe(kind.replace("_", " ")), safe(kind))
    kind = f'<small class="kind {color}">{name}</small>'
    return f"<tr{gone}><th scope=row>{event_place(event)}{kind}</th><td>{safe(said)}{later}</td></tr>"


def diagnoses(run: Run) -> str:
    """What went wrong, on what evidence, and what was done."""
    if not run.diagnoses:
        return ""
    found = "".join(_diagnosis(d, done) for d, done in treatments(run)[:MOST_FOUND])
    more = len(run.diagnoses) - MOST_FOUND
    return section("Diagnoses", found + (f"<p class=dim>and {more:,} more of the kind.</p>" if more > 0 else ""))


def _diagnosis(found: Diagnosis, done: str) -> str:
    place = f"Step {found.step:,}" if found.step is not None else "Before training"
    since = f", abnormal since step {found.since:,}" if found.since not in (None, found.step) else ""
    sure = f" ({found.probability:.0%} sure)" if found.probability is not None else ""
    parts = [f"<h3>{place}: {safe(found.symptom)}{since}{sure}</h3><p>{safe(sentence(found.cause))}</p>"]
    if done:
        parts.append(f"<p><b>Done:</b> {safe(done)} {VERIFIED[found.verified]}</p>")
    elif found.cure:
        parts.append(f"<p><b>What to do:</b> {safe(found.cure.action)} {VERIFIED[found.verified]}</p>")
    for word, names in (
        ("Ruled out", found.ruled_out),
        ("Follows from it", found.consequences),
        ("Training examples", found.examples[:MOST_FIGURES]),
    ):
        if names:
            parts.append(f"<p class=dim>{word}: {safe(', '.join(map(str, names)))}.</p>")
    open_ = ", ".join(UNMEASURED.get(name, name) for name in found.not_measured)
    left = f"<p class=dim>Not looked into: {safe(open_)}.</p>" if open_ else ""
    if found.evidence or left:
        parts.append(f"<details><summary>figures</summary>{_evidence(found)}{left}</details>")
    return f'<div class="card found {found.severity}">{"".join(parts)}</div>'


def _evidence(found: Diagnosis) -> str:
    told: dict[str, Any] = {}
    for name, entry in found.evidence.items():
        named = "measured" if name == found.symptom else name
        if isinstance(entry, Mapping) and "value" in entry:
            told[named] = f"{format_number(entry['value'])}{_expected(entry)}"
        else:
            told[named] = entry
    return figures(told)


def _expected(entry: Mapping[str, Any]) -> str:
    """Say what would have been well: the value lies on the wrong side of the threshold."""
    value, limit = entry["value"], entry.get("threshold")
    if limit is None:
        return ""
    numbers = all(isinstance(part, int | float) for part in (value, limit))
    side = ("at most " if value > limit else "at least ") if numbers else ""
    return f" (expected: {side}{format_number(limit)})"


def use(run: Run) -> str:
    """How to use the model and go on."""
    shown = "".join(
        f"<h3>{safe(told)}</h3><pre><code>{_code(code)}</code></pre>" for told, code in run_text.commands(run)
    )
    return section("Use it", shown)


def _code(code: str) -> str:
    return "\n".join(safe(line) for line in code.split("\n"))


def environment(run: Run) -> str:
    """Where and on what it ran."""
    summary = run.summary
    took = run_text.column(run, "seconds")
    median = float(np.nanmedian(took)) if np.isfinite(took).any() else None
    known = {
        "device": run_text.device(run),
        "torch": summary.get("torch"),
        "CPU threads": run.plan.threads,
        "precision": run.plan.precision,
        "trainable and fixed parameters": summary.get("parameters"),
        "training examples": summary.get("examples"),
        "milliseconds a step (median)": None if median is None else 1000 * median,
        "folder": None if run.folder is None else Path(run.folder).absolute(),
        "report written by": _version(),
    }
    told = figures({key: value for key, value in known.items() if value is not None})
    notes = "".join(f"<li>{with_code(grouped(str(note)))}</li>" for note in summary.get("notes", []))
    return section("Environment", f'<div class="card">{told}{f"<ul>{notes}</ul>" if notes else ""}</div>')


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
    """A section with its title."""
    return f"<section><h2>{escape(title)}</h2>{inside}</section>"
