"""The oracle of each task: 200 random trials of all knobs, each a full run; the top five again on three fresh seeds.

    python bench/tuning/oracle.py --workers 2 [TASK ...]

Each run is a line of `bench/raw/tuning/oracle/TASK.jsonl`, written when it ends: stop it at any time, it goes on where it was.
The best mean over the fresh seeds is the loss that a search is compared with.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from tuning.lines import append_line, do_all, read_lines
from tuning.suite import SUITE
from tuning.table import RAW, best_loss, full_plan, middle_of, round_to

TRIALS = 200
BEST = 5  # trials that are made again
FRESH = (1001, 1002, 1003)  # their seeds; a trial's own is its number
RULES = ("adamw", "muon", "schedule_free_adamw", "momentum", "nadam", "lion")
SHAPES = ("linear", "cosine", "constant")


def drawn(task: str, trial: int) -> dict[str, Any]:
    """Draw the knobs of a trial: a function of task and number alone."""
    draw = random.Random(f"{task} {trial}")
    rule = draw.choice(RULES)
    middle = middle_of(rule)
    return {
        "rule": rule,
        "learning_rate": round_to(middle * 10 ** draw.uniform(-2, 1.3)),
        "weight_decay": draw.choice((0.0, round_to(10 ** draw.uniform(-4, 0)))),
        "shape": draw.choice(SHAPES) if rule != "schedule_free_adamw" else "constant",
        "warmup": draw.choice((0.0, 0.02, 0.1)),
        "beta2": draw.choice((0.95, 0.99, 0.999)) if rule in ("adamw", "nadam", "schedule_free_adamw") else None,
    }


def measure(task: str, trial: int, seed: int) -> dict[str, Any]:
    """Make one full run, and give its line."""
    knobs = drawn(task, trial)
    constants = {} if knobs["beta2"] is None else {"beta2": knobs["beta2"]}
    of_plan = {name: knobs[name] for name in ("rule", "learning_rate", "weight_decay", "shape", "warmup")}
    started = time.process_time()
    loss = best_loss(task, full_plan(task, seed, constants=constants, clip_norm=1.0, **of_plan))
    return {
        "trial": trial,
        "seed": seed,
        **knobs,
        "loss": round_to(loss),
        "seconds": round(time.process_time() - started, 3),
    }


def file_of(task: str) -> Path:
    return RAW / "oracle" / f"{task}.jsonl"


@cache
def trials(task: str) -> list[float]:
    """Give the losses of a task's trials on their own seeds, best first; infinite where one failed."""
    lines = [line for line in read_lines(file_of(task)) if line["seed"] == line["trial"]]
    return sorted(math.inf if line["loss"] is None else line["loss"] for line in lines)


@cache
def oracle(task: str) -> float | None:
    """Give the best mean over fresh seeds among the best trials; None where they are not all there."""
    if len(trials(task)) < TRIALS:
        return None
    fresh = dict[int, list[float]]()
    for line in read_lines(file_of(task)):
        if line["seed"] in FRESH:
            fresh.setdefault(line["trial"], []).append(math.inf if line["loss"] is None else line["loss"])
    whole = [statistics.fmean(losses) for losses in fresh.values() if len(losses) == len(FRESH)]
    return min(whole) if len(whole) == BEST else None


def work(job: tuple[str, int, int]) -> None:
    torch.set_num_threads(1)
    line = measure(*job)
    append_line(file_of(job[0]), line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", choices=[*SUITE, []])
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    (RAW / "oracle").mkdir(parents=True, exist_ok=True)
    for task in options.tasks or SUITE:
        present = {(line["trial"], line["seed"]) for line in read_lines(file_of(task))}
        print(task, flush=True)
        do_all(
            work, [(task, trial, trial) for trial in range(TRIALS) if (trial, trial) not in present], options.workers
        )
        own = [line for line in read_lines(file_of(task)) if line["seed"] == line["trial"]]
        best = sorted(own, key=lambda line: math.inf if line["loss"] is None else line["loss"])[:BEST]
        again = [(task, line["trial"], seed) for line in best for seed in FRESH]
        do_all(work, [job for job in again if (job[1], job[2]) not in present], options.workers)
        print(f"{task}: best of {TRIALS} {trials(task)[0]:.4g}, oracle {oracle(task):.4g}", flush=True)


if __name__ == "__main__":
    main()
