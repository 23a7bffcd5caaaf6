"""The record of a schedule, the factor it gives at a step, and the scheduler that drives a PyTorch optimizer with it."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, SupportsFloat, cast

import torch
from torch.optim.lr_scheduler import LRScheduler

from thalweg.errors import ScheduleError, shown
from thalweg.schedule import lookup
from thalweg.schedule.lengths import (
    Length,
    Option,
    StepCounts,
    check_choice,
    check_integer,
    check_length,
    check_number,
    check_option,
    length_in_words,
)
from thalweg.schedule.names import checks_names, suggestion, takes
from thalweg.schedule.plateau import State, initial_state, next_state
from thalweg.schedule.shape import Curve, Span
from thalweg.schedule.shapes import WARMUPS

WarmupShape = Literal["linear", "cosine", "exponential"]


@checks_names
@dataclass(frozen=True, repr=False)
class Schedule:
    """One schedule. The functions of this package make them, such as `linear(total=2000, warmup=100)`.

    Arguments:
        shape: "constant", "linear", "cosine", …
        total: length with the warm-up; None: as long as the run.
        warmup: length of the rise to where the shape starts.
        warmup_shape: "linear", "cosine", or "exponential" (from a hundredth).
        options: the shape's own, such as {"final": 0.1}; what is not given takes its default.
        parts: of a sequence, the schedules that follow one another.
        peak: multiplies every factor (see `scaled`).

    Raises ScheduleError for a value that is not allowed, or an unknown shape or option, with the nearest name.
    """

    shape: str
    total: Length | None = None
    warmup: Length = 0
    warmup_shape: WarmupShape = "linear"
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    parts: tuple[Schedule, ...] = ()
    peak: float = 1.0

    def __post_init__(self) -> None:
        name = lookup.check_name(self.shape)
        if isinstance(self.total, torch.optim.Optimizer):
            raise ScheduleError(
                f"A schedule is made without an optimiser, and attached to it: schedule.{name}(…).attach(optimizer)."
            )
        checked: dict[str, Any] = {
            "shape": name,
            "total": None if self.total is None else check_length(self.total, f"`total` of {name}", least=1),
            "warmup": check_length(self.warmup, f"`warmup` of {name}"),
            "warmup_shape": check_choice(self.warmup_shape, WARMUPS, "shape of a warm-up"),
            "options": MappingProxyType(_check_options(name, self.options)),
            "parts": tuple(self.parts),
            "peak": check_number(self.peak, f"`peak` of {name}", Option(exclusive=True)),
        }
        for key, value in checked.items():
            object.__setattr__(self, key, value)
        _check_parts(self)
        _check_warmup(self)

    def factor(self, step: int, state: Mapping[str, float] | None = None) -> float:
        """Give what the peak rate is multiplied by at an update; the first update is step 0.

        Arguments:
            step: number of updates before this one.
            state: see `initial_state`; None: as before any validation.

        Raises ScheduleError for a negative step, or where the length is open and the shape needs one.

        >>> [Schedule("linear", total=4).factor(step) for step in range(6)]
        [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
        """
        value = self._curve(step)
        return value * self._plateau_factor(step, state) if state else value

    def initial_state(self) -> State:
        """Give the state before the first step: empty for all but reduce-on-plateau."""
        if self.shape == "plateau":
            return initial_state()
        return {f"{i}/{k}": v for i, part in enumerate(self.parts) for k, v in part.initial_state().items()}

    def observe(self, state: Mapping[str, float], metric: SupportsFloat, step: int | None = None) -> State:
        """Give the state after a validation; only reduce-on-plateau uses the metric.

        In a sequence, `step` (of the next update) keeps a part from counting before it begins and after it ends.
        """
        if self.shape == "plateau":
            return next_state(state, float(metric), self.options)
        after = dict(state)
        for index, (start, stop, part) in enumerate(self._spans if state else ()):
            part_state = _part_state(state, index)
            if part_state and (step is None or start <= step < stop):
                part_state = part.observe(part_state, metric, None if step is None else step - int(start))
                after |= {f"{index}/{key}": value for key, value in part_state.items()}
        return after

    @takes
    def attach(
        self, optimizer: torch.optim.Optimizer, total_steps: int | None = None, steps_per_epoch: int | None = None
    ) -> AttachedSchedule:
        """Let the schedule drive an optimizer's learning rates: call `.step()` after each `optimizer.step()`.

        The rate that each parameter group has now is its peak. `total_steps` and `steps_per_epoch` are those of the run: see
        `resolve`.

        Raises ScheduleError for what is no optimizer, and as `resolve` does.
        """
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ScheduleError(
                f"`optimizer` is a {type(optimizer).__name__}. Give the torch.optim.Optimizer that the schedule is to drive."
            )
        return AttachedSchedule(optimizer, self.resolve(total_steps, steps_per_epoch))

    @takes
    def resolve(self, total_steps: int | None = None, steps_per_epoch: int | None = None) -> Schedule:
        """Give the schedule with every length in steps.

        An open total becomes `total_steps`, the run's length; without that it stays open. Resolving twice changes nothing.

        Raises ScheduleError where a share or epochs cannot be turned into steps, or lengths do not fit into the total.

        >>> Schedule("linear", total="3 epochs", warmup=0.1).resolve(steps_per_epoch=50)
        schedule.linear(total=150, warmup=15)
        """
        run = StepCounts(_check_steps(total_steps, "total_steps"), _check_steps(steps_per_epoch, "steps_per_epoch"))
        total = run.whole if self.total is None else run.to_steps(self.total, f"`total` of {self.shape}", least=1)
        own = run._replace(whole=total)  # shares of anything but the total are shares of it
        warmup = own.to_steps(self.warmup, f"`warmup` of {self.shape}")
        parts = _resolve_parts(self, total, warmup, own)
        if self.total is None and parts and parts[-1].total is not None:
            total = warmup + sum(cast("int", part.total) for part in parts)
        options = _resolve_options(self, own)
        resolved = replace(self, total=total, warmup=warmup, parts=parts, options=options)
        if resolved == self:
            return self
        if total is not None:
            _ = resolved._curve  # refuses lengths that do not fit into one another
        return resolved

    @cached_property
    def _curve(self) -> Curve:
        """The factor at a step as a function, made once: warm-up, decay, and the end from `total` on."""
        resolved = self.resolve()
        warmup, total = cast("int", resolved.warmup), cast("int | None", resolved.total)
        last = math.inf if total is None else total
        span = Span(resolved.shape, max(last - warmup, 1), warmup)
        decay = _chain(resolved.parts) if resolved.parts else lookup.get(self.shape).curve(span, **resolved.options)
        end = 0.0 if total is None else resolved.options.get("final", decay(int(span.length)))
        start, peak, rise = decay(0), resolved.peak, WARMUPS[resolved.warmup_shape]

        def curve(step: int) -> float:
            if step >= last:
                return peak * end
            if step >= warmup:
                return peak * decay(step - warmup)
            if step < 0:
                raise ScheduleError(f"A schedule was asked for step {step}, but the first update is step 0.")
            return peak * start * rise((step + 1) / (warmup + 1))

        return curve

    @cached_property
    def _spans(self) -> list[tuple[float, float, Schedule]]:
        """The parts of a sequence, each with its first step and the first step after it."""
        resolved = self.resolve()
        spans: list[tuple[float, float, Schedule]] = []
        start: float = cast("int", resolved.warmup)
        for part in resolved.parts:
            spans.append((start, start + (part.total or math.inf), part))  # pyright: ignore[reportOperatorIssue]
            start = spans[-1][1]
        return spans

    def _plateau_factor(self, step: int, state: Mapping[str, float]) -> float:
        """Give what reduce-on-plateau multiplies the rate by so far: of a sequence, the part in whose span the step lies."""
        if self.shape == "plateau":
            return state["factor"]
        for index, (_, stop, part) in enumerate(self._spans):
            if step < stop or index == len(self.parts) - 1:
                return part._plateau_factor(step, _part_state(state, index))
        return 1.0

    def scaled(self, factor: float) -> Schedule:
        """Give the schedule with every factor multiplied: to let a part of a sequence begin where the one before it ends.

        >>> Schedule("constant").scaled(0.1).factor(70)
        0.1
        """
        return replace(self, peak=self.peak * check_number(factor, "The factor of `scaled`", Option(exclusive=True)))

    def to_dict(self) -> dict[str, Any]:
        """Give a dict for TOML or JSON, without entries that are None; `from_dict` gives the schedule back exactly.

        >>> Schedule("linear", total=2000, warmup=0.05).to_dict()
        {'shape': 'linear', 'total': 2000, 'warmup': 0.05, 'warmup_shape': 'linear', 'final': 0.0}
        """
        entries: dict[str, Any] = {"shape": self.shape}
        if self.total is not None:
            entries["total"] = self.total
        entries |= {"warmup": self.warmup, "warmup_shape": self.warmup_shape}
        if self.peak != 1:
            entries["peak"] = self.peak
        entries |= {name: list(v) if isinstance(v, tuple) else v for name, v in self.options.items()}
        if self.parts:
            entries["parts"] = [part.to_dict() for part in self.parts]
        return entries

    @staticmethod
    def from_dict(entries: Mapping[str, Any]) -> Schedule:
        """Read what `to_dict` gave. Raises ScheduleError on an unknown shape or option, with the nearest name."""
        if not isinstance(entries, Mapping) or "shape" not in entries:
            raise ScheduleError(
                f"A schedule is a table with a `shape` ({', '.join(lookup.names())}), not {shown(entries)}."
            )
        values: dict[str, Any] = {name: entries[name] for name in _COMMON if name in entries}
        options = {name: value for name, value in entries.items() if name not in (*_COMMON, "parts")}
        parts = entries.get("parts", ())
        if not isinstance(parts, Sequence) or isinstance(parts, str):
            raise ScheduleError(f"`parts` of a sequence is {shown(parts)}, but it must be a list of schedules.")
        return Schedule(**values, options=options, parts=tuple(map(Schedule.from_dict, parts)))

    def describe(self) -> str:
        """Say in a sentence what the rate does.

        >>> Schedule("linear", total=2000, warmup=100).describe()
        'linear to zero over 2,000 steps, the first 100 in linear warm-up'
        """
        return self._describe("the whole run")

    def _describe(self, open_total: str) -> str:
        if self.parts:
            words = "first " + ", then ".join(part._describe("the rest") for part in self.parts)
        else:
            words = f"{lookup.get(self.shape).describe(self.options)} over {_total_in_words(self.total, open_total)}"
        if self.warmup:
            words += f", the first {length_in_words(self.warmup)} in {self.warmup_shape} warm-up"
        return words if self.peak == 1 else f"{self.peak:g} times: {words}"

    def __repr__(self) -> str:
        defaults: dict[str, Any] = {"total": None, "warmup": 0, "warmup_shape": "linear"}
        values: dict[str, Any] = {name: getattr(self, name) for name in defaults} | dict(self.options)
        defaults |= {name: option.default for name, option in _options_of(self.shape).items()}
        arguments = [*map(repr, self.parts), *(f"{name}={v!r}" for name, v in values.items() if v != defaults[name])]
        return f"schedule.{self.shape}({', '.join(arguments)})" + f".scaled({self.peak!r})" * (self.peak != 1)

    def __hash__(self) -> int:
        return hash(
            (self.shape, self.total, self.warmup, self.warmup_shape, *self.options.items(), self.parts, self.peak)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Schedule, tuple({**values, "options": dict(self.options)}.values())


_COMMON = ("shape", "total", "warmup", "warmup_shape", "peak")


class AttachedSchedule(LRScheduler):
    """A schedule that drives an optimizer's learning rates, as one of PyTorch's learning rate schedulers.

    `step()` after each `optimizer.step()` (not where a gradient scaler skipped it); with reduce-on-plateau, `step(metric)`
    after an update that was followed by a validation. The peaks are the groups' rates when it is made (PyTorch's
    `initial_lr`); a rate that is a tensor is filled in place. `state_dict` holds the schedule, its state and the peaks.

    Differs from PyTorch: a loaded state sets the rates at once; a parameter group added later joins with its own rate as
    peak; reduce-on-plateau is an `LRScheduler` like the others and may have a warm-up.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, schedule: Schedule) -> None:
        schedule.factor(0)  # raises here, before anything is changed, where a length is missing
        self.schedule = schedule
        self.state = schedule.initial_state()
        super().__init__(optimizer)

    def step(self, metric: SupportsFloat | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Set the rates of the next update; `metric` is the validation's, for a schedule that uses one (reduce-on-plateau).

        Raises ScheduleError for a metric that the schedule does not use.
        """
        if metric is not None:
            if not self.state:
                raise ScheduleError(
                    f"step({shown(metric)}): a {self.schedule.shape} schedule uses no metric; call step() after each update."
                )
            self.state = self.schedule.observe(self.state, metric, self.last_epoch + 1)
        super().step()

    def get_lr(self) -> list[float | torch.Tensor]:
        """Give each group's rate at the present step."""
        for group in self.optimizer.param_groups[len(self.base_lrs) :]:
            rate = group.setdefault("initial_lr", _copy(group["lr"]))
            self.base_lrs.append(_copy(rate))
        factor = self.schedule.factor(self.last_epoch, self.state)
        return [base * factor for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Give the schedule, the step, its state and the peaks, as dicts, lists and numbers (peaks may be tensors)."""
        return {
            "schedule": self.schedule.to_dict(),
            "step": self.last_epoch,
            "state": dict(self.state),
            "base_lrs": [_copy(base) for base in self.base_lrs],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; sets the rates. Raises ScheduleError for the state of another scheduler."""
        if missing := {"schedule", "step", "state", "base_lrs"} - set(state_dict):
            raise ScheduleError(f"This is no state of a thalweg schedule: it lacks {', '.join(sorted(missing))}.")
        saved, present = len(state_dict["base_lrs"]), len(self.optimizer.param_groups)
        if saved > present:
            raise ScheduleError(
                f"The state is of {saved} parameter groups, this optimizer has {present}: add them first."
            )
        self.schedule = Schedule.from_dict(state_dict["schedule"])
        self.state = dict(state_dict["state"])
        self.base_lrs = [_copy(base) for base in state_dict["base_lrs"]]
        self.last_epoch = state_dict["step"] - 1
        self._step_count = state_dict["step"] + 1
        self._update_lr()


def _copy(rate: Any) -> Any:
    return rate.clone() if isinstance(rate, torch.Tensor) else rate


def _check_steps(steps: int | None, name: str) -> int | None:
    return steps if steps is None else check_integer(steps, f"`{name}`", Option(low=1))


def _options_of(shape: str) -> Mapping[str, Option]:
    return {} if shape == lookup.SEQUENCE else lookup.get(shape).options


def _check_options(shape: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Check the options given, and add the defaults of those that are not."""
    known = _options_of(shape)
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        if name not in known:
            names = (*known, *_COMMON[1:])
            raise ScheduleError(
                f"A {shape} schedule has no option '{name}'.{suggestion(name, names)} It has {', '.join(names)}."
            )
    checked: dict[str, Any] = {}
    for name, option in known.items():
        if name in given and option.unless in given:
            raise ScheduleError(f"A {shape} schedule takes `{name}` or `{option.unless}`, not both.")
        value = given.get(name, None if option.unless in given else option.default)
        if value is not None:
            checked[name] = check_option(value, f"`{name}` of {shape}", option)
    return checked


def _check_warmup(schedule: Schedule) -> None:
    total, warmup = schedule.total, schedule.warmup
    if isinstance(total, int) and isinstance(warmup, int) and warmup > total:
        raise ScheduleError(
            f"The warm-up of {shown(warmup)} steps is longer than the whole {schedule.shape} schedule of {shown(total)}: shorten "
            "`warmup`, or give it as a share such as 0.05."
        )


def _is_open(schedule: Schedule) -> bool:
    """Whether it lasts as long as the run: its total is not given and, if it is a sequence, the last part's neither."""
    return schedule.total is None and (not schedule.parts or _is_open(schedule.parts[-1]))


def _check_parts(schedule: Schedule) -> None:
    if (schedule.shape == lookup.SEQUENCE) != bool(schedule.parts):
        raise ScheduleError(
            f"A {schedule.shape} schedule has {len(schedule.parts)} parts: a sequence has one or more, as in "
            "sequence(constant(total=100), linear()), and nothing else has any."
        )
    for part in schedule.parts:
        if not isinstance(part, Schedule):
            raise ScheduleError(
                f"A part of a sequence is {shown(part)}, but it must be a schedule such as linear(total=100)."
            )
    for part in schedule.parts[:-1]:
        if _is_open(part):
            raise ScheduleError(
                f"{shown(part)} is not the last of its sequence, so its length cannot be open: give its `total`."
            )


def _resolve_options(schedule: Schedule, own: StepCounts) -> dict[str, Any]:
    known, resolved = _options_of(schedule.shape), dict(schedule.options)
    for name, value in resolved.items():
        title, least = f"`{name}` of {schedule.shape}", int(known[name].low)
        if known[name].kind == "length":
            resolved[name] = own.to_steps(value, title, least)
        elif known[name].kind == "lengths":
            resolved[name] = tuple(own.to_steps(item, title, least) for item in value)
    return resolved


def _resolve_parts(schedule: Schedule, total: int | None, warmup: int, own: StepCounts) -> tuple[Schedule, ...]:
    """Resolve the parts of a sequence: shares are of its total, and the last one, if open, takes what is left."""
    parts: list[Schedule] = []
    taken = warmup
    for part in schedule.parts:
        if _is_open(part) and total is not None and taken >= total:
            raise ScheduleError(f"The parts of a sequence fill all {total} steps: nothing is left for {shown(part)}.")
        rest = None if total is None else total - taken
        resolved = part.resolve(rest if _is_open(part) else total, own.epoch)
        taken += cast("int", resolved.total or 0)
        parts.append(resolved)
    if parts and schedule.total is not None and taken > cast("int", total):
        raise ScheduleError(f"The parts of a sequence take {taken} steps, but its total is {total}: shorten them.")
    return tuple(parts)


def _chain(parts: Sequence[Schedule]) -> Curve:
    """Join the parts' curves one after the other; after the last one its end stays."""
    curves = [part._curve for part in parts]
    starts = [0]
    for part in parts[:-1]:
        starts.append(starts[-1] + cast("int", part.total))

    def curve(t: int) -> float:
        index = bisect_right(starts, t) - 1
        return curves[index](t - starts[index])

    return curve


def _part_state(state: Mapping[str, float], index: int) -> State:
    """Give the state of one part of a sequence, whose keys begin with the part's number and a slash."""
    prefix = f"{index}/"
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _total_in_words(total: Length | None, open_total: str) -> str:
    if isinstance(total, int):
        return f"{total:,} steps"
    if isinstance(total, float):
        return f"{length_in_words(total)} of the run"
    return total or open_total
