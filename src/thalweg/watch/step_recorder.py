"""Records the steps of anybody's optimiser from within its own step hooks, where gradients and learning rate are those in use.

Nothing is read back from an accelerator here: `figures` does that once a step, together with the loss.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from itertools import repeat
from operator import attrgetter, is_
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from thalweg import rules
from thalweg.optim.optimizer import Optimizer, StepRecord
from thalweg.records.step_figures import StepFigures
from thalweg.watch.changes import Changes
from thalweg.watch.probe import write
from thalweg.watch.window import Place

MEASURE_EVERY = 50  # steps between measurements of weights and updates, for which weights are copied
FEW = 64  # norms on the CPU that are read one by one sooner than stacked

UNCHANGED = Changes()
PlainStep = tuple[float, list[Any]]  # learning rate and gradients
_GRADIENT, _LAYOUT, _NUMBER = attrgetter("grad"), attrgetter("layout"), Tensor.item


def is_measured(step: int) -> bool:
    """Tell whether weights and updates are measured at a step, by its number from 1."""
    return step % MEASURE_EVERY == 0 or step == 1


def step_figures(step: int, loss: float, rate: float, examples: int, seconds: float, taken: StepRecord) -> StepFigures:
    """Put together the figures of a step of thalweg's optimiser, for history, progress and watch."""
    return StepFigures(
        step,
        loss,
        rate,
        taken.gradient_norm,
        taken.clip_scale,
        taken.skipped,
        taken.nonfinite,
        examples,
        seconds,
        taken.gradient_norms,
        taken.weight_norms,
        taken.update_norms,
        taken.gradient_ratios,
    )


def frozen_share(model: nn.Module) -> float:
    """Give the share of a model's weights that want no gradient."""
    sizes = [(tensor.numel(), tensor.requires_grad) for tensor in model.parameters()]
    return sum(size for size, wants in sizes if not wants) / max(1, sum(size for size, _ in sizes))


def second_moment_memory(optimizer: torch.optim.Optimizer) -> float:
    """Give over how many steps an optimiser averages squared gradients, 1 / (1 - beta2); 0 where it keeps no such mean."""
    group = optimizer.param_groups[0] if optimizer.param_groups else {}
    betas = group.get("betas")
    beta2 = betas[1] if isinstance(betas, tuple | list) and len(betas) > 1 else group.get("beta2")
    keeps = any("exp_avg_sq" in state for state in optimizer.state.values())
    return 1 / (1 - float(beta2)) if keeps and beta2 is not None and float(beta2) < 1 else 0.0


class Snapshot(NamedTuple):
    """Weights and buffers, and the optimiser's state."""

    tensors: list[Tensor]
    optimizer: dict[str, Any]


class _Norms(NamedTuple):
    """The norm of each parameter's gradient, NaN where it has none, and the numbers of those that have one."""

    values: Tensor | Sequence[Tensor]
    present: Sequence[int] | None = None  # None: of all

    def read(self) -> list[float]:
        """Read the norms back."""
        return self.values.tolist() if isinstance(self.values, Tensor) else numbers(self.values)

    def of_present(self, norms: list[float]) -> Sequence[float]:
        """Give those of the norms that were read that are of a gradient."""
        return norms if self.present is None else [norms[number] for number in self.present]

    @property
    def is_near(self) -> bool:
        """Whether all parameters have a gradient, and on the CPU."""
        return self.present is None and not isinstance(self.values, Tensor)

    @property
    def are_finite(self) -> bool:
        """Whether all that are there are."""
        return all(map(math.isfinite, self.of_present(self.read())))


class _Taken(NamedTuple):
    """A step as it was taken: scalars and norms may be tensors on an accelerator."""

    rate: float | Tensor
    norms: _Norms | None
    record: StepRecord | None = None
    weight_norms: Tensor | None = None
    update_norms: Tensor | None = None
    skipped: bool = False


