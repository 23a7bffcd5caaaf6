"""The learning rate: successive halving over short runs that are complete schedules, with paired seeds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from thalweg.descent.loop import descend
from thalweg.descent.problem import Problem
from thalweg.descent.recorder import Recorder
from thalweg.descent.state import Descent
from thalweg.errors import DivergedError
from thalweg.records.plan import Plan

FAILED = math.inf


@dataclass
class Trial:
    """One short run: at which rate, how many steps, from which seed, and its score (lower is better, inf: failed)."""

    rate: float
    steps: int
    seed: int
    score: float


@dataclass
class Search:
    """A search under way: the price paid so far in examples, and the trials.

    `plan_for(rate, steps)` gives a complete plan of a short run.
    """

    problem: Problem
    plan_for: Callable[[float, int], Plan]
    seed: int
    say: Callable[[str], None] = lambda _: None
    trials: list[Trial] = field(default_factory=list[Trial])

    def run(self, rate: float, steps: int, replicate: int = 0) -> float:
        """Train one short run and give its score; the same replicate number is the same seed for every rate."""
        seed = self.seed + 1000 * replicate
        known = [t for t in self.trials if (t.rate, t.steps, t.seed) == (rate, steps, seed)]
        if known:
            return known[0].score
        plan = self.plan_for(rate, steps).replace(
            seed=seed, watch=True, snapshot_every=0, digest_every=0, validate_every=steps, keep="last", ema=None
        )
        score = self._score(plan)
        self.trials.append(Trial(rate, steps, seed, score))
        return score

    def _score(self, plan: Plan) -> float:
        task = self.problem.task
        descent = Descent(self.problem, plan)
        try:
            descend(descent, Recorder())
        except DivergedError:
            return FAILED
        value = descent.last_validation[task.select]
        if not math.isfinite(value):
            return FAILED
        return value if task.mode == "min" else -value

    def halve(self, low: float, high: float, rungs: list[tuple[int, int, int]]) -> float:
        """Ask ever fewer rates over ever longer runs, and give the best.

        `rungs` holds (rates, steps, replicates) each. The first rung is a logarithmic grid over the range; between rungs the
        survivors are joined by the midpoints to their neighbours. A winner at the edge widens the range once.
        """
        rates, steps, replicates = rungs[0]
        grid = _grid(low, high, rates)
        ranked = self._rank(grid, steps, replicates)
        ranked = self._widened(ranked, grid, steps, replicates)
        spacing = grid[1] / grid[0] if len(grid) > 1 else 10.0
        for rates, steps, replicates in rungs[1:]:
            spacing = math.sqrt(spacing)
            keep = max(1, (rates + 1) // 2)
            asked = dict.fromkeys(ranked[:keep])
            for rate in ranked[:keep]:
                for near in (rate * spacing, rate / spacing):
                    if len(asked) < rates and not any(abs(math.log(near / other)) < 0.1 for other in asked):
                        asked[near] = None
            self.say(f"learning rate: {len(asked)} candidates over {steps} steps")
            ranked = self._rank(list(asked), steps, replicates)
        return ranked[0]

    def _rank(self, rates: list[float], steps: int, replicates: int) -> list[float]:
        scores = {rate: sum(self.run(rate, steps, r) for r in range(replicates)) / replicates for rate in rates}
        return sorted(rates, key=lambda rate: (scores[rate], rate))

    def _widened(self, ranked: list[float], grid: list[float], steps: int, replicates: int) -> list[float]:
        for _ in range(2 if len(grid) > 1 else 0):
            spacing = grid[1] / grid[0]
            if ranked[0] == grid[-1] and self._finite(ranked[0]):
                grid = [*grid, grid[-1] * spacing]
            elif ranked[0] == grid[0] and self._finite(ranked[0]):
                grid = [grid[0] / spacing, *grid]
            else:
                break
            ranked = self._rank(grid, steps, replicates)
        return ranked

    def _finite(self, rate: float) -> bool:
        return any(t.rate == rate and math.isfinite(t.score) for t in self.trials)

    @property
    def steps_paid(self) -> int:
        """Steps of all trials together, the failed ones counted whole."""
        return sum(t.steps for t in self.trials)

    def figures(self) -> dict[str, Any]:
        """Give what was seen, for the evidence."""
        kept = sorted(self.trials, key=lambda t: (t.steps, t.rate))
        return {
            "learning_rates": [float(f"{t.rate:.3g}") for t in kept],
            "steps": [t.steps for t in kept],
            "seeds": [t.seed for t in kept],
            "scores": [float(f"{t.score:.5g}") for t in kept],
        }


def _grid(low: float, high: float, count: int) -> list[float]:
    if count == 1:
        return [math.sqrt(low * high)]
    ratio = (high / low) ** (1 / (count - 1))
    return [low * ratio**k for k in range(count)]
