"""By what a rule divides each weight's gradient: its preconditioner, from the state that it carries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from thalweg import rules
from thalweg.rules import maths


def preconditioner(rule: str, constants: Mapping[str, Any], state: Mapping[str, Any]) -> Tensor | None:
    """Give 1 / (sqrt(v) + eps) for each weight of one parameter, v the mean of squared gradients, its bias corrected where the
    rule does so.

    Arguments:
        rule: its name; constants: of the plan.
        state: of the parameter, under the keys of a `state_dict`, "step" among them.

    None where the rule has no such mean, or the state lacks it.

    >>> state = {"step": torch.tensor(10**6), "exp_avg": torch.ones(1), "exp_avg_sq": torch.full((1,), 4.0)}
    >>> preconditioner("adam", {"eps": 1e-12}, state)
    tensor([0.5000])
    """
    known = rules.get(rule)
    if known.second_moment is None:
        return None
    complete = known.complete(constants)
    states = {each.name: state.get(each.key) for each in known.states(complete)}
    if any(not isinstance(tensor, Tensor) for tensor in states.values()):
        return None
    step = int(state.get("step", 1))
    numbers = {**complete, **(known.scalars(step, complete) if known.scalars is not None else {})}
    names: dict[str, Any] = {**numbers, "maximum": maths.maximum, **states}
    second: Tensor = eval(known.second_moment, {"__builtins__": {}}, names)
    return 1 / (second.clamp(min=0).sqrt() + float(numbers.get("eps", 0.0))).clamp(min=torch.finfo(second.dtype).tiny)
