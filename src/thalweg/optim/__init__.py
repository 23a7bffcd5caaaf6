"""Optimisers: PyTorch's argument names where PyTorch has the same thing; `clip_norm`, `ema` and a guard on top."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor
from torch.optim.optimizer import ParamsT

from thalweg.errors import RuleError, nearest
from thalweg.optim.groups import check_rates
from thalweg.optim.optimizer import Optimizer, StepRecord
from thalweg.rules import RULES
from thalweg.rules.rule import Rule

__all__ = [
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "GradientDescent",
    "Lion",
    "Momentum",
    "Nesterov",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "StepRecord",
    "build",
]


class GradientDescent(Optimizer):
    """w <- w - lr g. Further keywords: see `Optimizer`."""

    def __init__(self, params: ParamsT, lr: float | Tensor = 1e-3, weight_decay: float = 0.0, **options: Any) -> None:
        super().__init__(params, "gradient_descent", lr=lr, weight_decay=weight_decay, **options)


class Momentum(Optimizer):
    """Heavy ball. Further keywords: see `Optimizer`."""

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(params, "momentum", lr=lr, momentum=momentum, weight_decay=weight_decay, **options)


class Nesterov(Optimizer):
    """Momentum that looks ahead. Further keywords: see `Optimizer`."""

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(params, "nesterov", lr=lr, momentum=momentum, weight_decay=weight_decay, **options)


class SGD(Optimizer):
    """`torch.optim.SGD`: gradient descent, heavy ball or Nesterov, by each group's `momentum` and `nesterov` at every step.

    `dampening` must be 0: scale `lr` by `1 - dampening` instead. Further keywords: see `Optimizer`.

    >>> import torch
    >>> SGD([torch.zeros(2)], momentum=1.5)
    Traceback (most recent call last):
    thalweg.errors.RuleError: momentum of momentum must be a number in [0, 1), not 1.5.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        **options: Any,
    ) -> None:
        own = {"momentum": momentum, "dampening": dampening, "nesterov": nesterov}
        super().__init__(params, "gradient_descent", lr=lr, weight_decay=weight_decay, **own, **options)

    def _constants(self, given: Mapping[str, Any]) -> dict[str, Any]:
        known = ("momentum", "dampening", "nesterov")
        for name in given:
            if name not in known:
                raise RuleError(f"SGD has no option {name!r}; it has {', '.join(known)}.{nearest(name, known)}")
        return dict(given)

    def _fixed(self) -> Mapping[str, Any]:
        return {}

    def _rule(self, group: Mapping[str, Any]) -> Rule:
        if not group["momentum"]:
            return RULES["gradient_descent"]
        return RULES["nesterov" if group["nesterov"] else "momentum"]

    def _check_group(self, group: Mapping[str, Any]) -> None:
        check_rates(group)
        RULES["momentum"].check_constant("momentum", group["momentum"])
        if group["dampening"] != 0:
            raise RuleError("SGD has no dampening here: scale lr by (1 - dampening) instead.")
        if group["nesterov"] and not group["momentum"]:
            raise RuleError("nesterov=True needs a momentum above 0.")


class RMSprop(Optimizer):
    """`torch.optim.RMSprop`. Further keywords: see `Optimizer`."""

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        **options: Any,
    ) -> None:
        constants = {"alpha": alpha, "eps": eps, "momentum": momentum, "centered": centered}
        super().__init__(params, "rmsprop", lr=lr, weight_decay=weight_decay, **constants, **options)


class Adam(Optimizer):
    """`torch.optim.Adam`. Further keywords: see `Optimizer`."""

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(params, "adam", lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, **options)


class AdamW(Optimizer):
    """`torch.optim.AdamW`. Further keywords: see `Optimizer`."""

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        **options: Any,
    ) -> None:
        super().__init__(params, "adamw", lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, **options)


class Adagrad(Optimizer):
    """`torch.optim.Adagrad`, from an accumulator of 0. Further keywords: see `Optimizer`."""

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        eps: float = 1e-10,
        **options: Any,
    ) -> None:
        super().__init__(params, "adagrad", lr=lr, lr_decay=lr_decay, eps=eps, weight_decay=weight_decay, **options)


class Adadelta(Optimizer):
    """`torch.optim.Adadelta`. Further keywords: see `Optimizer`."""

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(params, "adadelta", lr=lr, rho=rho, eps=eps, weight_decay=weight_decay, **options)


class Adamax(Optimizer):
    """`torch.optim.Adamax`. Further keywords: see `Optimizer`."""

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(params, "adamax", lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, **options)


class RAdam(Optimizer):
    """`torch.optim.RAdam`, with weight decay in the gradient. Further keywords: see `Optimizer`."""

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(params, "radam", lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, **options)


class Lion(Optimizer):
    """Sign of a momentum, with decoupled weight decay. Further keywords: see `Optimizer`."""

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(params, "lion", lr=lr, betas=betas, weight_decay=weight_decay, **options)


def build(
    rule: str,
    params: ParamsT,
    *,
    lr: float,
    weight_decay: float = 0.0,
    constants: Mapping[str, Any] | None = None,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    ema: float | None = None,
    on_nonfinite: Literal["raise", "skip"] = "raise",
    engine: str = "auto",
) -> Optimizer:
    """Make an optimiser from a rule's name and plain values, as a plan holds them."""
    return Optimizer(
        params,
        rule,
        lr=lr,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        clip_value=clip_value,
        ema=ema,
        on_nonfinite=on_nonfinite,
        engine=engine,
        **(constants or {}),
    )
