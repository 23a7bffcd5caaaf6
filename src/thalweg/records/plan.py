"""The plan: how to descend. Every knob, and the evidence on which it was chosen."""

from __future__ import annotations

import math
import operator
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import tomlkit

from thalweg import rules
from thalweg import schedule as shapes
from thalweg.errors import PlanError, ThalwegError, nearest
from thalweg.rules import Rule
from thalweg.schedule import Schedule

EvidenceSource = Literal["given", "default", "derived", "measured", "searched"]
Precision = Literal["float32", "bfloat16", "float16"]
FORMAT = 1
OF_THE_RULE = float("nan")
"""Stands for a learning rate that nobody names, until the plan is made."""
MOST = {"threads": 1024, "workers": 1024, "seed": 2**63 - 1, "steps": 2**63 - 1, "batch_size": 2**63 - 1}


@dataclass(frozen=True)
class Evidence:
    """Why a knob has its value.

    `source` is one of "given", "default", "derived" (a stated rule), "measured" or "searched"; `reason` is a sentence with
    the rule's name and where it comes from; `figures` are what was seen, plain numbers, texts and lists of them.
    """

    source: EvidenceSource
    reason: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        if self.source not in get_args(EvidenceSource):
            choices = get_args(EvidenceSource)
            raise PlanError(f"Evidence '{self.source}' is none of {list(choices)}.{nearest(str(self.source), choices)}")
        if not isinstance(self.reason, str) or not isinstance(self.figures, Mapping):
            raise PlanError(
                f"Evidence has a text `reason` and a table `figures`, not {self.reason!r} and {self.figures!r}."
            )
        object.__setattr__(self, "figures", {str(name): _plain(f, str(name)) for name, f in self.figures.items()})

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}" if self.reason else self.source


@dataclass(frozen=True)
class Group:
    """Settings of the parameters whose names match a pattern: factors on the plan's own rate and decay, and another rule."""

    learning_rate: float = 1.0
    weight_decay: float = 1.0
    rule: str | None = None

    def __post_init__(self) -> None:
        if self.rule is not None:
            rules.get(_rule_name(self.rule))
        for name in ("learning_rate", "weight_decay"):
            _set(self, name, float, "a number")
            _at_least(self, name, 0)


