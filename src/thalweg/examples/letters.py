"""A table: which capital letter is it, from 16 measurements of its picture? A perceptron.

Data: Letter Recognition (David J. Slate 1991, UCI Machine Learning Repository), 20,000 rows, in `letters.csv.gz` beside
this file: 16 whole numbers from 0 to 15 and the letter. Licence: CC BY 4.0; not changed. To beat: a linear classifier,
76 % right, and the nearest neighbour, 94 %.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

import thalweg as tw
from thalweg.examples.data import split

SOURCE = "UCI: Letter Recognition (Slate 1991), shipped with thalweg"
LICENCE = "CC BY 4.0"
EPOCHS = 15.0
SECONDS = 25.0
EXPECTED = {"accuracy": (0.955, 0.98)}


def accuracy(scores: Tensor, letters: Tensor) -> float:
    """Share of rows whose highest score is the right letter's."""
    return float((scores.argmax(1) == letters).float().mean())


def task(hidden: int = 128, held_out: float = 0.2) -> tw.Task:
    """Make the task: `hidden` units in each of two layers, a share of the rows held out for validation."""
    table = np.loadtxt(
        Path(__file__).with_name("letters.csv.gz"),
        delimiter=",",
        dtype=np.uint8,
        converters={16: lambda letter: ord(letter) - ord("A")},
    )
    table = np.unique(table, axis=0)  # 1,332 rows are there twice: validation must not hold what was trained on
    letters = table[:, 16].astype(np.int64)
    train, validation = split(len(table), held_out, letters)
    x = table[:, :16]
    x = (x - x[train].mean(0)) / x[train].std(0)  # of the training part alone, so that nothing of validation enters
    x = x.astype(np.float32)

    def model() -> nn.Module:
        return nn.Sequential(
            nn.Linear(16, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 26)
        )

    return tw.Task(
        model=model,
        loss=F.cross_entropy,
        data=(x[train], letters[train]),
        validation=(x[validation], letters[validation]),
        metrics={"accuracy": accuracy},
    )
