"""As `ours`, with the knobs of speed as `fit` measures them beforehand for an hour of training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import thalweg as tw
from peers import ours

PLANNED_SECONDS = 3600.0  # the budget, which says how much measuring pays: compiling does not within minutes
KNOBS = ("threads", "memory_format", "precision", "compile")
_chosen = dict[tuple[Any, int], dict[str, Any]]()


def chosen(make: Callable[[], nn.Module], x: Tensor, y: Tensor) -> dict[str, Any]:
    """Give the knobs for a model on so many threads, which are measured once in this process."""
    key = make, torch.get_num_threads()
    if key not in _chosen:
        task = tw.Task(model=make, loss=F.cross_entropy, data=(x, y))
        fixed = {"rule": "adamw", "learning_rate": 1e-3, "batch_size": 64, "ema": 0.999}
        plan = tw.tune(task, seconds=PLANNED_SECONDS, effort=1, fixed=fixed, progress=False)
        _chosen[key] = {knob: getattr(plan, knob) for knob in KNOBS}
    return _chosen[key]


def train(make: Callable[[], nn.Module], x: Tensor, y: Tensor, steps: int, folder: Path) -> nn.Module:
    return ours.train_by(ours.plan(steps, **chosen(make, x, y)), make, x, y, folder)