class StepRecorder:
    """Has hooks in an optimiser, and gives the figures of its last step.

    - `parameters` are the tensors that it steps, in the order of its groups, as all norms are; `count` are the steps it has taken
      since; `stepped`: how many parameters the last had; `before`: copies of the weights before the last step, where `wants`
      asked for them; `earlier`: before the step before it.
    - `changes` are those of cures, which hold within the optimiser's step only: the groups, and whatever schedule writes into
      them, stay the person's. With `guards` a step whose gradient is not finite moves nothing.
    - `plain_before`: steps below this number are recorded by their learning rate and their gradients alone: `plain` are those of
      the last step until its figures are given, None where it was recorded in full. `can_be_plain`: whether that is possible, as
      where the gradients lie on the CPU and stay as they are until then.
    - `average`: that of each weight which `changes` ask for, after the last step.
    - `snapshot`: the last that was taken.

    Arguments:
        model: names the parameters.
        optimizer: any of PyTorch's kind.
        wants: tells of a step, by its number from 1, whether its update will be asked for.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        wants: Callable[[int], bool],
    ) -> None:
        self.model, self.optimizer, self.wants, self.count = model, optimizer, wants, 0
        self.is_own, self.stepped = isinstance(optimizer, Optimizer), -1
        self.before: list[Tensor] | None = None
        self.earlier: list[Tensor] | None = None
        self.snapshot: Snapshot | None = None
        self.changes, self.guards = UNCHANGED, False
        self.plain_before, self.can_be_plain = 0, False
        self.plain: PlainStep | None = None
        self._began: PlainStep | None = None  # that is being taken
        self._gradient: tuple[Tensor, int] | None = (
            None  # of one parameter in a step that is recorded in full, and its version
        )
        self.average: dict[Tensor, Tensor] = {}
        self._averaged = 0  # steps that are in it
        self._withheld: list[tuple[Tensor, Tensor | None]] = []
        self._names = {id(tensor): name for name, tensor in model.named_parameters()}
        self._depths = {id(tensor): depth for depth, tensor in enumerate(model.parameters())}
        self._taken: _Taken | None = None
        self._given_norms: _Norms | None = None
        self._given: list[dict[str, Any]] = []  # settings of the groups that are changed within the step
        self._highest: dict[int, float] = {}  # learning rate of each group
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    @property
    def took_step(self) -> bool:
        """Whether a step was taken whose figures were not given yet."""
        return self._taken is not None or self.plain is not None

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters that are stepped: groups may be added at any time."""
        groups = self.optimizer.param_groups
        return [*groups[0]["params"]] if len(groups) == 1 else [p for group in groups for p in group["params"]]

    @property
    def places(self) -> tuple[Place, ...]:
        """The same as the watch sees them, by their names in the model; one that is not the model's has a number."""
        found: list[Place] = []
        for group in self.optimizer.param_groups:
            decay, couples = float(group.get("weight_decay") or 0.0), not _is_decoupled(self.optimizer, group)
            for tensor in group["params"]:
                name = self._names.get(id(tensor), f"parameter {len(found)}")
                found.append(Place.of(name, tensor, self._depths.get(id(tensor), len(found)), decay, couples))
        return tuple(found)

    @property
    def first_in_model(self) -> int:
        """The number of the parameter that comes first in the model, which the gradients of all others lead to."""
        depths = [self._depths.get(id(tensor), math.inf) for tensor in self.parameters]
        return depths.index(min(depths))

    @property
    def not_stepped(self) -> tuple[str, ...]:
        """Names of the model's parameters that want a gradient and are in none of the optimiser's groups."""
        stepped = {id(tensor) for tensor in self.parameters}
        return tuple(
            name for name, tensor in self.model.named_parameters() if tensor.requires_grad and id(tensor) not in stepped
        )

    @property
    def frozen(self) -> float:
        """The share of the model's weights that want no gradient."""
        return frozen_share(self.model)

    def _move_average(self, decay: float) -> None:
        """Take the present weights into their average, from which the bias to its beginning is taken."""
        self._averaged = self._averaged + 1 if self.average else 1
        share = (1 - decay) / (1 - decay**self._averaged)
        for parameter in self.parameters:
            now, average = parameter.detach(), self.average.get(parameter)
            if average is None or average.shape != now.shape:
                wide = torch.float32 if now.dtype in (torch.float16, torch.bfloat16) else now.dtype
                self.average[parameter] = now.to(wide, copy=True)
            else:
                average.lerp_(now.to(average.dtype), share)

    @contextmanager
    def averaged(self) -> Generator[None]:
        """Within, the parameters that have an average hold it; afterwards their own values again."""
        parameters, averages = [*self.average], [*self.average.values()]
        own = [parameter.detach().clone() for parameter in parameters]
        try:
            write(parameters, averages)
            yield
        finally:
            write(parameters, own)

    @property
    def held(self) -> list[Tensor]:
        """The tensors of the model, and those that are stepped beside it."""
        unique = {id(one): one for one in (*self.model.parameters(), *self.model.buffers())}
        unique |= {id(one): one for one in self.parameters}
        return list(unique.values())

    def take_snapshot(self, *, over_last: bool = False) -> None:
        """Copy the state, to go back to; `over_last`: into the memory of the last snapshot, which is no more then."""
        last = self.snapshot if over_last else None
        copies: list[tuple[Tensor, Tensor]] = []
        tensors = _copied(self.held, last and last.tensors, copies)
        self.snapshot = Snapshot(tensors, _copied(self.optimizer.state_dict(), last and last.optimizer, copies))
        if copies:
            with torch.no_grad():
                torch._foreach_copy_([copy for copy, _ in copies], [own for _, own in copies])  # pyright: ignore[reportPrivateImportUsage]

    def go_back(self, snapshot: Snapshot) -> None:
        """Restore the state of a snapshot; learning rates stay those that the schedule has come to."""
        rates = [group.get("lr") for group in self.optimizer.param_groups]
        with torch.no_grad():
            for tensor, value in zip(self.held, snapshot.tensors, strict=True):
                tensor.copy_(value)
        self.optimizer.load_state_dict(_copied(snapshot.optimizer))
        self.before = self.earlier = None  # they are of steps that are undone
        self.average = {}
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            if rate is not None:
                group["lr"] = rate

    def mend_buffers(self) -> None:
        """Restore the buffers of the last snapshot that have become NaN or infinite since, as batch statistics do."""
        if self.snapshot is None:
            return
        buffers = {id(buffer) for buffer in self.model.buffers()}
        with torch.no_grad():
            for tensor, value in zip(self.held, self.snapshot.tensors, strict=False):
                if id(tensor) in buffers and bool((value.isfinite() & ~tensor.isfinite()).any()):
                    tensor.copy_(value)

    def close(self) -> None:
        """Take the hooks out, and let go of all copies."""
        self.snapshot = self.before = self.earlier = None
        self.average = {}
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def figures(self, loss: float, examples: int = 0, terms: Mapping[str, float] | None = None) -> StepFigures | None:
        """Give the figures of the last step with its loss, its examples and terms; None where no step was taken since the last
        call."""
        taken, self._taken = self._taken, None
        if self.plain is not None:
            taken, self.plain = _Taken(self.plain[0], _norms(self.plain[1])), None
        elif taken is not None:
            gradient, self._gradient = self._gradient, None
            stays = (
                gradient is not None and gradient[0]._version == gradient[1]
            )  # nobody has filled it with zeros since
            self.can_be_plain = stays and len(self._highest) == len(self.optimizer.param_groups)
        if taken is None:
            return None
        rate = float(taken.rate)
        if taken.record is not None:
            return step_figures(self.count, loss, rate, examples, 0.0, taken.record.on_host())._replace(
                terms=terms or {}
            )
        norms = [] if taken.norms is None else taken.norms.read()
        present = norms if taken.norms is None else taken.norms.of_present(norms)
        total = math.hypot(*present)
        bad = 0 if math.isfinite(total) else sum(not math.isfinite(norm) for norm in present)
        total = math.nan if bad else total
        return StepFigures(
            self.count, loss, rate, total, skipped=taken.skipped, nonfinite=bad, gradient_norms=norms,
            weight_norms=taken.weight_norms, update_norms=taken.update_norms, examples=examples, terms=terms or {},
        )  # fmt: skip

    def _before_step(self, optimizer: Any, arguments: Any, keywords: Any) -> None:
        # Of a small model every call counts: between two steps the processor's caches have lost what it needs.
        if self.count + 1 < self.plain_before and len(arguments) == 1 and not keywords:
            groups = optimizer.param_groups
            parameters = groups[0]["params"] if len(groups) == 1 else self.parameters
            rate = groups[0]["lr"]
            changes = self.changes is not UNCHANGED or self.guards
            if len(parameters) == self.stepped and rate <= self._highest[0] and not changes:
                self._began, self.earlier, self.before = (rate, [p.grad for p in parameters]), None, None
                return
        self._began = None
        self._before_any_step(optimizer)

    def _before_any_step(self, optimizer: Any) -> None:
        step, parameters = self.count + 1, self.parameters
        self.stepped = len(parameters)
        self._note_rates(optimizer)
        if self._given:
            self._give_back()  # of a step that failed
        measures = is_measured(step)
        if self.is_own and measures:
            optimizer.measure = True
        if not self.is_own:
            gradients = [*map(_GRADIENT, parameters)]
            self._given_norms = _norms(gradients)
            self._gradient = (gradients[0], gradients[0]._version) if self._given_norms.is_near else None
        keeps = self.wants(step) or (measures and not self.is_own)
        self.earlier, self.before = self.before, [tensor.detach().clone() for tensor in parameters] if keeps else None
        changes = self.changes
        if self.guards and self._given_norms is not None and not self._given_norms.are_finite:
            # PyTorch's optimisers leave parameters without a gradient, and their state, as they are.
            self._withheld = [(tensor, tensor.grad) for tensor in parameters]
            for tensor, _ in self._withheld:
                tensor.grad = None
        elif changes.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, changes.clip_norm)
        if changes.moves_rate or changes.decay_factor != 1.0:
            for number, group in enumerate(optimizer.param_groups):
                self._change(number, group)

    def _note_rates(self, optimizer: torch.optim.Optimizer) -> None:
        highest = self._highest
        for number, group in enumerate(optimizer.param_groups):
            rate = group.get("lr")
            if isinstance(rate, float | int):  # a tensor's is not read without need
                highest[number] = max(highest.get(number, 0.0), rate)

    def _change(self, number: int, group: dict[str, Any]) -> None:
        """Set what cures have changed of a group, for this step only."""
        rate, decay, changes = group.get("lr"), group.get("weight_decay"), self.changes
        given: dict[str, Any] = {}
        self._given.append(given)
        if rate is not None and changes.moves_rate:
            self._highest[number] = highest = max(self._highest.get(number, 0.0), float(rate))
            given["lr"], changed = rate, changes.rate(self.count, float(rate), highest)
            group["lr"] = torch.full_like(rate, changed) if isinstance(rate, Tensor) else changed
        if decay is not None and changes.decay_factor != 1.0:
            given["weight_decay"] = decay
            group["weight_decay"] = decay * changes.decay_factor

    def _give_back(self) -> None:
        for group, given in zip(self.optimizer.param_groups, self._given, strict=False):
            group.update(given)
        self._given = []

    def _after_step(self, optimizer: Any, arguments: Any, keywords: Any) -> None:
        self.count += 1
        self.plain = self._began
        if self._began is not None:
            self._began = None
            return
        groups = optimizer.param_groups
        rate = groups[0].get("lr", math.nan) if groups else math.nan
        skipped, self._withheld = self._withheld, []
        for tensor, gradient in skipped:
            tensor.grad = gradient
        if self._given:
            self._give_back()
        if self.changes.ema is not None:
            self._move_average(self.changes.ema)
        if self.is_own:
            self._taken = _Taken(rate, None, optimizer.last)
            return
        # A closure computes the gradient within the step.
        has_closure = _has_closure(arguments, keywords)
        norms = _norms([*map(_GRADIENT, self.parameters)]) if has_closure else self._given_norms
        self._given_norms = None
        self._taken = _Taken(rate, norms, None, *self._moved(), bool(skipped))

    def _moved(self) -> tuple[Tensor | None, Tensor | None]:
        """Give the norms of the weights before the step and of how far they moved, where they are measured."""
        if self.before is None or not is_measured(self.count) or len(self.before) != len(tensors := self.parameters):
            return None, None
        moved = torch._foreach_sub([tensor.detach() for tensor in tensors], self.before)  # pyright: ignore[reportPrivateImportUsage]
        return _wide_norms(self.before), _wide_norms(moved)


