"""Parameter groups: what they may contain, checked before anything is changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from decimal import Decimal
from difflib import get_close_matches
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thalweg import rules
from thalweg.errors import RuleError, nearest, shown, synonym
from thalweg.optim.engines.arithmetic import COMPUTE_DTYPE
from thalweg.rules.rule import Rule

SHARED = ("lr", "weight_decay", "maximize")
"""Options of every group, whatever its rule."""

OPTIMIZER_WIDE = ("clip_norm", "clip_value", "ema", "cautious", "on_nonfinite", "engine")
"""Options of the optimiser as a whole: in a group they would have no effect."""

FLAGS: Mapping[str, Any] = {"foreach": None, "capturable": False, "differentiable": False, "fused": None}
"""PyTorch's options that choose how a step is calculated, with their defaults. They stand in every group, because other programs
read them there. `foreach` and `fused` change nothing: both are ways to the same step, and here `engine` chooses the way."""

BESIDE_CONSTANTS = (*SHARED, *OPTIMIZER_WIDE, *FLAGS)
"""What an optimiser may be given besides its rule's constants."""

_REFUSED_FLAGS = {
    "capturable": "part of a step is worked out on the host, which a captured graph would not repeat",
    "differentiable": "no gradient flows through a step here",
}


def check_flags(options: Mapping[str, Any]) -> None:
    """Raise RuleError where one of PyTorch's flags is set that would make another step of it."""
    for name, why in _REFUSED_FLAGS.items():
        if options.get(name):
            raise RuleError(f"`{name}` cannot be True here: {why}. Leave it out, or take the class of torch.optim.")


