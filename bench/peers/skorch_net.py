"""skorch: an estimator with scikit-learn's interface, at its defaults but for the common settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import GradientNormClipping
from torch import Tensor, nn

from models import BATCH


def train(make: Callable[[], nn.Module], x: Tensor, y: Tensor, steps: int, folder: Path) -> nn.Module:
    net = NeuralNetClassifier(
        make(),
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.AdamW,
        optimizer__fused=True,
        lr=1e-3,
        batch_size=BATCH,
        iterator_train__shuffle=True,
        max_epochs=steps * BATCH // len(x),
        train_split=None,  # no validation
        callbacks=[GradientNormClipping(1.0)],
    )
    return net.fit(x, y).module_
