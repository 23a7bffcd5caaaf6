"""Strategies of search, played on the table of finished runs: what each would have chosen, what it would have paid.

    python bench/tuning/simulate.py [--write]

A strategy asks a `Player` for scores and gives the rate of the final run. What it pays is counted in full trainings (U), the
final run included; a trunk that goes on is paid once. Regret is the final run's loss over the oracle's, at most 10.
"""

from __future__ import annotations

import argparse
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

from thalweg.descent.projection import COOL
from thalweg.tuning import priors, race
from thalweg.tuning.priors import TIMESCALE
from thalweg.tuning.race import Line, Point
from tuning import table
from tuning.lines import write_table
from tuning.suite import DEVELOPMENT, HELD_OUT

WORST = 10.0  # regret of a run that diverged, and the most that is counted
FLOOR = 1e-3  # of the worst loss
RULES = ("muon", "adamw", "schedule_free_adamw")  # that strategies choose among

SEEDS = table.SEEDS[:2]  # of the searches played: those of which the table has all places

Losses = dict[tuple[float | None, Point], dict[int, float]]
"""By the place of the cool-down (None: the full run) and the candidate: each seed's loss, infinite where the run failed."""


@cache
def losses(task: str) -> Losses:
    """Read the runs of a task at its own batch size."""
    found: Losses = defaultdict(dict)
    for line in table.read(task):
        if line["rule"] in RULES and line["batch"] == 1.0 and line["part"] == 1:
            value = math.inf if line["best"] is None else line["best"]
            point = Point(line["rule"], line["rate"], line["timescale"])
            found[line["cool"] and line["cool"][0], point][line["seed"]] = value
    return found


@cache
def rates(task: str, rule: str, timescale: float | None = TIMESCALE) -> list[float]:
    """Give the rates of which the table has all that a race may ask for."""
    found = losses(task)
    whole = [point for at, point in found if at is None and point.rule == rule and point.timescale == timescale]
    places = table.PLACES[:2] if rule == "schedule_free_adamw" else table.PLACES  # a race on two rules asks for no more
    return sorted(
        point.rate for point in whole if all({*SEEDS} <= {*found.get((at, point), ())} for at in (None, *places))
    )


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
    """One search on one task from one seed: gives scores, and counts what they cost. It is a race's track."""

    def __init__(self, task: str, seed: int) -> None:
        self.task, self.seed, self.steps = task, seed, steps(task)
        self.trunks: dict[Point, float] = defaultdict(float)
        self.extra = 0.0

    def expect(self, points: Sequence[Point], share: float) -> None:
        """Nothing runs."""

    def score(self, point: Point, share: float) -> float:
        """Take a candidate as far as `share`, and give the loss of a cool-down there."""
        point = self.nearest(point)
        self.trunks[point] = max(self.trunks[point], share)
        self.extra += COOL * (share < 1)
        return losses(self.task).get((None if share == 1 else share, point), {}).get(self.seed, math.inf)

    def stop(self, point: Point) -> None:
        """Nothing runs."""

    def nearest(self, point: Point) -> Point:
        """Give the table's point that is nearest; a decay that it has no runs of fails everywhere."""
        known = rates(self.task, point.rule, point.timescale) or rates(self.task, point.rule)
        return point._replace(rate=min(known, key=lambda one: abs(math.log(one / point.rate))))

    def end(self, point: Point) -> tuple[float, float]:
        """Give the regret of the final run of a candidate, and the price of everything."""
        point = self.nearest(point)
        loss = losses(self.task).get((None, point), {}).get(self.seed, math.inf)
        price = sum(self.trunks.values()) + self.extra + 1.0 - self.trunks.get(point, 0.0)
        return min(WORST, max(loss, floor(self.task)) / oracle(self.task)), price


Strategy = Callable[[Player], Point]


def fixed(rate: float, rule: str = "adamw") -> Strategy:
    return lambda player: Point(known_rule(player.task, rule), rate)


def halving(rates: Sequence[float], stages: Sequence[tuple[float, int]], rule: str = "adamw") -> Strategy:
    """Keep so many after each cool-down."""

    def play(player: Player) -> Point:
        left = [Point(known_rule(player.task, rule), rate) for rate in rates]
        for at, count in stages:
            left = sorted(left, key=lambda point: player.score(point, at))[:count]
        return left[0]

    return play


