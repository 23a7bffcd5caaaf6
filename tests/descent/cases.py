"""The runs that are killed: each a task and a plan, made anew by name in any process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, WeightedRandomSampler

import thalweg as tw

COMMON: dict[str, Any] = {
    "learning_rate": 2e-2,
    "batch_size": 16,
    "steps": 240,
    "validate_every": 20,
    "snapshot_every": 8,
    "digest_every": 1,
    "checkpoint_seconds": 0.0,
    "threads": 1,
}
EVERYTHING: dict[str, Any] = {
    "accumulate": 3,
    "ema": 0.9,
    "clip_norm": 1.0,
    "weight_decay": 0.01,
    "schedule": tw.schedule.plateau(factor=0.7, patience=1, warmup=20),
}
PLANS: dict[str, dict[str, Any]] = {
    "everything-gradient_descent": {"rule": "gradient_descent", **EVERYTHING},
    "everything-momentum": {"rule": "momentum", **EVERYTHING},
    "everything-adamw": EVERYTHING,
    "workers-gradient_descent": {"rule": "gradient_descent", "workers": 2},
    "workers-momentum": {"rule": "momentum", "workers": 2},
    "workers-adamw": {"workers": 2, "accumulate": 2},
    "sampler": {"rule": "momentum"},
    "weighted": {"rule": "adamw"},
    "stream": {"rule": "adamw", "accumulate": 2},
    "bfloat16": {"precision": "bfloat16"},
    "float16": {"precision": "float16", "rule": "momentum"},
    "goes-back": {"rule": "momentum", "learning_rate": 20.0, "schedule": tw.schedule.linear(warmup=200)},
    "left-out": {"rule": "rmsprop", "learning_rate": 1e-3},
    "patience": {"learning_rate": 0.3, "patience": 3, "validate_every": 12},
    "nesterov": {"rule": "nesterov", "replacement": True, "schedule": tw.schedule.one_cycle()},
}


def plan(case: str, **changes: Any) -> tw.Plan:
    return tw.Plan(**{**COMMON, **PLANS[case], **changes})


def blobs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    centres = torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, -1], [0, 0, 1, 0]])
    return centres[labels] + 0.7 * torch.randn(count, 4, generator=generator), labels


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Dropout(0.2), nn.Linear(12, 3))


class Augmented(Dataset[Any]):
    """Draws random numbers from the global generator for each item; some items are NaN where `bad` says so."""

    def __init__(self, bad: tuple[int, ...] = ()) -> None:
        self.x, self.y = blobs(90, 0)
        self.bad = bad

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = float("nan") if index in self.bad else 0.1
        return self.x[index] + noise * torch.randn(4), self.y[index]


class Backwards(Sampler[int]):
    """An order of a person's own, drawn from the global generator."""

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(90).flip(0).tolist())

    def __len__(self) -> int:
        return 90


class Stream(IterableDataset[Any]):
    """A stream of unknown length with noise of its own."""

    def __iter__(self) -> Iterator[Any]:
        x, y = blobs(90, 0)
        for i in range(90):
            yield x[i] + 0.1 * torch.randn(4), y[i]


def data(case: str) -> Any:
    if case.startswith("workers"):
        return Augmented()
    if case == "left-out":
        return Augmented(bad=(70,))
    if case == "sampler":
        return DataLoader(Augmented(), batch_size=16, sampler=Backwards())
    if case == "weighted":  # with a generator of its own, which carries its state from pass to pass
        own = WeightedRandomSampler([1.0, 2.0] * 45, 90, generator=torch.Generator().manual_seed(5))
        return DataLoader(Augmented(), batch_size=16, sampler=own)
    if case == "stream":
        return Stream()
    return blobs(90, 0)


def task(case: str = "everything-adamw") -> tw.Task:
    x, y = data(case) if case == "goes-back" else (None, None)
    if x is not None and y is not None:
        return tw.Task(model=lambda: nn.Linear(4, 1), loss=F.mse_loss, data=(x, x[:, :1]), validation=(x, x[:, :1]))
    return tw.Task(model=network, loss=F.cross_entropy, data=data(case), validation=blobs(60, 1))
