"""Strategies of search, played on the table of finished runs: what each would have chosen, what it would have paid.

    python bench/tuning/simulate.py [--write]

A strategy asks a `Player` for scores and gives the rate of the final run. What it pays is counted in full trainings (U), the
final run included; a trunk that goes on is paid once. Regret is the final run's loss over the oracle's, at most 10.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import machine
from thalweg.tuning import priors, race
from tuning import table
from tuning.suite import DEVELOPMENT, HELD_OUT

WORST = 10.0  # regret of a run that diverged, and the most that is counted
FLOOR = 1e-3  # of the worst loss
COOL = 0.05  # of the full run: the length of a cool-down in the table

Losses = dict[tuple[float | None, float], dict[int, float]]
"""By the place of the cool-down (None: the full run) and the rate: each seed's loss, infinite where the run failed."""


@cache
def losses(task: str) -> Losses:
    """Read the AdamW runs of a task at its own batch size and decay."""
    found: Losses = defaultdict(dict)
    for line in table.read(task):
        plain = line["rule"] == "adamw" and line["batch"] == 1.0 and line["timescale"] == table.priors.TIMESCALE
        if plain and line["part"] == 1:
            value = math.inf if line["best"] is None else line["best"]
            found[line["cool"] and line["cool"][0], line["rate"]][line["seed"]] = value
    return found


def steps(task: str) -> int:
    """Give the steps of the full run."""
    return next(line["steps"] for line in table.read(task) if line["part"] == 1 and line["cool"] is None)


@cache
def floor(task: str) -> float:
    """Give the loss below which all are as good: a thousandth of the worst, where a handful of rows are all learnt."""
    return FLOOR * max(
        value for (at, _), by in losses(task).items() if at is None for value in by.values() if value < math.inf
    )


@cache
def oracle(task: str) -> float:
    """Give the best mean over seeds."""
    full = [[*by.values()] for (at, _), by in losses(task).items() if at is None]
    return max(floor(task), min(statistics.fmean(values) for values in full if len(values) == len(table.SEEDS)))


class Player:
    """One search on one task from one seed: gives scores, and counts what they cost."""

    def __init__(self, task: str, seed: int) -> None:
        self.task, self.seed, self.steps = task, seed, steps(task)
        self.trunks: dict[float, float] = defaultdict(float)
        self.extra = 0.0

    def cooled(self, rate: float, at: float) -> float:
        """Take a rate's trunk as far as `at`, and give the loss of a cool-down there."""
        self.trunks[rate] = max(self.trunks[rate], at)
        self.extra += COOL
        return losses(self.task)[at, rate].get(self.seed, math.inf)

    def full(self, rate: float, seed: int | None = None) -> float:
        """Give the loss of a full run."""
        if seed is None or seed == self.seed:
            self.trunks[rate] = 1.0
        else:
            self.extra += 1.0
        return losses(self.task)[None, rate].get(self.seed if seed is None else seed, math.inf)

    def end(self, rate: float) -> tuple[float, float]:
        """Give the regret of the final run at a rate, and the price of everything."""
        loss = losses(self.task)[None, rate].get(self.seed, math.inf)
        price = sum(self.trunks.values()) + self.extra + 1.0 - self.trunks.get(rate, 0.0)

        return min(WORST, max(loss, floor(self.task)) / oracle(self.task)), price


Strategy = Callable[[Player], float]
RATES = table.RATES


def nearest(rate: float) -> float:
    """Give the table's rate that is nearest."""
    return min(RATES, key=lambda one: abs(math.log(one / rate)))


def fixed(rate: float) -> Strategy:
    return lambda player: nearest(rate)


def one_stage(rates: Sequence[float], at: float) -> Strategy:
    def play(player: Player) -> float:
        return min(map(nearest, rates), key=lambda rate: player.cooled(rate, at))

    return play


def halving(rates: Sequence[float], stages: Sequence[tuple[float, int]]) -> Strategy:
    """Keep so many after each cool-down."""

    def play(player: Player) -> float:
        left = [*map(nearest, rates)]
        for at, count in stages:
            left = sorted(left, key=lambda rate: player.cooled(rate, at))[:count]
        return left[0]

    return play


def full_runs(rates: Sequence[float]) -> Strategy:
    def play(player: Player) -> float:
        return min(map(nearest, rates), key=player.full)

    return play


