"""What the search for rule and learning rate found, as its evidence in the plan has it."""

from __future__ import annotations

import math

from thalweg.records.run import Run

Scores = dict[int, dict[float, list[float]]]
"""By the steps after which candidates were judged and their rate; less is better, infinity: failed."""


def scores_by_steps(run: Run) -> Scores:
    """Give the scores of the search's candidates under the plan's rule."""
    return scores_by_rule(run).get(run.plan.rule, {})


def scores_by_rule(run: Run) -> dict[str, Scores]:
    """Give the scores of all candidates, those of the plan's rule first."""
    why, own = run.plan.why("learning_rate"), run.plan.rule
    rates = why.listed("learning_rates")
    rules = why.listed("rules") or [own] * len(rates)
    found = dict[str, Scores]({own: {}})
    for trial in zip(rules, rates, why.listed("steps"), why.listed("scores"), strict=False):
        try:
            rule, rate, steps, score = str(trial[0]), float(trial[1]), int(float(trial[2])), float(trial[3])
        except (TypeError, ValueError, OverflowError):
            continue  # a plan from another program may hold other things here
        if 0 < rate < math.inf:
            found.setdefault(rule, {}).setdefault(steps, {}).setdefault(rate, []).append(score)
    return {rule: scores for rule, scores in found.items() if scores}
