"""thalweg with everything on: clipping, an average of the weights, a run's folder with its history, watch and progress.

Snapshots for rollbacks and digests of the weights are taken every 50 steps, as is the default.
"""

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


def train(make: Callable[[], nn.Module], x: Tensor, y: Tensor, steps: int, folder: Path) -> nn.Module:
    return train_by(plan(steps, threads=torch.get_num_threads()), make, x, y, folder)


def plan(steps: int, **knobs: Any) -> tw.Plan:
    return tw.Plan(
        rule="adamw",
        learning_rate=1e-3,
        batch_size=64,
        weight_decay=0.01,
        schedule=tw.schedule.linear(warmup=0.05),
        clip_norm=1.0,
        ema=0.999,
        steps=steps,
        validate_every=steps,
        **knobs,
    )


def train_by(plan: tw.Plan, make: Callable[[], nn.Module], x: Tensor, y: Tensor, folder: Path) -> nn.Module:
    task = tw.Task(model=make, loss=F.cross_entropy, data=(x, y))
    with open(os.devnull, "w") as nowhere:
        return tw.train(task, plan, out=folder / "run", progress=LineProgress(nowhere)).model
