"""thalweg as `fit` has it: the knobs of speed are measured before, for a run of some thousand steps; all else is as in `ours`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import thalweg as tw
from thalweg.see.live import LineProgress

PLANNED_STEPS = 6000  # the run whose length says how much measuring pays
KNOBS = ("threads", "memory_format", "precision", "compile")
_plans = dict[tuple[Any, int], tw.Plan]()


def plan_for(make: Callable[[], nn.Module], x: Tensor, y: Tensor) -> tw.Plan:
    """Give the plan for a model on so many threads, which is measured once in this process."""
    key = make, torch.get_num_threads()
    if key not in _plans:
        fixed = {"rule": "adamw", "learning_rate": 1e-3, "batch_size": 64, "weight_decay": 0.01, "ema": 0.999}
        fixed |= {"schedule": tw.schedule.linear(warmup=0.05)}
        task = tw.Task(model=make, loss=F.cross_entropy, data=(x, y))
        _plans[key] = tw.tune(task, steps=PLANNED_STEPS, effort=1, fixed=fixed, progress=False)
    return _plans[key]


def chosen(make: Callable[[], nn.Module], x: Tensor, y: Tensor) -> dict[str, Any]:
    """Give the knobs of speed that were chosen."""
    plan = plan_for(make, x, y)
    return {knob: getattr(plan, knob) for knob in KNOBS}


def train(make: Callable[[], nn.Module], x: Tensor, y: Tensor, steps: int, folder: Path) -> nn.Module:
    plan = plan_for(make, x, y).replace(steps=steps, validate_every=steps)
    task = tw.Task(model=make, loss=F.cross_entropy, data=(x, y))
    with open(os.devnull, "w") as nowhere:
        return tw.train(task, plan, out=folder / "run", progress=LineProgress(nowhere)).model
