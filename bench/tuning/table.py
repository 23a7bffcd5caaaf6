"""The table of finished runs that strategies are simulated on: every rate x length x seed of every task of the suite.

    python bench/tuning/table.py --grid full:muon --workers 2 [TASK ...]

Each run is a line of `bench/raw/tuning/TASK.jsonl`, written when it ends: stop it at any time, and it goes on where it was. A
run's figures depend on nothing but its line's key: task, rule, rate, batch size, weight decay, schedule, steps and seed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from thalweg import rules
from thalweg import schedule as shapes
from thalweg.descent.loop import descend
from thalweg.descent.problem import Problem, open_task
from thalweg.descent.recorder import Recorder
from thalweg.descent.settle import settle
from thalweg.descent.state import Descent
from thalweg.errors import DivergedError, ThalwegError
from thalweg.records.plan import Plan
from thalweg.records.request import Request
from thalweg.schedule import Schedule
from thalweg.tuning import priors
from thalweg.tuning.tune import stated_plan
from tuning.lines import append_line, do_all, read_lines
from tuning.suite import ENTRIES, SUITE

RAW = Path(__file__).parents[1] / "raw" / "tuning"
RATES = [float(f"{1e-4 * 5000 ** (k / 11):.3g}") for k in range(12)]  # 1e-4 to 0.5
MIDDLE, MIDDLES = 0.0226, {"lion": 0.00226, "momentum": 0.1}
LENGTHS = (1, 2, 4, 8, 16, 32)  # parts of the full run
SEEDS = (0, 1, 2)
WARMUP = 0.1  # of the run: of all that is stored
PLACES = (0.1, 0.2, 0.35)  # of cool-downs, as shares of the run
CURVE = 8  # validations of a run
FEWEST = 5  # steps of the shortest run


@dataclass(frozen=True)
class Key:
    """What makes a run what it is."""

    task: str
    rate: float
    part: int = 1  # the full run's steps are divided by it
    seed: int = 0
    rule: str = "adamw"
    batch: float = 1.0  # times the task's own batch size
    timescale: float | None = priors.TIMESCALE  # of the weight decay, as a share of the run; None: no decay
    cool: tuple[float, float] | None = None  # shares of the full run: where a cool-down begins, and how long it is

    def __str__(self) -> str:
        return json.dumps(asdict(self))


def grid(name: str, task: str) -> Iterator[Key]:
    """Give the runs of one grid over one task."""
    kind, _, rule = name.partition(":")
    rule = rule or "adamw"
    rates = rates_of(rule)
    if kind == "full":
        yield from (Key(task, rate, seed=seed, rule=rule) for seed in SEEDS for rate in rates)
    elif kind == "shorter":
        yield from (Key(task, rate, part, seed, rule) for part in LENGTHS[1:] for seed in SEEDS for rate in rates)
    elif kind == "cooled":
        places = [(at, 0.05) for at in PLACES]
        yield from (
            Key(task, rate, seed=seed, rule=rule, cool=cool) for cool in places for seed in SEEDS for rate in rates[-9:]
        )
    elif kind == "coarse":
        yield from (
            Key(task, rate, seed=seed, rule=rule, cool=(at, 0.05))
            for seed in SEEDS[:2]
            for at in PLACES
            for rate in rates[-7:-1]
        )
    elif kind == "decays":
        yield from (
            Key(task, rate, seed=seed, rule=rule, timescale=share)
            for seed in SEEDS[:2]
            for share in (0.1, 1.0, None)
            for rate in rates[-7:-1]
        )
    elif kind == "raced":
        yield from (
            Key(task, rate, seed=seed, rule=rule, timescale=share, cool=cool)
            for share in (priors.TIMESCALE, 1.0, None)
            for cool in (None, *((at, 0.05) for at in PLACES))
            for seed in SEEDS[:2]
            for rate in rates[-7:-1]
        )
    elif kind == "batches":
        yield from (
            Key(task, rate, seed=seed, rule=rule, batch=times)
            for times in (0.25, 4.0)
            for seed in SEEDS
            for rate in rates[-9:-1]
        )
    else:
        raise SystemExit(
            f"There is no grid '{kind}': full, shorter, cooled, coarse, decays, raced or batches, of a rule as in"
            f" full:muon."
        )


def rates_of(rule: str) -> list[float]:
    """Give the rates of a rule's grid: AdamW's, of another order where the rule's are."""
    if rules.get(rule).finds_rate:
        return [0.1, 0.3, 1.0, 3.0]
    if rule == "adamw":
        return RATES
    return [float(f"{rate * middle_of(rule) / MIDDLE:.3g}") for rate in RATES[3:]]


def middle_of(rule: str) -> float:
    """Give the rate around which a rule's rates lie in what is stored: not `usual_rate`, which is chosen by it."""
    return MIDDLES.get(rule, MIDDLE)


@cache
def problem_of(task: str) -> Problem:
    return open_task(ENTRIES[task].make())