@dataclass(frozen=True)
class Plan:
    """How to descend. What is not given is a stated default.

    Arguments:
        rule: the update rule's name, such as "adamw".
        learning_rate: the peak rate; the schedule multiplies it. Default: the rule's own, for most 0.001.
        batch_size: examples a step (the effective batch); None means the whole data set in one batch, 1 single examples.
        weight_decay: pull of weights towards zero, in the rule's own form.
        schedule: a `Schedule`; its open lengths are of this run.
        constants: the rule's other constants, such as {"beta2": 0.99}.
        steps: update steps of the whole run; None until a budget is known.
        steps_per_epoch: as counted when the plan was made.
        accumulate: micro-batches a step; each holds about batch_size / accumulate examples.
        clip_norm, clip_value: clip the gradient's global norm, and each of its entries; None: off.
        ema: decay of an average of the weights, such as 0.999; None: off. Not for a rule that averages them itself.
        precision: "float32" (the model's own dtype), or "bfloat16" or "float16" autocast.
        seed: of initialisation, order, dropout and augmentation.
        decay_vectors: also decay biases and normalisation parameters (all of fewer than two dimensions).
        groups: pattern of parameter names (shell style, such as "head.*") -> `Group`. Under a rule of matrices alone (Muon),
            what goes by AdamW all the same is entered when the data are seen: embeddings and the output layer.
        shuffle, replacement, drop_last: how batches are drawn.
        workers: processes that load data; 0: none.
        position: how a resumed run finds its place in the data: "exact" (the order is a function of seed and epoch),
            "state_dict" (the loader is asked for its own), or "fast-forward" (a stream is gone through again up to there,
            exact where it gives the same each time); set when the data are seen.
        validate_every: steps between validations; None: derived from the epoch when the run starts.
        patience: validations without improvement after which the run stops; None: never.
        keep: "best" gives the weights that validated best, "last" the final ones.
        watch: notice and cure a loss that is not finite or diverges.
        snapshot_every: steps between the snapshots that a cure goes back to; 0: none.
        checkpoint_seconds: about how far apart checkpoints are written (they change no figure).
        digest_every: steps between digests of the weights in the history; 0: none.
        threads: CPU threads the run was planned for; None: as they are.
        engine: what runs the rule's equation: "cpu" (compiled), "tensors", or "auto", which is settled when the run starts.
        evidence: knob -> `Evidence`.

    Raises PlanError (RuleError, ScheduleError) that names the knob, its value and what it may be.
    """

    rule: str = "adamw"
    learning_rate: float = OF_THE_RULE
    batch_size: int | None = 64
    weight_decay: float = 0.0
    schedule: Schedule = field(default_factory=shapes.constant)
    constants: Mapping[str, Any] = field(default_factory=dict[str, Any])
    steps: int | None = None
    steps_per_epoch: int | None = None
    accumulate: int = 1
    clip_norm: float | None = None
    clip_value: float | None = None
    ema: float | None = None
    precision: Precision = "float32"
    seed: int = 0
    decay_vectors: bool = False
    groups: Mapping[str, Group] = field(default_factory=dict[str, Group])
    shuffle: bool = True
    replacement: bool = False
    drop_last: bool = False
    workers: int = 0
    position: Literal["exact", "state_dict", "fast-forward"] = "exact"
    validate_every: int | None = None
    patience: int | None = None
    keep: Literal["best", "last"] = "best"
    watch: bool = True
    snapshot_every: int = 50
    checkpoint_seconds: float = 60.0
    digest_every: int = 50
    threads: int | None = None
    engine: Literal["auto", "cpu", "tensors"] = "auto"
    evidence: Mapping[str, Evidence] = field(default_factory=dict[str, Evidence])

    def __post_init__(self) -> None:
        unset = self.learning_rate is OF_THE_RULE
        _settle_types(self)
        _settle_tables(self)
        rule = rules.get(self.rule)
        rule.complete(self.constants)  # raises where a constant is unknown or out of range
        rate, why = default_rate(rule)
        if unset:
            object.__setattr__(self, "learning_rate", rate)
        _positive(self, "learning_rate")
        for name in ("weight_decay", "checkpoint_seconds"):
            _at_least(self, name, 0)
        for name in ("clip_norm", "clip_value"):
            _positive(self, name)
        for name in ("batch_size", "steps", "steps_per_epoch", "accumulate", "validate_every", "patience", "threads"):
            _at_least(self, name, 1)
        for name, most in MOST.items():
            _at_most(self, name, most)
        for name in ("workers", "snapshot_every", "digest_every", "seed"):
            _at_least(self, name, 0)
        if self.batch_size is not None and self.accumulate > self.batch_size:
            raise PlanError(
                f"`accumulate` is {self.accumulate}, more than the batch of {self.batch_size} examples it is to cut."
            )
        if self.ema is not None and not 0 < self.ema < 1:
            raise PlanError(f"`ema` is {self.ema}, but a decay lies between 0 and 1, such as 0.999.")
        if self.ema is not None and rule.average is not None:
            raise PlanError(
                f"`ema` is {self.ema}, but {self.rule} averages the weights itself, and that average is what is judged and kept."
                f" Leave `ema` out, or take another rule."
            )
        _one_of(self, "precision", get_args(Precision))
        _one_of(self, "keep", ("best", "last"))
        _one_of(self, "engine", ("auto", "cpu", "tensors"))
        _one_of(self, "position", ("exact", "state_dict", "fast-forward"))
        default = Evidence("default")
        stated = {f.name: default if getattr(self, f.name) == _default(f) else Evidence("given") for f in fields(self)}
        if self.learning_rate == rate:
            stated["learning_rate"] = why
        del stated["evidence"]
        known = {knob: e for knob, e in self.evidence.items() if e != default}  # a value changed by hand is no default
        object.__setattr__(self, "evidence", {**stated, **known})

    def replace(self, **changes: Any) -> Plan:
        """Give the plan with other values; each changed knob's evidence becomes "given" unless `evidence` is passed.

        >>> Plan().replace(learning_rate=0.01).evidence["learning_rate"].source
        'given'
        """
        known = [f.name for f in fields(self)]
        for name in changes:
            if name not in known:
                near = nearest(name, known)
                if name in rules.get(self.rule).constants:
                    near = f" It is a constant of the rule: constants.{name}, or constants={{'{name}': …}}."
                raise PlanError(f"A plan has no '{name}'.{near} It has {', '.join(known)}.")
        if "evidence" not in changes:
            kept = {knob: _outdated(evidence, changes) for knob, evidence in self.evidence.items()}
            kept |= {name: Evidence("given") for name in changes}
            if self._has_another_rates(changes):
                changes["learning_rate"] = OF_THE_RULE
                del kept["learning_rate"]
            changes["evidence"] = kept
        return replace(self, **changes)

    def _has_another_rates(self, changes: Mapping[str, Any]) -> bool:
        """Whether the learning rate is the default of a rule that is changed to one with another."""
        if "rule" not in changes or "learning_rate" in changes or self.why("learning_rate").source != "default":
            return False
        return default_rate(rules.get(changes["rule"])) != default_rate(rules.get(self.rule))

    def why(self, knob: str) -> Evidence:
        """Give a knob's evidence: "default" where nothing else is known."""
        return self.evidence.get(knob, Evidence("default"))

    def to_dict(self) -> dict[str, Any]:
        """Give plain values without None, for TOML or JSON."""
        entries: dict[str, Any] = {"format": FORMAT}
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None:
                entries[f.name] = value
        # `batch_size` unset would read back as the default: the whole data set needs a word of its own.
        entries["batch_size"] = "all" if self.batch_size is None else self.batch_size
        entries["schedule"] = self.schedule.to_dict()
        entries["constants"] = dict(self.constants)
        entries["groups"] = {
            pattern: {name: value for name, value in vars(group).items() if value is not None}
            for pattern, group in self.groups.items()
        }
        entries["evidence"] = {
            knob: {"source": e.source}
            | ({"reason": e.reason} if e.reason else {})
            | ({"figures": dict(e.figures)} if e.figures else {})
            for knob, e in self.evidence.items()
        }
        return entries

    @staticmethod
    def from_dict(entries: Mapping[str, Any]) -> Plan:
        """Read what `to_dict` gave. Raises PlanError on an unknown key, with the nearest name."""
        values = dict(entries)
        version = values.pop("format", FORMAT)
        if not isinstance(version, int):
            raise PlanError(
                f"`format` is {version!r} in the plan, but it is a whole number. Leave it out, or put {FORMAT}."
            )
        if version > FORMAT:
            raise PlanError(
                f"The plan has format {version}; this thalweg reads up to {FORMAT}. Install a newer thalweg."
            )
        known = [f.name for f in fields(Plan)]
        for name in values:
            if name not in known:
                raise PlanError(
                    f"Unknown key '{name}' in the plan.{nearest(name, known)} Known keys: {', '.join(known)}."
                )
        if values.get("batch_size") == "all":
            values["batch_size"] = None
        return Plan(**values)

    def save(self, path: str | Path) -> None:
        """Write the plan as TOML; `Plan.load` gives it back without loss."""
        Path(path).write_text(self.to_toml(), "utf-8")

    def to_toml(self) -> str:
        """Give the text that `save` writes."""
        document = tomlkit.document()
        document.add(
            tomlkit.comment("A thalweg plan: every knob of a descent, and under [evidence] how it was chosen.")
        )
        for key, value in self.to_dict().items():
            document.add(key, tomlkit.item(value))
        return tomlkit.dumps(document)

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Read a plan from TOML. Raises PlanError with the file's name and what to mend."""
        try:
            entries = tomllib.loads(Path(path).read_text("utf-8-sig"))
        except OSError as error:
            raise PlanError(f"{path}: the plan cannot be read ({error.strerror}).") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise PlanError(f"{path}: this is not TOML: {error}.") from error
        try:
            return Plan.from_dict(entries)
        except ThalwegError as error:
            raise type(error)(f"{path}: {error}") from error


