"""The state of a descent: everything that its further steps depend on, in one object that can be saved and restored."""

from __future__ import annotations

import copy
import fnmatch
import glob
import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from thalweg import optim, rules
from thalweg.descent.compiled import CompiledForward
from thalweg.descent.loop_kinds import BEST_KINDS, STATED
from thalweg.descent.memory_format import MemoryFormat
from thalweg.descent.moving_weights import mark_weights, moved_since
from thalweg.descent.precision import LossScale
from thalweg.descent.problem import Problem, start_model
from thalweg.descent.process_state import preserve_process_state, rng_lock
from thalweg.descent.their_objects import objects_of
from thalweg.descent.trail import Trail
from thalweg.descent.validation import hold_sample
from thalweg.errors import CheckpointError, PlanError, nearest
from thalweg.landscape.trained_weights import look_trained
from thalweg.optim.recalibration import gathers_statistics
from thalweg.records.kinds import check
from thalweg.records.plan import Group, Plan
from thalweg.records.weights import (
    buffer_shapes,
    is_strided,
    load_model_state,
    make_late_buffers,
    model_state,
    remove_buffers,
)
from thalweg.sampling import Batches, Draw
from thalweg.sampling.opening import first_batch
from thalweg.sampling.sources import StreamSource, checksum
from thalweg.schedule import Schedule
from thalweg.watch.changes import Changes
from thalweg.watch.monitor import Monitor
from thalweg.watch.step_recorder import MEASURE_EVERY, frozen_share
from thalweg.watch.window import Place

LEAST_FACTOR = 1e-30  # of the rate's schedule: below it nothing moves, and what is divided by it would not be finite
RECENT_STEPS = 10  # of a stream: their batches stay in memory, to measure the batch statistics of averaged weights


