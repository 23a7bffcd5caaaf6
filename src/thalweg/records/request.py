"""The request: what a person asks of `fit`, `tune` or `estimate`, in one record that is checked where it is made."""

from __future__ import annotations

import math
import operator
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from thalweg import rules
from thalweg.errors import ArgumentError, PlanError, nearest, shown
from thalweg.formatting import is_storable
from thalweg.records.holdout import Holdout
from thalweg.records.knob import knobs
from thalweg.records.names import suggestion
from thalweg.records.open_length import OpenLength, is_finite_number, open_length_from
from thalweg.records.plan import Plan

BUDGETS = ("epochs", "steps", "seconds")
UNITS = {
    "": 1,
    **{f"{letter}{i}": (1024 if i else 1000) ** (n + 1) for n, letter in enumerate("kMGT") for i in ("", "i")},
}
EFFORTS = {"quick": 2.0, "standard": 4.0, "thorough": 12.0}  # in full trainings, the final one included


@dataclass(frozen=True)
class Request:
    """What a person asks for.

    Arguments:
        epochs, steps, seconds: the budget, at most one of them; `seconds` includes the search.
        open: the run goes on until it no longer pays; then there are no epochs or steps, and `seconds` is the most of it all.
        effort: the price of it all in full trainings: 1 (no search), "quick" 2, "standard" 4, "thorough" 12, or a number.
        seed: of everything random.
        fixed: knobs that are decided, such as {"batch_size": 64}; converted to the types that a plan holds.
        device: "auto", "cpu", "cuda", …; whether it is there is found out when the task is opened.
        storage: the database of the search's study, a URL or the path of an SQLite file; None: the search's own place.
        study: the study's name in it; None: one by the task's name and what is asked for.
        memory: that training may use in all, in bytes or as a text such as "4 GB"; None: 80 % of what is free.
        plan: whose open length alone is to be found, all its knobs being decided; None: the plan is to be chosen too.

    Raises PlanError or ArgumentError that names what is not allowed, and says what is.

    >>> Request(epochs=20, effort="quick").trainings, Request(steps=9, fixed={"learning_rate": 0.1}).trainings
    (2.0, 1.0)
    """

    epochs: float | None = None
    steps: int | None = None
    seconds: float | None = None
    effort: str | float = "standard"
    seed: int = 0
    fixed: Mapping[str, Any] = field(default_factory=dict[str, Any])
    device: str = "auto"
    storage: str | None = None
    study: str | None = None
    memory: int | str | None = None
    open: OpenLength | None = None
    plan: Plan | None = None

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {
            **_budget({"epochs": self.epochs, "steps": self.steps, "seconds": self.seconds}),
            "seed": _seed(self.seed),
            "effort": _effort(self.effort),
            "fixed": _knobs(self.fixed),
            "storage": _storage(self.storage),
            "study": _study(self.study),
            "memory": None if self.memory is None else _bytes(self.memory),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def check_budget(self) -> None:
        """Refuse a request that does not say how long to train. Raises PlanError."""
        if (self.epochs, self.steps, self.seconds, self.open) == (None, None, None, None):
            raise PlanError(
                "No budget is known. Give epochs=, steps= or seconds=. With epochs='auto' it goes on until it no longer pays."
            )

    @property
    def searches_rate(self) -> bool:
        """Whether the learning rate is to be searched: it is not fixed, and the rule does not find it itself."""
        if self.plan is not None:
            return False
        return "learning_rate" not in self.fixed and not rules.get(self.fixed.get("rule", "adamw")).finds_rate

    @property
    def to_hold_out(self) -> Holdout:
        """What is to be held out of the training examples: as many as was decided, else the usual share."""
        if self.plan is not None:
            return self.plan.to_hold_out
        seed = self.fixed.get("seed", self.seed)
        by, batch_size = self.fixed.get("holdout_by", "auto"), self.fixed.get("batch_size")
        return Holdout(self.fixed.get("holdout"), by, seed, batch_size)

    @property
    def trainings(self) -> float:
        """The price in full trainings, the final one included: the effort's, or 1 where nothing is searched."""
        price = EFFORTS[self.effort] if isinstance(self.effort, str) else self.effort
        return price if self.searches_rate else 1.0

    @property
    def seconds_per_training(self) -> float | None:
        """The budget's seconds shared out among the trainings that are paid for."""
        return None if self.seconds is None else self.seconds / self.trainings

    @property
    def memory_bytes(self) -> int | None:
        """The most memory that training may use, in bytes; None where nobody said."""
        return None if self.memory is None else int(self.memory)

    def with_seconds_spent(self, seconds: float) -> Request:
        """Give the request less the seconds that have passed; at least half of a budget in seconds remains."""
        if self.seconds is None:
            return self
        return replace(self, seconds=max(self.seconds - seconds, 0.5 * self.seconds))

    def to_dict(self) -> dict[str, Any]:
        """Give the request as built-in types, for JSON; a storage without its password, which is not written anywhere."""
        knobs = _plan_with(self.fixed).to_dict()
        # Only where they are there: a search that an earlier version began is found by the sum of what was asked for.
        length = {} if self.open is None else {"open": self.open.to_dict()}
        plan = {} if self.plan is None else {"plan": self.plan.to_dict()}
        return {
            **{name: value for name, value in vars(self).items() if name not in ("open", "plan")},
            **length,
            **plan,
            "fixed": {name: knobs.get(name) for name in self.fixed},
            "device": str(self.device),
            "storage": self.storage and _without_password(self.storage),
        }

    @staticmethod
    def from_dict(entries: Mapping[str, Any]) -> Request:
        """Read what `to_dict` gave. Raises PlanError as a new request does."""
        knobs = entries["fixed"]
        plan = Plan.from_dict({name: value for name, value in knobs.items() if value is not None})
        values: dict[str, Any] = {**entries, "fixed": {name: getattr(plan, name) for name in knobs}}
        values["open"] = open_length_from(entries.get("open"))
        values["plan"] = Plan.from_dict(entries["plan"]) if "plan" in entries else None
        return Request(**values)


def _budget(budgets: Mapping[str, Any]) -> dict[str, float | int]:
    """Give the budget that is named as a number, a whole one of steps; nothing where none is."""
    named = {name: value for name, value in budgets.items() if value is not None}
    if len(named) > 1:
        raise PlanError(f"Give one budget, not several: {', '.join(f'{k}={v}' for k, v in named.items())}.")
    for name, value in named.items():
        if not is_finite_number(value) or value <= 0:
            auto = ", or 'auto'" if isinstance(value, str) and name != "seconds" else ""
            raise PlanError(f"`{name}` is {shown(value)}, but a budget must be a number above zero and finite{auto}.")
        if name == "steps" and value != int(value):
            raise PlanError(f"`steps` is {value}, but it is a whole number.")
    return {name: int(value) if name == "steps" else float(value) for name, value in named.items()}


def _seed(seed: Any) -> int:
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if number < 0 or isinstance(seed, bool):
        raise PlanError(f"`seed` is {shown(seed)}, but it is a whole number, at least 0.")
    return number


def _storage(storage: Any) -> str | None:
    """Give the storage, the path of a file made absolute. Raises ArgumentError where it is neither a path nor a URL."""
    if storage is None:
        return None
    if not isinstance(storage, str | os.PathLike) or not str(storage).strip() or "\0" in str(storage):
        raise ArgumentError(
            f"`storage` is {shown(storage, 80)}. Give a URL such as 'postgresql://host/name', or the path of an SQLite file."
        )
    text = os.fspath(storage)
    return text if "://" in text else os.path.abspath(os.path.expanduser(text))


def _without_password(storage: str) -> str:
    """Give a storage without the password in it.

    >>> _without_password("postgresql://me:secret@host/db")
    'postgresql://me@host/db'
    """
    return re.sub(r"(?<=://)([^/@]*?):[^/]*@", r"\1@", storage)


def _study(name: Any) -> str | None:
    if name is not None and (not isinstance(name, str) or not name.strip() or "/" in name or not is_storable(name)):
        raise ArgumentError(
            f"`study` is {shown(name, 80)}. Give a short text without '/', by which the study is found again."
        )
    return name


def _effort(effort: Any) -> str | float:
    if isinstance(effort, str):
        if effort not in EFFORTS:
            raise PlanError(
                f"`effort` is '{effort}', which is none of {', '.join(EFFORTS)}, and no number.{nearest(effort, EFFORTS)}"
            )
        return effort
    if not is_finite_number(effort) or effort < 1:
        raise PlanError(
            f"`effort` is {shown(effort)}, but it is at least 1: one full training. 1 takes stated defaults alone."
        )
    return float(effort)


def _bytes(memory: Any) -> int:
    """Read a number of bytes.

    >>> _bytes("4 GB"), _bytes("512MiB"), _bytes(1e9)
    (4000000000, 536870912, 1000000000)
    """
    number: Any = memory
    if isinstance(memory, str):
        found = re.fullmatch(r"\s*([0-9.]+)\s*([kKMGT]i?)?B?\s*", memory)
        try:
            number = float(found[1]) * UNITS[(found[2] or "").replace("K", "k")] if found else math.nan
        except ValueError:
            number = math.nan
    if not is_finite_number(number) or number < 1:
        raise PlanError(
            f"`memory` is {shown(memory)}, but it is a number of bytes, or a text such as '4 GB' or '512 MiB'."
        )
    return int(number)


def _knobs(fixed: Any) -> dict[str, Any]:
    """Give the fixed knobs with the types that a plan holds."""
    known = list(knobs(Plan))
    if not isinstance(fixed, Mapping):
        raise PlanError(f"`fixed` is {shown(fixed)}, but it is a table of knobs, such as {{'batch_size': 64}}.")
    if "steps" in fixed:
        raise PlanError("`fixed` has 'steps', which is the budget: give it as steps=….")
    for name in fixed:
        if name not in known:
            hint = _hint(name if isinstance(name, str) else "", fixed, known)
            raise PlanError(f"`fixed` has {shown(name)}, which is no knob of a plan.{hint} Knobs: {', '.join(known)}.")
    plan = _plan_with(fixed)  # raises where a value cannot be
    return {name: getattr(plan, name) for name in fixed}


def _hint(name: str, fixed: Mapping[Any, Any], known: list[str]) -> str:
    """Say what a name that is no knob may mean."""
    if name in BUDGETS:
        return f" It is the budget: give it as {name}=…."
    rule = fixed.get("rule", "adamw")
    if rule in rules.RULES and name in rules.RULES[rule].constants:
        return f" It is a constant of the rule: constants={{'{name}': …}}."
    return suggestion(name, known)


def _plan_with(fixed: Mapping[str, Any]) -> Plan:
    values: dict[str, Any] = {"batch_size": None, **fixed}  # whatever else is fixed fits the whole data set as a batch
    return Plan(**values)
