"""What the search for rule and learning rate found, as its evidence in the plan has it."""

from __future__ import annotations

from thalweg.records.run import Run

Scores = dict[int, dict[float, list[float]]]
"""By the steps after which candidates were judged and their rate; less is better, infinity: failed."""


def scores_by_steps(run: Run) -> Scores:
    """Give the scores of the search's candidates under the plan's rule."""
    return scores_by_rule(run).get(run.plan.rule, {})


def scores_by_rule(run: Run) -> dict[str, Scores]:
    """Give the scores of all candidates, those of the plan's rule first."""
    figures, own = run.plan.why("learning_rate").figures, run.plan.rule
    rates = figures.get("learning_rates", [])
    rules = figures.get("rules", [own] * len(rates))
    found = dict[str, Scores]({own: {}})
    for trial in zip(rules, rates, *(figures.get(key, []) for key in ("steps", "scores")), strict=False):
        try:
            rule, rate, steps, score = str(trial[0]), float(trial[1]), int(trial[2]), float(trial[3])
        except (TypeError, ValueError):
            continue  # a plan from another program may hold other things here
        if rate > 0:
            found.setdefault(rule, {}).setdefault(steps, {}).setdefault(rate, []).append(score)
    return {rule: scores for rule, scores in found.items() if scores}
