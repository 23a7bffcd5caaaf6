"""A table: how often people see a doctor in a year, from their insurance and health. Counts, so the loss is Poisson's.

Data: RAND Health Insurance Experiment, 20,190 person-years (Cameron & Trivedi 2005), as shipped with statsmodels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import thalweg as tw
from thalweg.examples.data import needs, split

SOURCE = "RAND Health Insurance Experiment, as shipped with statsmodels"
LICENCE = "public domain"
EPOCHS = 15.0
SECONDS = 40.0
EXPECTED = {"deviance_explained": (0.08, 0.25)}


def deviance_explained(log_rate: Tensor, visits: Tensor) -> float:
    """Share of the constant predictor's Poisson deviance that the model takes away: 0 is useless, 1 is perfect."""

    def deviance(rate: Tensor) -> Tensor:
        return 2 * (torch.xlogy(visits, visits / rate) - visits + rate).mean()

    return float(1 - deviance(log_rate.exp()) / deviance(visits.mean().expand_as(visits)))


def task(hidden: int = 64, held_out: float = 0.2) -> tw.Task:
    """Make the task: `hidden` units in two layers."""
    table = needs("statsmodels.datasets.randhie").load_pandas().data
    visits = table["mdvis"].to_numpy(np.float32)[:, None]
    x = table.drop(columns="mdvis").to_numpy(np.float32)
    train, validation = split(len(x), held_out)
    x = (x - x[train].mean(0)) / x[train].std(0)  # figures of the training part alone

    def model() -> nn.Module:
        return nn.Sequential(
            nn.Linear(x.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )

    return tw.Task(
        model=model,
        loss=F.poisson_nll_loss,
        data=(x[train], visits[train]),
        validation=(x[validation], visits[validation]),
        metrics={"deviance_explained": deviance_explained},
    )
