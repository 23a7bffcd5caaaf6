"""Timing a few steps, for whoever plans by the clock."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small import classes

import thalweg as tw
from thalweg.descent import timing
from thalweg.descent.problem import open_task
from thalweg.descent.timing import time_steps


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that is read twice a step; the n-th step takes n seconds."""
    readings: list[float] = []

    def read() -> float:
        readings.append(0.0 if len(readings) % 2 == 0 else (len(readings) + 1) / 2)
        return readings[-1]

    monkeypatch.setattr(timing.time, "perf_counter", read)
    return readings


def test_the_median_after_two_steps_of_warm_up_is_given(clock: list[float]) -> None:
    assert time_steps(open_task(classes()), tw.Plan(batch_size=16), count=5) == (5.0, True)
    assert len(clock) == 14


@pytest.mark.parametrize(
    ("patience", "seconds", "steps"), [(0.5, 1.0, 1), (1.0, 1.5, 2), (3.5, 3.0, 3), (math.inf, 5.0, 7)]
)
def test_it_stops_where_patience_ends(clock: list[float], patience: float, seconds: float, steps: int) -> None:
    found = time_steps(open_task(classes()), tw.Plan(batch_size=16), count=5, patience=patience)
    assert (found.seconds, len(clock)) == (seconds, 2 * steps)


def test_steps_that_memory_does_not_hold_at_once_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = open_task(classes())
    forward = torch.nn.Linear.forward

    def narrow(self: torch.nn.Linear, x: torch.Tensor) -> Any:
        if len(x) > 8:
            raise RuntimeError("out of memory")
        return forward(self, x)

    monkeypatch.setattr(torch.nn.Linear, "forward", narrow)
    assert not time_steps(problem, tw.Plan(batch_size=16), count=1).fits
    assert time_steps(problem, tw.Plan(batch_size=8), count=1).fits
