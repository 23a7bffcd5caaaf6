"""A process that times steps of one peer: `python bench/stepper.py PEER THREADS`; requests and answers are lines of JSON.

It runs on as many cores as it has threads, since some libraries have no other setting for their number. Its first answer says
whether the peer is installed and works: `{"missing": null}`, or why not.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import statistics
import sys
import time
from typing import Any

PEER, THREADS = sys.argv[1], int(sys.argv[2])
os.environ["OMP_NUM_THREADS"] = str(THREADS)
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])

import torch  # noqa: E402  # every library counts the cores when it is loaded

from step import MODELS  # noqa: E402


class Timed:
    """A peer and the gradients that each of its steps is given, for one model at a time."""

    def __init__(self, peer: Any) -> None:
        self.peer, self.model = peer, ""

    def measure(self, model: str, proof: bool) -> dict[str, Any]:
        """Give the median time per step; with `proof`, how far the weights moved along gradients and initial weights."""
        if model != self.model:
            self.begin(model)
        times = list[float]()
        for _ in range(max(3, min(200, 20_000_000 // self.count))):
            self.stepper.prepare(self.gradients)
            started = time.perf_counter()
            self.stepper.step()
            times.append(time.perf_counter() - started)
        found: dict[str, Any] = {"microseconds": round(statistics.median(times) * 1e6, 2)}
        if proof:
            starts, gradients = drawn(model)
            moves = [w - start for w, start in zip(self.stepper.weights(), starts, strict=True)]
            found["moved"] = [self.along(moves, gradients), self.along(moves, starts)]
        return found

    def begin(self, model: str) -> None:
        self.stepper = None  # frees its memory before the next is made
        gc.collect()
        starts, self.gradients = drawn(model)
        self.model, self.count = model, sum(g.numel() for g in self.gradients)
        self.stepper = self.peer.make(starts)

    def along(self, moves: list[torch.Tensor], others: list[torch.Tensor]) -> float:
        """Give the mean over all weights of the move times the gradient (or the initial weight)."""
        return sum(float((a * b).sum(dtype=torch.float64)) for a, b in zip(moves, others, strict=True)) / self.count


def drawn(model: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Draw a model's initial weights and gradients, the same every time."""
    generator = torch.Generator().manual_seed(0)
    starts, gradients = ([torch.randn(shape, generator=generator) for shape in MODELS[model]] for _ in range(2))
    return starts, gradients


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)  # a library's own prints must not mix with the answers
    if "BENCH_SHOW_ERRORS" not in os.environ:
        os.dup2(null, 2)
    torch.set_num_threads(THREADS)

    def answer(**found: Any) -> None:
        print(json.dumps(found), file=answers, flush=True)

    try:
        timed = Timed(importlib.import_module(f"peers.steps.{PEER}"))
        timed.measure(next(iter(MODELS)), proof=True)
    except ModuleNotFoundError as missing:
        answer(missing=f"no package {missing.name}")
        return
    except Exception as failed:
        if "BENCH_SHOW_ERRORS" in os.environ:
            raise
        answer(missing=f"{type(failed).__name__} at its first step")
        return
    timed = Timed(timed.peer)
    answer(missing=None)
    for line in sys.stdin:
        answer(**timed.measure(**json.loads(line)))


if __name__ == "__main__":
    main()
