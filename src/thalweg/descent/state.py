"""The descent's living state: everything that the trajectory depends on, in one place that can be saved and restored."""

from __future__ import annotations

import copy
import fnmatch
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from thalweg import optim
from thalweg.descent.ambient import alone, ambient
from thalweg.descent.precision import LossScale
from thalweg.descent.problem import Problem, start_model
from thalweg.errors import PlanError, nearest
from thalweg.optim.recalibration import gathers_statistics
from thalweg.records.plan import Plan
from thalweg.records.weights import is_strided, load_model_state, model_state
from thalweg.sampling import Batches, Draw
from thalweg.sampling.sources import summed
from thalweg.schedule import Schedule
from thalweg.watch.monitor import Monitor

RECENT = 10  # of a stream, steps whose batches are kept for statistics of averaged weights


class Descent:
    """A descent under way.

    `step` counts updates done. Fields are grouped by when they change: `problem`, `plan` and `schedule` never; `model`,
    `optimizer`, `batches`, `scale` and `monitor` with every step; `cures`, `left_out` and `accumulate` when something went
    wrong; `leading` (the figure to beat), `best` (its weights) and `shape_state` at validations.
    """

    def __init__(self, problem: Problem, plan: Plan) -> None:
        if plan.steps is None:
            raise PlanError("The plan has no budget. Give epochs=, steps= or seconds=.")
        self.problem, self.plan, self.total = problem.private(), plan, plan.steps
        with ambient(), alone:
            self.model = start_model(problem, plan.seed)
        self.optimizer, self.factors = build_optimizer(self.model, plan)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.accumulate = plan.accumulate
        self.batches = Batches(
            problem.train,
            plan.batch_size,
            seed=plan.seed,
            accumulate=plan.accumulate,
            shuffle=plan.shuffle,
            replacement=plan.replacement,
            weights=problem.weights,
            drop_last=plan.drop_last,
            workers=plan.workers,
            recent=RECENT if self.optimizer.averages and gathers_statistics(self.model) else 0,
        )
        per_epoch = self.batches.steps_per_epoch or plan.steps_per_epoch
        self.schedule = with_metric_mode(plan.schedule, problem.task.mode).resolve(self.total, per_epoch)
        self.shape_state: dict[str, Any] = self.schedule.initial_state()
        self.scale = LossScale(plan.precision)
        self.monitor = Monitor()
        self.step = 0
        self.cures: dict[str, Any] = {"rate_factor": 1.0, "clip_norm": plan.clip_norm}
        self.left_out: list[tuple[int, int]] = []  # places (epoch, batch) that no step is taken on
        self.skipped_in_row = 0
        self.place: tuple[int, int] = (0, 0)  # of the last batch drawn
        self.drawn: Draw | None = None
        self.leading: dict[str, Any] | None = None  # value and step of the best validation
        self.best: Best | None = None
        self.stale = 0  # validations since the best
        self.start: dict[str, float] = {}  # validation before the first step
        self.last: dict[str, float] = {}
        self.snapshot: dict[str, Any] | None = None
        self.epoch_steps = per_epoch

    def rate(self, step: int | None = None) -> float:
        """Give the learning rate of the step after so many (None: of the next): peak, times schedule, times cures' factors."""
        factor = self.schedule.factor(self.step if step is None else step, self.shape_state or None)
        return self.plan.learning_rate * factor * self.cures["rate_factor"]

    def set_rate(self, rate: float) -> None:
        """Write a learning rate into the optimiser's groups, each with its own factor."""
        for group, factor in zip(self.optimizer.param_groups, self.factors, strict=True):
            group["lr"] = rate * factor

    @property
    def evaluates_average_only(self) -> bool:
        """Whether the rule keeps an average of its own, so that the weights it steps with are never validated."""
        return self.optimizer.rule.average is not None

    @property
    def keeps_best(self) -> bool:
        """Whether the run ends with the weights that validated best, rather than the last ones."""
        return self.plan.keep == "best" and self.problem.validation is not None

    @property
    def out_of_patience(self) -> bool:
        """Whether as many validations as the plan's patience went by without improvement."""
        return self.plan.patience is not None and self.stale >= self.plan.patience

    @property
    def is_over(self) -> bool:
        """Whether no further step is to be taken."""
        return self.step == self.total or self.out_of_patience

    def state_dict(self) -> dict[str, Any]:
        """Give everything the trajectory depends on, as sections of tensors and plain values that are still in use."""
        return {**self._tensors(), "loop": self._loop_state()}

    def load_state_dict(self, state: Mapping[str, Any], *, back: bool = False) -> None:
        """Go to a state that `state_dict` gave; its tensors are copied.

        Going `back` within a run keeps what was learnt on the way: the cures and how often they were tried, the batches that
        are left out, the micro-batch that fits, and the figure to beat.
        """
        self.load_tensors(state)
        loop = state["loop"]
        self.step, self.shape_state = loop["step"], dict(loop["schedule"])
        self.skipped_in_row, self.stale = loop["skipped_in_row"], loop["stale"]
        self.start, self.last = dict(loop["start"]), dict(loop["last"])
        self.scale.load_state_dict(loop["scale"])
        self.monitor.load_state_dict(loop["monitor"], keep_attempts=back)
        if not back:
            self.cures, self.accumulate = dict(loop["cures"]), loop["accumulate"]
            self.left_out = [(epoch, within) for epoch, within in loop["left_out"]]
            self.leading = loop["leading"] and dict(loop["leading"])
        self.optimizer.clip_norm = self.cures["clip_norm"]
        self.batches.accumulate = self.accumulate
        self.batches.load_state_dict(loop["batches"])

    def load_tensors(self, state: Mapping[str, Any]) -> None:
        """Copy weights, buffers and the optimiser's state of what `state_dict` gave; all else stays."""
        load_model_state(self.model, state["model"])
        for name, buffer in self.problem.objective.loss_buffers.items():
            buffer.copy_(state["loss"][name])
        self._load_optimizer_state(state["optimizer"])

    @property
    def snapshot_due(self) -> bool:
        """Whether the plan asks for a snapshot of the present step, and none was taken of it."""
        every = self.plan.snapshot_every
        taken = self.snapshot is not None and self.snapshot["loop"]["step"] == self.step
        return bool(every) and self.step % every == 0 and not taken and self.monitor.healthy

    def before_gradient(self) -> dict[str, Any]:
        """Copy what computing a gradient changes: buffers such as running statistics, and the place in the data."""
        loop = self._loop_state()
        # The loop's values are made anew each time, but for what a person's own loader gives.
        loop["batches"] = copy.deepcopy(loop["batches"])
        buffers = {name: b for name, b in self.model.named_buffers() if is_strided(b)}
        return {
            "model": clone_into(None, buffers),
            "loss": clone_into(None, self.problem.objective.loss_buffers),
            "loop": loop,
        }

    def take_snapshot(self, before: Mapping[str, Any] | None = None) -> None:
        """Keep a copy of the state to go back to; one is kept, written over in place.

        `before` (from `before_gradient`) makes it the state before the gradient was computed, whose loss is known by now.
        """
        before = before or self.before_gradient()
        kept = self.snapshot or {}
        tensors = {part: clone_into(kept.get(part), fresh) for part, fresh in self._tensors().items()}
        for part in {"model", "loss"} & tensors.keys():
            for name, buffer in before[part].items():
                tensors[part][name].copy_(buffer)
        self.snapshot = {**tensors, "loop": before["loop"]}

    def digest(self) -> str:
        """Give a short digest of every bit of weights and buffers."""
        return summed(list(model_state(self.model).items()), size=16)

    def _tensors(self) -> dict[str, Any]:
        memory = self.problem.objective.loss_buffers
        own = {"loss": memory} if memory else {}
        return {"model": model_state(self.model), "optimizer": self._optimizer_state(), **own}

    def _optimizer_state(self) -> dict[str, Any]:
        # The groups follow from the plan; names instead of numbers make the file readable by others.
        numbered = self.optimizer.state_dict()["state"]
        return {name: dict(numbered[i]) for i, name in enumerate(self._names()) if i in numbered}

    def _load_optimizer_state(self, named: Mapping[str, Any]) -> None:
        full = self.optimizer.state_dict()
        full["state"] = {i: dict(named[name]) for i, name in enumerate(self._names()) if name in named}
        self.optimizer.load_state_dict(copy.deepcopy(full))

    def _names(self) -> list[str]:
        return [name for group in self.optimizer.param_groups for name in group["param_names"]]

    def _loop_state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "batches": self.batches.state_dict(),
            "schedule": dict(self.shape_state),
            "accumulate": self.accumulate,
            "scale": self.scale.state_dict(),
            "monitor": self.monitor.state_dict(),
            "cures": dict(self.cures),
            "left_out": [list(place) for place in self.left_out],
            "leading": self.leading and dict(self.leading),
            "skipped_in_row": self.skipped_in_row,
            "stale": self.stale,
            "start": dict(self.start),
            "last": dict(self.last),
        }