def result(strategy: Strategy, tasks: Sequence[str]) -> tuple[float, float, float, str]:
    """Give the geometric mean of a strategy's regret, the worst task's, the mean price, and which task is worst."""
    regrets = dict[str, float]()
    prices = list[float]()
    for task in tasks:
        logs = list[float]()
        for seed in table.SEEDS:
            player = Player(task, seed)
            regret, price = player.end(strategy(player))
            logs.append(math.log(regret))
            prices.append(price)
        regrets[task] = math.exp(statistics.fmean(logs))
    worst = max(regrets, key=lambda task: regrets[task])
    return (
        math.exp(statistics.fmean(map(math.log, regrets.values()))),
        regrets[worst],
        statistics.fmean(prices),
        worst,
    )


class TableTrack:
    """The candidates of a race (`thalweg.tuning.race`), whose scores are the table's."""

    def __init__(self, player: Player) -> None:
        self.player = player

    def score(self, rate: float, share: float) -> float:
        rate = nearest(rate)
        return self.player.full(rate) if share == 1 else self.player.cooled(rate, share)

    def stop(self, rate: float) -> None:
        """Nothing runs."""


def raced(price: float) -> Strategy:
    """Play what thalweg does at a price in full trainings."""

    def play(player: Player) -> float:
        course, usual = race.course_for(price), priors.usual_rate("adamw", player.steps)
        if course is None:
            return nearest(usual)
        won = race.race(TableTrack(player), usual, course, price)
        return nearest(usual if won is None else won)

    return play


STRATEGIES: dict[str, Strategy] = {
    **{f"thalweg, {price} U": raced(price) for price in (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 12.0)},
    **{f"fixed {rate}": fixed(rate) for rate in (0.002, 0.005, 0.01, 0.02, 0.05)},
    "0.005, 0.02, 0.1 cooled at 0.5": one_stage((0.005, 0.02, 0.1), 0.5),
    "0.005, 0.02, 0.1 cooled at 0.35": one_stage((0.005, 0.02, 0.1), 0.35),
    "0.005, 0.02, 0.1 cooled at 0.2": one_stage((0.005, 0.02, 0.1), 0.2),
    "0.002, 0.01, 0.05 cooled at 0.5": one_stage((0.002, 0.01, 0.05), 0.5),
    "four from 0.002 to 0.1 cooled at 0.5": one_stage((0.002, 0.007, 0.027, 0.1), 0.5),
    "six cooled at 0.5": one_stage((0.002, 0.0048, 0.0104, 0.0226, 0.049, 0.106), 0.5),
    "six, 3 after 0.2, 1 after 0.5": halving((0.002, 0.0048, 0.0104, 0.0226, 0.049, 0.106), ((0.2, 3), (0.5, 1))),
    "six, 3 after 0.1, 1 after 0.35": halving((0.002, 0.0048, 0.0104, 0.0226, 0.049, 0.106), ((0.1, 3), (0.35, 1))),
    "four, 2 after 0.2, 1 after 0.5": halving((0.002, 0.0104, 0.049, 0.231), ((0.2, 2), (0.5, 1))),
    "three full runs": full_runs((0.005, 0.02, 0.1)),
    "six full runs": full_runs((0.002, 0.0048, 0.0104, 0.0226, 0.049, 0.106)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--write", action="store_true", help="keep the figures in bench/raw/tuning.json, for the README"
    )
    write, started = parser.parse_args().write, time.perf_counter()
    samples = list[dict[str, Any]]()
    for half, suite in (("development", DEVELOPMENT), ("held out", HELD_OUT)):
        tasks = [task for task in suite if is_whole(task)]
        print(f"{half}: {', '.join(tasks)}")
        for name, strategy in STRATEGIES.items():
            mean, worst, price, which = result(strategy, tasks)
            print(f"{name:40} {mean:5.2f}  worst {worst:5.2f} ({which})  price {price:4.2f} U", flush=True)
            samples.append(
                {
                    "half": half,
                    "tasks": tasks,
                    "strategy": name,
                    "mean": mean,
                    "worst": worst,
                    "task": which,
                    "price": price,
                }
            )
    if write:
        whole: dict[str, Any] = {
            "benchmark": "tuning",
            "machine": machine.facts(("torch",)),
            "settings": {"seeds": table.SEEDS, "learning_rates": table.RATES},
            "provisional": False,
            "seconds": round(time.perf_counter() - started),
            "samples": samples,
        }
        table.RAW.with_suffix(".json").write_text(json.dumps(whole, indent=1) + "\n", "utf-8")


def is_whole(task: str) -> bool:
    """Tell whether the table has all runs of a task that strategies ask for."""
    found = losses(task)
    return len(found) == len(RATES) + 4 * len(RATES[3:]) and all(len(by) == len(table.SEEDS) for by in found.values())


if __name__ == "__main__":
    main()
