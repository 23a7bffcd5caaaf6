"""What it costs to record a run: history at each step and one checkpoint per minute, as shares of the run's time.

Each part is timed by itself, on what a real run writes: the difference of two whole runs would be smaller than their spread.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from models import CASES, data, microseconds
from peers import ours
from runs import interrupted, plan_of, task_of
from thalweg.descent.problem import open_task
from thalweg.descent.state import Descent
from thalweg.records import checkpoint
from thalweg.records.history import History

ROUNDS = 7
ROWS = 2560  # ten flushes
STOP = 4


def run(options: Any) -> dict[str, Any]:
    models = [model for model in CASES if not options.only or model in options.only]
    rounds, samples = options.rounds or ROUNDS, list[dict[str, Any]]()
    for model in models:
        with tempfile.TemporaryDirectory() as folder:
            parts = parts_of(model, Path(folder))
            for number in range(-1, rounds):
                for what, measure in parts.items():
                    value = round(measure(), 2)
                    if number >= 0:
                        samples.append({"model": model, "what": what, "round": number, "value": value})
    every = plan_of(1).snapshot_every
    return {
        "settings": {"models": models, "threads": torch.get_num_threads(), "rounds": rounds, "every": every},
        "samples": samples,
    }


def parts_of(model: str, folder: Path) -> dict[str, Callable[[], float]]:
    """Give what is timed, each a function that returns microseconds."""
    case = CASES[model]
    x, y = data(case)
    written = interrupted(task_of(case), plan_of(STOP + 1), STOP, folder / "run")
    state = checkpoint.load(written).state
    descent = Descent(open_task(task_of(case)), plan_of(STOP + 1))
    descent.load_state_dict(state)

    def step() -> float:
        with tempfile.TemporaryDirectory() as path:
            ours.train(case.make, x, y, case.steps, Path(path))
        return microseconds(case.steps)

    def history() -> float:
        with tempfile.TemporaryDirectory() as path, History(path) as written:
            started = time.perf_counter()
            for number in range(ROWS):
                written.append(number, row(number))
            written.flush()
            return (time.perf_counter() - started) / ROWS * 1e6

    return {
        "step": step,
        "history": history,
        "checkpoint": lambda: timed(lambda: checkpoint.save(folder / "again", state, step=STOP)),
        "digest": lambda: timed(descent.digest),
        "snapshot": lambda: timed(descent.take_snapshot),
    }


def row(number: int) -> dict[str, float]:
    """Give what the loop writes each step."""
    return {
        "loss": 2.3 / (number + 1),
        "learning_rate": 1e-3,
        "gradient_norm": 1.5,
        "clip_scale": 0.7,
        "examples": 64.0,
        "seconds": 6e-4,
    }


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e6
