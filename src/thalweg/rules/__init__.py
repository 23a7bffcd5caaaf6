"""Update rules: one equation per file, looked up by name.

The table below is written by `tools/tables.py` from the folder's listing, so that types, linters and completion see every name.
A third party's rule comes by an entry point of the group `thalweg.rules` and is looked for only when a name is unknown here.
"""

from __future__ import annotations

from importlib.metadata import entry_points

from thalweg.errors import RuleError, nearest
from thalweg.rules.adadelta import adadelta
from thalweg.rules.adafactor import adafactor
from thalweg.rules.adagrad import adagrad
from thalweg.rules.adam import adam
from thalweg.rules.adamax import adamax
from thalweg.rules.adamw import adamw
from thalweg.rules.gradient_descent import gradient_descent
from thalweg.rules.lion import lion
from thalweg.rules.momentum import momentum
from thalweg.rules.muon import muon
from thalweg.rules.nadam import nadam
from thalweg.rules.nesterov import nesterov
from thalweg.rules.normuon import normuon
from thalweg.rules.prodigy import prodigy
from thalweg.rules.radam import radam
from thalweg.rules.rmsprop import rmsprop
from thalweg.rules.rule import Range, Rule, State, rule
from thalweg.rules.schedule_free_adamw import schedule_free_adamw
from thalweg.rules.schedule_free_sgd import schedule_free_sgd

RULES: dict[str, Rule] = {
    "adadelta": adadelta,
    "adafactor": adafactor,
    "adagrad": adagrad,
    "adam": adam,
    "adamax": adamax,
    "adamw": adamw,
    "gradient_descent": gradient_descent,
    "lion": lion,
    "momentum": momentum,
    "muon": muon,
    "nadam": nadam,
    "nesterov": nesterov,
    "normuon": normuon,
    "prodigy": prodigy,
    "radam": radam,
    "rmsprop": rmsprop,
    "schedule_free_adamw": schedule_free_adamw,
    "schedule_free_sgd": schedule_free_sgd,
}

__all__ = ["RULES", "Range", "Rule", "State", "get", "names", "rule"]


def names() -> list[str]:
    """List the rules' names, third parties' included, without importing those."""
    return sorted({*RULES, *(point.name for point in entry_points(group="thalweg.rules"))})


def get(name: str | Rule) -> Rule:
    """Look a rule up by its name or alias; a `Rule` is given back as it is.

    Raises `RuleError`, with the nearest name, for one that nobody offers.

    >>> get("sgd").name
    'gradient_descent'
    """
    if isinstance(name, Rule):
        return name
    known = {**RULES, **{alias: one for one in RULES.values() for alias in one.aliases}}
    if name in known:
        return known[name]
    for point in entry_points(group="thalweg.rules"):
        if point.name == name:
            return _checked(point.name, point.load())
    raise RuleError(
        f"There is no update rule {name!r}; there are {', '.join(names())}.{nearest(name, [*known, *names()])}"
    )


def _checked(name: str, loaded: object) -> Rule:
    if isinstance(loaded, Rule):
        return loaded
    raise RuleError(
        f"The entry point {name!r} of group thalweg.rules gives {type(loaded).__name__}, not a Rule; decorate it with @rule."
    )
