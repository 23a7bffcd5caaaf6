"""The diagnosis: what went wrong, the evidence for it, and the cure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from textwrap import shorten
from typing import Any, Literal, get_args

from thalweg.records.kinds import Kind, anything, check, flag, listing, number, optional, record, table, text, whole

Severity = Literal["note", "warning", "critical"]


@dataclass(frozen=True)
class Cure:
    """A remedy as a value: the descent applies and logs it.

    Arguments:
        action: what to do in one sentence, for a person.
        rollback: go back to the last good snapshot first.
        begin_again: go back to where the run began instead, where that costs little of it and loses nothing that was learnt.
        by_courses: set the rate, up or down as `rate_factor` says, where courses of some steps from the run's beginning get
            furthest, and change nothing where none gets further. Where they cannot be taken, the rest holds as it stands.
        skip_batch: leave this step's batch out.
        leave_out: leave the examples out, from here on, that the diagnosis and earlier ones of its name list.
        rate_factor: multiplies the learning rate from here on, above 0.
        clip_norm: clip the gradient's norm at this from here on; None leaves clipping as it is.
        decay_factor: multiplies the weight decay from here on, at least 0.
        warmup: raise the learning rate over so many steps from here on, in a line; 0: not.
        anneal: from here on the learning rate is at least this share of its highest, falling in a line to zero at the end of the
            run; 0: what the schedule gives.
        accumulate: batches whose gradients make up one step from here on, on top of how many did before.
        ema: decay of an average of the weights that is kept, and validated beside them, from here on; None: as it was.
        forget: the optimiser begins anew with its running means.
        restart: names of layers that are started anew, so that each unit's signal has mean zero and the variance
            `restart_variance`.
        code: what to write in a training loop of one's own, in one line; empty where there is no such line.
    """

    action: str
    rollback: bool = False
    begin_again: bool = False
    by_courses: bool = False
    skip_batch: bool = False
    leave_out: bool = False
    rate_factor: float = 1.0
    clip_norm: float | None = None
    decay_factor: float = 1.0
    warmup: int = 0
    anneal: float = 0.0
    accumulate: int = 1
    ema: float | None = None
    forget: bool = False
    restart: tuple[str, ...] = ()
    restart_variance: float = 1.0
    code: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """One finding.

    Arguments:
        symptom: what is seen, in the field's words ("diverging").
        cause: what brings it about, in a sentence.
        name: the stable name of the cause that was asked, as `watch/causes/` lists them ("bad-data-scale").
        severity: "note", "warning" or "critical".
        step: where it was noticed; None before training. `since`: the first abnormal step.
        evidence: name -> figures, usually `{"value": …, "threshold": …}`.
        ruled_out, not_measured, consequences: names of other causes, of tests that had no input, and of what follows.
        examples: indices into the training data.
        cure: the remedy. `verified`: True or False where it was tried, None where not.
        probability: in [0, 1] where several causes fit, else None.
    """

    symptom: str
    cause: str
    severity: Severity = "warning"
    step: int | None = None
    since: int | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict[str, Any])
    ruled_out: tuple[str, ...] = ()
    not_measured: tuple[str, ...] = ()
    consequences: tuple[str, ...] = ()
    examples: tuple[int, ...] = ()
    cure: Cure | None = None
    verified: bool | None = None
    probability: float | None = None
    name: str = ""

    def __str__(self) -> str:
        when = f"step {self.step}: " if self.step is not None else ""
        remedy = f" {self.cure.action}" if self.cure else ""
        return f"{when}{self.symptom}: {self.cause}{remedy}"

    def __repr__(self) -> str:
        return f"<Diagnosis {self.severity}: {shorten(str(self), 160, placeholder=' …')}>"

    def to_dict(self) -> dict[str, Any]:
        """Give built-in types, for JSON; tuples become lists."""
        return _listed(asdict(self))

    @staticmethod
    def from_dict(entries: Mapping[str, Any]) -> Diagnosis:
        """Read what `to_dict` gave. Raises TypeError where it is something else."""
        check(entries, _KINDS, ("symptom", "cause"))
        values = dict(entries)
        cure = values.pop("cure", None)
        tuples = ("ruled_out", "not_measured", "consequences", "examples")
        values |= {name: tuple(values[name]) for name in tuples if name in values}
        if cure:
            rest = {name: value for name, value in cure.items() if name != "restart"}
            cure = Cure(**rest, restart=tuple(cure.get("restart", ())))
        return Diagnosis(**values, cure=cure or None)


def _listed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: list(value) if isinstance(value, tuple) else _listed(value) if key == "cure" and value else value
        for key, value in values.items()
    }


_CURE: Mapping[str, Kind] = {
    "action": text,
    "rollback": flag,
    "begin_again": flag,
    "by_courses": flag,
    "skip_batch": flag,
    "leave_out": flag,
    "forget": flag,
    "rate_factor": number,
    **dict.fromkeys(("clip_norm", "ema"), optional(number)),
    **dict.fromkeys(("decay_factor", "anneal", "restart_variance"), number),
    **dict.fromkeys(("warmup", "accumulate"), whole),
    "restart": listing(text),
    "code": text,
}
_KINDS: Mapping[str, Kind] = {
    **dict.fromkeys(("symptom", "cause", "name"), text),
    "severity": lambda value: text(value) and value in get_args(Severity),
    **dict.fromkeys(("step", "since"), optional(whole)),
    "evidence": table(anything),
    **dict.fromkeys(("ruled_out", "not_measured", "consequences"), listing(text)),
    "examples": listing(whole),
    "cure": optional(record(_CURE)),
    "verified": optional(flag),
    "probability": optional(number),
}
