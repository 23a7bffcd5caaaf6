"""A plan's knobs as text: names, values, and which are shown first. Their descriptions are `Knob`s, fields of `Plan`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from thalweg.formatting import format_seconds, group_digits, printable
from thalweg.records.knob import Knob, knobs
from thalweg.records.plan import Group, Plan
from thalweg.schedule import Schedule

SOURCES = {
    "searched": "tried on this task",
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
    """Give the names of the knobs to show first, the main ones and then others that are not at defaults, and of the rest.

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
    """Give a knob's value as text with all its digits, so that it can be typed in again.

    >>> value(Plan(learning_rate=0.0123456), "learning_rate"), value(Plan(), "ema"), value(Plan(), "schedule")
    ('0.0123456', 'off', 'constant over the whole run')
    """
    setting: Any = getattr(plan, name)
    if isinstance(setting, Schedule) and plan.steps:
        setting = setting.resolve(plan.steps, plan.steps_per_epoch)
    return _setting_text(knobs(Plan)[name], setting)


def help_lines() -> list[tuple[str, str]]:
    """Give each knob's name and a line on it for the command's help: meaning, range, default, and what `none` and 0 mean.

    >>> dict(help_lines())["batch_size"]
    'examples that one step averages over (examples, at least 1; none: the whole data set; default 64)'
    """
    return [(knob.name, f"{knob.meaning} ({'; '.join(_facts(knob))})") for knob in knobs(Plan).values()]


def _facts(knob: Knob) -> list[str]:
    none = f"none: {knob.unset}" if knob.optional else ""
    zero = f"0: {knob.zero}" if knob.zero else ""
    return [fact for fact in (knob.range(), none, zero, f"default {_default_text(knob)}") if fact]


def _default_text(knob: Knob) -> str:
    """Give a default as one types it in a command, or in words where it is a table or depends on other knobs."""
    if knob.default is None or isinstance(knob.default, bool):
        return str(knob.default).lower()
    return _setting_text(replace(knob, zero="", unit=""), knob.default)


def _setting_text(knob: Knob, setting: Any) -> str:
    if setting is None or setting != setting:  # NaN: a default that depends on other knobs
        return knob.unset
    if isinstance(setting, Schedule):
        return group_digits(setting.describe())
    if knob.zero and setting == 0:
        return knob.zero
    if knob.unit == "seconds":
        return format_seconds(setting)
    if isinstance(setting, Mapping):
        return printable(_table_text(setting)) or knob.empty
    counted = isinstance(setting, int) and not isinstance(setting, bool) and knob.unit
    return f"{setting:,}" if counted else _all_digits(setting)


def _table_text(setting: Mapping[str, Any]) -> str:
    if any(isinstance(part, Group) for part in setting.values()):
        return "; ".join(f"{pattern}: {_group_text(group)}" for pattern, group in setting.items())
    return ", ".join(f"{name} {_all_digits(part)}" for name, part in setting.items())


def _group_text(group: Group) -> str:
    factors = f"rate x {group.learning_rate_factor:g}, decay x {group.weight_decay_factor:g}"
    return factors if group.rule is None else f"by {group.rule}, {factors}"


def _all_digits(setting: Any) -> str:
    """Give a value as text with all its digits."""
    if isinstance(setting, bool):
        return "yes" if setting else "no"
    return (
        f"{setting:g}" if isinstance(setting, float) and float(f"{setting:g}") == setting else printable(str(setting))
    )
