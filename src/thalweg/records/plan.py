"""The plan: how to descend. Every knob, and the evidence on which it was chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, cast, get_args

from thalweg import rules
from thalweg import schedule as shapes
from thalweg.errors import PlanError, ThalwegError, nearest, shown
from thalweg.records import files
from thalweg.records.holdout import Holdout, HoldoutBy
from thalweg.records.knob import (
    LARGEST_INTEGER,
    Knob,
    builtin_value,
    check_ranges,
    convert_types,
    knobs,
    reference,
    setting,
)
from thalweg.records.names import checks_names, suggestion
from thalweg.records.paths import as_path
from thalweg.records.toml_text import parse_toml
from thalweg.rules import Rule
from thalweg.schedule import Schedule

EvidenceSource = Literal["given", "default", "derived", "measured", "searched"]
Precision = Literal["float32", "bfloat16", "float16"]
MemoryFormat = Literal["contiguous", "channels_last"]
FORMAT = 2  # in 1, the factors of a group were called `learning_rate` and `weight_decay`
HEAD = "A thalweg plan: every knob of a descent, and under [evidence] how it was chosen."
END = "The end of the plan: without this line, the file was cut off."
"""The first and the last line of a file that `Plan.save` writes. What lies before a cut is TOML too, and defaults would take the
place of what lay behind it. Whoever writes a plan by hand needs neither line."""
CHANGEABLE = frozenset(
    (
        *(
            "learning_rate",
            "weight_decay",
            "weight_decay_schedule",
            "decay_vectors",
            "schedule",
            "constants",
            "steps",
            "clip_norm",
            "clip_value",
        ),
        *("validate_every", "patience", "keep", "watch", "snapshot_every", "digest_every", "checkpoint_seconds"),
        *("threads", "workers"),
    )
)
"""The knobs that can be changed when a run is resumed: what it has done so far does not depend on them. Its position in the data
depends on batch size, seed and order, and the optimiser's state on the rule and its groups."""
SHOWN = 240  # characters of an evidence in its `repr`; `str` gives all of it
RULE_DEFAULT_RATE = float("nan")
"""The default of `Plan.learning_rate`, which the new plan replaces by that of its rule."""