class Best:
    """The weights that validated best so far: `figures` are theirs, `averaged` says whether they are an average's."""

    def __init__(
        self, value: float, step: int, figures: dict[str, float], averaged: bool, model: dict[str, Any]
    ) -> None:
        self.value, self.step, self.figures, self.averaged, self.model = value, step, figures, averaged, model

    def state_dict(self) -> dict[str, Any]:
        """Give the sections of the checkpoint named `best`."""
        loop = {"value": self.value, "step": self.step, "figures": self.figures, "averaged": self.averaged}
        return {"model": self.model, "loop": loop}

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> Best:
        """Read the checkpoint named `best`."""
        loop = state["loop"]
        return Best(loop["value"], loop["step"], dict(loop["figures"]), loop["averaged"], dict(state["model"]))


def build_optimizer(model: nn.Module, plan: Plan) -> tuple[optim.Optimizer, list[float]]:
    """Make the optimiser with its parameter groups, and each group's factor on the rate.

    Parameters of fewer than two dimensions (biases, normalisation) are not decayed unless the plan says so. A group of the plan
    may go by another rule; what Muon leaves to AdamW stands in the plan's groups once it is settled.

    Raises PlanError where a pattern of the plan's groups matches no parameter.
    """
    gathered: dict[tuple[float, float, str | None], list[tuple[str, nn.Parameter]]] = {}
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for pattern in plan.groups:
        if not any(fnmatch.fnmatchcase(name, pattern) for name, _ in trainable):
            names = [name for name, _ in trainable]
            raise PlanError(
                f"The plan's group '{pattern}' matches no trainable parameter.{nearest(pattern, names)} There are {names[:8]}."
            )
    for name, parameter in trainable:
        rate, decay, rule = 1.0, 1.0 if parameter.ndim >= 2 or plan.decay_vectors else 0.0, None
        for pattern, group in plan.groups.items():
            if fnmatch.fnmatchcase(name, pattern):
                rate, decay, rule = group.learning_rate, decay * group.weight_decay, group.rule or rule
        own = None if rule == plan.rule else rule
        gathered.setdefault((rate, decay, own), []).append((name, parameter))
    groups = [
        {"params": members, "lr": plan.learning_rate * rate, "weight_decay": plan.weight_decay * decay}
        | ({} if rule is None else {"rule": rule})
        for (rate, decay, rule), members in gathered.items()
    ]
    optimizer = optim.build(
        plan.rule,
        groups,
        lr=plan.learning_rate,
        weight_decay=plan.weight_decay,
        constants=plan.constants,
        clip_norm=plan.clip_norm,
        clip_value=plan.clip_value,
        ema=plan.ema,
        on_nonfinite="skip",
        engine=plan.engine,
    )
    return optimizer, [rate for rate, _, _ in gathered]


