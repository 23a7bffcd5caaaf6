"""What it is worth to hold examples out for validation, by how few there are.

Small samples of four data sets of scikit-learn; on each `tune` and `train` with a share of the examples held out, none, a tenth,
a fifth or three tenths; then the loss on all examples that are not in the sample. With nothing held out the training loss chooses
the learning rate, and the last weights are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from sklearn import datasets
from torch import Tensor, nn
from torch.nn import functional as F

import thalweg as tw

SETS: dict[str, Callable[..., Any]] = {
    "digits": datasets.load_digits,
    "breast cancer": datasets.load_breast_cancer,
    "wine": datasets.load_wine,
    "diabetes": datasets.load_diabetes,
}
COUNTS = (12, 20, 30, 50, 100, 200)
SHARES = (0.0, 0.1, 0.2, 0.3)
SEEDS = (0, 1, 2, 3, 4)
STEPS, EFFORT, FEWEST_OTHERS = 300, 3.0, 50


def run(options: Any) -> dict[str, Any]:
    seeds, samples = SEEDS[: options.rounds], list[dict[str, Any]]()
    for seed, count, name in product(seeds, COUNTS, options.only or SETS):
        given, others = sample(name, count, seed)
        if len(others[0]) < FEWEST_OTHERS:
            continue
        for share in SHARES:
            samples.append(
                {"set": name, "count": count, "share": share, "seed": seed, **measure(given, others, share, seed)}
            )
            print(f"holdout: {samples[-1]}", flush=True)
    return {"settings": {"seeds": list(seeds), "steps": STEPS, "effort": EFFORT}, "samples": samples}


def sample(name: str, count: int, seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Give `count` examples and all others, standardised by the first; targets of numbers too."""
    x, y = (torch.from_numpy(part) for part in SETS[name](return_X_y=True))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    x, numbers = x[order].float(), y[order].is_floating_point()
    x = ((x - x[:count].mean(0)) / (x[:count].std(0) + 1e-6)).clamp(-5, 5)
    y = y[order].float()[:, None] if numbers else y[order].long()
    if numbers:
        y = (y - y[:count].mean()) / y[:count].std()
    return (x[:count], y[:count]), (x[count:], y[count:])


def measure(given: tuple[Tensor, Tensor], others: tuple[Tensor, Tensor], share: float, seed: int) -> dict[str, float]:
    """Tune and train on a sample, and give the loss on the examples outside of it, and the learning rate."""
    (x, y), numbers = given, given[1].is_floating_point()
    outputs = 1 if numbers else int(torch.cat([y, others[1]]).max()) + 1
    task = tw.Task(
        model=lambda: nn.Sequential(nn.Linear(x.shape[1], 64), nn.ReLU(), nn.Linear(64, outputs)),
        loss=F.mse_loss if numbers else F.cross_entropy,
        data=given,
    )
    fixed = {"holdout": share, "threads": 1}
    plan = tw.tune(task, steps=STEPS, effort=EFFORT, seed=seed, fixed=fixed, progress=False)
    trained = tw.train(task, plan, progress=False)
    return {"loss": tw.evaluate(trained, others)["loss"], "rate": plan.learning_rate}