@dataclass(frozen=True)
class Evidence:
    """Why a knob has its value.

    `source` is one of "given", "default", "derived" (a stated rule), "measured" or "searched"; `reason` is a sentence with
    the rule's name and where it comes from; `figures` are what was measured, as numbers, texts and lists of them.
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
        object.__setattr__(self, "reason", builtin_value(self.reason, "reason"))
        object.__setattr__(self, "figures", {name: builtin_value(f, name) for name, f in _by_text(self.figures)})

    def number(self, name: str) -> float | None:
        """Give a figure that is a finite number; None where there is none. Whoever wrote the plan may have put anything there."""
        value = self.figures.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        with suppress(OverflowError):
            return float(value) if math.isfinite(value) else None
        return None

    def listed(self, name: str) -> list[Any]:
        """Give a figure that is a list; an empty one where there is none."""
        value = self.figures.get(name)
        return list(cast("list[Any]", value)) if isinstance(value, list) else []

    def table(self, name: str) -> dict[str, Any]:
        """Give a figure that is a table; an empty one where there is none."""
        value = self.figures.get(name)
        return dict(cast("Mapping[str, Any]", value)) if isinstance(value, Mapping) else {}

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}" if self.reason else self.source

    def __repr__(self) -> str:
        figures = f" (figures: {', '.join(self.figures)})" if self.figures else ""
        return f"<Evidence {shorten(str(self), SHOWN, placeholder=' …')}{figures}>"


@checks_names("A group", PlanError)
@dataclass(frozen=True)
class Group:
    """Settings of the parameters whose names match a pattern: factors on the plan's own rate and decay, and another rule.

    Arguments:
    KNOBS
    """

    learning_rate_factor: float = setting(1.0, Knob("factor on the plan's learning rate", least=0))
    weight_decay_factor: float = setting(1.0, Knob("factor on the plan's weight decay", least=0))
    rule: str | None = setting(None, Knob("how gradients become steps", unset="the plan's rule"))

    def __post_init__(self) -> None:
        if self.rule is not None:
            rules.get(_rule_name(self.rule))
        convert_types(self)
        check_ranges(self)


@checks_names("A plan", PlanError)
@dataclass(frozen=True)
class Plan:
    """How to descend. What is not given is a stated default.

    Arguments:
    KNOBS
        evidence: knob -> `Evidence`.

    Raises PlanError (RuleError, ScheduleError) that names the knob, its value and what it may be.
    """

    rule: str = setting(
        "adamw",
        Knob("how gradients become steps", 'The update rule\'s name, such as "adamw".', shown="main", rank=5),
    )
    learning_rate: float = setting(
        RULE_DEFAULT_RATE,
        Knob(
            "how far a step goes",
            "This is the peak; the schedule multiplies it. Default: the rule's own, for most 0.001.",
            above=0,
            unset="the rule's own",
            shown="main",
            rank=1,
        ),
    )
    batch_size: int | None = setting(
        64,
        Knob(
            "examples that one step averages over",
            "This is the effective batch, whatever `accumulate` is. None: the whole data set in one batch.",
            least=1,
            most=LARGEST_INTEGER,
            unit="examples",
            unset="the whole data set",
            shown="main",
            rank=3,
        ),
    )
    weight_decay: float = setting(
        0.0,
        Knob(
            "how strongly weights are pulled to zero",
            "Each rule applies it in its own form.",
            least=0,
            zero="none",
            shown="main",
            rank=4,
        ),
    )
    schedule: Schedule = setting(
        shapes.constant,
        Knob(
            "how the rate rises and falls over the run",
            "A `Schedule`, whose open lengths are settled by the run's length, or the name of a shape.",
            shown="main",
            rank=2,
        ),
    )
    constants: Mapping[str, Any] = setting(
        dict[str, Any], Knob("the rule's own settings", 'For example {"beta2": 0.99}.', empty="the rule's own")
    )
    steps: int | None = setting(
        None,
        Knob(
            "length of the run",
            "It is None until a budget is known.",
            least=1,
            most=LARGEST_INTEGER,
            unit="steps",
            unset="not decided",
            shown="main",
            rank=6,
        ),
    )
    steps_per_epoch: int | None = setting(
        None,
        Knob(
            "steps that go once over the data",
            "They were counted when the plan was made.",
            least=1,
            unit="steps",
            unset="unknown",
            shown="note",
        ),
    )
    accumulate: int = setting(
        1,
        Knob(
            "parts that a batch is cut into to save memory",
            "Each of these micro-batches holds about batch_size / accumulate examples.",
            least=1,
            unit="parts",
        ),
    )
    clip_norm: float | None = setting(
        None,
        Knob("longest gradient that is let through", "A longer one is scaled down to this global norm.", above=0),
    )
    clip_value: float | None = setting(None, Knob("largest entry of the gradient", above=0))
    ema: float | None = setting(
        None,
        Knob(
            "running average of the weights",
            "The value is its decay, such as 0.999. A rule that averages the weights itself takes none.",
            above=0,
            below=1,
            out_of_range="a decay lies between 0 and 1, such as 0.999",
            label="weight average (EMA)",
        ),
    )
    precision: Precision = setting(
        "float32",
        Knob(
            "floating-point format of the forward pass",
            "float32 stands for the model's own dtype, the others for autocast.",
        ),
    )
    memory_format: MemoryFormat = setting(
        "contiguous",
        Knob(
            "order in memory of what convolutions compute",
            "contiguous: as the model is made; channels_last: the weights of its 2-D convolutions are laid out so while it is"
            " trained.",
        ),
    )
    compile: bool = setting(
        False,
        Knob(
            "whether the forward pass in training is compiled",
            "By torch.compile, for batches of full size. Names of weights do not change; where compiling fails, the run goes on"
            " without.",
        ),
    )
    seed: int = setting(
        0,
        Knob(
            "start of everything random",
            "That is initialisation, order, dropout and augmentation.",
            least=0,
            most=LARGEST_INTEGER,
            shown="report",
        ),
    )
    weight_decay_schedule: Schedule | None = setting(
        None,
        Knob(
            "how the pull to zero falls over the run",
            "A `Schedule` or the name of a shape, such as inverse_time (decay in log time): each step shrinks weights by"
            " learning_rate * weight_decay * its factor, whatever the schedule of the rate. None: that schedule's factor. Rules"
            " whose decay is a part of the gradient take none.",
            unset="as the rate does",
        ),
    )
    decay_vectors: bool = setting(
        False,
        Knob("whether biases and normalisation decay too", "These are all parameters of fewer than two dimensions."),
    )
    groups: Mapping[str, Group] = setting(
        dict[str, Group],
        Knob(
            "parameters with settings of their own",
            'A pattern of parameter names (shell style, such as "head.*") -> `Group`. Where several match a name, their factors'
            " multiply and the last rule holds; one that matches none is an error. Under a rule for matrices only (Muon),"
            " embeddings and the output layer are entered here when the data are opened, with the rule AdamW.",
            empty="one for all",
        ),
    )
    holdout: float = setting(
        0.0,
        Knob(
            "share of the training examples that is kept for validation",
            "For a task without validation data: `fit` and `tune` keep a fifth, at most 10,000 examples, where that is worth it."
            " Which examples these are follows from the seed, the data and `holdout_by`.",
            least=0,
            below=1,
            zero="none",
            out_of_range="a share lies between 0 and 1, such as 0.2",
        ),
    )
    holdout_by: HoldoutBy = setting(
        "auto",
        Knob(
            "what the examples kept for validation are chosen by",
            "class: the same share of each class; group: whole groups of the task's `groups`; time: the last stretch of its"
            " `series`; random: any; auto: settled when the data are opened.",
            shown="note",
        ),
    )
    shuffle: bool = setting(True, Knob("whether each pass has a new order"))
    replacement: bool = setting(False, Knob("whether an example may come twice in a pass"))
    drop_last: bool = setting(False, Knob("whether a last, smaller batch is left out"))
    workers: int = setting(0, Knob("processes that load data", least=0, most=1024, unit="processes", zero="none"))
    position: Literal["exact", "state_dict", "fast-forward"] = setting(
        "exact",
        Knob(
            "how a resumed run finds its position in the data",
            "exact: the order is a function of seed and epoch; state_dict: the loader is asked for its own; fast-forward: a"
            " stream is read again up to there, exact where it gives the same each time. Set when the data are opened.",
            shown="note",
        ),
    )
    validate_every: int | None = setting(
        None,
        Knob(
            "steps between validations",
            "None: derived from the epoch when the run starts.",
            least=1,
            unit="steps",
            unset="once per epoch, 5 to 50 times per run",
            shown="report",
        ),
    )
    patience: int | None = setting(
        None,
        Knob(
            "validations without improvement before stopping",
            least=1,
            unit="validations",
            unset="never stop early",
        ),
    )
    keep: Literal["best", "last"] = setting(
        "best", Knob("which weights the model ends with", "best: those that validated best; last: the final ones.")
    )
    watch: bool = setting(
        True, Knob("notice and cure divergence", "A loss or gradient that is not finite is treated too.")
    )
    snapshot_every: int = setting(
        50, Knob("steps between states a cure can go back to", least=0, unit="steps", zero="none")
    )
    checkpoint_seconds: float = setting(
        60.0,
        Knob(
            "time between two checkpoints on disk",
            "The time is approximate; checkpoints change no figure.",
            least=0,
            unit="seconds",
        ),
    )
    digest_every: int = setting(
        50,
        Knob(
            "steps between fingerprints of the weights",
            "The fingerprints are written into the history.",
            least=0,
            unit="steps",
            zero="none",
        ),
    )
    threads: int | None = setting(
        None,
        Knob(
            "CPU threads",
            "The run was planned for so many.",
            least=1,
            most=1024,
            unit="threads",
            unset="as they are",
            shown="report",
        ),
    )
    engine: Literal["auto", "cpu", "tensors"] = setting(
        "auto",
        Knob(
            "what runs the rule's equation",
            "cpu: compiled; tensors: PyTorch's operations; auto: settled when the run starts.",
        ),
    )
    evidence: Mapping[str, Evidence] = field(default_factory=dict[str, Evidence])

    def __post_init__(self) -> None:
        unset = self.learning_rate is RULE_DEFAULT_RATE
        convert_types(self)
        _settle_tables(self)
        rule = rules.get(self.rule)
        rule.complete(self.constants)  # raises where a constant is unknown or out of range
        rate, why = default_rate(rule)
        if unset:
            object.__setattr__(self, "learning_rate", rate)
        check_ranges(self)
        self._check_together(rule)
        default = Evidence("default")
        stated = {
            name: default if getattr(self, name) == knob.default else Evidence("given")
            for name, knob in knobs(Plan).items()
        }
        if self.learning_rate == rate:
            stated["learning_rate"] = why
        known = {
            knob: e for knob, e in self.evidence.items() if e != default
        }  # a field changed since is no default any more
        object.__setattr__(self, "evidence", {**stated, **known})

    def _check_together(self, rule: Rule) -> None:
        """Raise PlanError for knobs that do not go together."""
        if self.batch_size is not None and self.accumulate > self.batch_size:
            raise PlanError(
                f"`accumulate` is {self.accumulate}, more than the batch of {self.batch_size} examples it is to cut."
            )
        self._check_weight_decay_schedule()
        if self.ema is not None and rule.average is not None:
            raise PlanError(
                f"`ema` is {self.ema}, but {self.rule} averages the weights itself, and that average is validated and saved."
                f" Leave `ema` out, or take another rule."
            )

    def _check_weight_decay_schedule(self) -> None:
        """Raise PlanError for a schedule of the weight decay that cannot be followed."""
        schedule = self.weight_decay_schedule
        if schedule is None:
            return
        if schedule.initial_state():
            raise PlanError(
                "`weight_decay_schedule` is reduce-on-plateau, but the decay is a function of the step alone. Give another shape,"
                " such as inverse_time, or none for that of the rate."
            )
        chosen = {group.rule: {} for group in self.groups.values() if group.rule} | {self.rule: self.constants}
        for rule, constants in ((rules.get(name), constants) for name, constants in chosen.items()):
            if rule.couples(rule.complete(constants)):
                raise PlanError(
                    f"`weight_decay_schedule` is {schedule.shape}, but the decay of {rule.name} is a part of the gradient, and"
                    f" falls with the rate. Leave it out, or take a rule with decoupled decay, such as adamw."
                )

    def __repr__(self) -> str:
        shown = [
            (knob.label or name.replace("_", " "), getattr(self, name))
            for name, knob in sorted(knobs(Plan).items(), key=lambda item: item[1].rank or len(knobs(Plan)))
            if knob.shown == "main" or (knob.shown == "chosen" and getattr(self, name) != knob.default)
        ]
        values = [f"{name} {value.shape if isinstance(value, Schedule) else value}" for name, value in shown]
        return f"<Plan: {', '.join(values)}>"

    def replace(self, **changes: Any) -> Plan:
        """Give the plan with other values; each changed knob's evidence becomes "given" unless `evidence` is passed.

        Raises PlanError as a new plan does, and for a name that is no knob.

        >>> Plan().replace(learning_rate=0.01).evidence["learning_rate"].source
        'given'
        """
        known = [f.name for f in fields(self)]
        for name in changes:
            if name not in known:
                hint = suggestion(name, known)
                if name in rules.get(self.rule).constants:
                    hint = f" It is a constant of the rule: constants.{name}, or constants={{'{name}': …}}."
                raise PlanError(f"A plan has no '{name}'.{hint} It has {', '.join(known)}.")
        if "evidence" not in changes:
            evidence = {knob: _noting_changes(evidence, changes) for knob, evidence in self.evidence.items()}
            evidence |= {name: Evidence("given") for name in changes}
            if self._changes_default_rate(changes):
                changes["learning_rate"] = RULE_DEFAULT_RATE
                del evidence["learning_rate"]
            changes["evidence"] = evidence
        return replace(self, **changes)

    def with_knobs(self, knobs: Mapping[str, Any]) -> Plan:
        """Give the plan with other values, as `replace` does; the entries of a table are added to those that are there.

        >>> Plan(constants={"beta1": 0.8}).with_knobs({"constants": {"beta2": 0.9}}).constants
        {'beta1': 0.8, 'beta2': 0.9}
        """
        tables, merged = self.to_dict(), dict(knobs)
        for name in ("constants", "groups", "schedule", "weight_decay_schedule"):
            if isinstance(knobs.get(name), Mapping):
                merged[name] = {**tables.get(name, {}), **knobs[name]}
        return self.replace(**merged)

    def changed(self, knobs: Mapping[str, Any]) -> Plan:
        """Give the plan of a run that is resumed with other values. Raises PlanError for a knob that cannot be changed then."""
        known = [f.name for f in fields(self)]
        for name in knobs:
            if name in known and name not in CHANGEABLE:
                raise PlanError(
                    f"`{name}` cannot be changed within a run: what it has done so far depends on it. Train a plan with it in"
                    f" another folder. What can be changed: {', '.join(sorted(CHANGEABLE))}."
                )
        plan = self.with_knobs(knobs)  # raises for what is no knob
        why = {name: Evidence("given", "changed when the run was resumed") for name in knobs}
        return replace(plan, evidence={**plan.evidence, **why})

    def _changes_default_rate(self, changes: Mapping[str, Any]) -> bool:
        """Whether the learning rate is the rule's default, and the rule is changed to one with another default."""
        if "rule" not in changes or "learning_rate" in changes or self.why("learning_rate").source != "default":
            return False
        return default_rate(rules.get(changes["rule"])) != default_rate(rules.get(self.rule))

    def why(self, knob: str) -> Evidence:
        """Give a knob's evidence: "default" where nothing else is known."""
        return self.evidence.get(knob, Evidence("default"))

    @property
    def to_hold_out(self) -> Holdout:
        """What the plan holds out of the training examples."""
        return Holdout(self.holdout, self.holdout_by, self.seed)

    def to_dict(self) -> dict[str, Any]:
        """Give the plan as built-in types without None, for TOML or JSON."""
        entries: dict[str, Any] = {"format": FORMAT}
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None:
                entries[f.name] = value
        # `batch_size` unset would read back as the default: the whole data set needs a word of its own.
        entries["batch_size"] = "all" if self.batch_size is None else self.batch_size
        entries["schedule"] = self.schedule.to_dict()
        if self.weight_decay_schedule is not None:
            entries["weight_decay_schedule"] = self.weight_decay_schedule.to_dict()
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
                f"`format` is {shown(version)} in the plan, but it is a whole number. Leave it out, or put {FORMAT}."
            )
        if version > FORMAT:
            raise PlanError(
                f"The plan has format {version}; this thalweg reads up to {FORMAT}. Install a newer thalweg."
            )
        known = [f.name for f in fields(Plan)]
        for name in values:
            if name not in known:
                raise PlanError(
                    f"Unknown key '{name}' in the plan.{suggestion(name, known)} Known keys: {', '.join(known)}."
                )
        if values.get("batch_size") == "all":
            values["batch_size"] = None
        if version == 1 and isinstance(values.get("groups"), Mapping):
            values["groups"] = {pattern: _group_of_format_1(group) for pattern, group in values["groups"].items()}
        return Plan(**values)

    def save(self, path: str | Path) -> None:
        """Write the plan as TOML; `Plan.load` gives it back without loss. Raises PlanError where it cannot be written."""
        target = as_path(path, "the file of a plan", "plan.toml", PlanError)
        try:
            files.replace(target, self.to_toml().encode())
        except OSError as error:
            raise PlanError(f"{path} cannot be written: {error.strerror}. Choose another file.") from error

    def to_toml(self) -> str:
        """Give the text that `save` writes."""
        import tomlkit  # takes a while, and only who writes needs it

        document = tomlkit.document()
        document.add(tomlkit.comment(HEAD))
        for key, value in self.to_dict().items():
            document.add(key, tomlkit.item(value))
        return f"{tomlkit.dumps(document)}\n# {END}\n"

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Read a plan from TOML. Raises PlanError with the file's name and what to mend."""
        try:
            data = as_path(path, "the file of a plan", "plan.toml", PlanError).read_bytes()
            text, entries = data.decode("utf-8-sig"), parse_toml(data)
        except OSError as error:
            raise PlanError(f"{path}: the plan cannot be read ({error.strerror}).") from error
        except ValueError as error:
            raise PlanError(f"{path}: this is not TOML: {error}.") from error
        if not entries or (text.startswith(f"# {HEAD}") and not text.rstrip().endswith(f"# {END}")):
            raise PlanError(f"{path}: the plan is {'cut off' if entries else 'empty'}. Restore it from a copy.")
        try:
            return Plan.from_dict(entries)
        except RecursionError as error:
            raise PlanError(f"{path}: it is nested too deeply. Plans are tables of numbers and texts.") from error
        except ThalwegError as error:
            raise type(error)(f"{path}: {error!s:.1000}") from error


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


