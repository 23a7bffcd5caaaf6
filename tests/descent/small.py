"""Small tasks and plans for the tests of the descent."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import thalweg as tw
from thalweg.descent.loop import descend
from thalweg.descent.problem import open_task
from thalweg.descent.recorder import Recorder
from thalweg.descent.settle import settle
from thalweg.descent.state import Descent
from thalweg.records.request import Request


def blobs(count: int = 96, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three overlapping classes in four dimensions."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    centres = torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, -1], [0, 0, 1, 0]])
    return centres[labels] + 0.7 * torch.randn(count, 4, generator=generator), labels


def network(*extra: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 12), *extra, nn.Tanh(), nn.Linear(12, 3))


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).float().mean()


def classes(**changes: Any) -> tw.Task:
    parts: dict[str, Any] = {
        "model": network,
        "loss": F.cross_entropy,
        "data": blobs(),
        "validation": blobs(60, seed=1),
        "metrics": {"accuracy": accuracy},
    }
    return tw.Task(**{**parts, **changes})


def plan(**knobs: Any) -> tw.Plan:
    return tw.Plan(**{"learning_rate": 1e-2, "batch_size": 16, "steps": 30, "snapshot_every": 10, **knobs})


def started(task: tw.Task, made: tw.Plan) -> tuple[Descent, Recorder]:
    problem = open_task(task)
    return Descent(problem, settle(problem, made, Request())), Recorder()


def walk(descent: Descent, recorder: Recorder, until: int | None = None) -> None:
    descend(descent, recorder, until)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1).double() for p in model.parameters()])


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def kinds(run: tw.Run) -> list[str]:
    return [event.kind for event in run.events]
