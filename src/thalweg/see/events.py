"""A run's events in short sentences: what happened, what was done about it, and whether that helped."""

from __future__ import annotations

import math
import re

from thalweg.errors import few
from thalweg.formatting import capitalized, format_fraction, format_number, group_digits, printable
from thalweg.records.diagnosis import Diagnosis
from thalweg.records.history import Event
from thalweg.records.run import Run
from thalweg.watch.causes import summary_of
from thalweg.watch.finished import FinishedHistory
from thalweg.watch.monitor import SAME_FAILURE_STEPS

ROUTINE = ("start", "checkpoint", "finish", "validation_best")  # kinds of events that are not shown to people
UNSAID = (*ROUTINE, "interrupt")  # kinds that no progress shows: the error that ends the run says it


def event_sentences(run: Run) -> list[tuple[Event, str]]:
    """Give the events that are shown to people, each with a short sentence."""
    return [(event, _sentence(run, event)) for event in run.events if event.kind not in ROUTINE]


def event_step(event: Event) -> str:
    """Say at which step an event happened; for a rollback, recorded at the step it returns to, where it started."""
    step = event.data.get("from", event.step) if event.kind == "rollback" else event.step
    return f"step {step:,}"


def is_diagnosis(event: Event) -> bool:
    """Tell whether an event holds a diagnosis, or the batch that was left out on one."""
    return "symptom" in event.data or "batch" in event.data


def mark_kind(event: Event) -> str:
    """Give the kind under which an event is marked in charts: a batch that was left out, else its own."""
    return "left_out" if "batch" in event.data else event.kind


def _sentence(run: Run, event: Event) -> str:
    if event.kind == "rollback" and "from" in event.data:
        return f"Went back to step {event.step:,}{_changes(run, event)}."
    if summary := summary_of(event.kind, event.data.get("evidence") or {}):
        return summary
    text = str(event.data["cause"]).partition(";")[0] if "cause" in event.data else event.message
    text = re.sub(r"^step [\d,]+: ", "", printable(text).partition("; go on with")[0], flags=re.IGNORECASE)
    return capitalized(group_digits(text if text.endswith((".", "!", "?", "…")) else f"{text}."))


def _changes(run: Run, event: Event) -> str:
    """Say what a rollback changed. Its figures are those of all cures so far together, so they are compared with the plan."""
    factor, clip = event.data.get("rate_factor"), event.data.get("clip_norm")
    changed: list[str] = []
    if factor is not None and 0 < factor < 1:
        rate = format_number(run.plan.learning_rate * factor)
        changed.append(
            f"{format_fraction(factor)} the planned learning rate ({rate} instead of {format_number(run.plan.learning_rate)})"
        )
    if clip is not None and math.isfinite(clip):
        changed.append(f"gradients clipped at {format_number(float(clip))}")
    if restarted := event.data.get("restarted"):
        changed.append(f"{few([printable(name) for name in restarted])} started anew")
    if event.data.get("forgot"):
        changed.append("the optimiser's running means begun anew")
    if (decay := event.data.get("decay_factor", 1.0)) != 1.0:
        changed.append(f"{format_fraction(decay)} the planned weight decay")
    if warmup := event.data.get("warmup"):
        changed.append(f"the rate rising over {warmup[1]:,} steps")
    return f", with {', '.join(changed[:-1])}{' and ' if changed[1:] else ''}{changed[-1]}" if changed else ""


def treatments(run: Run) -> list[tuple[Diagnosis, str]]:
    """Give each diagnosis with what was done about it and what followed; nothing where nothing was done.

    Matched from the end: a run that was stopped and resumed may have an event twice, but only one diagnosis of it.
    """
    treated: list[tuple[Diagnosis, str]] = []
    end = len(run.events)  # the events of earlier diagnoses lie before this index
    for diagnosis in reversed(run.diagnoses):
        index = next((i for i in reversed(range(end)) if _belongs_to(run.events[i], diagnosis)), None)
        end = end if index is None else index
        treated.append((diagnosis, "" if index is None else _treatment(run, index)))
    return treated[::-1]


def _belongs_to(event: Event, diagnosis: Diagnosis) -> bool:
    """Tell whether an event holds this diagnosis, or the batch that was left out because of it."""
    left_out = "batch" in event.data and diagnosis.name in (event.kind, "")
    return event.step == diagnosis.step and (left_out or event.data.get("symptom") == diagnosis.symptom)


def _treatment(run: Run, index: int) -> str:
    """Say what was done about the diagnosis that this event holds, and whether the fault recurred afterwards."""
    diagnosed, after = run.events[index], run.events[index + 1 :]
    if "batch" in diagnosed.data:
        return "The batch was left out, and no weight took this step."
    if after and after[0].kind == "diverged":
        return "Nothing was left to try: the descent was given up."
    if not after or after[0].kind != "rollback":
        return ""
    return f"{_sentence(run, after[0])} {_outcome(run, diagnosed, after[1:])}"


def _outcome(run: Run, diagnosed: Event, after: tuple[Event, ...]) -> str:
    later = next((event for event in after if "symptom" in event.data), None)
    if later is None:
        history = FinishedHistory.of(run)
        until = "" if history.status in ("finished", "stopped early") else f" until step {history.steps:,}"
        return f"The trouble did not come back{until}."
    if later.step <= diagnosed.step + SAME_FAILURE_STEPS:
        return f"That was not enough: the trouble came back at step {later.step:,}."
    return f"That helped until step {later.step:,}, where the trouble came back."
