"""Where a rule was about to go after a step of a run: its momentum and its next update, from the state of its optimiser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from thalweg.descent.course import rate_at
from thalweg.descent.state import build_optimizer, load_named_state
from thalweg.errors import CheckpointError, ThalwegError
from thalweg.landscape.model_surface import ModelSurface
from thalweg.records import checkpoint
from thalweg.records.run import Run
from thalweg.records.run_folder import RunFolder

MOMENTA = ("exp_avg", "momentum_buffer")  # keys of states that are means of gradients

NOT_THIS_RULE = (
    ThalwegError,
    ArithmeticError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)  # what its state raises

States = Mapping[str, Mapping[str, Any]]


def optimizer_state(run: Run, step: int) -> States | None:
    """Give the state of a run's optimiser after a step, by the parameters' names; None where its last checkpoint is of another
    step, or there is none."""
    if run.folder is None:
        return None
    try:
        loaded = checkpoint.load(RunFolder(run.folder).checkpoints_path)
    except CheckpointError:
        return None
    states = loaded.state.get("optimizer")
    return cast("States", states) if loaded.step == step and isinstance(states, Mapping) else None


def last_directions(run: Run, step: int, surface: ModelSurface, gradient: Tensor) -> dict[str, Tensor]:
    """Give the momentum after a step, and the update that the rule would take next with a gradient, as vectors of shape (size,).

    What is not known is left out: without a checkpoint of that step, or of another rule's state. The model has weights and
    gradients of its own again afterwards.
    """
    states, rate = optimizer_state(run, step), rate_at(run, step)
    if states is None or not rate:
        return {}
    found = dict[str, Tensor]()
    parts = [
        next((own[key] for key in MOMENTA if isinstance(own.get(key), Tensor)), None)
        for own in (states.get(name) or {} for name in surface.names)
    ]
    momenta = [part for part in parts if part is not None]
    if len(momenta) == len(parts) and all(m.shape == p.shape for m, p in zip(momenta, surface.parameters, strict=True)):
        found["momentum"] = surface.flat(momenta)
    if (update := _update(run, states, rate, surface, gradient)) is not None:
        found["update"] = update
    return {
        name: vector for name, vector in found.items() if bool(vector.isfinite().all()) and float(vector.norm()) > 0
    }


def _update(run: Run, states: States, rate: float, surface: ModelSurface, gradient: Tensor) -> Tensor | None:
    """Take a step with the run's rule and the state that it had, and back; None where the state does not fit."""
    point, gradients = surface.point, [p.grad for p in surface.model.parameters()]
    try:
        optimizer, factors = build_optimizer(surface.model, run.plan.replace(ema=None))
        load_named_state(optimizer, states)
        for group, factor in zip(optimizer.param_groups, factors, strict=True):
            group["lr"] = rate * factor
        for parameter in surface.model.parameters():
            parameter.grad = None
        for parameter, part in zip(surface.parameters, surface.shaped(gradient), strict=True):
            parameter.grad = part.to(parameter.dtype).clone()
        optimizer.step()
        return surface.point - point
    except NOT_THIS_RULE:
        return None
    finally:
        surface.move_to(point)
        for parameter, before in zip(surface.model.parameters(), gradients, strict=True):
            parameter.grad = before
