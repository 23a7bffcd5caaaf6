"""Figures of a model before training: its loss against a constant predictor's, gradients, reaction to inputs, data scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.landscape.objective import Objective, class_count
from thalweg.sampling.sources import leaves, tree_map

TELLING = 20  # targets: fewer may well be alike by chance


@dataclass(frozen=True)
class Start:
    """What was seen. `None` means that it could not be measured for this task."""

    loss: float
    constant_loss: float | None = None
    constant_kind: str = ""
    gradients: Mapping[str, float] = field(default_factory=dict[str, float])  # parameter -> RMS of its gradient
    idle: tuple[str, ...] = ()
    reaction: float | None = None  # see `reaction`; the larger one of before and after fitting one batch
    fitted_loss: float | None = None  # after some steps on one batch
    fitted_steps: int = 0
    scale: Mapping[str, tuple[float, float]] = field(
        default_factory=dict[str, tuple[float, float]]
    )  # part -> (mean, sd)
    column_spread: float | None = None  # largest over smallest sd of the input's columns
    column_offset: tuple[int, float] | None = (
        None  # the column whose mean is most of its sds away from zero, and how many
    )
    output_sum_to_one: bool = False
    target_sd: float | None = None
    target_alike: bool | None = None  # whether all targets of a larger sample are one and the same
    held_out: tuple[float, float] | None = (
        None  # best loss on examples not learnt from, and the constant predictor's there
    )


def constant_loss(objective: Objective, output: Any, target: Any) -> tuple[float, str] | None:
    """Give the loss of the best constant predictor, known for PyTorch's cross-entropy and squared error, else None."""
    task = objective.task
    if not isinstance(target, Tensor) or not isinstance(output, Tensor):
        return None
    if class_count(task, output) is not None and not target.is_floating_point():
        labels = target[target != getattr(task.loss, "ignore_index", -100)].flatten()
        shares = torch.bincount(labels).double() / max(1, labels.numel())
        return float(-(shares * shares.clamp_min(1e-12).log()).sum()), "entropy of the labels"
    if task.loss is nn.functional.mse_loss or isinstance(task.loss, nn.MSELoss):
        return float(target.double().var(0, correction=0).mean()), "variance of the targets"
    return None


def measure_start(objective: Objective, model: nn.Module, batch: Any) -> Start:
    """Measure a throw-away model on one batch; its parameters keep their values, its buffers may not."""
    model.train()
    model.zero_grad(set_to_none=True)
    loss, _ = objective.loss(model, batch)
    loss.backward()
    gradients = {n: _rms(p.grad) for n, p in model.named_parameters() if p.grad is not None}
    idle = tuple(n for n, p in model.named_parameters() if p.requires_grad and p.grad is None)
    model.zero_grad(set_to_none=True)
    if objective.task.step is not None:
        return Start(loss=float(loss.detach()), gradients=gradients, idle=idle)
    model.eval()
    with torch.no_grad():
        output, target = objective.outputs(model, batch)
    known = constant_loss(objective, output, target)
    inputs = objective.split(batch)
    first = next((leaf for leaf in leaves((inputs[0], inputs[1])) if leaf.is_floating_point()), None)
    return Start(
        loss=float(loss.detach()),
        constant_loss=known[0] if known else None,
        constant_kind=known[1] if known else "",
        gradients=gradients,
        idle=idle,
        reaction=reaction(objective, model, batch),
        scale={} if first is None else {"inputs": (float(first.double().mean()), float(first.double().std()))},
        column_spread=_spread(first),
        column_offset=_offset(first),
        output_sum_to_one=_is_probability(output),
        target_sd=float(target.double().std()) if isinstance(target, Tensor) and target.is_floating_point() else None,
    )


def _rms(tensor: Tensor) -> float:
    return float(tensor.detach().double().square().mean().sqrt())


def reaction(objective: Objective, model: nn.Module, batch: Any) -> float | None:
    """Give how far outputs move, relative to their size, when inputs change places among examples; None where unknown."""
    count = len(leaves(batch)[0]) if leaves(batch) else 0
    if count < 2 or objective.task.step is not None:
        return None
    rolled = tree_map(lambda leaf: leaf.roll(1, 0) if isinstance(leaf, Tensor) and leaf.ndim else leaf, batch)
    model.eval()
    with torch.no_grad():
        output, shifted = objective.outputs(model, batch)[0], objective.outputs(model, rolled)[0]
    if not isinstance(output, Tensor) or not output.is_floating_point() or output.ndim == 0:
        return None
    scale = _rms(output)
    return _rms(shifted - output) / scale if scale > 0 else 0.0


def _spread(inputs: Tensor | None) -> float | None:
    if inputs is None or inputs.ndim != 2 or len(inputs) < 2:
        return None
    spreads = inputs.double().std(0)
    spreads = spreads[spreads > 0]
    return float(spreads.max() / spreads.min()) if spreads.numel() > 1 else None


def _offset(inputs: Tensor | None) -> tuple[int, float] | None:
    if inputs is None or inputs.ndim != 2 or len(inputs) < 2:
        return None
    spreads = inputs.double().std(0)
    offsets = torch.where(spreads > 0, inputs.double().mean(0).abs() / spreads, 0.0)
    column = int(offsets.argmax())
    return column, float(offsets[column])


def alike(targets: list[Any]) -> bool | None:
    """Tell whether all targets of some batches are one and the same; None where they are no tensors, or fewer than twenty."""
    if not all(isinstance(target, Tensor) and target.ndim for target in targets) or sum(map(len, targets)) < TELLING:
        return None
    first = targets[0][:1]
    return all(target.shape[1:] == first.shape[1:] and bool((target == first).all()) for target in targets)


def _is_probability(output: Any) -> bool:
    if not isinstance(output, Tensor) or output.ndim < 2 or output.shape[1] < 2 or not output.is_floating_point():
        return False
    sums = output.sum(1)
    return bool((output >= 0).all()) and bool(torch.allclose(sums, torch.ones_like(sums), atol=1e-4))


def is_finite(value: float | None) -> bool:
    """Tell whether a figure was measured and is a number."""
    return value is not None and math.isfinite(value)
