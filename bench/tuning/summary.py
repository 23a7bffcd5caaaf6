"""Put what `peers.py` and `oracle.py` measured into one table: `python bench/tuning/summary.py --write`.

A method's loss on a task is its mean over seeds, over the oracle's: the best mean over fresh seeds of the best five of 200 random
trials. "Worth" is how many random trials one needs on average for a loss as low. The profile is AlgoPerf's: the share of tasks on
which a method is within a factor of the best method's loss, averaged over factors from 1 to 4 (here of losses, at its own price).
"Matched" is the share of tasks on which thalweg's loss, at a price, is within 2 % of a method's or better.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tuning import oracle, peers
from tuning.lines import read_lines, write_table
from tuning.suite import HELD_OUT, SUITE

WORST = 10.0  # a ratio counts no more
FACTORS = [1 + 3 * k / 60 for k in range(61)]
LEVEL = 1.02
HINDSIGHT = "best of the ten fixed recipes, in hindsight"
OURS = ("thalweg, 2 U", "thalweg, 4 U")
BEFORE = [f"thalweg, {effort}, with AdamW and one decay" for effort in ("2 U", "4 U", "12 U", "quick", "standard")]
"""Searches that race AdamW in the place of its schedule-free form, and let weights decay over 0.3 of the run at every rate."""


def means(task: str, seeds: int) -> dict[str, dict[str, float]]:
    """Give each method's mean loss, price and seconds over all its seeds, of those that ran so many of them at least."""
    by_method = dict[str, list[dict[str, Any]]]()
    for line in read_lines(peers.file_of(task)):
        by_method.setdefault(line["method"], []).append(line)
    return {
        method: {
            "loss": statistics.fmean(math.inf if line["loss"] is None else line["loss"] for line in lines),
            "units": statistics.fmean(line["units"] for line in lines),
            "seconds": statistics.fmean(line["cpu_seconds"] for line in lines),
            "seeds": len(lines),
        }
        for method, lines in by_method.items()
        if len(lines) >= seeds
    }


def worth(task: str, loss: float) -> float:
    """Give how many random trials one makes on average until one is as good; all of them and one more where none is."""
    trials = oracle.trials(task)
    as_good = sum(trial <= loss for trial in trials)
    return (len(trials) + 1) / (as_good + 1)


def profile(losses: dict[str, dict[str, float]], method: str) -> float:
    """Give the share of tasks within a factor of the best method's loss, averaged over factors from 1 to 4."""
    ratios = [min(WORST, by[method] / min(by.values())) for by in losses.values()]
    return statistics.fmean(statistics.fmean(ratio <= factor + 1e-9 for ratio in ratios) for factor in FACTORS)


def with_hindsight(by_method: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Add what the best of the ten fixed recipes gives, where all ran: nobody knows beforehand which it is."""
    if not all(name in by_method for name in peers.FIXED):
        return by_method
    best = min((by_method[name] for name in peers.FIXED), key=lambda means: means["loss"])
    return {**by_method, HINDSIGHT: {**best, "units": float(len(peers.FIXED))}}


def matched(losses: dict[str, dict[str, float]], ours: str, method: str) -> float:
    """Give the share of tasks on which thalweg is level with a method or better."""
    return statistics.fmean(by[ours] <= LEVEL * by[method] for by in losses.values())


def geometric_mean(values: Iterable[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def rows(tasks: Sequence[str], seeds: int) -> list[dict[str, Any]]:
    """Give a row for each method that ran on all of the tasks."""
    found = {task: with_hindsight(means(task, seeds)) for task in tasks}
    methods = [name for name in (*peers.METHODS, *BEFORE, HINDSIGHT) if all(name in by for by in found.values())]
    losses = {task: {method: by[method]["loss"] for method in methods} for task, by in found.items()}
    made = list[dict[str, Any]]()
    for method in methods:
        ratios = {task: min(WORST, losses[task][method] / (oracle.oracle(task) or math.nan)) for task in tasks}
        worst = max(ratios, key=ratios.__getitem__)
        made.append(
            {
                "method": method,
                "mean": geometric_mean(ratios.values()),
                "held_out": geometric_mean([ratios[task] for task in tasks if task in HELD_OUT] or [math.nan]),
                "worst": ratios[worst],
                "task": worst,
                "worth": statistics.median(worth(task, losses[task][method]) for task in tasks),
                "profile": profile(losses, method),
                "matched": [matched(losses, ours, method) for ours in OURS],
                "units": statistics.fmean(found[task][method]["units"] for task in tasks),
                "seconds": statistics.fmean(found[task][method]["seconds"] for task in tasks),
                "seeds": min(found[task][method]["seeds"] for task in tasks),
            }
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep the rows in bench/raw/peers.json, for the README")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    tasks = [task for task in SUITE if oracle.oracle(task) is not None and means(task, options.seeds)]
    made = rows(tasks, options.seeds)
    print(f"{', '.join(tasks)}; {options.seeds} seeds")
    for row in made:
        ours = " ".join(f"{share:.2f}" for share in row["matched"])
        print(
            f"{row['method']:44} {row['mean']:6.3f} held out {row['held_out']:6.3f} worst {row['worst']:5.2f} ({row['task']})"
            f" worth {row['worth']:5.1f} profile {row['profile']:.2f} matched {ours}"
            f" {row['units']:5.2f} U {row['seconds']:6.1f} s"
        )
    if options.write:
        write_table(
            "peers",
            {"seeds": options.seeds, "tasks": tasks, "held_out": [t for t in tasks if t in HELD_OUT]},
            made,
            0,
            packages=("torch", "optuna"),
        )


if __name__ == "__main__":
    main()