def known_rule(task: str, rule: str) -> str:
    """Give the rule, or AdamW on a task that the table has no runs of it for: one without hidden matrices."""
    return rule if rates(task, rule) else "adamw"


Decays = tuple[float | None, float | None]
"""Timescales of the usual rate and above, and of those below."""


def raced(price: float, *rules: str, decays: Decays | None = None) -> Strategy:
    """Play what thalweg does at a price in full trainings, with some rules and decays or its own choice among them."""

    def play(player: Player) -> Point:
        known = [rule for rule in rules or ("muon", "schedule_free_adamw") if rates(player.task, rule)]
        lines = list[Line]()
        for rule in known:
            usual = priors.usual_rate(rule, player.steps)
            timescale, lower = decays or (priors.usual_timescale(rule, usual, player.steps), priors.LONG_TIMESCALE)
            lines.append(Line(rule, usual, timescales=priors.TIMESCALES, timescale=timescale, lower=lower))
        course = race.course_for(price, lines=len(lines))
        alone = lines[0].point(0)
        return alone if course is None else race.race(player, lines, course, price) or alone

    return play


def result(strategy: Strategy, tasks: Sequence[str]) -> tuple[float, float, float, str]:
    """Give the geometric mean of a strategy's regret, the worst task's, the mean price, and which task is worst."""
    regrets = dict[str, float]()
    prices = list[float]()
    for task in tasks:
        logs = list[float]()
        for seed in SEEDS:
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


OTHERWISE: dict[str, tuple[tuple[str, ...], Decays | None]] = {
    "Muon alone": (("muon",), None),
    "Muon and AdamW": (("muon", "adamw"), None),
    "AdamW and schedule-free AdamW": (("adamw", "schedule_free_adamw"), None),
    "Muon and AdamW, decay over 0.3 at every rate": (("muon", "adamw"), (0.3, 0.3)),
    "decay over 0.3 at every rate": ((), (0.3, 0.3)),
    "decay over 1 at every rate": ((), (1.0, 1.0)),
    "no decay below the usual rate": ((), (0.3, None)),
    "no decay at any rate": ((), (None, None)),
}
"""Rules and decays that a race might try instead of those that it does."""

STRATEGIES: dict[str, Strategy] = {
    **{f"thalweg, {price} U": raced(price) for price in (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 12.0)},
    **{f"thalweg with AdamW alone, {price} U": raced(price, "adamw") for price in (1.0, 2.0, 4.0, 12.0)},
    **{
        f"{price} U, {name}": raced(price, *rules, decays=decays)
        for price in (4.0, 12.0)
        for name, (rules, decays) in OTHERWISE.items()
    },
    **{f"AdamW at {rate}": fixed(rate) for rate in (0.002, 0.005, 0.01, 0.02, 0.05)},
    **{f"Muon at {rate}": fixed(rate, "muon") for rate in (0.01, 0.02, 0.05, 0.1)},
    "0.005, 0.02, 0.1 cooled at 0.35": halving((0.005, 0.02, 0.1), ((0.35, 1),)),
    "0.005, 0.02, 0.1 cooled at 0.2": halving((0.005, 0.02, 0.1), ((0.2, 1),)),
    "six, 3 after 0.1, 1 after 0.35": halving((0.002, 0.0048, 0.0104, 0.0226, 0.049, 0.106), ((0.1, 3), (0.35, 1))),
    "four, 2 after 0.2, 1 after 0.35": halving((0.002, 0.0104, 0.049, 0.231), ((0.2, 2), (0.35, 1))),
    "three full runs": halving((0.005, 0.02, 0.1), ((1, 1),)),
    "six full runs": halving((0.002, 0.0048, 0.0104, 0.0226, 0.049, 0.106), ((1, 1),)),
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
        write_table("tuning", {"seeds": SEEDS, "learning_rates": table.RATES}, samples, time.perf_counter() - started)


def is_whole(task: str) -> bool:
    """Tell whether the table has the runs of a task that strategies ask for."""
    return len(rates(task, "adamw")) >= 9 and len(rates(task, "muon")) >= 6


if __name__ == "__main__":
    main()
