"""What to do next: said from the run's figures, and only where they say something.

Words between backticks are code: the report and the terminal set them apart.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np

from thalweg.records.run import Run
from thalweg.see import story
from thalweg.see.axes import Values
from thalweg.see.wording import number, percent, plain, several

LATE = 0.8  # of the run: a best before this is early, and what improved after it was improving to the end
MATTERS = 0.02  # share of the improvement over the start that a later loss of it, or a difference, must reach
STILL = 0.05  # share by which the last fifth must have improved for a longer budget to be worth it
OFTEN = 0.5  # share of the steps that were clipped
GAP = 0.2  # training loss over validation loss below which the model knows its examples by heart
TIE = 0.01  # relative difference of two scores that no choice should rest on


def next_steps(run: Run) -> list[str]:
    """Give a few sentences, most important first; there is always one."""
    found = [*_unfinished(run), *_learnt(run), *_idle(run), *_cures(run), *_skips(run), *_overfitting(run)]
    found += [*_still_improving(run), *_clipping(run), *_search(run), *_unvalidated(run), *_memory(run)]
    return found or [_well(run)]


def _unfinished(run: Run) -> list[str]:
    status = story.status(run)
    if status in ("interrupted", "running", "failed"):
        if run.folder is None:
            return [
                "The run is not finished, and was kept in memory only: give `out=` to be able to go on after a stop."
            ]
        return [f"The run is not finished. Go on with `{story.resume(run)}`; it continues to the same bits."]
    if status == "diverged":
        rate = run.plan.learning_rate
        return [
            f"The descent diverged, and lower rates and clipping did not save it. Run `thalweg check` on the task for its data"
            f" and loss; then try a learning rate of {number(rate / 100)} instead of {number(rate)}."
        ]
    return []


def _learnt(run: Run) -> list[str]:
    """Compare the criterion with the start: worse, or as good as unchanged."""
    select = str(run.summary.get("select", "loss"))
    before, after = story.start(run).get(select, math.nan), float(run.metrics.get(select, math.nan))
    if not math.isfinite(before):
        return []
    told, check = story.called(run, select), "`thalweg check` looks for the cause before training"
    values = f"{story.wording_of(run, after)} at the end, {story.wording_of(run, before)} at the start"
    if not math.isfinite(after):
        return [f"The {told} ended not finite. Look for log(0), division by zero or overflow in the loss; {check}."]
    if abs(after - before) <= MATTERS * abs(before):
        return [f"Nothing was learnt worth the name: the {told} is {values}. {check[0] + check[1:]}."]
    if story.better(run, before, after):
        return [f"The model is worse than before the first step: the {told} is {values}. {check}."]
    if run.metrics.get("r2", 1.0) <= 0:
        return [f"An r2 of {number(float(run.metrics['r2']))} is no better than always predicting the mean. {check}."]
    return []


def _idle(run: Run) -> list[str]:
    idle = [plain(str(name)) for name in run.summary.get("idle_parameters", [])]
    if not idle:
        return []
    more = f" and {len(idle) - 4} more" if len(idle) > 4 else ""
    return [
        f"No gradient reached {', '.join(idle[:4])}{more}: as good as frozen. Use them in the forward pass, or drop them."
    ]


def _cures(run: Run) -> list[str]:
    factor = float((run.summary.get("cures") or {}).get("rate_factor", 1.0))
    back = sum(event.kind == "rollback" for event in run.events)
    if factor >= 1.0:
        return []
    rate, ended = run.plan.learning_rate, run.plan.learning_rate * factor
    return [
        f"The rate of {number(rate)} was too high for this descent: it went back {_times(back)} and ended with"
        f" {number(ended)} at the peak. Plan anew around that: `--fix learning_rate={ended:.3g}`."
    ]


def _skips(run: Run) -> list[str]:
    steps = Counter(event.step for event in run.events if event.kind == "nonfinite")
    back = sum(event.kind == "rollback" for event in run.events)
    if not steps or back:
        return []
    return [
        f"{several(sum(steps.values()), 'batch')} gave a loss or gradient that is not finite and were left out. Look for bad rows"
        f" in the data, and for log(0) or overflow in the loss."
    ]


def _overfitting(run: Run) -> list[str]:
    """The criterion was best early and lost much of it afterwards."""
    x, y = _criterion(run)
    if not story.validated(run) or len(y) < 4 or story.status(run) == "running":
        return []
    best = int(np.argmin(_cost(run, y)))
    scale = abs(y[best] - y[0]) or 1.0
    if x[best] >= LATE * x[-1] or abs(y[-1] - y[best]) < MATTERS * scale:
        return []
    told = story.called(run, str(run.summary.get("select", "loss")))
    seen = (
        f"The {told} was best at step {int(x[best]):,} of {int(x[-1]):,} ({story.wording_of(run, y[best])}) and"
        f" {story.wording_of(run, y[-1])} at the end"
    )
    early, late = story.training_loss(run, int(x[best])), story.training_loss(run)
    if math.isfinite(late) and late > early:
        return [
            f"{seen}, and so did the training loss get worse: not overfitting, but steps too long. Try a lower rate."
        ]
    fell = f" while the training loss went from {number(early)} to {number(late)}" if math.isfinite(late) else ""
    kept = "The best weights were kept. " if run.plan.keep == "best" else 'Keep the best weights (`keep = "best"`). '
    epochs = story.epochs(run, int(x[best]))
    fewer = f"fewer steps ({epochs or several(int(x[best]), 'step')} were enough)"
    return [
        f"{seen}{fell}: overfitting. {kept}More data, augmentation, dropout or more weight decay would help, or {fewer}."
    ]


def _still_improving(run: Run) -> list[str]:
    """The criterion was at its best at the end, and the last fifth of the run took a good part of what was left."""
    x, y = _criterion(run)
    if story.status(run) != "finished" or len(y) < 6 or int(np.argmin(_cost(run, y))) < len(y) - 2:
        return []
    earlier = y[x <= LATE * x[-1]]
    before, after = float(earlier[-1]), float(y[-1])
    left = abs(before) if run.summary.get("mode", "min") == "min" else abs(before - y[0])
    if not left or abs(after - before) < STILL * left or not story.better(run, after, before):
        return []
    told = story.called(run, str(run.summary.get("select", "loss")))
    longer = f"Give it twice the budget ({story.epochs(run, 2 * x[-1]) or several(2 * int(x[-1]), 'step')})"
    return [
        f"The {told} was still improving: {story.wording_of(run, before)} after four fifths of the run,"
        f" {story.wording_of(run, after)} at the end. {longer}, from the start: the schedule is cut to the run's length."
    ]


def _clipping(run: Run) -> list[str]:
    _, scales = story.recorded(run, "clip_scale")
    _, norms = story.recorded(run, "gradient_norm")
    seen, norms = scales[np.isfinite(scales)], norms[np.isfinite(norms)]
    share = float((seen < 1).mean()) if len(seen) else 0.0
    if share <= OFTEN or run.plan.clip_norm is None or len(seen) < 10:
        return []
    said = (
        f"The gradient was shortened in {percent(share)} of the steps (median norm {number(float(np.median(norms)))}, limit"
        f" {number(run.plan.clip_norm)})"
    )
    if run.plan.why("learning_rate").source == "searched":
        higher = number(float(np.quantile(norms, 0.9)))
        fits = "The rate was searched with this limit, so the two fit each other"
        return [f"{said}. {fits}; a limit of {higher} would spare all but outliers."]
    return [f"{said}: the limit sets the step's length more than the rate does. Try half the learning rate."]


def _search(run: Run) -> list[str]:
    """Say where the search for the learning rate left something open: nothing asked, the best at the edge, or a tie."""
    why = run.plan.why("learning_rate")
    if why.source == "default" and story.status(run) == "finished":
        return ["The learning rate is a stated default. `thalweg fit` with `--effort standard` searches it."]
    ranked = trials_by_rate(run)
    if why.source != "searched" or len(ranked) < 3:
        return []
    (rate, score), (second, next_score) = ranked[0], ranked[1]
    rates = [float(r) for r in why.figures.get("learning_rates", [])]
    if rate in (min(rates), max(rates)):
        side, further = ("lowest", rate / 10) if rate == min(rates) else ("highest", rate * 10)
        return [
            f"The best learning rate of the search, {number(rate)}, was the {side} that was tried: one beyond it, such as"
            f" {number(further)}, may be better."
        ]
    if abs(next_score - score) <= TIE * abs(score):
        return [
            f"Learning rates {number(rate)} and {number(second)} came out alike in the search ({number(score)} and"
            f" {number(next_score)}): the choice between them matters little."
        ]
    return []


def trials_by_rate(run: Run) -> list[tuple[float, float]]:
    """Give (rate, mean score) of the search's longest short runs, best first; failed rates are left out."""
    figures = run.plan.why("learning_rate").figures
    trials = list(zip(*(figures.get(k, []) for k in ("learning_rates", "steps", "scores")), strict=False))
    longest = max((steps for _, steps, _ in trials), default=0)
    scores: dict[float, list[float]] = {}
    for rate, steps, score in trials:
        if steps == longest and math.isfinite(float(score)):
            scores.setdefault(float(rate), []).append(float(score))
    return sorted(((rate, sum(s) / len(s)) for rate, s in scores.items()), key=lambda pair: (pair[1], pair[0]))


