"""What the watch costs per step: `python bench/watch/cost.py`.

CPU time on one thread, in rounds in which all take turns; medians over rounds. Per step after the first 200, as the ratio to the
same loop without it; and what the first 200 steps take more, once: in them the watch looks oftener than later. In `tw.train` with
the watch on and off; in a loop with AdamW of PyTorch given the loss alone, given a closure and indices too, and, to compare,
under `torch.autograd.set_detect_anomaly`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

import models
import thalweg as tw
from runs import plan_of
from tuning.lines import write_table

RAW = Path(__file__).parents[1] / "raw" / "watch_cost.json"
MODELS = ("mlp", "11m")
STEPS, ROUNDS = {"mlp": 1200, "11m": 400}, {"mlp": 5, "11m": 2}  # of a round, and rounds
RATE = {"mlp": 1e-3, "11m": 1e-4}  # at which the run is a healthy one: of another, the search for a cure would be timed
FIRST = 200  # steps in which the watch looks oftener; rare measurements every 50 and 200 steps are among the others


class Cost(NamedTuple):
    """CPU time of the first steps together, in milliseconds, and of each step after them, in microseconds."""

    first: float
    each: float


class Clock:
    """CPU time after each step of a round."""

    def __init__(self) -> None:
        self.times = [time.process_time()]

    def tick(self, *_: object) -> None:
        self.times.append(time.process_time())

    def cost(self) -> Cost:
        times = self.times
        return Cost((times[FIRST] - times[0]) * 1e3, (times[-1] - times[FIRST]) / (len(times) - 1 - FIRST) * 1e6)


def in_train(model: str, steps: int, watch: bool) -> Cost:
    case = models.CASES[model]
    task = tw.Task(model=case.make, loss=F.cross_entropy, data=models.data(case))
    clock = Clock()
    plan = plan_of(steps, watch=watch, ema=None, clip_norm=None, learning_rate=RATE[model])

    def tick(model: torch.nn.Module, figures: object) -> None:
        if len(clock.times) == 1:
            clock.times = [time.process_time()]  # what comes before the first step is no cost of steps
        clock.tick()

    tw.train(task, plan, progress=False, on_step=tick)
    return clock.cost()


def in_loop(model: str, steps: int, kind: str) -> Cost:
    """Train by a loop as people write it, with PyTorch's AdamW."""
    case = models.CASES[model]
    x, y = models.data(case)
    torch.manual_seed(0)
    network = case.make()
    optimizer = torch.optim.AdamW(network.parameters(), RATE[model])
    watch = tw.Watch(network, optimizer, total=steps) if kind.startswith("watch") else None
    generator = torch.Generator().manual_seed(0)
    clock = Clock()
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
                watch.step(loss, closure=partial(_loss, network, inputs, targets), indices=rows)
            clock.tick()
    return clock.cost()


def _loss(network: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(network(inputs), targets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="default: 5 of the small model, 2 of the large")
    parser.add_argument("--steps", type=int, help="of a round; default: 1,200 of the small model, 400 of the large")
    parser.add_argument("--only", nargs="*", default=MODELS)
    parser.add_argument(
        "--write",
        action="store_true",
        help="keep the figures in bench/raw/watch_cost.json, for the README; those of a model that --only leaves out stay",
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    samples, began = list[dict[str, Any]](), time.perf_counter()
    models.stamp = float  # the watch calls the model besides: steps are counted as they are taken
    for model in options.only:
        steps, rounds = options.steps or STEPS[model], options.rounds or ROUNDS[model]
        ways: dict[str, Callable[[], Cost]] = {
            "train, off": partial(in_train, model, steps, False),
            "train, watch": partial(in_train, model, steps, True),
        }
        kinds = ("off", "watch", "watch with closure", "anomaly")
        ways |= {f"loop, {kind}": partial(in_loop, model, steps, kind) for kind in kinds}
        if model == "mlp":  # of which the first steps of a process are no small part
            for measure in ways.values():
                measure()
        for number in range(rounds):
            for what, measure in ways.items():
                cost = measure()
                figures = {"value": round(cost.each, 2), "first": round(cost.first, 2)}
                samples.append({"model": model, "what": what, "round": number, **figures})
        for what in ways:
            off = f"{what.partition(',')[0]}, off"
            own = [s for s in samples if (s["model"], s["what"]) == (model, what)]
            bases = [s for s in samples if (s["model"], s["what"]) == (model, off)]
            ratio = statistics.median(a["value"] / b["value"] for a, b in zip(own, bases, strict=True))
            more = statistics.median(a["first"] - b["first"] for a, b in zip(own, bases, strict=True))
            each = statistics.median(sample["value"] for sample in own)
            print(f"{model:5} {what:26} {each:10.1f} us {ratio - 1:+8.1%}, once {more:+8.1f} ms", flush=True)
    if options.write:
        earlier = json.loads(RAW.read_text())["samples"] if RAW.is_file() else []
        samples += [sample for sample in earlier if sample["model"] not in options.only]
        samples.sort(key=lambda sample: MODELS.index(sample["model"]))
        found = list(dict.fromkeys(sample["model"] for sample in samples))
        write_table("watch_cost", {"threads": 1, "models": found}, samples, time.perf_counter() - began)


if __name__ == "__main__":
    main()
