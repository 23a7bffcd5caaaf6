"""What happened on the way, what was done about it and what followed, in short sentences."""

from __future__ import annotations

import math
import re

from thalweg.formatting import format_number, grouped, printable, sentence, times_as
from thalweg.records.diagnosis import Diagnosis
from thalweg.records.history import Event
from thalweg.records.run import Run
from thalweg.see import run_text
from thalweg.watch.causes import summary_of
from thalweg.watch.monitor import SAME_PLACE

QUIET = ("start", "checkpoint", "finish", "validation_best")  # kinds of events that need no person's attention


def event_sentences(run: Run) -> list[tuple[Event, str]]:
    """Give the events that need a person's attention, each in a short sentence."""
    return [(event, _short(run, event)) for event in run.events if event.kind not in QUIET]


def event_place(event: Event) -> str:
    """Say at which step an event happened; going back is written down where it led to."""
    step = event.data.get("from", event.step) if event.kind == "rollback" else event.step
    return f"step {step:,}"


def is_diagnosis(event: Event) -> bool:
    """Tell whether an event holds a diagnosis, or the batch that was left out on one."""
    return "symptom" in event.data or "batch" in event.data


def mark_kind(event: Event) -> str:
    """Give the kind under which an event is marked in charts: a batch that was left out, else its own."""
    return "left_out" if "batch" in event.data else event.kind


def _short(run: Run, event: Event) -> str:
    if event.kind == "rollback" and "from" in event.data:
        return f"Went back to step {event.step:,}{_gentler(run, event)}."
    if summary := summary_of(event.kind, event.data.get("evidence") or {}):
        return summary
    said = str(event.data["cause"]).partition(";")[0] if "cause" in event.data else event.message
    said = re.sub(r"^step [\d,]+: ", "", printable(said).partition("; go on with")[0], flags=re.IGNORECASE)
    return sentence(grouped(said if said.endswith((".", "!", "?", "…")) else f"{said}."))


def _gentler(run: Run, event: Event) -> str:
    """Say what a rollback changed: its figures are of the whole way so far, so they are compared with the plan."""
    factor, clip = event.data.get("rate_factor"), event.data.get("clip_norm")
    changed: list[str] = []
    if factor is not None and 0 < factor < 1:
        rate = format_number(run.plan.learning_rate * factor)
        changed.append(
            f"{times_as(factor)} the planned learning rate ({rate} instead of {format_number(run.plan.learning_rate)})"
        )
    if clip is not None and math.isfinite(clip):
        changed.append(f"gradients clipped at {format_number(float(clip))}")
    return f", with {' and '.join(changed)}" if changed else ""


def treatments(run: Run) -> list[tuple[Diagnosis, str]]:
    """Give each diagnosis with what was done about it and what followed; nothing where nothing was done.

    Counted from the end: what came before a stop may have happened again after it, and is diagnosed once.
    """
    told: list[tuple[Diagnosis, str]] = []
    left = list(range(len(run.events)))
    for found in reversed(run.diagnoses):
        k = next((k for k in reversed(left) if _tells(run.events[k], found)), None)
        left = left if k is None else left[: left.index(k)]
        told.append((found, "" if k is None else _treated(run, k)))
    return told[::-1]


def _tells(event: Event, found: Diagnosis) -> bool:
    """Tell whether an event is that of a diagnosis: it holds the diagnosis, or the batch that was left out."""
    left_out = "batch" in event.data and found.name in (event.kind, "")
    return event.step == found.step and (left_out or event.data.get("symptom") == found.symptom)


def _treated(run: Run, k: int) -> str:
    """Say what was done about the k-th event, and whether the trouble came back afterwards."""
    trouble, after = run.events[k], run.events[k + 1 :]
    if "batch" in trouble.data:
        return "The batch was left out, and no weight took this step."
    if after and after[0].kind == "diverged":
        return "Nothing was left to try: the descent was given up."
    if not after or after[0].kind != "rollback":
        return ""
    return f"{_short(run, after[0])} {_followed(run, trouble, after[1:])}"


def _followed(run: Run, trouble: Event, after: tuple[Event, ...]) -> str:
    later = next((event for event in after if "symptom" in event.data), None)
    if later is None:
        until = "" if run_text.status(run) in ("finished", "stopped early") else f" until step {run_text.steps(run):,}"
        return f"That helped: the trouble did not come back{until}."
    if later.step <= trouble.step + SAME_PLACE:
        return f"That was not enough: the trouble came back at step {later.step:,}."
    return f"That helped until step {later.step:,}, where the trouble came back."
