"""The matrix of runs that are interrupted: each a rule, a guard, a kind of data, of module and of interruption, by its number.

The combinations are a covering design: every two values of two factors come together at least once.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import combinations, product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from cases import Augmented, Backwards, Stream, blobs
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, WeightedRandomSampler

import thalweg as tw
from thalweg.rules import RULES

COUNT, STEPS = 320, 24

GUARDS: dict[str, dict[str, Any]] = {
    "none": {},
    "clipping": {"clip_norm": 0.5, "clip_value": 0.3},
    "skipping": {},
    "rollback": {"learning_rate": 10.0, "snapshot_every": 4},
    "average": {"ema": 0.8},
    "accumulation": {"accumulate": 2},
    "memory": {},
    "plateau": {"schedule": tw.schedule.plateau(factor=0.5, patience=1, warmup=3)},
}
DATA = (
    "arrays",
    "dataset",
    "loader",
    "loader with workers",
    "own sampler",
    "weighted",
    "stream",
    "stateful",
    "workers",
)
MODULES = (
    *("plain", "batch norm", "dropout", "tied", "frozen", "buffer", "complex", "bfloat16", "extra state", "recurrent"),
    "counter",
)
INTERRUPTIONS = (
    *(
        "SIGKILL",
        "SIGTERM",
        "Ctrl-C",
        "in the callback",
        "in the loss",
        "between checkpoints",
        "twice",
        "in validation",
    ),
    "at the first step",
    "at the last step",
)
FACTORS = (tuple(RULES), tuple(GUARDS), DATA, MODULES, INTERRUPTIONS)


class Combination(NamedTuple):
    """One run of the matrix."""

    rule: str
    guard: str
    data: str
    module: str
    interruption: str

    def __str__(self) -> str:
        return ", ".join(self)


def covering(seed: int = 18) -> list[Combination]:
    """Give `COUNT` combinations in which every two values of two factors come together; greedy, among random candidates."""
    draws = random.Random(seed)
    pairs = [*combinations(range(len(FACTORS)), 2)]
    missing = {(i, a, j, b) for i, j in pairs for a, b in product(FACTORS[i], FACTORS[j])}
    chosen: dict[Combination, None] = {}

    def newly_covered(one: Combination) -> set[tuple[int, str, int, str]]:
        return {(i, one[i], j, one[j]) for i, j in pairs} & missing

    while missing or len(chosen) < COUNT:
        candidates = [Combination(*map(draws.choice, FACTORS)) for _ in range(20)]
        if missing:
            i, a, j, b = min(missing)
            candidates = [
                Combination(*(a if k == i else b if k == j else v for k, v in enumerate(c))) for c in candidates
            ]
        best = max(candidates, key=lambda one: len(newly_covered(one)))
        missing -= newly_covered(best)
        chosen[best] = None
    return [*chosen]


COMBINATIONS = covering()


class Fault:
    """What goes wrong, and where: the loss fails when it is called for the so-manieth time in training."""

    def __init__(self) -> None:
        self.after: int | None = None
        self.calls = 0


FAULT = Fault()


class FaultError(RuntimeError):
    """An error in the person's code."""


def loss(guard: str) -> Any:
    """A loss that for some batches has infinite gradients, or needs too much memory unless they are small."""

    def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.requires_grad and FAULT.after is not None:
            FAULT.calls += 1
            if FAULT.calls > FAULT.after:
                FAULT.after = None
                raise FaultError("interrupted in the loss")
        if guard == "memory" and outputs.requires_grad and len(outputs) > 10 and targets[:2].tolist() == [2, 1]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        value = F.cross_entropy(outputs.float(), targets)
        if guard == "skipping" and outputs.requires_grad and targets[:3].tolist() == [0, 1, 2]:
            return value * float("inf")
        return value

    return cross_entropy


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(4, 4), nn.Linear(4, 3)
        self.again = nn.Linear(4, 4)
        self.again.weight = self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.again(torch.tanh(self.inner(x)))))


class Annealed(nn.Module):
    """Counts its steps in a buffer, in its extra state, or in a plain attribute, and scales by the count."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.net, self.how, self.count = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), how, 0
        if how == "buffer":
            self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.count += 1
            if self.how == "buffer":
                self.seen.add_(1.0)
        seen = self.seen if self.how == "buffer" else self.count
        return self.net(x) * (1 + 0.05 * seen)

    def get_extra_state(self) -> int:
        return self.count if self.how == "extra state" else 0

    def set_extra_state(self, state: int) -> None:
        if self.how == "extra state":
            self.count = state


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 8, dtype=torch.complex64) * 0.4)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out((x.to(torch.complex64) @ self.weight).abs())


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells, self.out = nn.GRU(1, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cells(x.unsqueeze(-1))[0][:, -1])


def model(kind: str) -> nn.Module:
    if kind == "tied":
        return Tied()
    if kind in ("buffer", "extra state", "counter"):
        return Annealed(kind)
    if kind == "complex":
        return Complex()
    if kind == "recurrent":
        return Recurrent()
    between = {"batch norm": [nn.BatchNorm1d(8)], "dropout": [nn.Dropout(0.3)]}.get(kind, [])
    net = nn.Sequential(nn.Linear(4, 8), *between, nn.Tanh(), nn.Linear(8, 3))
    if kind == "frozen":
        net[0].weight.requires_grad_(False)
    return net.bfloat16() if kind == "bfloat16" else net


class Stateful(IterableDataset[Any]):
    """A stream with a place that is saved and loaded, as torchdata's."""

    def __init__(self) -> None:
        self.place, self.resumed = 0, False
        self.x, self.y = blobs(90, 0)

    def __iter__(self) -> Iterator[Any]:
        if not self.resumed:
            self.place = 0
        self.resumed = False
        while self.place < 90:
            at, self.place = self.place, self.place + 1
            yield self.x[at], self.y[at]

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place, self.resumed = state["place"], True


def data(kind: str) -> Any:
    if kind in ("dataset", "workers"):
        return Augmented()
    if kind.startswith("loader"):
        return DataLoader(Augmented(), batch_size=16, shuffle=True, num_workers=2 if "workers" in kind else 0)
    if kind == "own sampler":
        return DataLoader(Augmented(), batch_size=16, sampler=Backwards())
    if kind == "weighted":
        own = WeightedRandomSampler([1.0, 2.0] * 45, 90, generator=torch.Generator().manual_seed(5))
        return DataLoader(Augmented(), batch_size=16, sampler=own)
    return {"stream": Stream, "stateful": Stateful}.get(kind, lambda: blobs(90, 0))()


def task(case: str) -> tw.Task:
    one = COMBINATIONS[int(case)]
    return tw.Task(model=lambda: model(one.module), loss=loss(one.guard), data=data(one.data), validation=blobs(30, 1))


def plan(case: str) -> tw.Plan:
    one = COMBINATIONS[int(case)]
    guard = dict(GUARDS[one.guard])
    if RULES[one.rule].average is not None:
        guard.pop("ema", None)
    rare = one.interruption in ("between checkpoints", "in the loss")
    return tw.Plan(
        **{
            "rule": one.rule,
            "learning_rate": 1.0 if RULES[one.rule].finds_rate else 1e-2,
            "batch_size": 16,
            "steps": STEPS,
            "validate_every": 8,
            "snapshot_every": 6,
            "digest_every": 1,
            "checkpoint_seconds": 1e6 if rare else 0.0,
            "threads": 1,
            "workers": 2 if one.data == "workers" else 0,
            **guard,
        }
    )