def with_metric_mode(schedule: Schedule, mode: str) -> Schedule:
    """Give the schedule with "min" or "max" entered in every reduce-on-plateau part, as the task's criterion asks."""
    options = {**schedule.options, "mode": mode} if "mode" in schedule.options else schedule.options
    return replace(schedule, options=options, parts=tuple(with_metric_mode(part, mode) for part in schedule.parts))


def clone_into(kept: Any, fresh: Any) -> Any:
    """Copy a nest of dicts of tensors and plain values, into the tensors of an earlier copy where they fit."""
    if isinstance(fresh, Mapping):
        return {
            key: clone_into(kept.get(key) if isinstance(kept, dict) else None, value) for key, value in fresh.items()
        }
    if isinstance(fresh, Tensor):
        if isinstance(kept, Tensor) and kept.shape == fresh.shape and kept.dtype == fresh.dtype:
            return kept.copy_(fresh.detach())
        return fresh.detach().clone()
    return copy.deepcopy(fresh)


def default_validate_every(total: int, epoch_steps: int | None) -> int:
    """Give the steps between validations: an epoch, but at least five and at most fifty validations a run.

    >>> default_validate_every(1000, 100), default_validate_every(1000, 2), default_validate_every(1000, None)
    (100, 20, 50)
    """
    every = epoch_steps or math.ceil(total / 20)
    return max(1, min(max(every, math.ceil(total / 50)), total // 5))
