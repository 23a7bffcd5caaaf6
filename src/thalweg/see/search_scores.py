"""What the search for the learning rate found, as its evidence in the plan has it."""

from __future__ import annotations

from thalweg.records.run import Run


def scores_by_steps(run: Run) -> dict[int, dict[float, list[float]]]:
    """Give the scores of the search's candidates, by their steps and learning rate; less is better, infinity: failed."""
    figures, found = run.plan.why("learning_rate").figures, dict[int, dict[float, list[float]]]()
    for trial in zip(*(figures.get(key, []) for key in ("learning_rates", "steps", "scores")), strict=False):
        try:
            rate, steps, score = float(trial[0]), int(trial[1]), float(trial[2])
        except (TypeError, ValueError):
            continue  # a plan from another program may hold other things here
        if rate > 0:
            found.setdefault(steps, {}).setdefault(rate, []).append(score)
    return found
