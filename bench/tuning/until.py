"""A length that was found against lengths that are given: `python bench/tuning/until.py --workers 2 --write [TASK ...]`.

Each task is fitted until it no longer pays, and then for half, once, twice and four times the steps that this chose, at the same
effort and with the same batch size. Each fit is a line of `bench/raw/tuning/until.jsonl`, written when it ends.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

import thalweg as tw
from tuning.lines import append_line, do_all, read_lines, write_table
from tuning.suite import DEVELOPMENT, SUITE
from tuning.table import RAW, round_to

LINES = RAW / "until.jsonl"
TASKS = ("noisy_labels", "plateau", "raw_columns", "raw_targets", "series", "tiny")
FACTORS = (0.5, 1.0, 2.0, 4.0)
SEEDS = (0, 1, 2)
EFFORT = 2.0
MOST = 40_000  # steps of a run


class Fit(NamedTuple):
    """A fit: of a length that is found (factor 0), or so many times as long."""

    task: str
    seed: int
    factor: float = 0.0


def known() -> dict[Fit, dict[str, Any]]:
    """Give the lines that there are."""
    return {Fit(line["task"], line["seed"], line["factor"]): line for line in read_lines(LINES)}


def measure(fit: Fit) -> None:
    """Make a fit, and write its line; where it is of a given length, the found one is there already."""
    torch.set_num_threads(1)
    entry, started = SUITE[fit.task], time.process_time()
    fixed = {"batch_size": entry.batch_size, "threads": 1}
    options: dict[str, Any] = {
        "effort": EFFORT,
        "seed": fit.seed,
        "fixed": fixed,
        "progress": False,
        "say": lambda _: None,
    }
    if fit.factor:
        found = known()[Fit(fit.task, fit.seed)]
        length: dict[str, Any] = {"steps": max(2, round(fit.factor * found["steps"]))}
    else:
        length = {"steps": "auto", "most": MOST}
    run = tw.fit(entry.make(), **length, **options)
    why = run.plan.why("steps").figures
    taken = why.get("steps_taken") or round(run.plan.why("learning_rate").figures["price"] * (run.plan.steps or 0))
    append_line(
        LINES,
        {
            **fit._asdict(),
            "steps": run.plan.steps,
            "taken": taken,
            "loss": round_to(run.metrics["loss"]),
            "rate": run.plan.learning_rate,
            "rule": run.plan.rule,
            "lengths": why.get("lengths"),
            "costs": why.get("costs"),
            "seconds": round(time.process_time() - started, 2),
        },
    )


def ratios(lines: Mapping[Fit, Mapping[str, Any]], task: str, factor: float) -> tuple[float, float]:
    """Give loss and steps taken of a given length as shares of those of the found one, geometric means over the seeds."""
    pairs = [(lines[Fit(task, seed, factor)], lines[Fit(task, seed)]) for seed in SEEDS]
    return (
        statistics.geometric_mean(one["loss"] / found["loss"] for one, found in pairs),
        statistics.geometric_mean(one["taken"] / found["taken"] for one, found in pairs),
    )


def samples(lines: Mapping[Fit, Mapping[str, Any]], tasks: Sequence[str]) -> list[dict[str, Any]]:
    """Give the table's lines: of each task whose fits are all there."""
    made = list[dict[str, Any]]()
    for task in tasks:
        own = [lines.get(Fit(task, seed, factor)) for seed in SEEDS for factor in (0.0, *FACTORS)]
        if None in own:
            continue
        found = [lines[Fit(task, seed)] for seed in SEEDS]
        each = {str(factor): [round(value, 4) for value in ratios(lines, task, factor)] for factor in FACTORS}
        made.append(
            {
                "task": task,
                "half": "development" if task in DEVELOPMENT else "held out",
                "steps": [one["steps"] for one in found],
                "loss": [one["loss"] for one in found],
                "taken": round(statistics.fmean(one["taken"] / one["steps"] for one in found), 2),
                "lengths": each,
            }
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="keep the figures in bench/raw/until.json")
    options = parser.parse_args()
    tasks = options.tasks or TASKS
    for factors in ((0.0,), FACTORS):
        done = known()
        wanted = [Fit(task, seed, factor) for task in tasks for seed in SEEDS for factor in factors]
        do_all(measure, [fit for fit in wanted if fit not in done], options.workers)
    made = samples(known(), tasks)
    for sample in made:
        print(json.dumps(sample))
    for half in ("development", "held out"):
        own = [sample for sample in made if sample["half"] == half]
        for factor in FACTORS if own else ():
            pairs = [sample["lengths"][str(factor)] for sample in own]
            loss, taken = (statistics.geometric_mean(values) for values in zip(*pairs, strict=True))
            print(f"{half}, {factor:g} x: loss {loss:.3f}, steps taken {taken:.2f} of those of the found length")
    if options.write:
        write_table(
            "until",
            {"seeds": list(SEEDS), "effort": EFFORT, "most": MOST},
            made,
            sum(line["seconds"] for line in known().values()),
        )


if __name__ == "__main__":
    main()
