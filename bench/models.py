"""The models that are timed, their data, and a clock that works alike for every peer.

A model records the time whenever it is called to be trained: in training mode, with gradients. The time between two of these
is one whole step of the loop that calls the model, with all that the loop does in between, so that no peer needs a hook. The
clock is read before the forward pass begins, since one that is compiled has none in it. Calls without gradients, by which
the statistics of batch normalisation are measured for averaged weights, are a part of validation.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

BATCH = 64
STAMPS: list[float] = []
# The method alone is what the model's code uses: of a list in it thalweg would take the stamps for state of the model, and copy
# all of them with each snapshot.
stamp = STAMPS.append


class Stamped(nn.Module):
    """Records the time of every call in training mode with gradients."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def __call__(self, x: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            stamp(time.perf_counter())
        return super().__call__(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Case(NamedTuple):
    """A model to time: its factory, the shape of an example, how many examples there are, and how many steps are taken."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    examples: int
    steps: int


def mlp(*widths: int) -> nn.Module:
    layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    return Stamped(*layers[:-1])


def cnn() -> nn.Module:
    return Stamped(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 7 * 7, 10),
    )


def cnn_with_batch_norm() -> nn.Module:
    return Stamped(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 8 * 8, 10),
    )


# Whole epochs, so that peers which count in epochs take the same number of steps.
CASES = {
    "mlp": Case(partial(mlp, 64, 100, 32, 10), (64,), 8192, 12 * 128),
    "cnn": Case(cnn, (1, 28, 28), 4800, 2 * 75),
    "cnn32": Case(cnn_with_batch_norm, (3, 32, 32), 1280, 4 * 20),
    "11m": Case(partial(mlp, 1280, 2048, 2048, 2048, 10), (1280,), 640, 3 * 10),
}


def data(case: Case) -> tuple[Tensor, Tensor]:
    """Make examples of ten classes that a linear map separates."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(case.examples, *case.shape, generator=generator)
    flat = x.flatten(1) - 0.5
    return x, (flat @ torch.randn(flat.shape[1], 10, generator=generator)).argmax(1)


def microseconds(steps: int) -> float:
    """Give the mean time per step over the last nine tenths of the run just made, in microseconds."""
    stamps = STAMPS[-steps:][steps // 10 :]
    return (stamps[-1] - stamps[0]) / (len(stamps) - 1) * 1e6