class Descent:
    """A descent in progress. `step` counts the updates done.

    Never changed: `problem`, with its own copies of a loss and metrics that have a state, and `opened`, without; `plan`,
    `schedule`, `decay_schedule` (None: that of the rate), `total_steps`, `steps_per_epoch`, `rate_factors` and
    `decays` (each parameter group's factor on the learning rate, and its weight decay without a schedule).

    Changed at every step: `model`, `optimizer`, `batches`, `loss_scale`, `monitor`; `last_draw`, the batch drawn last,
    `last_position`, its (epoch, index within the epoch) (of several that make up one step: the first), `last_positions` and
    `last_draws`, those of all, and `earlier`, the weights before the last step where the next batch will be tried along its
    update, else None.

    Set by the last gradient: `terms`, of its loss by name, each the mean over the step's examples.

    Changed where a layer is unfrozen: `frozen`, the parameters that the optimiser does not have; `adopted`, the names of those
    that it was given since the beginning, in their order. `untrained` are the names of weights that nobody trains, once that was
    said.

    Changed at a validation: `initial_validation` and `last_validation`, its figures before the first step and now;
    `best_validation` ("value" of the criterion and "step"), `best_weights`, `validations_since_best`; `schedule_state`, which
    only reduce-on-plateau has.

    Changed when a step failed: `changes`, what cures have changed; `skipped_batches`, the positions
    of batches that are not used again, and of these `skipped_together`, which were skipped with the one before, in one step;
    `consecutive_skips`, the steps in a row that were skipped; `accumulate`, the micro-batches per step; `repeated`, how many
    steps were undone by going back to the beginning, and `tried`, how many were taken beside the run to try other rates.

    `compiled` is the compiled forward pass, where the plan asks for one.

    `objects` is what the user's own code carries from step to step: attributes of the model's and the loss's modules, counters of
    functions, random generators of their own.

    `snapshot` is a copy of all this to go back to when a step fails, taken at steps that the plan fixes; `beginning` the state
    before the first step, while a cure that begins again is decided on and applied.
    """

    def __init__(self, problem: Problem, plan: Plan) -> None:
        if plan.steps is None:
            raise PlanError("The plan has no budget. Give epochs=, steps= or seconds=.")
        self.opened, self.problem = problem, problem.with_own_loss()
        self.plan, self.total_steps = plan, plan.steps
        with preserve_process_state(), rng_lock:
            self.model = start_model(problem, plan.seed)
        self._first_buffers = {name for name, _ in self.model.named_buffers(remove_duplicate=False)}
        self._memory_format = MemoryFormat(self.model, plan.memory_format)
        self.optimizer, self.rate_factors = build_optimizer(self.model, plan)
        self.decays: list[float] = [group["weight_decay"] for group in self.optimizer.param_groups]
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.frozen = [(name, p) for name, p in self.model.named_parameters() if not p.requires_grad]
        self.adopted: list[list[str]] = []
        self.untrained = set[str]()
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
            recent=RECENT_STEPS if self.optimizer.averages and gathers_statistics(self.model) else 0,
        )
        self.compiled = None
        if plan.compile:
            self.compiled = CompiledForward(self.model, problem.task.model, self.batches.micro_batch_size)
        hold_sample(problem, self.batches.micro_batch_size)
        self.steps_per_epoch = self.batches.steps_per_epoch or plan.steps_per_epoch
        schedule = with_metric_mode(plan.schedule, problem.task.mode)
        self.schedule = schedule.resolve(self.total_steps, self.steps_per_epoch)
        self.schedule_state: dict[str, Any] = self.schedule.initial_state()
        decay_schedule = plan.weight_decay_schedule
        self.decay_schedule = decay_schedule and decay_schedule.resolve(self.total_steps, self.steps_per_epoch)
        self.loss_scale = LossScale(plan.precision)
        self.monitor = Monitor(places=self._places(), total=self.total_steps)
        self.monitor.window.frozen = frozen_share(self.model)
        self.monitor.window.began_trained = plan.watch and look_trained(self.model)
        self.monitor.window.finds_rate = self.optimizer.rule.finds_rate
        self.step = 0
        self.changes = Changes(clip_norm=plan.clip_norm)
        self.skipped_batches: list[tuple[int, int]] = []
        self.skipped_together: list[tuple[int, int]] = []
        self.consecutive_skips = self.repeated = self.tried = 0
        self.last_position: tuple[int, int] = (0, 0)
        self.last_positions: list[tuple[int, int]] = []
        self.last_draws: list[Draw] = []
        self.last_draw: Draw | None = None
        self.terms: dict[str, float] = {}
        self.earlier: list[Tensor] | None = None
        self.is_untouched = False  # within `untouched`
        self.best_validation: dict[str, Any] | None = None
        self.best_weights: BestWeights | None = None
        self.validations_since_best = 0
        self.initial_validation: dict[str, float] = {}
        self.last_validation: dict[str, float] = {}
        self.snapshot: dict[str, Any] | None = None
        self.beginning: dict[str, Any] | None = None
        self.moving = set(problem.moving)  # weights that the forward pass changes
        self.objects = objects_of(self.problem.objective.task, self.model)
        self.trail = Trail(self.model, self.total_steps)

    def hand_over_model(self) -> nn.Module:
        """Give the model as its maker would have it: in its own memory format, and called in the ordinary way."""
        self._memory_format.undo()
        if self.compiled is not None:
            self.compiled.undo()
        return self.model

    def rate(self, step: int | None = None) -> float:
        """Give the learning rate after so many steps (None: those done): peak, times schedule, times the cures' factor."""
        after = self.step if step is None else step
        factor = self.schedule.factor(after, self.schedule_state or None)
        return self.changes.rate(after, self.plan.learning_rate * factor, self.plan.learning_rate)

    def set_rate(self, rate: float) -> None:
        """Write a learning rate into the optimiser's groups, each with its own factor, and the weight decay of the present step.

        A rule multiplies the decay by the rate, so where the decay has a schedule of its own, that of the rate is divided out.
        """
        for group, factor in zip(self.optimizer.param_groups, self.rate_factors, strict=True):
            group["lr"] = rate * factor
        if self.decay_schedule is not None:
            of_rate = self.schedule.factor(self.step, self.schedule_state or None)
            relative = self.decay_schedule.factor(self.step) / of_rate if of_rate > LEAST_FACTOR else 0.0
            self._set_decay(relative * self.changes.decay_factor)

    def change(self, changes: Changes) -> None:
        """Let what cures have changed take effect: clipping and weight decay; the rate follows with the next step."""
        if self.decay_schedule is None and changes.decay_factor != self.changes.decay_factor:
            self._set_decay(changes.decay_factor)
        self.changes, self.optimizer.clip_norm = changes, changes.clip_norm
        self._set_average(changes)
        self.monitor.window.places = self._places()

    def _set_average(self, changes: Changes) -> None:
        """Keep the average that cures ask for, where the plan has none."""
        if self.plan.ema is None:
            self.optimizer.ema = changes.ema

    @property
    def can_average(self) -> bool:
        """Whether an average of the weights can be kept from here on: none is, and its batch statistics could be measured."""
        source = self.problem.train
        return not self.optimizer.averages and not (isinstance(source, StreamSource) and gathers_statistics(self.model))

    @property
    def batches_ahead(self) -> int:
        """How many batches make up the next step: those that cures ask for, but none beyond an epoch's end, a snapshot or a
        measurement of weights and updates."""
        most = self.changes.accumulate
        if most == 1:
            return 1
        every = (MEASURE_EVERY, self.plan.snapshot_every)
        left = [self.total_steps - self.step, *(each - self.step % each for each in every if each)]
        if self.steps_per_epoch:  # batches that were left out are none of the steps, but are of the epoch
            left.append(self.steps_per_epoch - self.batches.within % self.steps_per_epoch)
        return min(most, *left)

    @property
    def why_not_together(self) -> str:
        """Why no step can be made of several batches; an empty text where some can."""
        if self.steps_per_epoch == 1:
            return "an epoch is one batch"
        return "snapshots are taken after every batch" if self.plan.snapshot_every == 1 else ""

    @property
    def next_step(self) -> int:
        """The number of the step whose batches were drawn last, before it is accepted: steps are counted by batches."""
        return self.step + len(self.last_positions)

    @property
    def steps_taken(self) -> int:
        """The steps that it cost to come here, with those that were undone by going back to the beginning."""
        return self.step + self.repeated

    def height_of_schedule(self) -> int:
        """Give the first step at which the schedule has its height so far."""
        begun = self.schedule.initial_state() or None
        return max(range(self.step + 1), key=lambda step: self.schedule.factor(step, begun))

    def _set_decay(self, factor: float) -> None:
        for group, decay in zip(self.optimizer.param_groups, self.decays, strict=True):
            group["weight_decay"] = decay * factor

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
        return self.plan.patience is not None and self.validations_since_best >= self.plan.patience

    @property
    def is_over(self) -> bool:
        """Whether no further step is to be taken."""
        return self.step == self.total_steps or self.out_of_patience

    def state_dict(self) -> dict[str, Any]:
        """Give the sections of a checkpoint. Tensors are not copied: they change with the next step."""
        return {**self._tensors(), **self.state_beside(), "objects": self.objects.read(), "loop": self._loop_state()}

    def state_beside(self) -> dict[str, Any]:
        """Give the sections of a checkpoint that hold weights of steps before: `earlier`, if there are any, and the trail."""
        earlier = {} if self.earlier is None else {"earlier": {str(n): tensor for n, tensor in enumerate(self.earlier)}}
        return {**earlier, **self.trail.state()}

    def load_state_dict(self, state: Mapping[str, Any], *, rollback: bool = False) -> list[str]:
        """Go to a state that `state_dict` gave; its tensors are copied. Gives the paths of objects that could not be put back.

        A `rollback` within a run keeps what was found out since: the cures and how often they were tried, the batches to skip,
        the micro-batch that fits into memory, and the best validation.
        """
        loop = state["loop"]
        for names in loop.get("adopted", [])[len(self.adopted) :]:
            self.adopt(names)
        changes = self.changes if rollback else Changes.from_dict(loop["cures"])
        self._set_average(changes)
        lost = self.load_tensors(state)
        self.step, self.schedule_state = loop["step"], dict(loop["schedule"])
        self.consecutive_skips, self.validations_since_best = loop["skipped_in_row"], loop["stale"]
        self.initial_validation, self.last_validation = dict(loop["start"]), dict(loop["last"])
        self.loss_scale.load_state_dict(loop["scale"])
        self.monitor.load_state_dict(loop["monitor"], keep_attempts=rollback)
        self.moving.update(loop.get("moving", []))
        earlier = {} if rollback else state.get("earlier", {})
        places = zip(earlier.values(), self.parameters, strict=False)
        self.earlier = [tensor.to(parameter.device, copy=True) for tensor, parameter in places] or None
        if rollback:
            self.trail.forget(self.step)
        else:
            self.trail.load(state)
        if not rollback:
            self.accumulate, self.repeated = loop["accumulate"], loop.get("repeated", 0)
            self.tried = loop.get("tried", 0)
            self.skipped_batches = [(epoch, index) for epoch, index in loop["left_out"]]
            self.skipped_together = [(epoch, index) for epoch, index in loop.get("left_out_together", [])]
            self.batches.leave_out(loop.get("left_out_examples", []))
            self.best_validation = loop["leading"] and dict(loop["leading"])
        self.change(changes)
        self.batches.accumulate = self.accumulate
        with preserve_process_state(), rng_lock:  # a stream is read again up to its place, with seeds of its own
            self.batches.load_state_dict(loop["batches"], is_over=self.is_over)
        return lost

    def take_over_changes(self, knobs: Collection[str]) -> None:
        """Let knobs of the plan that were changed since the loaded state take effect, where that state has values of its own."""
        if "learning_rate" in knobs:
            self.change(replace(self.changes, rate_factor=1.0, warmup=None))  # who asks for a rate means that rate
        if "clip_norm" in knobs:
            self.change(replace(self.changes, clip_norm=self.plan.clip_norm))
        if "weight_decay" in knobs:
            self.change(replace(self.changes, decay_factor=1.0))
        if "schedule" in knobs:
            self.schedule_state = self.schedule.initial_state()
            self.change(replace(self.changes, anneal=None))
        if self.snapshot is not None:  # it holds the old values
            self.take_snapshot()

    def load_tensors(self, state: Mapping[str, Any]) -> list[str]:
        """Copy weights, buffers, the optimiser's state and that of the user's objects of what `state_dict` gave; all else stays.

        Gives the paths of objects that could not be put back. What the user's code makes at its first call, such as a teacher
        that is a copy of the model, it makes in a call before, in which nothing else stays.
        """
        lost = self._copy_tensors(state)
        if lost and self._call_once():
            lost = self._copy_tensors(state)
        return lost

    def _copy_tensors(self, state: Mapping[str, Any]) -> list[str]:
        self.load_weights(state["model"])
        for name, buffer in self.problem.objective.loss_buffers.items():
            buffer.copy_(state["loss"][name])
        self._load_optimizer_state(state["optimizer"])
        return self.objects.write(state["objects"]) if "objects" in state else []

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copy weights and buffers into the model; those that it has made since, and that are not among them, it makes anew.

        Buffers that it has given another shape since have again the one that they had.
        """
        shapes = buffer_shapes(self.model)
        made = {
            name for name in self._made_since() if name not in weights or tuple(weights[name].shape) != shapes.get(name)
        }
        remove_buffers(self.model, made)
        make_late_buffers(self.model, weights)
        load_model_state(self.model, weights)

    def _made_since(self) -> set[str]:
        """Give the names of buffers that the model has made in its calls."""
        return {name for name, _ in self.model.named_buffers(remove_duplicate=False)} - self._first_buffers

    def _call_once(self) -> bool:
        """Call model and loss for a first batch, as a step does; False where that fails."""
        with preserve_process_state(), rng_lock:
            try:
                self.problem.objective.loss(self.model, first_batch(self.problem.train, self.problem.device))
            except Exception:  # of the user's code: in the next step it is told where it is
                return False
        return True

    def adopt(self, names: list[str]) -> None:
        """Give the optimiser parameters that were frozen, by name, in groups as the plan makes them."""
        parameters = [(name, p) for name, p in self.frozen if name in names]
        for rate, group in parameter_groups(parameters, self._plan_of_unfrozen(names)):
            self.optimizer.add_param_group(group)
            self.rate_factors.append(rate)
            self.decays.append(group["weight_decay"])
        for _, parameter in parameters:
            parameter.grad = None
        self.parameters += [p for _, p in parameters]
        self.frozen = [(name, p) for name, p in self.frozen if name not in names]
        if self.decay_schedule is None:
            self._set_decay(self.changes.decay_factor)
        self.monitor.window.places, self.monitor.window.frozen = self._places(), frozen_share(self.model)
        self.adopted.append(list(names))

    def _plan_of_unfrozen(self, names: Collection[str]) -> Plan:
        """Give the plan with groups for those of these names that its rule leaves to another one, as `settle` enters them."""
        rest = rules.get(self.plan.rule).rest
        if rest is None:
            return self.plan
        roles = self.problem.matrix_roles_unfrozen
        left_out = [name for name in names if roles.get(name, "hidden") != "hidden"]
        groups = {glob.escape(name): Group(rule=rest.name) for name in left_out}
        return self.plan.replace(groups={**groups, **self.plan.groups})

    @property
    def snapshot_due(self) -> bool:
        """Whether the plan asks for a snapshot of the present step, none was taken of it, and no recent step was abnormal."""
        every = self.plan.snapshot_every
        taken = self.snapshot is not None and self.snapshot["loop"]["step"] == self.step
        return bool(every) and self.step % every == 0 and not taken and self.monitor.healthy

    def state_before_gradient(self) -> dict[str, Any]:
        """Copy what computing a gradient changes: buffers such as running statistics, and the position in the data.

        So are the user's objects. Weights and optimiser state are left out: they change later, in the optimiser's step, so
        `take_snapshot` can still copy them when the loss is known. The first copy is small; the second is made only of states
        worth keeping. Weights that are known to change in the forward pass are in the first.
        """
        loop = self._loop_state()
        # All of it is a fresh copy, except the position that a user's own loader returns from its `state_dict`.
        loop["batches"] = copy.deepcopy(loop["batches"])
        buffers = {name: b for name, b in self.model.named_buffers() if is_strided(b)}
        moving = {name: w for name, w in model_state(self.model).items() if name in self.moving}
        return {
            "model": clone_into(None, buffers | moving),
            "marks": mark_weights(self.model),
            "loss": clone_into(None, self.problem.objective.loss_buffers),
            "objects": self.objects.read(),
            "loop": loop,
        }

    def take_snapshot(self, before: Mapping[str, Any] | None = None) -> bool:
        """Copy the state into `snapshot`, into the tensors of the previous snapshot.

        With `before`, from `state_before_gradient`, it is the state as it was then; optimiser state must not have changed since.
        Where weights have that were not known to, there is no such state any more: the previous snapshot stays, and
        this gives False.
        """
        if before is not None and (moved := moved_since(before["marks"], self.model) - before["model"].keys()):
            self.moving |= moved
            return False
        before = before or self.state_before_gradient()
        previous = self.snapshot or {}
        tensors = {section: clone_into(previous.get(section), values) for section, values in self._tensors().items()}
        for name in self._made_since() - before["model"].keys():  # in this very forward pass
            tensors["model"].pop(name, None)
        for section in {"model", "loss"} & tensors.keys():
            for name, buffer in before[section].items():
                tensors[section][name] = clone_into(tensors[section].get(name), buffer)
        self.snapshot = {**tensors, "objects": before["objects"], "loop": before["loop"]}
        return True

    def digest(self) -> str:
        """Give a short digest of every bit of weights and buffers."""
        return weights_digest(self.model)

    def _tensors(self) -> dict[str, Any]:
        buffers = self.problem.objective.loss_buffers
        loss = {"loss": buffers} if buffers else {}
        return {"model": model_state(self.model), "optimizer": self._optimizer_state(), **loss}

    def _optimizer_state(self) -> dict[str, Any]:
        # By parameter names instead of PyTorch's indices, so that other programs can read the file. The plan gives the groups.
        by_index = self.optimizer.state_dict()["state"]
        return {name: dict(by_index[i]) for i, name in enumerate(self._parameter_names()) if i in by_index}

    def _load_optimizer_state(self, named: Mapping[str, Any]) -> None:
        load_named_state(self.optimizer, named)

    def _parameter_names(self) -> list[str]:
        return [name for group in self.optimizer.param_groups for name in group["param_names"]]

    def _places(self) -> tuple[Place, ...]:
        """Give the parameters, in the order of the optimiser's groups, as the watch sees them."""
        depths = {id(parameter): depth for depth, parameter in enumerate(self.model.parameters())}
        found: list[Place] = []
        for group in self.optimizer.param_groups:
            rule = rules.get(group.get("rule", self.plan.rule))
            couples = rule.couples({**rule.constants, **group})
            # A decay with a schedule of its own changes from step to step, and is not judged.
            decay = 0.0 if self.decay_schedule is not None else float(group["weight_decay"])
            for name, parameter in zip(group["param_names"], group["params"], strict=True):
                found.append(Place.of(name, parameter, depths[id(parameter)], decay, couples))
        return tuple(found)

    def _loop_state(self) -> dict[str, Any]:
        # The keys are part of the checkpoint's format and stay, whatever the fields are called.
        return {
            "step": self.step,
            "batches": self.batches.state_dict(is_over=self.is_over),
            "schedule": dict(self.schedule_state),
            "accumulate": self.accumulate,
            "scale": self.loss_scale.state_dict(),
            "monitor": self.monitor.state_dict(),
            "cures": self.changes.to_dict(),
            "left_out": [list(position) for position in self.skipped_batches],
            **({"left_out_together": [list(one) for one in self.skipped_together]} if self.skipped_together else {}),
            **({"left_out_examples": list(self.batches.left_out)} if self.batches.left_out else {}),
            "leading": self.best_validation and dict(self.best_validation),
            "skipped_in_row": self.consecutive_skips,
            "stale": self.validations_since_best,
            "start": dict(self.initial_validation),
            "last": dict(self.last_validation),
            **({"repeated": self.repeated} if self.repeated else {}),
            **({"tried": self.tried} if self.tried else {}),
            **({"moving": sorted(self.moving)} if self.moving else {}),
            **({"adopted": [list(names) for names in self.adopted]} if self.adopted else {}),
        }


