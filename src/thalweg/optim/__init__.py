"""Optimisers: PyTorch's argument names where PyTorch has the same thing; `clip_norm`, `ema` and a guard on top."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch.optim.optimizer import ParamsT

from thalweg.optim.classes import (
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    GradientDescent,
    Lion,
    Momentum,
    Muon,
    NAdam,
    Nesterov,
    NorMuon,
    Prodigy,
    RAdam,
    RMSprop,
    ScheduleFreeAdamW,
    ScheduleFreeSGD,
)
from thalweg.optim.optimizer import Optimizer, StepRecord
from thalweg.optim.recalibration import recalibrated
from thalweg.optim.sgd import SGD

__all__ = [
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "GradientDescent",
    "Lion",
    "Momentum",
    "Muon",
    "NAdam",
    "Nesterov",
    "NorMuon",
    "Optimizer",
    "Prodigy",
    "RAdam",
    "RMSprop",
    "ScheduleFreeAdamW",
    "ScheduleFreeSGD",
    "StepRecord",
    "build",
    "recalibrated",
]


def build(
    rule: str,
    params: ParamsT,
    *,
    lr: float,
    weight_decay: float = 0.0,
    constants: Mapping[str, Any] | None = None,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    ema: float | None = None,
    on_nonfinite: Literal["raise", "skip"] = "raise",
    engine: str = "auto",
) -> Optimizer:
    """Make an optimiser from a rule's name and plain values, as a plan holds them."""
    return Optimizer(
        params,
        rule,
        lr=lr,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        clip_value=clip_value,
        ema=ema,
        on_nonfinite=on_nonfinite,
        engine=engine,
        **(constants or {}),
    )
