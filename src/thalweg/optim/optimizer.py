"""The optimiser: `torch.optim.Optimizer`'s face on any rule, with clipping, an average of the weights and a guard."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from thalweg import rules
from thalweg.errors import NonFiniteError, RuleError
from thalweg.optim.engines.arithmetic import COMPUTE
from thalweg.optim.engines.tensors import TensorEngine
from thalweg.optim.engines.work import Work
from thalweg.rules.rule import Rule

MOST_SKIPS = 3


class StepRecord(NamedTuple):
    """What a step saw and did.

    `gradient_norm`: of all gradients before clipping, NaN where one is not finite; `clip_scale`: what gradients were multiplied
    by; `skipped`: no weight moved; `nonfinite`: elements that are NaN or infinite. Per tensor, in the groups' order and for
    parameters with a gradient: `gradient_norms`, and where `measure` was set `weight_norms` (before) and `update_norms`.
    """

    gradient_norm: float
    clip_scale: float
    skipped: bool
    nonfinite: int
    gradient_norms: Sequence[float]
    weight_norms: Tensor | None = None
    update_norms: Tensor | None = None


class Optimizer(torch.optim.Optimizer):
    """Steps by any rule.

    Arguments:
        params: parameters, named parameters, or groups of either, as for every `torch.optim` class.
        rule: a rule or its name.
        lr: learning rate, a number or a 0-dim tensor; above zero or zero.
        weight_decay: in the rule's own form; None: the rule's default.
        clip_norm: shorten the gradient of all parameters together to this Euclidean norm.
        clip_value: clip each entry first.
        ema: decay of an average of the weights, bias-corrected; `averaged()` shows it.
        maximize: climb instead.
        on_nonfinite: a gradient that is NaN or infinite moves nothing; "raise" raises NonFiniteError at the third such step
            in a row, "skip" never does.
        engine: "auto" or "tensors".
        constants: the rule's own, by the equation's or PyTorch's names (betas).

    Raises RuleError for a value that cannot be, before anything is touched.
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
        on_nonfinite: Literal["raise", "skip"] = "raise",
        engine: str = "auto",
        **constants: Any,
    ) -> None:
        self.rule = rules.get(rule)
        _check("clip_norm", clip_norm, clip_norm is None or clip_norm > 0, "above zero")
        _check("clip_value", clip_value, clip_value is None or clip_value > 0, "above zero")
        _check("ema", ema, ema is None or 0 < ema < 1, "between 0 and 1")
        _check("on_nonfinite", on_nonfinite, on_nonfinite in ("raise", "skip"), "'raise' or 'skip'")
        _check("engine", engine, engine in ("auto", "tensors"), "'auto' or 'tensors'")
        self.clip_norm, self.clip_value, self.ema = clip_norm, clip_value, ema
        self.on_nonfinite = on_nonfinite
        self.measure = False
        self.skips = 0
        self.last: StepRecord | None = None
        self._engine = TensorEngine()
        defaults: dict[str, Any] = {
            "lr": lr,
            "weight_decay": self.rule.weight_decay if weight_decay is None else weight_decay,
            "maximize": maximize,
            **self.rule.to_group(self.rule.complete(constants)),
            **self.rule.fixed,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group after checking it. Raises RuleError where a value cannot be."""
        merged = {**self.defaults, **param_group}
        lr, decay = merged["lr"], merged["weight_decay"]
        _check("lr", lr, math.isfinite(float(lr)) and float(lr) >= 0, "zero or above")
        _check("weight_decay", decay, math.isfinite(float(decay)) and float(decay) >= 0, "zero or above")
        self.rule.complete(self.rule.from_group(merged))
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take a step. A closure recomputes the loss, and its value is given back.

        Raises NonFiniteError at the third gradient in a row that is not finite, unless `on_nonfinite` is "skip".
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        works = [work for i, group in enumerate(self.param_groups) if (work := self._work(i, group)) is not None]
        if not works:
            self.last = StepRecord(0.0, 1.0, False, 0, ())
            return loss
        norms = self._engine.measure(works, self.state, clip_value=self.clip_value, ema=self.ema is not None)
        each = norms.each
        if norms.nonfinite:
            self.last = StepRecord(norms.total, 1.0, True, norms.nonfinite, each)
            self._skip(norms.nonfinite)
            return loss
        self.skips = 0
        # PyTorch's formula, with its 1e-6, so that results agree.
        scale = 1.0 if self.clip_norm is None else min(1.0, self.clip_norm / (norms.clipped + 1e-6))
        moves = self._engine.update(
            self.state, scale=scale, clip_value=self.clip_value, ema=self.ema, record=self.measure
        )
        measured = (moves.weights, moves.updates) if moves else (None, None)
        self.last = StepRecord(norms.total, scale, False, 0, each, *measured)
        self.measure = False
        return loss

    @contextmanager
    def averaged(self) -> Generator[dict[Tensor, Tensor]]:
        """Within, the parameters hold the average of the weights (EMA); afterwards their own bits again.

        Gives parameter -> average. Raises RuleError where `ema` is off.
        """
        if self.ema is None:
            raise RuleError("There is no average of the weights: give the optimiser ema=0.999, say, when it is made.")
        parameters = [p for group in self.param_groups for p in group["params"] if "ema" in self.state.get(p, {})]
        own = [p.detach().clone() for p in parameters]
        averages = {p: cast(Tensor, self.state[p]["ema"]) for p in parameters}
        with torch.no_grad():
            for p, average in averages.items():
                p.copy_(average)
        try:
            yield averages
        finally:
            with torch.no_grad():
                for p, mine in zip(parameters, own, strict=True):
                    p.copy_(mine)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state, `torch.optim`'s own included. Raises RuleError for options this rule does not have."""
        for group in state_dict["param_groups"]:
            for name, value in self.rule.fixed.items():
                if group.get(name, value) != value:
                    raise RuleError(
                        f"The state was saved with {name}={group[name]}, which {self.rule.name} does not have."
                    )
        super().load_state_dict(state_dict)
        self._keep_precision(state_dict)

    def _keep_precision(self, state_dict: Mapping[str, Any]) -> None:
        # torch casts state to the parameter's dtype; a running average in sixteen bits would stand still.
        numbers = [n for group in state_dict["param_groups"] for n in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        for number, p in zip(numbers, parameters, strict=True):
            if COMPUTE.get(p.dtype, p.dtype) is p.dtype or p.is_complex():
                continue
            for key, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor) and key != "step":
                    self.state[p][key] = value.detach().to(p.device, COMPUTE[p.dtype], copy=True)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_engine", "last")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._engine = TensorEngine()
        self.last = None

    def _work(self, number: int, group: dict[str, Any]) -> Work | None:
        parameters = [p for p in group["params"] if p.grad is not None]
        if not parameters:
            return None
        if any(p.grad.is_sparse for p in parameters):
            raise RuleError(f"{type(self).__name__} has no sparse gradients. Use sparse=False in the embedding.")
        rule, decay = self.rule, float(group["weight_decay"])
        constants = rule.from_group(group)
        gradients = [p.grad for p in parameters]
        lr = float(group["lr"])
        return Work(rule, constants, lr, decay, group["maximize"], parameters, gradients)

    def _skip(self, nonfinite: int) -> None:
        self.skips += 1
        if self.on_nonfinite == "raise" and self.skips >= MOST_SKIPS:
            raise NonFiniteError(
                f"{self.skips} steps in a row had a gradient that is not finite ({nonfinite} elements in the last); no weight"
                f" took any of them. Lower the rate, clip, or look for log(0) and division by zero in the loss."
            )


def _check(name: str, value: object, holds: bool, what: str) -> None:
    if not holds:
        raise RuleError(f"`{name}` is {value!r}, but it must be {what}.")