class BestWeights:
    """The weights that validated best so far.

    `value` is the criterion's and `figures` are all of that validation, after `step` steps; `averaged` says whether these are
    averaged weights; `model` is a copy of the state dict, and `objects` what the model's modules carried then besides.
    """

    def __init__(
        self,
        value: float,
        step: int,
        figures: dict[str, float],
        averaged: bool,
        model: dict[str, Any],
        objects: Mapping[str, Any] | None = None,
    ) -> None:
        self.value, self.step, self.figures, self.averaged, self.model = value, step, figures, averaged, model
        self.objects = dict(objects or {})

    def state_dict(self) -> dict[str, Any]:
        """Give the sections of the checkpoint named `best`."""
        loop = {"value": self.value, "step": self.step, "figures": self.figures, "averaged": self.averaged}
        return {"model": self.model, "objects": self.objects, "loop": loop}

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> BestWeights:
        """Read the checkpoint named `best`. Raises CheckpointError where it holds something else."""
        loop = state.get("loop")
        try:
            check(loop, BEST_KINDS, STATED)
            check(state.get("model"), {})
            check(state.get("objects") or {}, {})
        except TypeError as error:
            raise CheckpointError(f"the best weights are not what was written there: {error}") from error
        assert loop is not None
        figures, model, objects = dict(loop["figures"]), dict(state["model"]), state.get("objects")
        return BestWeights(loop["value"], loop["step"], figures, loop["averaged"], model, objects)