def plan_of(key: Key) -> Plan:
    """Give the run's settled plan: everything that the key does not say is as a search sets it."""
    entry = ENTRIES[key.task]
    batch = max(1, round(entry.batch_size * key.batch))
    fixed = {"rule": key.rule, "batch_size": batch, "threads": 1}
    request = Request(epochs=entry.epochs, seed=key.seed, fixed=fixed)
    start = settle(problem_of(key.task), stated_plan(problem_of(key.task), request), request)
    assert start.steps is not None
    full = start.steps
    steps = max(FEWEST, full // key.part)
    constants = priors.constants(key.rule, steps)[0]
    schedule: Schedule = priors.schedule(key.rule, constants, steps)[0]
    if schedule.warmup:
        schedule = replace(schedule, warmup=max(1, int(WARMUP * steps)))
    decay = priors.weight_decay(key.rule, key.rate, steps, constants)[0]
    if key.timescale is None:
        decay = 0.0
    elif key.timescale != priors.TIMESCALE:
        decay = min(priors.MOST_DECAY, decay * priors.TIMESCALE / key.timescale)
    if key.cool is not None:
        steps, schedule = cooled(schedule, full, key.cool)
    every = max(1, steps // CURVE)
    return start.replace(
        steps=steps, learning_rate=key.rate, constants=constants, schedule=schedule, weight_decay=decay, watch=True,
        snapshot_every=0, digest_every=0, validate_every=every, keep="last", ema=None,
    )  # fmt: skip


def cooled(schedule: Schedule, full: int, cool: tuple[float, float]) -> tuple[int, Schedule]:
    """Follow the full run's schedule to a place, and fall from there to zero in a straight line."""
    begin, length = max(1, round(cool[0] * full)), max(2, round(cool[1] * full))
    factor = (
        schedule.factor(begin) if schedule.total else shapes.linear(total=full, warmup=schedule.warmup).factor(begin)
    )
    trunk = shapes.linear(total=begin, warmup=min(begin, int(schedule.warmup)), final=factor)
    return begin + length, shapes.sequence(trunk, shapes.linear(total=length).scaled(factor))


def measure(key: Key) -> dict[str, Any]:
    """Make one run, and give its line."""
    plan = plan_of(key)
    started = time.process_time()
    descent = Descent(problem_of(key.task), plan)
    recorder = Recorder()
    try:
        descend(descent, recorder)
        loss = descent.last_validation.get("loss", math.nan)
        best = (descent.best_validation or {}).get("value", math.nan)
    except DivergedError:
        loss = best = math.nan
    return {
        **asdict(key),
        "steps": plan.steps,
        "loss": round_to(loss),
        "best": round_to(best),
        "done": descent.step,
        "cures": descent.changes.to_dict(),
        "seconds": round(time.process_time() - started, 3),
    }


def full_plan(task: str, seed: int, shape: str = "constant", warmup: float = 0.0, **knobs: Any) -> Plan:
    """Give the settled plan of a full run of any knobs; `warmup` as a share of it."""
    entry = ENTRIES[task]
    values: dict[str, Any] = {"batch_size": entry.batch_size, "threads": 1, "seed": seed, **knobs}
    plan = settle(problem_of(task), Plan(**values), Request(epochs=entry.epochs, seed=seed))
    assert plan.steps is not None
    schedule: Schedule = getattr(shapes, shape)(warmup=round(warmup * plan.steps))
    every = max(1, plan.steps // CURVE)
    return plan.replace(schedule=schedule, validate_every=every, snapshot_every=0, digest_every=0)


def best_loss(task: str, plan: Plan) -> float:
    """Train a run, and give its best validation loss, as `fit` keeps it; infinite where it diverged."""
    descent = Descent(problem_of(task), plan)
    try:
        descend(descent, Recorder())
    except ThalwegError:
        return math.inf
    loss = (descent.best_validation or {}).get("value", math.inf)
    return loss if math.isfinite(loss) else math.inf


def round_to(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def file_of(task: str) -> Path:
    return RAW / f"{task}.jsonl"


def read(task: str) -> list[dict[str, Any]]:
    """Give the lines of a task."""
    return read_lines(file_of(task))


def key_of(line: dict[str, Any]) -> str:
    names = Key.__dataclass_fields__
    return json.dumps({name: line[name] for name in names})


def work(key: Key) -> None:
    torch.set_num_threads(1)
    try:
        line = measure(key)
    except ThalwegError as error:
        line = {**asdict(key), "loss": None, "error": str(error)}
    append_line(file_of(key.task), line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", choices=[*SUITE, []])
    parser.add_argument("--grid", default="full")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    RAW.mkdir(parents=True, exist_ok=True)
    wanted = list[Key]()
    for task in options.tasks or SUITE:
        present = {key_of(line) for line in read(task)}
        wanted += [key for key in grid(options.grid, task) if str(key) not in present]
    do_all(work, wanted, options.workers, every=50)


if __name__ == "__main__":
    main()
