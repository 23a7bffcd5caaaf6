"""The batch size: time and memory of each candidate are measured, and a stated rule chooses one."""

from __future__ import annotations

import math
import resource
import sys
import time
from typing import NamedTuple

import torch

from thalweg.descent.out_of_memory import out_of_memory
from thalweg.descent.problem import Problem
from thalweg.descent.settle import with_fitting_batches
from thalweg.descent.timing import time_steps
from thalweg.records.plan import Evidence, Plan

SMALLEST, LARGEST = 32, 1024
SMALLEST_OF_FEW = 8  # the smallest where batches of 32 leave fewer than FEW_STEPS updates
FEW_STEPS = 200
FEWEST_STEPS = 5000  # of a run: a larger batch that leaves fewer is not worth its speed
DIFFERS = 1.05  # largest over smallest peak of memory, above which the sizes differ in it
SECONDS = 1.5  # that measuring takes, about


class Measured(NamedTuple):
    """One candidate: seconds per step (None where memory ran out), examples per second, peak memory in bytes."""

    batch_size: int
    seconds: float | None
    examples_per_second: float
    peak_bytes: int


def candidates(count: int | None, epochs: float | None = None) -> list[int]:
    """Give powers of two from 32 to 1,024, at most a fifth of the data, so that an epoch has several steps.

    Where batches of 32 leave fewer than 200 updates, from 8 on: on seven data sets of 60 to 600 examples 8 ended lower than 32
    over 2 and 3 epochs, and as low over 5 and 10; over 20, with some hundred updates of 32, it did not.

    >>> candidates(1437, 20), candidates(200, 10), candidates(20), candidates(None)
    ([32, 64, 128, 256], [8, 16, 32], [20], [32, 64, 128, 256, 512, 1024])
    """
    few = epochs is not None and count is not None and epochs * count < FEW_STEPS * SMALLEST
    smallest = SMALLEST_OF_FEW if few else SMALLEST
    powers = [2**k for k in range(int(math.log2(smallest)), int(math.log2(LARGEST)) + 1)]
    if count is None:
        return powers
    return [p for p in powers if p <= max(smallest, count // 5) and p <= count] or [count]


def measure(problem: Problem, plan: Plan, epochs: float | None = None) -> list[Measured]:
    """Time a few steps at each candidate, smallest first, and stop at the first for which memory runs out."""
    measured: list[Measured] = []
    started = time.perf_counter()
    for size in candidates(problem.count, epochs):
        seconds = _seconds(problem, plan.replace(batch_size=size))
        if seconds is None:
            measured.append(Measured(size, None, 0.0, peak_bytes(problem.device)))
            break
        measured.append(Measured(size, seconds, size / seconds, peak_bytes(problem.device)))
        if time.perf_counter() - started > SECONDS or seconds > SECONDS / 4:
            break
    return measured


def _seconds(problem: Problem, plan: Plan) -> float | None:
    """Give the seconds per step, None where memory does not hold a step's examples at once."""
    try:
        timed = time_steps(problem, with_fitting_batches(problem, plan), count=5, patience=SECONDS / 2)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return None
    return timed.seconds if timed.fits else None


def choose(measured: list[Measured], epochs: float | None, count: int | None) -> tuple[int, Evidence]:
    """Give the largest batch that fits and leaves 5,000 updates; where none does, the largest up to 32 that leaves 200.

    Smaller batches give more updates for the same examples, larger ones more examples per second. Below some thousand updates
    more updates help most: on the example `table` 32 beat 64 and 128 at every seed, with 7,575 updates against 3,795
    and 1,905.
    """
    fitting = [m for m in measured if m.seconds is not None]
    if not fitting:
        chosen, reason = measured[0], "memory ran out at the smallest size measured: its steps are cut into parts"
    elif epochs is None or count is None:
        fastest = max(m.examples_per_second for m in fitting)
        chosen = next(m for m in fitting if m.examples_per_second >= 0.5 * fastest)
        reason = "the smallest of those measured that is at least half as fast, in examples per second, as the fastest"
    else:
        updates = {m.batch_size: epochs * count / m.batch_size for m in fitting}
        leaving = [m for m in fitting if updates[m.batch_size] >= FEWEST_STEPS]
        small = [m for m in fitting if m.batch_size <= SMALLEST and updates[m.batch_size] >= FEW_STEPS]
        chosen = (leaving or small or fitting[:1])[-1]
        reason = f"the largest of those measured that leaves {FEWEST_STEPS:,} updates"
        if not leaving:
            reason = f"the smallest of those measured: none leaves {FEWEST_STEPS:,} updates in this budget"
        if small and not leaving and chosen is not fitting[0]:
            reason = f"the largest of those measured that leaves {FEW_STEPS} updates: none leaves {FEWEST_STEPS:,} in this budget"
    figures = {
        "batch_sizes": [m.batch_size for m in measured],
        "examples_per_second": [round(m.examples_per_second) for m in measured],
    }
    peaks = [m.peak_bytes for m in measured]
    if max(peaks) > DIFFERS * min(peaks):
        figures["peak_megabytes"] = [round(peak / 2**20) for peak in peaks]
    return chosen.batch_size, Evidence("measured", reason, figures)


def peak_bytes(device: torch.device) -> int:
    """Give the most memory in use so far, in bytes: the accelerator's, on a CPU this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