def load_named_state(optimizer: optim.Optimizer, named: Mapping[str, Any]) -> None:
    """Give an optimiser the states that a checkpoint holds by the names of its parameters. They are copied."""
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    full = optimizer.state_dict()
    full["state"] = {i: dict(named[name]) for i, name in enumerate(names) if name in named}
    optimizer.load_state_dict(copy.deepcopy(full))


def build_optimizer(model: nn.Module, plan: Plan) -> tuple[optim.Optimizer, list[float]]:
    """Make the optimiser with its parameter groups, and each group's factor on the learning rate.

    Parameters of fewer than two dimensions (biases, normalisation) are not decayed unless the plan says so. A group of the plan
    may have another update rule; `settle` enters the parameters that Muon leaves to AdamW as such groups.

    Raises PlanError where a pattern of the plan's groups matches no parameter.
    """
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for pattern in plan.groups:
        if not any(fnmatch.fnmatchcase(name, pattern) for name, _ in trainable):
            names = [name for name, _ in trainable]
            raise PlanError(
                f"The plan's group '{pattern}' matches no trainable parameter.{nearest(pattern, names)} There are {names[:8]}."
            )
    groups = parameter_groups(trainable, plan)
    optimizer = optim.build(
        plan.rule,
        [group for _, group in groups],
        lr=plan.learning_rate,
        weight_decay=plan.weight_decay,
        constants=plan.constants,
        clip_norm=plan.clip_norm,
        clip_value=plan.clip_value,
        ema=plan.ema,
        on_nonfinite="skip",
        engine=plan.engine,
    )
    return optimizer, [rate for rate, _ in groups]


