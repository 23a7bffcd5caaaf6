"""Small images of two classes, and tasks with convolutions on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import thalweg as tw


def images(count: int = 96, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise, brighter at the left or at the right: (count, 3, 8, 8) and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    slope = torch.linspace(-1, 1, 8) * (2 * labels[:, None] - 1)
    return 0.5 * torch.randn(count, 3, 8, 8, generator=generator) + slope[:, None, None], labels


def convolutions(*extra: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 3),
        nn.Flatten(),
        *extra,
        nn.Linear(20, 2),
    )


def task(**changes: Any) -> tw.Task:
    parts: dict[str, Any] = {
        "model": convolutions,
        "loss": F.cross_entropy,
        "data": images(),
        "validation": images(40, seed=1),
    }
    return tw.Task(**{**parts, **changes})


def plan(**knobs: Any) -> tw.Plan:
    """A plan on one thread, that notes the weights' bits at every step."""
    parts: dict[str, Any] = {"learning_rate": 1e-2, "batch_size": 20, "steps": 24, "snapshot_every": 6}
    parts |= {"digest_every": 1, "threads": 1}
    return tw.Plan(**{**parts, **knobs})


def stopped_and_resumed(made: tw.Task, how: tw.Plan, folder: Path, at: int) -> tw.Run:
    """Stop a run after some steps by Ctrl-C, and resume it."""

    def stop(model: nn.Module, figures: Any) -> None:
        if figures.step == at:
            raise KeyboardInterrupt

    try:
        tw.train(made, how, out=folder, on_step=stop)
    except tw.Interrupted:
        return tw.resume(folder, made)
    raise AssertionError("the run was not stopped")


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    ones, others = one.state_dict(), other.state_dict()
    return list(ones) == list(others) and all(map(torch.equal, ones.values(), others.values()))