def _copied(value: Any, into: Any = None, copies: list[tuple[Tensor, Tensor]] | None = None) -> Any:
    """Copy an optimiser's state; ten times as fast as `deepcopy`, which looks each tensor's storage up.

    Arguments:
        into: an earlier copy: the tensors of it that fit are given again, without their new values.
        copies: is given each of these, with the one that it is to be a copy of.
    """
    if isinstance(value, Tensor):
        if copies is not None and _are_alike(into, value):
            copies.append((into, value.detach()))
            return into
        return value.detach().clone()
    if type(value) is dict:
        found = cast("dict[Any, Any]", value)
        last = cast("dict[Any, Any]", into) if type(into) is dict else {}
        return {key: _copied(each, last.get(key), copies) for key, each in found.items()}
    if type(value) is list:
        items = cast("list[Any]", value)
        earlier = (
            cast("list[Any]", into) if type(into) is list and len(into) == len(items) else repeat(None, len(items))
        )
        return [_copied(each, one, copies) for each, one in zip(items, earlier, strict=True)]
    return value if isinstance(value, int | float | str | None) else copy.deepcopy(value)


def _are_alike(one: Any, other: Tensor) -> bool:
    """Tell whether one tensor can be written into another, dense one."""
    return (
        type(one) is Tensor
        and one.layout is other.layout is torch.strided
        and one.shape == other.shape
        and one.dtype is other.dtype
        and one.device == other.device
        and one.stride() == other.stride()
    )


