"""What a search comes to know of a candidate, in plain values: they are recorded, and sent from one process to another."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from thalweg.records import json_values
from thalweg.records.kinds import check, count, listing, number, record, text
from thalweg.records.plan import Plan


class Outcome(NamedTuple):
    """What a candidate would be worth after some steps.

    - `step`: how far it had come.
    - `value`: of the task's criterion after a cool-down from there; NaN where there is none, as it diverged, say.
    - `steps_paid`: all steps taken for it until then, those of its cool-downs too.
    - `seconds`: what it took to come from the outcome before to this one.
    - `reason`: why there is no value; empty where there is one.
    - `loss`: the validation loss after that cool-down, which may be a number where the criterion is none; NaN where it is none.
    - `parts`, `kept`: of a finished run of an open length, what each part of the validation examples adds to the loss, and the
      step whose weights it keeps; else empty and -1.
    """

    step: int
    value: float
    steps_paid: int
    seconds: float = 0.0
    reason: str = ""
    loss: float = math.nan
    parts: Sequence[float] = ()
    kept: int = -1

    def by_loss(self) -> Outcome:
        """Give the outcome with the loss as its value."""
        return self._replace(value=self.loss, reason="" if math.isfinite(self.loss) else self.reason)

    def to_dict(self) -> dict[str, Any]:
        """Give it as built-in types."""
        entries = {**self._asdict(), "parts": list(self.parts)}
        return {
            name: value for name, value in entries.items() if name not in ("parts", "kept") or value not in ([], -1)
        }

    def score(self, mode: str) -> float:
        """Give the value such that less is better, infinite where there is none."""
        if not math.isfinite(self.value):
            return math.inf
        return self.value if mode == "min" else -self.value


@dataclass
class Trial:
    """What was found of a candidate, and in what state it is.

    `state`: "running", "stopped" where it fell behind, or "won". `lost`: what became of each worker that was lost with it.
    """

    outcomes: dict[int, Outcome] = field(default_factory=dict[int, Outcome])
    state: str = "running"
    lost: list[str] = field(default_factory=list[str])

    @property
    def last(self) -> Outcome | None:
        """The outcome after the most steps."""
        return self.outcomes[max(self.outcomes)] if self.outcomes else None

    def to_dict(self) -> dict[str, Any]:
        """Give it as built-in types."""
        outcomes = [one.to_dict() for one in self.outcomes.values()]
        return {"outcomes": outcomes, "state": self.state, "lost": list(self.lost)}

    @staticmethod
    def from_dict(entries: Mapping[str, Any]) -> Trial:
        """Read what `to_dict` gave. Raises TypeError for anything else."""
        check(entries, TRIAL, tuple(TRIAL))
        outcomes = [Outcome(**one) for one in entries["outcomes"]]
        return Trial({one.step: one for one in outcomes}, entries["state"], list(entries["lost"]))


OUTCOME = {"step": count, "value": number, "steps_paid": count, "seconds": number, "reason": text, "loss": number}
OF_FINISHED = {"parts": listing(number), "kept": count}
TRIAL = {
    "outcomes": listing(record({**OUTCOME, **OF_FINISHED}, tuple(OUTCOME)[:-1])),
    "state": text,
    "lost": listing(text),
}


def knobs(plan: Plan) -> Any:
    """Give all knobs of a plan, without their evidence, as JSON holds them."""
    return json_values.encode(
        json_values.without_tuples({name: value for name, value in plan.to_dict().items() if name != "evidence"})
    )


def plan_sum(plan: Plan) -> str:
    """Give a short sum of a plan's knobs: of what makes its run the run that it is."""
    return hashlib.sha256(json.dumps(knobs(plan), sort_keys=True).encode()).hexdigest()[:16]