def default_rate(rule: Rule) -> tuple[float, Evidence]:
    """Give the learning rate of a plan that names none, and why.

    >>> from thalweg.rules import RULES
    >>> default_rate(RULES["prodigy"])[0], default_rate(RULES["adamw"])[0], default_rate(RULES["lion"])[0]
    (1.0, 0.001, 0.0001)
    """
    if rule.finds_rate:
        return 1.0, Evidence("default", "the rule finds its own rate, which this only multiplies")
    if rule.learning_rate in (None, 1e-3):
        return 1e-3, Evidence("default")
    return rule.learning_rate, Evidence("default", f"that of {rule.name} itself")


def _outdated(evidence: Evidence, changes: Mapping[str, Any]) -> Evidence:
    """Add to a reason what it was found for, where that is changed now."""
    changed = [name for name in changes if name in evidence.figures and evidence.figures[name] != changes[name]]
    if evidence.source != "derived" or not changed:
        return evidence
    found = ", ".join(f"{name} {evidence.figures[name]}" for name in changed)
    return replace(evidence, reason=f"{evidence.reason}; found for {found}, which is another now")


def _default(knob: Field[Any]) -> Any:
    return knob.default if knob.default_factory is MISSING else knob.default_factory()


def _record(kind: type[Any], entries: Any, where: str) -> Any:
    if isinstance(entries, kind):
        return entries
    known = [f.name for f in fields(kind)]
    if not isinstance(entries, Mapping):
        raise PlanError(f"'{where}' in the plan is {entries!r}, but it is a table of {', '.join(known)}.")
    for name in entries:
        if name not in known:
            raise PlanError(
                f"'{where}' in the plan has the key '{name}'.{nearest(str(name), known)} Known: {', '.join(known)}."
            )
    try:
        return kind(**entries)
    except TypeError as error:
        raise PlanError(f"'{where}' in the plan is {entries!r}, which does not fit: {error}.") from error