def _has_closure(arguments: Any, keywords: Any) -> bool:
    """Tell whether an optimiser's step was given a closure; the first of a hook's arguments is the optimiser."""
    return len(arguments) > 1 or keywords.get("closure") is not None


def _is_decoupled(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> bool:
    """Tell whether weight decay is a step of its own, rather than part of the gradient."""
    if isinstance(optimizer, Optimizer):
        rule = rules.get(group["rule"]) if "rule" in group else optimizer.rule
        return not rule.couples({**rule.constants, **group})
    return type(optimizer).__name__ in ("AdamW", "Muon") or bool(group.get("decoupled_weight_decay"))


def numbers(norms: Sequence[Tensor]) -> list[float]:
    """Read norms from the CPU."""
    return [*map(_NUMBER, norms)] if len(norms) <= FEW else _stacked(norms).tolist()


def _norms(gradients: list[Any]) -> _Norms:
    """Measure the norms of the parameters' gradients, without reading them back from an accelerator."""
    if any(map(is_, gradients, repeat(None))) or not all(map(is_, map(_LAYOUT, gradients), repeat(torch.strided))):
        return _norms_of_some(gradients)
    norms = torch._foreach_norm(gradients)  # pyright: ignore[reportPrivateImportUsage]
    return _Norms(norms if norms[0].device.type == "cpu" else _stacked(norms))


def _norms_of_some(gradients: Sequence[Tensor | None]) -> _Norms:
    values = [None if g is None else g.coalesce().values() if g.is_sparse else g for g in gradients]
    present = [number for number, value in enumerate(values) if value is not None]
    norms = torch.full((len(values),), math.nan)
    if present:
        found = _stacked(torch._foreach_norm([value for value in values if value is not None]))  # pyright: ignore[reportPrivateImportUsage]
        norms = norms.to(found.device)
        norms[present] = found
    return _Norms(norms, present)


def _wide_norms(tensors: Sequence[Tensor]) -> Tensor:
    return _stacked(torch._foreach_norm([tensor.float() for tensor in tensors])).cpu()  # pyright: ignore[reportPrivateImportUsage]


def _stacked(norms: Sequence[Tensor]) -> Tensor:
    first = norms[0]
    if any(norm.dtype is not torch.float32 or norm.device != first.device for norm in norms):
        norms = [norm.to(first.device, torch.float32) for norm in norms]
    return torch.stack([*norms])
