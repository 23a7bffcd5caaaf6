"""The plan's knobs for people: their names, what each does, their values, and which to show first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from thalweg.formatting import grouped, printable, seconds
from thalweg.records.plan import Group, Plan

FIRST = ("learning_rate", "schedule", "batch_size", "weight_decay", "rule", "steps")
NOTED = ("steps_per_epoch", "position")  # found with the data, and nobody's choice
SOURCES = {
    "searched": "tried in short runs of this task",
    "measured": "measured on this machine",
    "derived": "by a stated rule",
    "given": "you decided it",
    "default": "a stated default",
}
ABOUT = {
    "learning_rate": "how far a step goes",
    "schedule": "how the rate rises and falls over the run",
    "batch_size": "examples that one step averages over",
    "weight_decay": "how strongly weights are pulled to zero",
    "rule": "how gradients become steps",
    "constants": "the rule's own settings",
    "steps": "length of the run",
    "accumulate": "parts that a batch is cut into to save memory",
    "clip_norm": "longest gradient that is let through",
    "clip_value": "largest entry of the gradient",
    "ema": "running average of the weights",
    "precision": "numbers used in the forward pass",
    "seed": "start of everything random",
    "decay_vectors": "whether biases and normalisation decay too",
    "groups": "parameters with settings of their own",
    "validate_every": "steps between validations",
    "patience": "validations without improvement before stopping",
    "keep": "which weights the model ends with",
    "watch": "notice and cure divergence",
    "snapshot_every": "steps between states a cure can go back to",
    "workers": "processes that load data",
    "threads": "CPU threads",
    "engine": "what runs the rule's equation",
    "steps_per_epoch": "steps that go once over the data",
    "position": "how a resumed run finds its place in the data again",
    "shuffle": "whether each pass has a new order",
    "replacement": "whether an example may come twice in a pass",
    "drop_last": "whether a last, smaller batch is left out",
    "checkpoint_seconds": "time between two checkpoints on disk",
    "digest_every": "steps between fingerprints of the weights",
}
UNSET = {
    "batch_size": "the whole data set",
    "steps": "not decided",
    "steps_per_epoch": "unknown",
    "validate_every": "once an epoch, 5 to 50 times a run",
    "patience": "never stop early",
    "threads": "as they are",
}


def label(knob: str) -> str:
    """Name a knob.

    >>> label("learning_rate")
    'learning rate'
    """
    return {"ema": "weight average (EMA)"}.get(knob, knob.replace("_", " "))


def split(plan: Plan) -> tuple[list[str], list[str]]:
    """Give the knobs to show first, the main ones before the others that were chosen, and those at defaults or kept as notes.

    >>> split(Plan(clip_norm=1.0))[0]
    ['learning_rate', 'schedule', 'batch_size', 'weight_decay', 'rule', 'steps', 'clip_norm']
    """
    every = [f.name for f in fields(plan) if f.name != "evidence"]
    told = [name for name in every if name not in (*FIRST, *NOTED)]
    chosen = [name for name in told if plan.why(name).source != "default"]
    chosen = [*FIRST, *chosen]
    return chosen, [name for name in every if name not in chosen]


def value(plan: Plan, knob: str) -> str:
    """Say a knob's value in full: somebody will type it in again.

    >>> value(Plan(learning_rate=0.0123456), "learning_rate"), value(Plan(), "ema"), value(Plan(), "schedule")
    ('0.0123456', 'off', 'constant over the whole run')
    """
    found: Any = getattr(plan, knob)
    if found is None:
        return UNSET.get(knob, "off")
    if knob == "schedule":
        settled = plan.schedule.resolve(plan.steps, plan.steps_per_epoch) if plan.steps else found
        return grouped(settled.describe())
    if knob in ("snapshot_every", "digest_every", "workers", "weight_decay") and found == 0:
        return "none"
    if knob == "checkpoint_seconds":
        return seconds(found)
    if knob == "groups":
        return printable("; ".join(f"{name}: {_group(group)}" for name, group in plan.groups.items())) or "one for all"
    if isinstance(found, Mapping):
        return printable(", ".join(f"{name} {_say(part)}" for name, part in found.items())) or "the rule's own"
    return f"{found:,}" if isinstance(found, int) and not isinstance(found, bool) and knob != "seed" else _say(found)


def _group(group: Group) -> str:
    factors = f"rate x {group.learning_rate:g}, decay x {group.weight_decay:g}"
    return factors if group.rule is None else f"by {group.rule}, {factors}"


def _say(found: Any) -> str:
    if isinstance(found, bool):
        return "yes" if found else "no"
    return f"{found:g}" if isinstance(found, float) and float(f"{found:g}") == found else printable(str(found))
