"""`torch.optim.SGD`, which is three rules under one name: its groups say at every step which one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor
from torch.optim.optimizer import ParamsT

from thalweg.errors import RuleError, nearest
from thalweg.optim.groups import BESIDE_CONSTANTS, check_rates
from thalweg.optim.optimizer import Optimizer
from thalweg.rules import RULES
from thalweg.rules.rule import Rule

_OWN = ("momentum", "dampening", "nesterov")


class SGD(Optimizer):
    """Gradient descent, heavy ball or Nesterov, by each group's `momentum` and `nesterov` at every step, as `torch.optim.SGD`.

    Arguments:
        params: parameters, named parameters, or groups of either.
        lr: learning rate, at least 0.
        momentum: in [0, 1); 0 for plain descent, which keeps no state.
        dampening: in [0, 1]; the newest gradient weighs 1 - dampening in the velocity, the first of all still 1.
        weight_decay: coupled (added to the gradient), at least 0.
        nesterov: look ahead; needs momentum above 0 and no dampening.

    All others: see `Optimizer`. Sparse gradients are taken, without weight decay. Arguments come in the order of
    `torch.optim.SGD`.

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
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        ema: float | None = None,
        maximize: bool = False,
        cautious: bool = False,
        on_nonfinite: Literal["raise", "skip"] = "raise",
        engine: str = "auto",
        **others: Any,
    ) -> None:
        super().__init__(
            params,
            "gradient_descent",
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            clip_norm=clip_norm,
            clip_value=clip_value,
            ema=ema,
            maximize=maximize,
            cautious=cautious,
            on_nonfinite=on_nonfinite,
            engine=engine,
            **others,
        )

    def _constants(self, given: Mapping[str, Any]) -> dict[str, Any]:
        for name in given:
            if name not in _OWN:
                did_you_mean = nearest(name, [*_OWN, *BESIDE_CONSTANTS])
                raise RuleError(f"SGD has no option {name!r}; it has {', '.join(_OWN)}.{did_you_mean}")
        return dict(given)

    def _fixed(self) -> Mapping[str, Any]:
        return {}

    def _rule(self, group: Mapping[str, Any]) -> Rule:
        if not group["momentum"]:
            return RULES["gradient_descent"]
        return RULES["nesterov" if group["nesterov"] else "momentum"]

    def _check_group(self, group: Mapping[str, Any]) -> None:
        check_rates(group)
        for name in ("momentum", "dampening"):
            RULES["momentum"].check_constant(name, group[name])
        if group["nesterov"] and not (group["momentum"] and not group["dampening"]):
            raise RuleError(
                f"nesterov=True needs a momentum above 0 and no dampening, not {group['momentum']} and {group['dampening']}."
            )
