"""What a run is made from: its plan, and its task as far as it can be compared.

It is recorded when the run begins, in `run.json` and in every checkpoint, and compared when the run is resumed or opened, so that
it never goes on as another one without a word.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from thalweg.records import json_values
from thalweg.records.kinds import Kind, check, count, listing, optional, record, table, text
from thalweg.records.plan import Plan

if TYPE_CHECKING:  # imported where a run is written or compared: opening data takes a while to import
    from thalweg.sampling.data_sum import DataSum


@dataclass(frozen=True)
class TaskSums:
    """What can be compared of a task.

    - `data`, `validation`: sums of the data; None: there are none, or they were not recorded.
    - `weights`: a sum of the sampling weights; `loss`, of the loss's buffers; `start`, of the weights that the model starts from.
      Empty where it was not recorded.
    - `criterion`: {"select": …, "mode": …}.
    - `code`: see `records/fingerprint.py`.
    """

    data: DataSum | None = None
    validation: DataSum | None = None
    weights: str = ""
    loss: str = ""
    start: str = ""
    criterion: Mapping[str, str] = field(default_factory=dict[str, str])
    code: Mapping[str, str] = field(default_factory=dict[str, str])

    def edited(self, now: TaskSums) -> list[str]:
        """Say what of criterion, loss and code is other now."""
        from thalweg.records import fingerprint

        criterion = [
            f"`{name}` was '{value}' and is '{now.criterion[name]}'"
            for name, value in self.criterion.items()
            if now.criterion.get(name, value) != value
        ]
        buffers = ["the buffers of `loss` have other values"] * bool(self.loss and now.loss and self.loss != now.loss)
        return [*criterion, *buffers, *fingerprint.changes(self.code, now.code)]

    @property
    def sum(self) -> str:
        """A sum of what validation figures go by."""
        measured = {**self.to_dict(), "start": "", "data": None, "weights": ""}
        return hashlib.sha256(_text(measured).encode()).hexdigest()[:32]

    def to_dict(self) -> dict[str, Any]:
        """Give them as built-in types."""
        sums = {"data": self.data, "validation": self.validation}
        data = {name: None if value is None else value.to_dict() for name, value in sums.items()}
        return {**vars(self), **data, "criterion": dict(self.criterion), "code": dict(self.code)}

    @staticmethod
    def from_dict(entries: Mapping[str, Any]) -> TaskSums:
        """Read what `to_dict` gave. Raises TypeError, KeyError or ValueError for anything else."""
        from thalweg.sampling.data_sum import DataSum

        check(entries, TASK_SUMS)
        values: dict[str, Any] = dict(entries)
        for name in ("data", "validation"):
            values[name] = entries[name] and DataSum.from_dict(entries[name])
        return TaskSums(**values)

    @staticmethod
    def of_summary(summary: Mapping[str, Any]) -> TaskSums:
        """Give what a status of an earlier version says of its task: counts, criterion and code."""
        from thalweg.sampling.data_sum import DataSum

        criterion = {name: str(summary[name]) for name in ("select", "mode") if name in summary}
        validation = None if summary.get("held_out") is None else DataSum()
        return TaskSums(
            DataSum(summary.get("examples")), validation, criterion=criterion, code=summary.get("code") or {}
        )


DATA_SUM: Mapping[str, Kind] = {
    "count": optional(count),
    "read": count,
    **dict.fromkeys(("sum", "drawn_sum", "failed"), text),
    **dict.fromkeys(("drawn", "unlike"), listing(count)),
}
TASK_SUMS: Mapping[str, Kind] = {
    **dict.fromkeys(("data", "validation"), optional(record(DATA_SUM))),
    **dict.fromkeys(("weights", "loss", "start"), text),
    **dict.fromkeys(("criterion", "code"), table(text)),
}
"""What the entries of a task's sums are."""


@dataclass(frozen=True)
class RunInputs:
    """What a run is made from: its `plan` as `Plan.to_dict` gives it, and its `task`.

    `earlier_plans` are those that it had before somebody asked to change knobs when it was resumed.
    """

    plan: Mapping[str, Any]
    task: TaskSums = field(default_factory=TaskSums)
    earlier_plans: tuple[Mapping[str, Any], ...] = ()

    def with_plan(self, plan: Plan) -> RunInputs:
        """Give these inputs with another plan, the present one being noted as an earlier one."""
        return replace(self, plan=plan.to_dict(), earlier_plans=(*self.earlier_plans, self.plan))

    def had_plan(self, plan: Mapping[str, Any]) -> bool:
        """Whether a plan is the run's, or was before it was changed."""
        return any(not plan_changes(plan, own) for own in (self.plan, *self.earlier_plans))

    def to_dict(self) -> dict[str, Any]:
        """Give the record as built-in types."""
        earlier = [dict(plan) for plan in self.earlier_plans]
        return {"plan": dict(self.plan), "earlier_plans": earlier, "task": self.task.to_dict()}

    @staticmethod
    def from_dict(entries: Mapping[str, Any]) -> RunInputs:
        """Read what `to_dict` gave. Raises TypeError, KeyError, ValueError or PlanError for anything else."""
        # By way of a plan: one that another version wrote has all knobs of this one too.
        plan, *earlier = (Plan.from_dict(part).to_dict() for part in (entries["plan"], *entries["earlier_plans"]))
        return RunInputs(plan, TaskSums.from_dict(entries["task"]), tuple(earlier))


def plan_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say which knobs of two plans, as `Plan.to_dict` gives them, are others, from what to what.

    >>> plan_changes(Plan(steps=5).to_dict(), Plan(steps=6).to_dict())
    ['steps was 5 and is 6']
    """
    flat_before, flat_now = _flat(before), _flat(now)
    return [
        f"{name} {_was_and_is(flat_before.get(name), flat_now.get(name))}"
        for name in sorted({**flat_before, **flat_now}, key=lambda name: name.startswith("evidence."))
        if _text(flat_before.get(name)) != _text(flat_now.get(name))
    ]


def in_words(changes: Sequence[str], most: int = 5) -> str:
    """Name the first few changes, and say how many more there are.

    >>> in_words(["steps was 5 and is 6", "seed was 0 and is 1"], most=1)
    'steps was 5 and is 6; and 1 more'
    """
    more = f"; and {len(changes) - most} more" if len(changes) > most else ""
    return f"{'; '.join(changes[:most])}{more}"


def _was_and_is(before: Any, now: Any) -> str:
    if before is None or now is None:
        return f"was {_shown(before)} and is not set" if now is None else f"was not set and is {_shown(now)}"
    return f"was {_shown(before)} and is {_shown(now)}"


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _flat(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Give the knobs of a plan by name, entries of tables as `schedule.warmup`; the format is none."""
    found: dict[str, Any] = {}
    for name, value in plan.items():
        if name == "format":
            continue
        if isinstance(value, Mapping):
            found |= {f"{name}.{key}": part for key, part in cast("Mapping[str, Any]", value).items()}
        else:
            found[name] = value
    return found


def _text(value: Any) -> str:
    text = json.dumps(json_values.encode(json_values.without_tuples(value)), sort_keys=True, allow_nan=False)
    return re.sub("nan:[0-9a-f]{16}", "nan", text)  # TOML does not keep a NaN's bits