def parameter_groups(parameters: list[tuple[str, nn.Parameter]], plan: Plan) -> list[tuple[float, dict[str, Any]]]:
    """Give the groups of named parameters for an optimiser, each with its factor on the learning rate."""
    members: dict[tuple[float, float, str | None], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in parameters:
        rate, decay, rule = 1.0, 1.0 if parameter.ndim >= 2 or plan.decay_vectors else 0.0, None
        for pattern, group in plan.groups.items():
            if fnmatch.fnmatchcase(name, pattern):
                rate, decay = rate * group.learning_rate_factor, decay * group.weight_decay_factor
                rule = group.rule or rule
        other_rule = None if rule == plan.rule else rule
        members.setdefault((rate, decay, other_rule), []).append((name, parameter))
    return [
        (
            rate,
            {"params": named, "lr": plan.learning_rate * rate, "weight_decay": plan.weight_decay * decay}
            | ({} if rule is None else {"rule": rule}),
        )
        for (rate, decay, rule), named in members.items()
    ]


def weights_digest(model: nn.Module) -> str:
    """Give a short digest of every bit of a model's weights and buffers."""
    return checksum(list(model_state(model).items()), size=16)


def with_metric_mode(schedule: Schedule, mode: str) -> Schedule:
    """Give the schedule with "min" or "max" entered in every reduce-on-plateau part, as the task's criterion asks."""
    options = {**schedule.options, "mode": mode} if "mode" in schedule.options else schedule.options
    return replace(schedule, options=options, parts=tuple(with_metric_mode(part, mode) for part in schedule.parts))


def clone_into(target: Any, source: Any) -> Any:
    """Copy nested dicts of tensors and other values, into the tensors of an earlier copy where shape and dtype agree.

    Repeated copies then allocate nothing. Gives the copy; `target`, the earlier one, may be None.
    """
    if isinstance(source, Mapping):
        return {
            key: clone_into(target.get(key) if isinstance(target, dict) else None, value)
            for key, value in source.items()
        }
    if isinstance(source, Tensor):
        if isinstance(target, Tensor) and target.shape == source.shape and target.dtype == source.dtype:
            return target.copy_(source.detach())
        return source.detach().clone()
    return copy.deepcopy(source)


def default_validate_every(total_steps: int, steps_per_epoch: int | None) -> int:
    """Give the number of steps between validations: an epoch, but at least five and at most fifty validations per run.

    >>> default_validate_every(1000, 100), default_validate_every(1000, 2), default_validate_every(1000, None)
    (100, 20, 50)
    """
    every = steps_per_epoch or math.ceil(total_steps / 20)
    return max(1, min(max(every, math.ceil(total_steps / 50)), total_steps // 5))