def _noting_changes(evidence: Evidence, changes: Mapping[str, Any]) -> Evidence:
    """Note in a derived value's reason which of the values it was derived from are changed now."""
    changed = [name for name in changes if name in evidence.figures and evidence.figures[name] != changes[name]]
    if evidence.source != "derived" or not changed:
        return evidence
    before = ", ".join(f"{name} {evidence.figures[name]}" for name in changed)
    return replace(evidence, reason=f"{evidence.reason}; derived for {before}, which has changed since")


def _as_record(kind: type[Any], entries: Any, where: str) -> Any:
    if isinstance(entries, kind):
        return entries
    known = [f.name for f in fields(kind)]
    if not isinstance(entries, Mapping):
        raise PlanError(f"'{where}' in the plan is {shown(entries)}, but it is a table of {', '.join(known)}.")
    for name in entries:
        if name not in known:
            raise PlanError(
                f"'{where}' in the plan has the key '{name}'.{suggestion(str(name), known)} Known: {', '.join(known)}."
            )
    try:
        return kind(**entries)
    except TypeError as error:
        raise PlanError(f"'{where}' in the plan is {shown(entries)}, which does not fit: {error}.") from error


def _group_of_format_1(entries: Any) -> Any:
    old = {"learning_rate": "learning_rate_factor", "weight_decay": "weight_decay_factor"}
    return {old.get(name, name): value for name, value in entries.items()} if isinstance(entries, Mapping) else entries


