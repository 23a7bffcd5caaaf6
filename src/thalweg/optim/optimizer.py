"""The optimiser: any rule as a `torch.optim.Optimizer`, with clipping, an average of the weights, and steps skipped at NaN."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import repeat
from operator import attrgetter, is_
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.optim.optimizer import (
    ParamsT,
    _global_optimizer_post_hooks,  # pyright: ignore[reportPrivateUsage]
    _global_optimizer_pre_hooks,  # pyright: ignore[reportPrivateUsage]
)

from thalweg import rules
from thalweg.errors import NonFiniteError, RuleError
from thalweg.optim import groups
from thalweg.optim.engines import make_engine
from thalweg.optim.engines.arithmetic import COMPUTE_DTYPE, as_real, count_nonfinite
from thalweg.optim.engines.blocks import EMA, carried_number
from thalweg.optim.engines.device_resident import DeviceSkipCounter
from thalweg.optim.engines.interface import DeviceNorms, GroupStep
from thalweg.optim.engines.validate import OWN_MEMORY, has_memory, why_invalid
from thalweg.optim.fast_path import FastPath
from thalweg.rules.rule import Rule

MOST_SKIPS = 3
"""This many steps in a row with a gradient that is not finite raise `NonFiniteError`."""


def _without_compiler_wrapper(method: Any) -> Any:
    """Give a method of torch's optimiser as it was before `torch._disable_dynamo` wrapped it.

    The wrapper keeps torch.compile from tracing the method, and imports the compiler at the first call, which takes a second:
    without this every program would pay for that. While torch is compiling, the wrapper does its work.
    """
    return method if torch.compiler.is_compiling() else getattr(method, "__wrapped__", method)


_LAYOUT = attrgetter("layout")
# What is pickled and copied; all other attributes are made anew by `__setstate__`.
_PICKLED = ("defaults", "state", "param_groups", "rule", "clip_norm", "clip_value", "ema", "cautious", "on_nonfinite", "engine",
         "measure", "skips", "_averaged", "_is_reordered")  # fmt: skip


class StepRecord(NamedTuple):
    """What a step measured and did.

    Where all parameters are on one accelerator, the fields are tensors there, so that the host does not synchronise with it;
    `on_host()` does.

    - `gradient_norm`: Euclidean norm of all gradients before clipping, NaN (on an accelerator maybe infinite) where an element
      is not finite.
    - `clip_scale`: what the gradients were multiplied by; `skipped`: no weight moved; `nonfinite`: elements NaN or infinite.
    - `gradient_norms`: of each parameter's gradient before clipping, in the groups' order; NaN where there is no gradient.
    - `weight_norms` (before the step) and `update_norms`: likewise, 1-D tensors, where `optimizer.measure` was set.
    - `gradient_ratios`: likewise RMS(g / sqrt(v)), NaN where the rule has no second moment v. Far above 1: a gradient
      far larger than those before it, as it is some steps before a spike (Wortsman et al. 2023, arXiv:2304.13013).
    """

    gradient_norm: float
    clip_scale: float
    skipped: bool
    nonfinite: int
    gradient_norms: Sequence[float]
    weight_norms: Tensor | None = None
    update_norms: Tensor | None = None
    gradient_ratios: Tensor | None = None

    def on_host(self) -> StepRecord:
        """Give the record with Python numbers, after one host synchronisation where they are on an accelerator."""
        if not isinstance(self.gradient_norm, Tensor):
            return self
        single = (self.gradient_norm, self.clip_scale, self.skipped, self.nonfinite)
        device, dtype = self.gradient_norm.device, self.gradient_norm.dtype
        tensors = [torch.as_tensor(value, device=device, dtype=dtype).reshape(1) for value in single]
        norm, scale, skipped, nonfinite, *each = torch.cat([*tensors, cast(Any, self.gradient_norms)]).tolist()
        norms_of_update = [None if norms is None else norms.cpu() for norms in self[5:]]
        return StepRecord(norm, scale, bool(skipped), int(nonfinite), each, *norms_of_update)


class Optimizer(torch.optim.Optimizer):
    """Steps by any rule.

    Order in a step: norms and the check that all is finite, clip by value, clip by norm, `maximize`, coupled weight decay where
    the rule is of that kind, the rule's equation (with decoupled decay inside, if it has one), average of the weights. A
    gradient that is not finite leaves every bit of weights and state as it was. The parameters' `grad` is only read.

    Under a `torch.amp.GradScaler`, Lightning or Accelerate it is what `torch.optim`'s classes are: the scaler divides `p.grad` by
    the scale, and where a gradient overflowed it does not call `step`, so that `last` and `skips` stay those of the last step
    that was taken.

    Sparse gradients (`nn.Embedding(sparse=True)`) are taken where PyTorch's class takes them: by SGD's three rules and Adagrad,
    without weight decay. They are made dense for the step, so they save no memory in it.

    Arguments:
        params: parameters, named parameters, or groups of either, as for every `torch.optim` class; float32 or float64, bfloat16
            or float16 (calculated, and their state kept, in float32), complex64 or complex128 (as pairs of reals). A group may
            name a rule of its own, `{"params": …, "rule": "adamw", "betas": (0.9, 0.95)}`: its constants and their defaults are
            then that rule's; `lr`, `weight_decay` and `maximize` that it does not name are the optimiser's.
        rule: a rule or its name.
        lr: learning rate, a number or a 0-dim tensor, at least 0; read from the group at every step.
        weight_decay: in the rule's own form, at least 0; None: the rule's default.
        clip_norm: shorten the gradient of all parameters together to this Euclidean norm; may be set between steps.
        clip_value: first clip each entry to [-clip_value, clip_value].
        ema: decay of an average of the weights, bias-corrected; `averaged()` shows it.
        maximize: go up instead of down.
        cautious: update only the weights whose update goes against their present gradient, and scale these updates up to make
            up for it (Liang et al. 2024, arXiv:2411.16085); for every rule.
        on_nonfinite: "raise" raises NonFiniteError at the third step in a row whose gradient is not finite, "skip" never does.
        engine: "auto", "cpu" (compiled with Numba; parameters on other devices, not dense in memory or of sixteen bits go by
            "tensors" all the same) or "tensors". On CUDA and XPU the first step compiles too, for up to some minutes.
        constants: the rule's own, by the equation's names or PyTorch's (`betas`). Whatever PyTorch's class of the same name has
            by default may be given too. `foreach` and `fused` change nothing; `capturable` and `differentiable` cannot be True.

    Attributes: `last` is the last step's `StepRecord` (None before the first); `measure = True` has the next step record
    `weight_norms` and `update_norms` too, which costs a copy of the small tensors.

    Raises RuleError for an invalid value, before anything is changed.

    >>> w = torch.tensor([1.0, -2.0], requires_grad=True)
    >>> optimizer = Optimizer([w], "gradient_descent", lr=0.1)
    >>> (w * w).sum().backward(); optimizer.step(); w
    tensor([ 0.8000, -1.6000], requires_grad=True)
    """

    def __init__(
        self,
        params: ParamsT,
        rule: str | Rule,
        *,
        lr: float | Tensor,
        weight_decay: float | None = None,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        ema: float | None = None,
        maximize: bool = False,
        cautious: bool = False,
        on_nonfinite: Literal["raise", "skip"] = "raise",
        engine: str = "auto",
        **constants: Any,
    ) -> None:
        groups.check_flags(constants)
        flags = {name: constants.get(name, value) for name, value in groups.FLAGS.items()}
        constants = {name: value for name, value in constants.items() if name not in flags}
        self.rule = rules.get(rule)
        constants = groups.without_fixed(constants, self.rule, self._fixed())
        groups.check_bounds(clip_norm=clip_norm, clip_value=clip_value, ema=ema)
        groups.check("on_nonfinite", on_nonfinite, on_nonfinite in ("raise", "skip"), "'raise' or 'skip'")
        groups.check("cautious", cautious, isinstance(cautious, bool), "True or False")  # pyright: ignore[reportUnnecessaryIsInstance]
        self.clip_norm, self.clip_value, self.ema = clip_norm, clip_value, ema
        self.cautious = cautious
        self._check_average(self.rule)
        self.on_nonfinite, self.engine = on_nonfinite, engine
        self.measure = False
        self.skips = 0
        self._skip_counter = DeviceSkipCounter()
        self.last: StepRecord | None = None
        self._averaged = False
        self._constants_cache: dict[int, tuple[Any, Any, Any]] = {}
        self._checked_bounds: tuple[Any, Any, Any] = (None, None, None)  # clip_norm, clip_value, ema at the last step
        self._fast_path: FastPath | None = None
        self._general_steps = 0  # steps since the last one on the fast path
        self._is_reordered = False  # whether group steps have the parameters in another order than the groups
        self._engine = make_engine(engine)
        defaults = {
            "lr": lr,
            "weight_decay": self.rule.weight_decay if weight_decay is None else weight_decay,
            "maximize": maximize,
            **self._constants(constants),
            **flags,
        }
        super().__init__(params, defaults)
        for group in self.param_groups:
            rule = self._rule_of(group)
            self._engine.prepare(
                GroupStep(rule, rule.from_group(group), 0.0, 0.0, False, group["params"], [], cautious),
                clips=clip_value is not None,
                ema=ema is not None,
            )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, with its own `lr`, `weight_decay`, `maximize` or constants where it names them.

        It may name a `rule` of its own; its constants, and their defaults, are then that rule's.

        Raises RuleError where a value is invalid, a name is misspelt or another rule's, or a parameter is given twice.
        """
        if isinstance(param_group, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
            rule, defaults = self.rule, self.defaults
            if "rule" in param_group:
                rule = groups.named(param_group["rule"])
                groups.check_own(param_group, rule, defaults)
                defaults = groups.defaults_of(rule, defaults)
            else:
                param_group = groups.without_fixed(param_group, rule, self._fixed())
            param_group = groups.normalized(param_group, rule, defaults)
            param_group |= {name: value for name, value in defaults.items() if name not in param_group}
            self._check(param_group)
            groups.check_parameters(param_group["params"], rule)
        _without_compiler_wrapper(torch.optim.Optimizer.add_param_group)(self, param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Set the gradients to None, or fill them with zeros."""
        _without_compiler_wrapper(torch.optim.Optimizer.zero_grad)(self, set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take a step. A closure recomputes the loss, and its value is given back.

        Raises NonFiniteError at the third gradient in a row that is not finite, unless `on_nonfinite` is "skip".
        RuleError, with nothing changed, where a parameter, its gradient and its state do not fit together (any more).
        """
        if torch.compiler.is_compiling():
            return _uncompiled_step(self, closure)
        if not self._has_hooks_or_profiler():
            return self._step(closure)
        return _hooked_step(self) if closure is None else _hooked_step(self, closure)

    # torch wraps `step` of every class without this mark, to call hooks and the profiler; the wrapper costs as much as a small
    # step. `step` calls them itself where there are any. Without the mark they would also be called twice.
    step.hooked = True  # pyright: ignore[reportFunctionMemberAccess]

    def _has_hooks_or_profiler(self) -> bool:
        own = self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks
        hooks = own or _global_optimizer_pre_hooks or _global_optimizer_post_hooks
        return bool(hooks) or torch.autograd._profiler_enabled()  # pyright: ignore[reportPrivateImportUsage]

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._averaged:
            self._refuse_averaged("A step", "move the average, not the weights")
        if self._fast_path is not None and (fast := self._fast_path.step(self)) is not None:
            total, scale, each, norms_of_update = fast
            self.skips, self._general_steps = 0, 0
            self.last = StepRecord(total, scale, False, 0, each, *norms_of_update)
            if norms_of_update:
                self.measure = False
            return loss
        self._fast_path = None  # it holds the memory that the weights had, and they may have moved
        with torch.no_grad():
            group_steps = [one for group in self.param_groups for one in self._group_steps(group)]
            self.last = (
                self._general_step(group_steps)
                if group_steps
                else StepRecord(0.0, 1.0, False, 0, self._in_parameter_order(group_steps, ()))
            )
            self._general_steps += 1
            # `n & (n - 1)` clears the lowest bit of n, so it is 0 for n = 1, 2, 4, 8 …: a new fast path is made after the first
            # general step, and ever more rarely while steps cannot take it. Made after each, it would slow down every step of
            # a loop in which something always changes; made after the first only, one change would end the fast path for good.
            if self._general_steps & (self._general_steps - 1) == 0:
                self._fast_path = FastPath.after_step(self._engine.block_steps, self)
            # On an accelerator `skipped` is a tensor, which to read would synchronise: there `_skip_counter` counts skips.
            if self.last.skipped is True:
                try:
                    self._count_skip(group_steps, self.last)
                finally:
                    self._engine.release_gradients()
        return loss

    @contextmanager
    def averaged(self) -> Generator[dict[Tensor, Tensor]]:
        """Within, the parameters hold the average of the weights: an EMA, or a schedule-free rule's own; then their own again.

        Validate the model within, and save its `state_dict` within; of a schedule-free rule no other weights are of use:

            with optimizer.averaged(), thalweg.optim.recalibrated(model, batches):
                model.eval(); validate(model); torch.save(model.state_dict(), path)
            model.train()

        The running statistics of batch normalisation are those of the weights that were trained, and an average validated with
        them may look useless; `recalibrated` estimates the average's own. Without batch normalisation it does nothing.

        Gives parameter -> average, valid within, for parameters that have taken a step. The EMA after t steps is
        `Σ ema^(t-s) w_s / Σ ema^(t-s)` over s = 1 … t: without the weights at the start. Where `ema` was set on the way, s begins
        with the first step since, under every rule, and the state has the steps before as `ema_since`. Weights and average are
        swapped one tensor after another, so that no further copy of an EMA is needed. Meanwhile the optimiser can neither step,
        nor save or load its state.

        Raises RuleError where `ema` is off and the rule keeps no average, or a parameter and its average do not fit any more.
        """
        if not self.averages:
            raise RuleError("There is no average of the weights: give the optimiser ema=0.999, say, when it is made.")
        if self._averaged:
            raise RuleError("The parameters hold the average already: `averaged()` cannot be entered twice.")
        for group in self.param_groups:
            rule = self._rule_of(group)
            states = (*rule.states(rule.from_group(group)), EMA)
            for p in group[
                "params"
            ]:  # swapping two of other shapes would spread one over the other, and lose the weights
                why = why_invalid(p, p, self.state.get(p, {}), states)
                if why is not None:
                    raise RuleError(why.format(name=self._names({id(p)})[0]))
        with torch.no_grad():
            average_of = {
                p: self._average(p, group)
                for group in self.param_groups
                for p in group["params"]
                if self.ema is None or "ema" in self.state.get(p, {})
                if self.state.get(p)
            }
        self._averaged = True
        try:
            with _swapped(average_of) as averages:
                yield averages
        finally:
            self._averaged = False

    @property
    def averages(self) -> bool:
        """Whether there is an average of the weights: an EMA, or the rule's own."""
        return self.ema is not None or any(self._rule_of(group).average is not None for group in self.param_groups)

    def _average(self, p: Tensor, group: Mapping[str, Any]) -> Tensor:
        rule, state = self._rule_of(group), self.state[p]
        if rule.average is None:
            return cast(Tensor, state["ema"]) if self.ema is not None else p.detach().clone()
        constants = rule.from_group(group)
        states = {s.name: as_real(state[s.key]) for s in rule.states(constants)}
        found: Tensor = rule.average(as_real(p.detach()), *(states.get(s.name, 0.0) for s in rule.state), **constants)
        return torch.view_as_complex(found) if p.is_complex() else found

    def state_dict(self) -> dict[str, Any]:
        """Give state and groups in `torch.optim`'s own layout, which PyTorch's class of the same kind loads too.

        Raises RuleError inside `averaged()`.
        """
        self._refuse_averaged("Saving", "take weights and average for each other")
        saved = _without_compiler_wrapper(torch.optim.Optimizer.state_dict)(self)
        for group in saved["param_groups"]:
            for name, value in self._fixed_of(group).items():
                group.setdefault(name, value)
        return saved

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Load a state, also one of `torch.optim`'s class of the same kind.

        Raises RuleError, with nothing changed, for options that this rule does not have or invalid constants.
        """
        self._refuse_averaged("Loading", "put the average where the weights belong")
        saved: dict[str, Any] = {}

        def take(_: torch.optim.Optimizer, given: dict[str, Any]) -> dict[str, Any]:
            saved.update(given, param_groups=[self._loadable(group) for group in given["param_groups"]])
            _check_memory(given["state"])
            self._check_carried(given)
            saved["state"] = {number: _dense(entry) for number, entry in self._with_carried(given).items()}
            return saved

        # After the caller's own pre-hooks, which may rewrite what is to be loaded, and before the caller's post-hooks.
        hooks = (
            self.register_load_state_dict_pre_hook(take),
            self.register_load_state_dict_post_hook(lambda _: self._keep_precision(saved), prepend=True),
        )
        try:
            _without_compiler_wrapper(torch.optim.Optimizer.load_state_dict)(self, dict(state_dict))
        finally:
            for hook in hooks:
                hook.remove()

    def __getstate__(self) -> dict[str, Any]:
        self._refuse_averaged("A copy", "take weights and average for each other")
        return {name: self.__dict__[name] for name in _PICKLED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._engine = make_engine(self.engine)
        self._constants_cache, self._checked_bounds = {}, (None, None, None)
        self._fast_path, self._general_steps = None, 0
        self._skip_counter = DeviceSkipCounter()
        self.last = None

    def __repr__(self) -> str:
        return super().__repr__().replace(" (", f" by {self.rule.name} (", 1)

    def _refuse_averaged(self, what: str, harm: str) -> None:
        if self._averaged:
            raise RuleError(f"{what} inside `with optimizer.averaged()` would {harm}: leave it first.")

    def _constants(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Check the constants given, and complete them under the names that a group has."""
        for name in given:
            if name not in self.rule.constants and name not in self.rule.grouped:
                raise RuleError(self.rule.unknown(name, groups.BESIDE_CONSTANTS))
        return self.rule.to_group(self.rule.complete(given))

    def _fixed(self) -> Mapping[str, Any]:
        """Give PyTorch's options of which this optimiser has one value only; they stand in saved groups, for PyTorch's sake."""
        return self.rule.fixed

    def _rule(self, group: Mapping[str, Any]) -> Rule:
        """Give the rule of a group that names none of its own."""
        del group
        return self.rule

    def _check_group(self, group: Mapping[str, Any]) -> None:
        groups.check_rates(group)
        groups.check_constants(group, self.rule)

    # `_rule`, `_fixed` and `_check_group`, which a subclass may override, are about groups that name no rule of their own; those
    # that follow are about any group.

    def _rule_of(self, group: Mapping[str, Any]) -> Rule:
        """Give the rule of a group."""
        return groups.named(group["rule"]) if "rule" in group else self._rule(group)

    def _fixed_of(self, group: Mapping[str, Any]) -> Mapping[str, Any]:
        return {} if "rule" in group else self._fixed()

    def _check(self, group: Mapping[str, Any]) -> None:
        if "rule" not in group:
            self._check_group(group)
            return
        rule = groups.named(group["rule"])
        groups.check_rates(group)
        groups.check_constants(group, rule)
        self._check_average(rule)

    def _check_average(self, rule: Rule) -> None:
        if rule.average is not None and (self.ema is not None or self.cautious):
            what = "ema" if self.ema is not None else "cautious"
            raise RuleError(f"{rule.name} averages the weights itself, so {what} has no place beside it: leave it out.")

    def _loadable(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """Check a saved group, and complete it with defaults where another library saved fewer options.

        How a step is calculated is no part of what was saved: PyTorch's flags stay as this optimiser has them.
        """
        fixed = self._fixed_of(group)
        for name, value in fixed.items():
            if group.get(name, value) != value:
                raise RuleError(f"The state was saved with {name}={group[name]}, which {self.rule.name} does not have.")
        own = groups.defaults_of(groups.named(group["rule"]), self.defaults) if "rule" in group else {}
        left_out = {*fixed, *groups.FLAGS}
        complete = {**self.defaults, **own, **{name: value for name, value in group.items() if name not in left_out}}
        self._check(complete)
        return complete

    def _with_carried(self, saved: Mapping[str, Any]) -> dict[Any, Any]:
        """Give the state with the numbers that a rule carries from step to step, which other libraries save in the groups.

        Schedule-free optimisers save their step count there too, as `k`.
        """
        state = dict(saved["state"])
        for group, own in zip(saved["param_groups"], self.param_groups, strict=False):
            rule = self._rule_of(own)
            found = {name: group[name] for name in rule.carried if name in group}
            if found and rule.counts_steps and "k" in group:
                found["step"] = group["k"]
            state |= {number: {**found, **state[number]} for number in group["params"] if state.get(number)}
        return state

    def _check_carried(self, saved: Mapping[str, Any]) -> None:
        """Raise RuleError where a number that a rule carries from step to step is none in a saved state, or in its groups."""
        for group, own in zip(saved["param_groups"], self.param_groups, strict=False):
            for entry in (group, *(saved["state"].get(number, {}) for number in group["params"])):
                for name in self._rule_of(own).carried:
                    if name in entry:
                        carried_number(name, entry[name])

    def _group_steps(self, group: dict[str, Any]) -> list[GroupStep]:
        """Give what an engine needs to know of a group in this step; nothing where no parameter has a gradient.

        Two where a matrix rule leaves vectors to another rule.
        """
        parameters: list[Tensor] = [*group["params"]]  # a copy, which the engine compares with the next step's
        gradients = [g for p in parameters if (g := p.grad) is not None]
        if not gradients:
            return []
        if len(gradients) < len(parameters):
            parameters = [p for p in parameters if p.grad is not None]
        rule = self._rule_of(group)
        if not all(map(is_, map(_LAYOUT, gradients), repeat(torch.strided))):
            self._check_sparse(rule, group, parameters)
            gradients = [g.to_dense() for g in gradients]
        options = groups.rate(group["lr"]), groups.decay(group["weight_decay"]), groups.flag(group["maximize"])
        group_step = GroupStep(rule, self._read_constants(rule, group), *options, parameters, gradients, self.cautious)
        if rule.rest is None:
            return [group_step]
        self._is_reordered = True
        others = replace(group_step.with_only(lambda p: p.ndim < 2), rule=rule.rest, constants=rule.rest.constants)
        return [one for one in (group_step.with_only(lambda p: p.ndim >= 2), others) if one.parameters]

    def _check_sparse(self, rule: Rule, group: Mapping[str, Any], parameters: Sequence[Tensor]) -> None:
        """Raise RuleError where a gradient is sparse and PyTorch's class of this rule would not take it either."""
        (name, *_) = self._names({id(p) for p in parameters if cast(Tensor, p.grad).layout is not torch.strided})
        if not rule.takes_sparse:
            raise RuleError(
                f"The gradient of {name} is sparse, which {rule.name} does not take, but SGD and Adagrad do: make the embedding "
                'with sparse=False, or give its weights a group of their own with "rule": "adagrad", "weight_decay": 0.'
            )
        if group["weight_decay"]:
            raise RuleError(
                f"The gradient of {name} is sparse, and weight decay would move all its weights: put it into a group of its own "
                "with weight_decay=0, or make the embedding with sparse=False."
            )

    def _read_constants(self, rule: Rule, group: Mapping[str, Any]) -> Mapping[str, Any]:
        """Read a rule's constants from a group; the same mapping as at the last step where none has changed.

        So an engine can tell by `is` that nothing has. The cache goes by the group's id: were that used again for another group,
        its values would still be compared.
        """
        names, values, constants = self._constants_cache.get(id(group), (None, None, None))
        with suppress(RuntimeError, ValueError):  # one has become an array, whose comparison gives another one
            if names is rule.names and constants is not None and [*map(group.get, rule.names)] == values:
                return constants
        groups.check_present(group, rule)
        groups.check_changed(group, rule, {} if constants is None or names is not rule.names else constants)
        constants = rule.from_group(group)
        if any(
            isinstance(value, Tensor | np.ndarray) for value in constants.values()
        ):  # whose value may change in place
            return {
                name: value.item() if isinstance(value, Tensor | np.ndarray) else value
                for name, value in constants.items()
            }
        self._constants_cache[id(group)] = rule.names, [*map(group.get, rule.names)], constants
        return constants

    def _general_step(self, group_steps: Sequence[GroupStep]) -> StepRecord:
        bounds = self.clip_norm, self.clip_value, self.ema
        if not all(map(is_, bounds, self._checked_bounds)):
            groups.check_bounds(clip_norm=self.clip_norm, clip_value=self.clip_value, ema=self.ema)
            self._checked_bounds = bounds
        clips = self.clip_value if self.clip_norm is not None else None
        try:
            norms = self._engine.measure_gradients(group_steps, self.state, clip_value=clips, ema=self.ema is not None)
        except (RuntimeError, LookupError, ValueError, ArithmeticError):
            self._raise_why_invalid(group_steps)
            raise
        if isinstance(norms, DeviceNorms):
            return self._device_resident_step(group_steps, norms)
        each = self._in_parameter_order(group_steps, norms.each)
        if norms.nonfinite:
            return StepRecord(norms.total, 1.0, True, norms.nonfinite, each)
        self.skips = 0
        scale = self.clip_scale(norms.clipped)
        norms_of_update = self._engine.update(
            self.state, scale=scale, clip_value=self.clip_value, ema=self.ema, record_norms=self.measure
        )
        if norms_of_update is None:
            return StepRecord(norms.total, scale, False, 0, each)
        self.measure = False
        in_order = (
            norms_of_update
            if each is norms.each
            else (
                torch.tensor(self._in_parameter_order(group_steps, n.tolist()), device="cpu") for n in norms_of_update
            )
        )
        return StepRecord(norms.total, scale, False, 0, each, *in_order)

    def clip_scale(self, norm: float) -> float:
        """Give what gradients of this total norm are multiplied by: PyTorch's formula, with its 1e-6, so that results agree."""
        return 1.0 if self.clip_norm is None else min(self.clip_norm / (norm + 1e-6), 1.0)

    def _device_resident_step(self, group_steps: Sequence[GroupStep], norms: DeviceNorms) -> StepRecord:
        """Go on with the step on an accelerator without host synchronisation: scale and whether to skip are tensors there."""
        finite = norms.total.isfinite()
        scale: Any = 1.0
        if self.clip_norm is not None:
            scale = (self.clip_norm / (norms.clipped + 1e-6)).clamp(max=1.0)
        norms_of_update = self._engine.update(
            self.state,
            scale=scale,
            clip_value=self.clip_value,
            ema=self.ema,
            record_norms=self.measure,
            finite=finite,
        )
        self.measure = False
        self._skip_counter.update(finite)
        self.skips = self._skip_counter.skips
        if self.on_nonfinite == "raise" and self.skips >= MOST_SKIPS:
            raise NonFiniteError(_message_some_steps_late(self.skips))
        each: Any = norms.each
        recorded = norms_of_update or ()
        if self._is_reordered or len(each) < sum(len(group["params"]) for group in self.param_groups):
            each, *recorded = (self._in_parameter_order_on_device(group_steps, values) for values in (each, *recorded))
        total: Any = norms.total
        return StepRecord(total, scale, cast(Any, ~finite), cast(Any, norms.nonfinite), each, *recorded)

    def _in_parameter_order_on_device(self, group_steps: Sequence[GroupStep], values: Tensor) -> Tensor:
        ordered = self._in_parameter_order(group_steps, cast(Any, values.unbind()))
        return torch.stack([torch.as_tensor(value, device=values.device, dtype=values.dtype) for value in ordered])

    def _raise_why_invalid(self, group_steps: Sequence[GroupStep]) -> None:
        """Raise RuleError, naming the parameter, where no step can be taken on one as it is now."""
        for group_step in group_steps:
            states = (*group_step.rule.states(group_step.constants), EMA)
            for p, gradient in zip(group_step.parameters, group_step.gradients, strict=True):
                why = why_invalid(p, gradient, self.state.get(p, {}), states)
                if why is not None:
                    raise RuleError(why.format(name=self._names({id(p)})[0]))

    def _in_parameter_order(self, group_steps: Sequence[GroupStep], values: Sequence[float]) -> Sequence[float]:
        """Give values, one per parameter with a gradient, in the order of all parameters; NaN for those without."""
        count = 0
        for group in self.param_groups:
            count += len(group["params"])
        if count == len(values) and not self._is_reordered:
            return values
        found = dict(zip((id(p) for step in group_steps for p in step.parameters), values, strict=True))
        return [found.get(id(p), math.nan) for g in self.param_groups for p in g["params"]]

    def _count_skip(self, group_steps: Sequence[GroupStep], record: StepRecord) -> None:
        self.skips += 1
        if self.on_nonfinite == "raise" and self.skips >= MOST_SKIPS:
            raise NonFiniteError(
                f"{self.skips} steps in a row had a gradient that is not finite: in the last one {record.nonfinite} elements, of "
                f"{self._names_of_nonfinite(group_steps)}. No weight took any of them. Lower the learning rate, clip, or look "
                "for log(0), a division by zero or a root of zero in the loss; on_nonfinite='skip' goes on for ever."
            )

    def _names_of_nonfinite(self, group_steps: Sequence[GroupStep]) -> str:
        """Name the parameters whose gradient is not finite."""
        pairs = ((p, g) for step in group_steps for p, g in zip(step.parameters, step.gradients, strict=True))
        bad = {id(p) for p, g in pairs if count_nonfinite(g)}
        found = self._names(bad)
        return ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")

    def _names(self, ids: set[int]) -> list[str]:
        """Name the parameters of these ids, in the groups' order."""
        return [
            group["param_names"][i] if "param_names" in group else f"parameter {i} of group {number}"
            for number, group in enumerate(self.param_groups)
            for i, p in enumerate(group["params"])
            if id(p) in ids
        ]

    def _keep_precision(self, state_dict: Mapping[str, Any]) -> None:
        # torch casts loaded state to the parameter's dtype; a running average in sixteen bits would never change.
        indices = [n for group in state_dict["param_groups"] for n in group["params"]]
        parameters = [(p, self._rule_of(group)) for group in self.param_groups for p in group["params"]]
        for index, (p, rule) in zip(indices, parameters, strict=True):
            for key, value in state_dict["state"].get(index, {}).items():
                if key in rule.carried:
                    self.state[p][key] = torch.tensor(float(value), dtype=torch.float64, device="cpu")
                elif (
                    isinstance(value, Tensor)
                    and key != "step"
                    and not p.is_complex()
                    and COMPUTE_DTYPE[p.dtype] is not p.dtype
                ):
                    self.state[p][key] = value.detach().to(p.device, COMPUTE_DTYPE[p.dtype], copy=True)


# Under torch.compile a step is left out of the graph: it reads numbers on the host, which a trace would turn into constants.
_uncompiled_step = torch._disable_dynamo(lambda self, closure: Optimizer.step(self, closure))  # pyright: ignore
_hooked_step = torch.optim.Optimizer.profile_hook_step(Optimizer._step)  # pyright: ignore[reportPrivateUsage]


def _message_some_steps_late(skips: int) -> str:
    return (
        f"{skips} steps in a row had a gradient that is not finite (on an accelerator this is known some steps late). No weight"
        " took any of them. Lower the learning rate, clip, or look for log(0), a division by zero or a root of zero in the loss;"
        " on_nonfinite='skip' goes on for ever."
    )


def _check_memory(state: Mapping[Any, Any]) -> None:
    """Raise RuleError where the memory of a tensor of state was cut short: to copy it would read what lies behind."""
    for number, entry in state.items():
        for key, value in entry.items():
            if (
                type(value) in OWN_MEMORY
                and value.layout is torch.strided
                and not value.is_meta
                and not has_memory(value)
            ):
                raise RuleError(
                    f"The memory of the state `{key}` of parameter {number} has been freed: load one that is"
                    " whole. Nothing is loaded."
                )


def _dense(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Give a parameter's state as a step needs it: PyTorch's momentum of sparse gradients is sparse.

    A number in a NumPy array becomes a number: PyTorch takes arrays for lists of state.
    """
    sparse = {k: v.to_dense() for k, v in entry.items() if isinstance(v, Tensor) and v.layout is torch.sparse_coo}
    numbers = {k: v.item() for k, v in entry.items() if isinstance(v, np.ndarray) and v.size == 1}
    return {**entry, **sparse, **numbers}


@contextmanager
def _swapped(average_of: Mapping[Tensor, Tensor]) -> Generator[dict[Tensor, Tensor]]:
    """Within, parameters and their averages are swapped, tensor by tensor; where dtypes differ, weights are copied."""
    copies = {p: p.detach().clone() for p, average in average_of.items() if p.dtype is not average.dtype}
    swapped = [(p, average) for p, average in average_of.items() if p not in copies]
    done = 0
    try:
        with torch.no_grad():
            for p in copies:
                p.copy_(average_of[p])
            for p, average in swapped:
                _swap(p, average)
                done += 1
        yield {p: average if p in copies else p.detach() for p, average in average_of.items()}
    finally:
        with torch.no_grad():
            for p, own in copies.items():
                p.copy_(own)
            for p, average in swapped[:done]:
                _swap(p, average)


def _swap(one: Tensor, other: Tensor) -> None:
    copy = one.detach().clone()
    one.copy_(other)
    other.copy_(copy)
