"""What the watch costs per step: `python bench/watch/cost.py`.

CPU time per step on one thread, in rounds in which all take turns, as the ratio to the same loop without it; medians over rounds.
In `tw.train` with the watch on and off; in a loop with torch.optim's AdamW given the loss alone, given a closure and indices too,
and, for comparison, under `torch.autograd.set_detect_anomaly`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

import models
import thalweg as tw
from runs import plan_of
from tuning.lines import write_table

MODELS = ("mlp", "11m")
STEPS = {"mlp": 1000, "11m": 100}  # of a round: rare measurements every 50 and 200 steps are among them
SKIPPED = 0.1  # share of a round's steps that are not counted


class Clock:
    """CPU time at each step: in a loop, at its forward pass in training mode, in place of the wall time of `models.stamp`."""

    def append(self, _: float) -> None:
        self.times.append(time.process_time())

    def __init__(self) -> None:
        self.times: list[float] = []

    def microseconds(self) -> float:
        """Give the mean time per step since the last call, and begin anew."""
        times = self.times[int(SKIPPED * len(self.times)) :]
        self.times = []
        return (times[-1] - times[0]) / (len(times) - 1) * 1e6


def in_train(model: str, steps: int, clock: Clock, watch: bool) -> float:
    case = models.CASES[model]
    task = tw.Task(model=case.make, loss=F.cross_entropy, data=models.data(case))
    clock.times = []
    models.stamp = float  # the watch calls the model besides: steps are counted as they are taken
    tw.train(
        task,
        plan_of(steps, watch=watch, ema=None, clip_norm=None),
        progress=False,
        on_step=lambda model, figures: clock.append(0.0),
    )
    models.stamp = clock.append
    return clock.microseconds()


def in_loop(model: str, clock: Clock, kind: str) -> Callable[[int], float]:
    """Give a loop that goes on for some steps each time it is called."""
    case = models.CASES[model]
    x, y = models.data(case)
    network = case.make()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    watch = tw.Watch(network, optimizer) if kind.startswith("watch") else None
    generator = torch.Generator().manual_seed(0)

    def run(steps: int) -> float:
        clock.times = []
        with torch.autograd.set_detect_anomaly(kind == "anomaly", check_nan=True):
            for _ in range(steps):
                rows = torch.randint(len(x), (models.BATCH,), generator=generator)
                inputs, targets = x[rows], y[rows]
                loss = F.cross_entropy(network(inputs), targets)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                if watch is None:
                    loss.item()  # which every loop reads, to show it
                elif kind == "watch":
                    watch.step(loss)
                else:
                    # A closure's own passes are part of the cost, and no steps.
                    watch.step(loss, closure=partial(_again, clock, network, inputs, targets), indices=rows)
        return clock.microseconds()

    return run


def _again(clock: Clock, network: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    loss = F.cross_entropy(network(inputs), targets)
    clock.times.pop()
    return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="of a round; default: 1,000 of the small model, 100 of the large")
    parser.add_argument("--only", nargs="*", default=MODELS)
    parser.add_argument(
        "--write", action="store_true", help="keep the figures in bench/raw/watch_cost.json, for the README"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    clock, samples, began = Clock(), list[dict[str, Any]](), time.perf_counter()
    models.stamp = clock.append
    for model in options.only:
        steps = options.steps or STEPS[model]
        ways: dict[str, Callable[[], float]] = {
            "train, off": partial(in_train, model, steps, clock, False),
            "train, watch": partial(in_train, model, steps, clock, True),
        }
        loops = {kind: in_loop(model, clock, kind) for kind in ("off", "watch", "watch with closure", "anomaly")}
        ways |= {f"loop, {kind}": partial(run, steps) for kind, run in loops.items()}
        for number in range(-1, options.rounds):
            for what, measure in ways.items():
                value = round(measure(), 2)
                if number >= 0:
                    samples.append({"model": model, "what": what, "round": number, "value": value})
        for what in ways:
            off = f"{what.partition(',')[0]}, off"
            values = [s["value"] for s in samples if (s["model"], s["what"]) == (model, what)]
            bases = [s["value"] for s in samples if (s["model"], s["what"]) == (model, off)]
            ratio = statistics.median(a / b for a, b in zip(values, bases, strict=True))
            print(f"{model:5} {what:26} {statistics.median(values):10.1f} us {ratio - 1:+8.1%}", flush=True)
    if options.write:
        write_table(
            "watch_cost", {"rounds": options.rounds, "models": list(options.only)}, samples, time.perf_counter() - began
        )


if __name__ == "__main__":
    main()
