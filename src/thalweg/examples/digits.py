"""Handwritten digits, 8 x 8 pixels: a small perceptron.

Data: Optical Recognition of Handwritten Digits (Alpaydin & Kaynak 1998, UCI Machine Learning Repository), its 1,797 test
images, as shipped with scikit-learn. Licence: CC BY 4.0. To beat: a linear classifier, 95 % right.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

import thalweg as tw
from thalweg.examples.data import import_data_package, split

SOURCE = "UCI: Optical Recognition of Handwritten Digits, as shipped with scikit-learn"
LICENCE = "CC BY 4.0"
EPOCHS = 20.0
SECONDS = 8.0
EXPECTED = {"accuracy": (0.96, 0.99)}


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """Share of images whose highest score is the right digit's."""
    return float((scores.argmax(1) == labels).float().mean())


def task(hidden: int = 128, held_out: float = 0.2) -> tw.Task:
    """Make the task: `hidden` units in each of two layers, a share of the images held out for validation."""
    pixels, labels = import_data_package("sklearn.datasets").load_digits(return_X_y=True)
    x = (pixels / 16).astype(np.float32)  # ink from 0 to 1
    train, validation = split(len(x), held_out, labels)

    def model() -> nn.Module:
        return nn.Sequential(
            nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 10)
        )

    return tw.Task(
        model=model,
        loss=F.cross_entropy,
        data=(x[train], labels[train]),
        validation=(x[validation], labels[validation]),
        metrics={"accuracy": accuracy},
    )