def without_fixed(options: Mapping[str, Any], rule: Rule, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out PyTorch's options of which this rule has one value only. Raises RuleError where they have another."""
    for name, value in fixed.items():
        if options.get(name, value) != value:
            others = [one.optimizer for one in rules.RULES.values() if one.fixed.get(name) == options[name]]
            hint = f" Take {' or '.join(others)}." if others else ""
            raise RuleError(f"`{name}` of {rule.name} is always {value}, not {shown(options[name])}.{hint}")
    return {name: value for name, value in options.items() if name not in fixed}


def check_constants(group: Mapping[str, Any], rule: Rule) -> None:
    """Raise RuleError where a rule's constant in a group is out of its range, or `betas` mix numbers and tensors."""
    rule.complete(rule.from_group(group))
    for name in rule.grouped:
        kinds = {isinstance(value, Tensor) for value in group[name]}
        check(name, group[name], len(kinds) == 1, "all numbers or all tensors")


def check(name: str, value: object, holds: bool, what: str) -> None:
    """Raise RuleError unless `holds`; `what` says what the value must be."""
    if not holds:
        raise RuleError(f"`{name}` is {shown(value)}, but it must be {what}.")


def check_rates(group: Mapping[str, Any]) -> None:
    """Raise RuleError unless learning rate and weight decay are finite and at least 0, and `maximize` is a bool."""
    lr = group["lr"]
    if isinstance(lr, Tensor):
        check("lr", lr, lr.numel() == 1, "a number or a tensor of one element")
    for name in ("lr", "weight_decay"):
        value = group[name]
        check(name, value, _at_least_zero(value), "a finite number, zero or above")
    check("maximize", group["maximize"], isinstance(group["maximize"], bool), "True or False")


def rate(lr: float | Tensor) -> float | Tensor:
    """Read a group's learning rate: a number, or a 0-dim tensor that stays on its accelerator, without synchronisation.

    Raises RuleError where it has become NaN or infinite.
    """
    if isinstance(lr, Tensor):
        check("lr", lr, lr.numel() == 1, "a number or a tensor of one element")
        if lr.is_meta:
            raise RuleError("The learning rate is on the meta device, where there are no numbers. No weight has moved.")
        if lr.device.type != "cpu":
            return lr.detach().reshape(())
        lr = lr.detach()
    if type(lr) is not float and math.isfinite(number := _as_float(lr)):
        return number
    if type(lr) is not float or not math.isfinite(lr):
        raise RuleError(f"The learning rate has become {lr}: look at the schedule that set it. No weight has moved.")
    return lr


def decay(value: Any) -> Any:
    """Read a group's weight decay. Raises RuleError where it has become NaN, infinite or no number."""
    if type(value) is float and math.isfinite(value):
        return value
    check("weight_decay", value, math.isfinite(_as_float(value)), "a finite number")
    return value


def flag(maximize: Any) -> bool:
    """Read a group's `maximize`. Raises RuleError where it has become neither true nor false."""
    if type(maximize) is bool:
        return maximize
    with suppress(RuntimeError, ValueError):  # of several numbers, or of none
        return bool(maximize)
    raise RuleError(f"`maximize` is {shown(maximize, 80)}, but it must be True or False.")


def check_changed(group: Mapping[str, Any], rule: Rule, known: Mapping[str, Any]) -> None:
    """Raise RuleError where a rule's constant in a group has another value than the `known` one, and is out of its range."""
    for name, value in rule.from_group(group).items():
        if name not in known or known[name] is not value:
            rule.check_constant(name, value)


def check_present(group: Mapping[str, Any], rule: Rule) -> None:
    """Raise RuleError where a group has lost an option that its rule needs."""
    missing = [name for name in rule.names if name not in group]
    if missing:
        raise RuleError(f"A parameter group has no {missing[0]!r} any more, which {rule.name} needs: put it back.")


def check_bounds(**bounds: Any) -> None:
    """Raise RuleError where what clips gradients, or the decay of the average, is out of its range; None is none."""
    for name, value in bounds.items():
        is_number = value is None or (is_above_zero(value) and not isinstance(value, Tensor))
        check(name, value, is_number, "a number above zero")
    ema = bounds["ema"]
    check("ema", ema, ema is None or ema < 1, "between 0 and 1")


def named(rule: Any) -> Rule:
    """Give the rule that a group names. Raises RuleError where there is none of that name."""
    check("rule", rule, isinstance(rule, str), "the name of an update rule, such as 'adamw', in a parameter group")
    return _named(rule)


_named = cache(rules.get)


def defaults_of(rule: Rule, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Give the defaults of a group that names a rule of its own: that rule's constants, and the optimiser's other options."""
    return {**{name: defaults[name] for name in (*SHARED, *FLAGS)}, **rule.group_defaults()}


def check_own(group: Mapping[str, Any], rule: Rule, defaults: Mapping[str, Any]) -> None:
    """Raise RuleError where a group that names its rule sets a constant of another one.

    One with the value of the optimiser's own default is no mistake: `torch.optim` puts the defaults into every group. Nor is one
    with the only value that the rule has of it.
    """
    for name in (_all_constants() | {*defaults}) - {*SHARED, *FLAGS, *rule.constants, *rule.grouped}:
        known = [values[name] for values in (defaults, rule.fixed) if name in values]
        if name in group and group[name] not in known:
            raise RuleError(f"A parameter group goes by the rule {shown(group['rule'])}. {rule.unknown(name)}")


@cache
def _all_constants() -> frozenset[str]:
    """Name the constants of all rules, as an equation and as a group calls them."""
    return frozenset(name for rule in rules.RULES.values() for name in (*rule.constants, *rule.grouped))


def normalized(group: dict[str, Any], rule: Rule, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Give the group with the rule's constants under PyTorch's names (`beta2` becomes part of `betas`).

    Raises RuleError for a name that looks like a misspelt option; other unknown names are the caller's own and stay.
    """
    if "params" not in group:
        raise RuleError(
            f"A parameter group has no 'params', only {', '.join(map(repr, group))}. Put its parameters there."
        )
    known = [*defaults, *rule.constants, *rule.grouped, "params", "param_names", "rule"]
    check_flags(group)
    for name in group:
        if name in OPTIMIZER_WIDE:
            raise RuleError(
                f"A parameter group names {name!r}, which belongs to the optimiser: give it beside the groups."
            )
        if name not in known and not name.endswith(tuple(known)):
            near = get_close_matches(name, known, n=1, cutoff=0.8)
            if near or (name not in _all_constants() and synonym(name, known)):
                raise RuleError(f"A parameter group names {name!r}, which is no option here.{nearest(name, known)}")
    own = {name: value for name, value in group.items() if name in rule.constants and name not in defaults}
    rest = {name: value for name, value in group.items() if name not in own}
    if not isinstance(rest["params"], Tensor | set):
        rest["params"] = list(rest["params"])
    for name, members in rule.grouped.items():
        if isinstance(rest.get(name), list):
            rest[name] = tuple(rest[name])  # a list could be changed in place, which no comparison would notice
        if any(member in own for member in members):
            current = dict(zip(members, rest.get(name, defaults[name]), strict=True))
            rest[name] = tuple(own.get(member, current[member]) for member in members)
    return rest


def check_parameters(params: Any, rule: Rule) -> None:
    """Raise RuleError where a parameter is given twice, or is of a dtype or layout that the rule cannot train.

    What is no tensor, or has no order (a set), is left to `torch.optim.Optimizer`, which raises TypeError.
    """
    seen: set[int] = set()
    for i, given in enumerate(params if isinstance(params, list) else [params]):
        name, p = given if isinstance(given, tuple) and len(given) == 2 else (f"parameter {i}", given)
        if not isinstance(p, Tensor):
            return
        if id(p) in seen:
            raise RuleError(f"{name} stands twice in one group; each parameter is given once.")
        seen.add(id(p))
        if p.dtype not in COMPUTE_DTYPE or p.layout is not torch.strided:
            raise RuleError(f"{name} is {p.dtype}, {p.layout}; what can be trained is dense and one of {_dtypes()}.")
        if p.is_complex() and rule.is_matrix and (p.ndim >= 2 or rule.rest is None):
            raise RuleError(
                f"{name} is complex, and {rule.name} moves real matrices only: give it another group and rule."
            )


def _dtypes() -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in COMPUTE_DTYPE)


_NOT_NUMBERS = (str, bytes, bool, np.bool_, np.ndarray)


def is_above_zero(value: Any) -> bool:
    """Tell whether a value is a number above zero, to calculate with; infinity is one."""
    return not isinstance(value, Decimal) and _as_float(value) > 0


def _at_least_zero(value: Any) -> bool:
    return math.isfinite(number := _as_float(value)) and number >= 0


def _as_float(value: Any) -> float:
    """Give a number, or a tensor of one element, as a float; NaN for anything else."""
    if isinstance(value, _NOT_NUMBERS) or (isinstance(value, Tensor) and value.is_complex()):
        return math.nan
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return math.nan