def _settle_tables(plan: Plan) -> None:
    """Turn names and tables into schedule, groups and evidence, and constants into numbers. Raises PlanError."""
    object.__setattr__(plan, "schedule", _as_schedule(plan.schedule, "schedule"))
    if plan.weight_decay_schedule is not None:
        decay_schedule = _as_schedule(plan.weight_decay_schedule, "weight_decay_schedule")
        object.__setattr__(plan, "weight_decay_schedule", decay_schedule)
    _rule_name(plan.rule)
    for name in ("constants", "groups", "evidence"):
        if not isinstance(getattr(plan, name), Mapping):
            raise PlanError(f"`{name}` is {shown(getattr(plan, name))}, but it is a table.")
    object.__setattr__(plan, "constants", {k: builtin_value(v, k) for k, v in _by_text(plan.constants)})
    object.__setattr__(plan, "groups", {p: _as_record(Group, g, f"groups.{p}") for p, g in _by_text(plan.groups)})
    known = list(knobs(Plan))
    for knob in plan.evidence:
        if knob not in known:
            raise PlanError(f"There is evidence for '{knob}', which is no knob of a plan.{suggestion(knob, known)}")
    evidence = {k: _as_record(Evidence, e, f"evidence.{k}") for k, e in plan.evidence.items()}
    object.__setattr__(plan, "evidence", evidence)


def _as_schedule(value: Any, name: str) -> Schedule:
    """Give a schedule for itself, a shape's name or a table. Raises PlanError, ScheduleError."""
    if isinstance(value, str | Mapping):
        return Schedule.from_dict({"shape": value} if isinstance(value, str) else cast("Mapping[str, Any]", value))
    if not isinstance(value, Schedule):
        raise PlanError(
            f"`{name}` is {shown(value)}. Give a shape's name or thalweg.schedule.linear(...) and the like."
        )
    return value


def _by_text(table: Mapping[Any, Any]) -> list[tuple[str, Any]]:
    """Give a table's entries by texts as TOML takes them. Raises PlanError."""
    return [(builtin_value(str(name), "a name in a table"), value) for name, value in table.items()]


def _rule_name(rule: Any) -> str:
    if not isinstance(rule, str):
        raise PlanError(f"`rule` is {shown(rule)}. Give an update rule's name, such as 'adamw'.")
    return rule


for _record_type in (Group, Plan):
    _record_type.__doc__ = (_record_type.__doc__ or "").replace("    KNOBS", reference(_record_type))