def _unvalidated(run: Run) -> list[str]:
    if story.validated(run) or story.status(run) == "running":
        return []
    return [
        "There were no validation data, so nobody can say how the model does on data it has not seen. Keep a tenth of the"
        " examples back and pass them as `validation=`."
    ]


def _memory(run: Run) -> list[str]:
    cut = [event for event in run.events if event.kind == "out_of_memory"]
    parts = cut[-1].data.get("accumulate") if cut else None
    return [f"Memory ran out on the way; next time start with `--fix accumulate={parts}`."] if parts else []


def _well(run: Run) -> str:
    x, y = _criterion(run)
    flat = len(y) >= 6 and all(abs(b - a) < STILL * abs(y[0]) for a, b in pairwise(y[x >= LATE * x[-1]].tolist()))
    levelled = " and had levelled off by the end" if flat else ""
    told = story.called(run, str(run.summary.get("select", "loss")))
    return f"All is well: the {told} improved{levelled}, and nothing had to be corrected. {_left_to_gain(run)}"


def _left_to_gain(run: Run) -> str:
    kept = run.summary.get("weights") or {}
    seen, unseen = story.training_loss(run, kept.get("step")), float(run.metrics.get("loss", math.nan))
    if 0 <= seen < GAP * unseen:
        return (
            f"The training loss of {number(seen)} is far below the validation loss of {number(unseen)}: the model knows its"
            f" training examples by heart, so what is left to gain lies in more data, augmentation or dropout."
        )
    return "What is left to gain lies in more data or another model rather than in the knobs."


def _criterion(run: Run) -> tuple[Values, Values]:
    """Give the validations of the criterion, the better of raw and averaged weights at each step."""
    select = run.summary.get("select", "loss")
    x, y = story.recorded(run, f"validation/{select}")
    averaged = story.column(run, f"ema/{select}")
    if len(averaged):
        there = np.isin(story.column(run, "step"), x)
        costs = np.stack([_cost(run, y), _cost(run, averaged[there])])
        y = np.where(np.isnan(costs).all(0), np.nan, np.nan_to_num(costs, nan=np.inf).min(0))
        y = -y if run.summary.get("mode") == "max" else y
    good = np.isfinite(y)
    return x[good], y[good]


def _cost(run: Run, values: Values) -> Values:
    return -values if run.summary.get("mode") == "max" else values


def _times(count: int) -> str:
    return "once" if count == 1 else "twice" if count == 2 else f"{max(count, 1)} times"
