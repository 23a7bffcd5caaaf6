"""The learning rate: successive halving over short runs that are complete schedules, with paired seeds.

The search chooses trials and takes in their figures; it runs none, and depends neither on the task nor on where they run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from thalweg.records.plan import Plan

WIDENINGS = 2  # times that the grid is extended where the best rate is its first or last
FAILED = math.inf  # score of a trial that gave no finite figure


class Rung(NamedTuple):
    """A stage of the search: how many rates are tried, over how many steps, from how many seeds."""

    rates: int
    steps: int
    seeds: int


class Trial(NamedTuple):
    """One short run: at which rate, how many steps, from which seed."""

    rate: float
    steps: int
    seed: int


@dataclass
class Search:
    """A search with Optuna's interface: `ask` for plans, run them anywhere, and `tell` their figures, until `ask` gives none.

    The figures are its whole state: a new search with the same ones continues where the old one was.

    Arguments:
        plan_for: `plan_for(rate, steps)` -> the complete plan of a short run.
        low, high: the range of rates.
        rungs: ever fewer rates over ever longer runs.
        seed: the first seed; every rate is tried from the same ones.
        select, mode: the figure that decides, and whether its "min" or "max" is best.
        say: called with a sentence when a rung begins.
    """

    plan_for: Callable[[float, int], Plan]
    low: float
    high: float
    rungs: list[Rung]
    seed: int = 0
    select: str = "loss"
    mode: Literal["min", "max"] = "min"
    say: Callable[[str], None] = lambda _: None
    scores: dict[Trial, float] = field(default_factory=dict[Trial, float])  # lower is better, inf: failed

    def __post_init__(self) -> None:
        self.best: float | None = None  # the winner of the last rung, once the search is over
        self._asked: list[Plan] = []
        self._rounds = self._halve()

    def ask(self) -> list[Plan]:
        """Give the plans whose figures are wanted next, in any order; none where the search is over."""
        while self.best is None:
            pending = [plan for plan in self._asked if _trial(plan) not in self.scores]
            if pending:
                return pending
            self._asked = next(self._rounds, [])
        return []

    def tell(self, plan: Plan, figures: Mapping[str, float]) -> None:
        """Take in the figures of a run; it failed where `select` is missing or not finite."""
        value = figures.get(self.select, math.nan)
        self.scores[_trial(plan)] = FAILED if not math.isfinite(value) else value if self.mode == "min" else -value

    def _halve(self) -> Iterator[list[Plan]]:
        """Yield the plans of one round after the other; each builds on the scores of those before.

        The first is a logarithmic grid over the range, extended where the best rate is at its edge; from rung to rung the better
        rates stay, and new ones are tried midway to their neighbours.
        """
        rung = self.rungs[0]
        rates = _grid(self.low, self.high, rung.rates)
        spacing = rates[1] / rates[0] if len(rates) > 1 else 10.0
        yield self._begin(rates, rung)
        for _ in range(WIDENINGS if len(rates) > 1 else 0):
            rates = self._widened(rates, rung)
            yield self._plans(rates, rung)
        for following in self.rungs[1:]:
            spacing = math.sqrt(spacing)
            rates = _survivors(self._ranked(rates, rung), following.rates, spacing)
            rung = following
            yield self._begin(rates, rung)
        self.best = self._ranked(rates, rung)[0]

    def _begin(self, rates: list[float], rung: Rung) -> list[Plan]:
        self.say(f"learning rate: {len(rates)} candidates over {rung.steps} steps")
        return self._plans(rates, rung)

    def _plans(self, rates: list[float], rung: Rung) -> list[Plan]:
        pending = [trial for trial in self._trials(rates, rung) if trial not in self.scores]
        return [self.plan_for(trial.rate, trial.steps).replace(seed=trial.seed) for trial in pending]

    def _trials(self, rates: list[float], rung: Rung) -> list[Trial]:
        return [Trial(rate, rung.steps, self.seed + 1000 * number) for rate in rates for number in range(rung.seeds)]

    def _ranked(self, rates: list[float], rung: Rung) -> list[float]:
        """Order rates by their mean score, the best first."""

        def mean(rate: float) -> float:
            return sum(self.scores[trial] for trial in self._trials([rate], rung)) / rung.seeds

        return sorted(rates, key=lambda rate: (mean(rate), rate))

    def _widened(self, rates: list[float], rung: Rung) -> list[float]:
        """Add a rate beyond the edge where the best one lies there."""
        best, spacing = self._ranked(rates, rung)[0], rates[1] / rates[0]
        if not any(math.isfinite(self.scores[trial]) for trial in self._trials([best], rung)):
            return rates
        if best == rates[-1]:
            return [*rates, rates[-1] * spacing]
        return [rates[0] / spacing, *rates] if best == rates[0] else rates

    @property
    def steps_paid(self) -> int:
        """Steps of all trials together, the failed ones counted whole."""
        return sum(trial.steps for trial in self.scores)

    def figures(self) -> dict[str, Any]:
        """Give all trials with their scores, for the evidence."""
        trials = sorted(self.scores, key=lambda trial: (trial.steps, trial.rate, trial.seed))
        return {
            "learning_rates": [float(f"{trial.rate:.3g}") for trial in trials],
            "steps": [trial.steps for trial in trials],
            "seeds": [trial.seed for trial in trials],
            "scores": [float(f"{self.scores[trial]:.5g}") for trial in trials],
        }


def _trial(plan: Plan) -> Trial:
    assert plan.steps is not None
    return Trial(plan.learning_rate, plan.steps, plan.seed)


def _grid(low: float, high: float, count: int) -> list[float]:
    if count == 1:
        return [math.sqrt(low * high)]
    ratio = (high / low) ** (1 / (count - 1))
    return [low * ratio**k for k in range(count)]


def _survivors(ranked: list[float], count: int, spacing: float) -> list[float]:
    """Give the better half of `count` rates, filled up with new ones `spacing` times higher and lower."""
    best = ranked[: max(1, (count + 1) // 2)]
    rates = list(best)
    for rate in best:
        for near in (rate * spacing, rate / spacing):
            if len(rates) < count and not any(abs(math.log(near / other)) < 0.1 for other in rates):
                rates.append(near)
    return rates
