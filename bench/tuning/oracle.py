"""The oracle of each task: 200 random trials of all knobs, each a full run; the top five again on three fresh seeds.

    python bench/tuning/oracle.py --workers 2 [TASK ...]

Each run is a line of `bench/raw/tuning/oracle/TASK.jsonl`, written when it ends: stop it at any time, it goes on where it was.
The best mean over the fresh seeds is the loss that a search is compared with.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import random
import statistics
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from thalweg import schedule as shapes
from thalweg.descent.loop import descend
from thalweg.descent.recorder import Recorder
from thalweg.descent.settle import settle
from thalweg.descent.state import Descent
from thalweg.errors import DivergedError
from thalweg.records.plan import Plan
from thalweg.records.request import Request
from tuning.suite import SUITE
from tuning.table import CURVE, RAW, middle_of, problem_of, read_lines, round_to

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


def plan_of(task: str, knobs: dict[str, Any], seed: int) -> Plan:
    entry, problem = SUITE[task], problem_of(task)
    constants = {} if knobs["beta2"] is None else {"beta2": knobs["beta2"]}
    plan = Plan(
        rule=knobs["rule"],
        learning_rate=knobs["learning_rate"],
        weight_decay=knobs["weight_decay"],
        batch_size=entry.batch_size,
        constants=constants,
        clip_norm=1.0,
        threads=1,
        seed=seed,
    )
    plan = settle(problem, plan, Request(epochs=entry.epochs, seed=seed))
    assert plan.steps is not None
    shape = getattr(shapes, knobs["shape"])(warmup=round(knobs["warmup"] * plan.steps))
    every = max(1, plan.steps // CURVE)
    return plan.replace(schedule=shape, snapshot_every=0, digest_every=0, validate_every=every)


def measure(task: str, trial: int, seed: int) -> dict[str, Any]:
    """Make one full run, and give its line; its loss is that of its best validation, as `fit` keeps it."""
    knobs = drawn(task, trial)
    started = time.process_time()
    descent = Descent(problem_of(task), plan_of(task, knobs, seed))
    try:
        descend(descent, Recorder())
        loss = (descent.best_validation or {}).get("value", math.nan)
    except DivergedError:
        loss = math.nan
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
    with file_of(job[0]).open("a", encoding="utf-8") as opened:
        opened.write(json.dumps(line) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", choices=[*SUITE, []])
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    (RAW / "oracle").mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        for task in options.tasks or SUITE:
            present = {(line["trial"], line["seed"]) for line in read_lines(file_of(task))}
            wanted = [(task, trial, trial) for trial in range(TRIALS) if (trial, trial) not in present]
            print(f"{task}: {len(wanted)} trials to make", flush=True)
            pool.map(work, wanted, chunksize=1)
            own = [line for line in read_lines(file_of(task)) if line["seed"] == line["trial"]]
            best = sorted(own, key=lambda line: math.inf if line["loss"] is None else line["loss"])[:BEST]
            again = [(task, line["trial"], seed) for line in best for seed in FRESH]
            pool.map(work, [job for job in again if (job[1], job[2]) not in present], chunksize=1)
            trials.cache_clear()
            oracle.cache_clear()
            print(f"{task}: best of {TRIALS} {trials(task)[0]:.4g}, oracle {oracle(task):.4g}", flush=True)


if __name__ == "__main__":
    main()
