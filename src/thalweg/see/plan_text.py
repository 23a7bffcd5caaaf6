"""A plan's knobs for people: their names, their values, and which are shown first. Their descriptions are in the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from thalweg.formatting import grouped, printable, seconds
from thalweg.records.knob import Knob, knobs
from thalweg.records.plan import Group, Plan
from thalweg.schedule import Schedule

SOURCES = {
    "searched": "tried in short runs of this task",
    "measured": "measured on this machine",
    "derived": "by a stated rule",
    "given": "you decided it",
    "default": "a stated default",
}


def label(name: str) -> str:
    """Name a knob for people.

    >>> label("learning_rate"), label("ema")
    ('learning rate', 'weight average (EMA)')
    """
    return knobs(Plan)[name].label or name.replace("_", " ")


def meaning(name: str) -> str:
    """Say in one line what a knob does.

    >>> meaning("learning_rate")
    'how far a step goes'
    """
    return knobs(Plan)[name].meaning


def split(plan: Plan) -> tuple[list[str], list[str]]:
    """Give the knobs to show first, the main ones before the others that were chosen, and those at defaults or kept as notes.

    >>> split(Plan(clip_norm=1.0))[0]
    ['learning_rate', 'schedule', 'batch_size', 'weight_decay', 'rule', 'steps', 'clip_norm']
    """
    main = sorted((knob for knob in knobs(Plan).values() if knob.shown == "main"), key=lambda knob: knob.rank)
    others = [knob.name for knob in knobs(Plan).values() if knob.shown in ("chosen", "report")]
    first = [*(knob.name for knob in main), *(name for name in others if plan.why(name).source != "default")]
    return first, [name for name in knobs(Plan) if name not in first]


def in_terminal(plan: Plan) -> list[str]:
    """Give the knobs that the terminal shows: the first ones, without those that only the report has room for."""
    return [name for name in split(plan)[0] if knobs(Plan)[name].shown != "report"]


def value(plan: Plan, name: str) -> str:
    """Say a knob's value in full: somebody will type it in again.

    >>> value(Plan(learning_rate=0.0123456), "learning_rate"), value(Plan(), "ema"), value(Plan(), "schedule")
    ('0.0123456', 'off', 'constant over the whole run')
    """
    found: Any = getattr(plan, name)
    if isinstance(found, Schedule) and plan.steps:
        found = found.resolve(plan.steps, plan.steps_per_epoch)
    return _say(knobs(Plan)[name], found)


def help_lines() -> list[tuple[str, str]]:
    """Give each knob's name and a line on it for the command's help: meaning, range, default, and how none reads.

    >>> dict(help_lines())["batch_size"]
    'examples that one step averages over (examples, at least 1; none: the whole data set; default 64)'
    """
    return [(knob.name, f"{knob.meaning} ({'; '.join(_facts(knob))})") for knob in knobs(Plan).values()]


def _facts(knob: Knob) -> list[str]:
    none = f"none: {knob.unset}" if knob.optional else ""
    zero = f"0: {knob.zero}" if knob.zero else ""
    return [fact for fact in (knob.range(), none, zero, f"default {_typed(knob)}") if fact]


def _typed(knob: Knob) -> str:
    """Say a default as one types it in a command, or in words where it is a table or depends on other knobs."""
    if knob.default is None or isinstance(knob.default, bool):
        return str(knob.default).lower()
    return _say(replace(knob, zero="", unit=""), knob.default)


def _say(knob: Knob, found: Any) -> str:
    if found is None or found != found:  # NaN: a default that depends on other knobs
        return knob.unset
    if isinstance(found, Schedule):
        return grouped(found.describe())
    if knob.zero and found == 0:
        return knob.zero
    if knob.unit == "seconds":
        return seconds(found)
    if isinstance(found, Mapping):
        return printable(_table(found)) or knob.empty
    counted = isinstance(found, int) and not isinstance(found, bool) and knob.unit
    return f"{found:,}" if counted else _plain(found)


def _table(found: Mapping[str, Any]) -> str:
    if any(isinstance(part, Group) for part in found.values()):
        return "; ".join(f"{pattern}: {_group(group)}" for pattern, group in found.items())
    return ", ".join(f"{name} {_plain(part)}" for name, part in found.items())


def _group(group: Group) -> str:
    factors = f"rate x {group.learning_rate:g}, decay x {group.weight_decay:g}"
    return factors if group.rule is None else f"by {group.rule}, {factors}"


def _plain(found: Any) -> str:
    """Say a value with all its digits."""
    if isinstance(found, bool):
        return "yes" if found else "no"
    return f"{found:g}" if isinstance(found, float) and float(f"{found:g}") == found else printable(str(found))