_INTEGERS = (
    *("batch_size", "accumulate", "steps", "steps_per_epoch", "validate_every", "patience", "snapshot_every"),
    *("digest_every", "seed", "workers", "threads"),
)
_FLOATS = ["learning_rate", "weight_decay", "clip_norm", "clip_value", "ema", "checkpoint_seconds"]
_FLAGS = ["decay_vectors", "shuffle", "replacement", "drop_last", "watch"]


def _settle_types(plan: Plan) -> None:
    """Turn NumPy's and torch's scalars into Python's, so that a plan is plain values whoever made it."""
    for knob in fields(plan):
        if getattr(plan, knob.name) is None and knob.name != "batch_size" and _default(knob) is not None:
            raise PlanError(f"`{knob.name}` is None, but it needs a value. Leave it out for the default.")
    for name in _INTEGERS:
        _set(plan, name, operator.index, "a whole number")
    for name in _FLOATS:
        _set(plan, name, float, "a number")
    for name in _FLAGS:
        flag = _plain(getattr(plan, name), name)
        if not isinstance(flag, bool):
            raise PlanError(f"`{name}` is {flag!r}, but it is true or false.")
        object.__setattr__(plan, name, flag)


def _settle_tables(plan: Plan) -> None:
    """Turn what stands for a schedule, a group or an evidence (a name, a table) into the record, and constants into numbers."""
    if isinstance(plan.schedule, str | Mapping):
        entries = {"shape": plan.schedule} if isinstance(plan.schedule, str) else plan.schedule
        object.__setattr__(plan, "schedule", Schedule.from_dict(entries))
    if not isinstance(plan.schedule, Schedule):
        raise PlanError(
            f"`schedule` is {plan.schedule!r}. Give a shape's name or thalweg.schedule.linear(...) and the like."
        )
    _rule_name(plan.rule)
    for name in ("constants", "groups", "evidence"):
        if not isinstance(getattr(plan, name), Mapping):
            raise PlanError(f"`{name}` is {getattr(plan, name)!r}, but it is a table.")
    object.__setattr__(plan, "constants", {str(k): _plain(v, str(k)) for k, v in plan.constants.items()})
    object.__setattr__(plan, "groups", {p: _record(Group, g, f"groups.{p}") for p, g in plan.groups.items()})
    known = [f.name for f in fields(plan) if f.name != "evidence"]
    for knob in plan.evidence:
        if knob not in known:
            raise PlanError(f"There is evidence for '{knob}', which is no knob of a plan.{nearest(knob, known)}")
    evidence = {k: _record(Evidence, e, f"evidence.{k}") for k, e in plan.evidence.items()}
    object.__setattr__(plan, "evidence", evidence)


def _rule_name(rule: Any) -> str:
    if not isinstance(rule, str):
        raise PlanError(f"`rule` is {rule!r}. Give an update rule's name, such as 'adamw'.")
    return rule


def _plain(value: Any, name: str) -> Any:
    """Give plain numbers, texts, lists and tables, as TOML knows them. Raises PlanError for anything else."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part, name) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part, name) for part in value]
    if not isinstance(value, bool | int | float | str) and hasattr(value, "tolist"):
        return _plain(value.tolist(), name)  # NumPy's and torch's numbers and arrays
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    raise PlanError(f"`{name}` is a {type(value).__name__}. Give numbers, texts, or lists and tables of them.")


def _set(plan: Plan | Group, name: str, convert: Any, kind: str) -> None:
    value = getattr(plan, name)
    if value is None:
        return
    if isinstance(value, bool | str):
        raise PlanError(f"`{name}` is {value!r}, but it is {kind}.")
    if convert is operator.index and isinstance(value, float) and value.is_integer():
        value = int(value)
    try:
        object.__setattr__(plan, name, convert(value))
    except (TypeError, ValueError, OverflowError) as error:
        raise PlanError(f"`{name}` is {value!r}, but it is {kind}.") from error


def _positive(plan: Plan, name: str) -> None:
    value = getattr(plan, name)
    if value is not None and not (math.isfinite(value) and value > 0):
        raise PlanError(f"`{name}` is {value}, but it must be above zero and finite.")


def _at_least(plan: Plan | Group, name: str, least: float) -> None:
    value = getattr(plan, name)
    if value is not None and not (value >= least and (isinstance(value, int) or math.isfinite(value))):
        raise PlanError(f"`{name}` is {value}, but it must be at least {least} and finite.")


def _at_most(plan: Plan, name: str, most: int) -> None:
    value = getattr(plan, name)
    if value is not None and value > most:
        raise PlanError(f"`{name}` is {value}, but it is at most {most:,}.")


def _one_of(plan: Plan, name: str, choices: tuple[str, ...]) -> None:
    value = getattr(plan, name)
    if value not in choices:
        raise PlanError(f"`{name}` is {value!r}, which is none of {list(choices)}.{nearest(str(value), choices)}")
