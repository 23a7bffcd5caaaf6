"""Runs of thalweg that are interrupted, and the task and plan to resume them with."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import thalweg as tw
from models import BATCH, Case, data
from thalweg.records.step_figures import StepFigures


class StopAt:
    """A progress display that raises SIGINT, as Ctrl-C does, after a step."""

    def __init__(self, step: int) -> None:
        self.last = step

    def begin(self, plan: tw.Plan, step: int, validation: bool) -> None: ...

    def step(self, figures: StepFigures) -> None:
        if figures.step == self.last:
            signal.raise_signal(signal.SIGINT)

    def validated(self, step: int, figures: Mapping[str, float]) -> None: ...

    def event(self, step: int, kind: str, message: str) -> None: ...

    def end(self) -> None: ...


def task_of(case: Case) -> tw.Task:
    return tw.Task(model=case.make, loss=F.cross_entropy, data=data(case))


def plan_of(steps: int, **knobs: Any) -> tw.Plan:
    """Give the plan that all benchmarks train; `knobs` replace some of its values."""
    settings: dict[str, Any] = {
        "rule": "adamw",
        "learning_rate": 1e-3,
        "batch_size": BATCH,
        "weight_decay": 0.01,
        "schedule": tw.schedule.linear(warmup=0.05),
        "clip_norm": 1.0,
        "ema": 0.999,
        "steps": steps,
        "validate_every": steps,
        "threads": torch.get_num_threads(),
    }
    return tw.Plan(**{**settings, **knobs})


def interrupted(task: tw.Task, plan: tw.Plan, step: int, folder: Path) -> Path:
    """Train up to a step, stop there as a person would, and give the checkpoint that was written."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have background jobs ignore SIGINT
    try:
        with suppress(KeyboardInterrupt):
            tw.train(task, plan, out=folder, progress=StopAt(step))
    finally:
        signal.signal(signal.SIGINT, before)
    return folder / "checkpoints" / f"step-{step:08d}"
