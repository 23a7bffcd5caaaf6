"""What to do next: said from the run's figures, and only where they say something.

Words between backticks are code: the report and the terminal set them apart.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np

from thalweg import rules
from thalweg.records.diagnosis import Diagnosis
from thalweg.records.run import Run
from thalweg.see import run_text
from thalweg.see.axes import Values
from thalweg.see.formatting import format_number, is_share, percent, printable, sentence, several
from thalweg.tuning.priors import is_adaptive

LATE = 0.8  # of the run: a best before this is early, and what improved after it was improving to the end
MATTERS = 0.02  # share of the improvement over the start that a later loss of it, or a difference, must reach
WORSENED = 0.2  # share of the best by which it must have worsened since, where that is less than MATTERS
SLIGHT = 0.005  # share of the improvement over the start that it must be all the same
NEGLIGIBLE = 1e-3  # share of the improvement over the start below which a further one is not worth a longer run
HARDLY = 0.1  # share of the loss at the start: a fall by less is hardly anything
FALLING = 0.75  # share of the validations that must be lower than the one before, for a steady fall
UNSPENT = 0.3  # share of the fall in the second half of the way: half of it would be a straight line
SHORT = 100  # steps below which a run may be too short rather than its rate too low
STILL = 0.05  # share by which the last fifth must have improved for a longer budget to be worth it
OFTEN = 0.5  # share of the steps that were clipped
GAP = 0.2  # training loss over validation loss below which the model knows its examples by heart
TIE = 0.01  # relative difference of two scores that no choice should rest on
REFUTABLE = ("one batch cannot be fitted", "nothing carries over")  # findings that a training which learns disproves


def next_steps(run: Run) -> list[str]:
    """Give a few sentences, most important first; there is always one."""
    causes, asides = _before_training(run)
    found = [*_unfinished(run), *causes, *_learnt(run), *_idle(run), *_cures(run), *_skips(run), *_overfitting(run)]
    found += [*_still_improving(run), *_clipping(run), *_search(run), *_unvalidated(run), *_memory(run)]
    return (found or [_well(run)]) + asides


def _before_training(run: Run) -> tuple[list[str], list[str]]:
    """Give what was found before training, with its cure: what matters most, and what comes last."""
    causes, asides = list[str](), list[str]()
    for found in run.diagnoses:
        if found.step is not None:
            continue
        said = f"Found before training: {printable(found.symptom)}."
        if found.symptom in REFUTABLE and _learnt_much(run):
            asides.append(f"{said} But the training did learn, so nothing needs to be mended.")
            continue
        cure = f" {printable(found.cure.action)}" if found.cure else ""
        (asides if found.severity == "note" else causes).append(f"{said} {sentence(printable(found.cause))}{cure}")
    return causes, asides


def _learnt_much(run: Run) -> bool:
    """Tell whether at least half of the loss at the start is gone."""
    before, after = run_text.start(run).get("loss", math.nan), float(run.metrics.get("loss", math.nan))
    return math.isfinite(before) and after <= before - 0.5 * abs(before)


def _cause(run: Run) -> str:
    """Say where to look for the cause of a failure."""
    if any(_matters(found) for found in run.diagnoses):
        return "what was found before training is the likely cause"
    return "`thalweg check` looks for the cause before training"


def _matters(found: Diagnosis) -> bool:
    return found.step is None and found.severity != "note"


def _give(knob: str, value: str) -> str:
    """Say how to set a knob: the commands have different words for it."""
    return f"`{knob}={value}` (with `--set` for `thalweg train`, with `--fix` for `thalweg fit`)"


def _unfinished(run: Run) -> list[str]:
    status = run_text.status(run)
    if status in ("interrupted", "running", "failed"):
        if run.folder is None:
            return [
                "The run is not finished, and was kept in memory only: give `out=` to be able to go on after a stop."
            ]
        return [f"The run is not finished. Go on with `{run_text.resume(run)}`; it continues to the same bits."]
    if status == "diverged":
        rate = run.plan.learning_rate
        return [
            f"The descent diverged, and lower rates and clipping did not save it. Run `thalweg check` on the task for its data"
            f" and loss; then try a learning rate of {format_number(rate / 100)} instead of {format_number(rate)}."
        ]
    return []


def _learnt(run: Run) -> list[str]:
    """Compare the criterion with the start: worse, or as good as unchanged."""
    select = str(run.summary.get("select", "loss"))
    before, after = run_text.start(run).get(select, math.nan), float(run.metrics.get(select, math.nan))
    if not math.isfinite(before):
        return []
    told, check = run_text.called(run, select), _cause(run)
    values = f"{run_text.wording_of(run, after)} at the end, {run_text.wording_of(run, before)} at the start"
    if _timid(run):
        return [f"Hardly anything was learnt: the {told} is {values}. {_raise(run)}"]
    if not math.isfinite(after):
        return [f"The {told} ended not finite. Look for log(0), division by zero or overflow in the loss; {check}."]
    if abs(after - before) <= MATTERS * abs(before):
        return [f"Nothing was learnt worth the name: the {told} is {values}. {sentence(check)}."]
    if run_text.better(run, before, after):
        return [f"The model is worse than before the first step: the {told} is {values}. {sentence(check)}."]
    if run.metrics.get("r2", 1.0) <= 0:
        r2 = format_number(float(run.metrics["r2"]))
        return [f"An r2 of {r2} is no better than always predicting the mean. {sentence(check)}."]
    return []


def _timid(run: Run) -> bool:
    """Tell whether the loss fell steadily and hardly at all: the steps go the right way and are far too short.

    The way is the sum of the rates, so that a rate that falls to zero does not look like a loss that has levelled off.
    """
    x, y = run_text.recorded(run, "validation/loss")
    steps, rates = run_text.recorded(run, "learning_rate")
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    troubled = any(event.kind in ("rollback", "diverging", "nonfinite") for event in run.events)
    if troubled or run_text.status(run) != "finished" or len(y) < 5 or not len(rates):
        return False
    fell = y[0] - y[-1]
    way = np.interp(x, steps, np.cumsum(np.nan_to_num(rates)), left=0.0)
    later = np.interp(way[-1] / 2, way, y) - y[-1]
    falling = float((np.diff(y) < 0).mean()) >= FALLING
    return bool(0 < fell <= HARDLY * abs(y[0]) and falling and later >= UNSPENT * fell)


def _raise(run: Run) -> str:
    rate = run.plan.learning_rate
    short = ", or the run far too short" if run_text.steps(run) < SHORT else ""
    choose = "" if run.plan.why("learning_rate").source == "searched" else ", or let `thalweg fit` search for it"
    told, knob = f"the learning rate of {format_number(rate)}", _give("learning_rate", f"{10 * rate:.3g}")
    if rules.get(run.plan.rule).finds_rate:
        told, choose = f"the rate that {run.plan.rule} found", ""
    if "d_coef" in rules.get(run.plan.rule).constants:
        knob = _give("constants.d_coef", f"{10 * float(run.plan.constants.get('d_coef', 1.0)):.3g}")
    return (
        f"But the loss fell steadily to the end and nothing ran away: {told} is likely far too low{short}. Raise it, for example"
        f" tenfold: {knob}{choose}."
    )


def _idle(run: Run) -> list[str]:
    idle = [printable(str(name)) for name in run.summary.get("idle_parameters", [])]
    if not idle or any(found.symptom == "parameter without gradient" for found in run.diagnoses):
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
        f"The rate of {format_number(rate)} was too high for this descent: it went back {_times(back)} and ended with"
        f" {format_number(ended)} at the peak. Plan anew around that: {_give('learning_rate', f'{ended:.3g}')}."
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
    """The criterion was best early and lost much of it afterwards, as the median of the last fifth of the run says."""
    x, y = _criterion(run)
    if not run_text.validated(run) or len(y) < 4 or run_text.status(run) == "running":
        return []
    best = int(np.argmin(_cost(run, y)))
    scale = abs(y[best] - y[0])
    late = float(np.median(y[x >= LATE * x[-1]]))
    worse = _cost(run, late) - _cost(run, y[best])
    clearly = max(SLIGHT * scale, min(MATTERS * scale, WORSENED * abs(y[best])))
    if best == 0 or x[best] >= LATE * x[-1] or worse < clearly:
        return []
    told = run_text.called(run, str(run.summary.get("select", "loss")))
    seen = (
        f"The {told} was best at step {int(x[best]):,} of {int(x[-1]):,} ({run_text.wording_of(run, y[best])}) and about"
        f" {run_text.wording_of(run, late)} over the last fifth of the run"
    )
    early, last = run_text.training_loss(run, int(x[best])), run_text.training_loss(run)
    if math.isfinite(last) and last > early:
        return [
            f"{seen}, and so did the training loss get worse: not overfitting, but steps too long. Try a lower rate."
        ]
    fell = (
        f", while the training loss went from {format_number(early)} to {format_number(last)}"
        if math.isfinite(last)
        else ""
    )
    kept = "The best weights were kept. " if run.plan.keep == "best" else 'Keep the best weights (`keep = "best"`). '
    epochs = run_text.epochs(run, int(x[best]))
    fewer = f"fewer steps ({epochs or several(int(x[best]), 'step')} were enough)"
    return [
        f"{seen}{fell}: overfitting. {kept}More data, augmentation, dropout or more weight decay would help, or {fewer}."
    ]


def _still_improving(run: Run) -> list[str]:
    """The criterion was at its best at the end, and the last fifth of the run took a good part of what was left."""
    x, y = _criterion(run)
    if run_text.status(run) != "finished" or len(y) < 6 or int(np.argmin(_cost(run, y))) < len(y) - 2:
        return []
    earlier = y[x <= LATE * x[-1]]
    before, after = float(earlier[-1]), float(y[-1])
    left = abs(before) if run.summary.get("mode", "min") == "min" else abs(before - y[0])
    gained = abs(after - before)
    if (
        not left
        or gained < max(STILL * left, NEGLIGIBLE * abs(after - y[0]))
        or not run_text.better(run, after, before)
    ):
        return []
    if _perfect(run) or _timid(run):
        return []
    told = run_text.called(run, str(run.summary.get("select", "loss")))
    longer = f"Give it twice the budget ({run_text.epochs(run, 2 * x[-1]) or several(2 * int(x[-1]), 'step')})"
    if run.plan.schedule.shape != "constant":
        longer += ", from the start: the schedule is cut to the run's length"
    return [
        f"The {told} was still improving: {run_text.wording_of(run, before)} after four fifths of the run,"
        f" {run_text.wording_of(run, after)} at the end. {longer}."
    ]


def _perfect(run: Run) -> bool:
    """Tell whether next to nothing is left to gain: every share is one, or the loss is gone but for a thousandth."""
    shares = [float(value) for name, value in run.metrics.items() if is_share(name) and "error" not in name]
    if shares:
        return min(shares) >= 1
    before, after = run_text.start(run).get("loss", math.nan), float(run.metrics.get("loss", math.nan))
    return 0 <= after <= NEGLIGIBLE * before


def _clipping(run: Run) -> list[str]:
    """Most steps were clipped. A rule such as Adam divides by the gradient's size, so there it says nothing about the rate."""
    _, scales = run_text.recorded(run, "clip_scale")
    _, norms = run_text.recorded(run, "gradient_norm")
    seen, norms = scales[np.isfinite(scales)], norms[np.isfinite(norms)]
    share = float((seen < 1).mean()) if len(seen) else 0.0
    if share <= OFTEN or run.plan.clip_norm is None or len(seen) < 10 or is_adaptive(run.plan.rule):
        return []
    usual, higher = float(np.median(norms)), f"{float(np.quantile(norms, 0.9)):.3g}"
    said = (
        f"The gradient was shortened in {percent(share)} of the steps (median norm {format_number(usual)}, `clip_norm`"
        f" {format_number(run.plan.clip_norm)}), so most steps were equally long, however steep the slope."
    )
    if run.plan.why("learning_rate").source == "searched":
        return [
            f"{said} The rate was searched with this limit, so the two fit each other. To shorten outliers only, fix"
            f" `clip_norm={higher}` and search anew."
        ]
    lower = f"{run.plan.learning_rate * min(1.0, run.plan.clip_norm / usual):.3g}"
    return [
        f"{said} To shorten outliers only, raise it to `clip_norm={higher}` and lower the rate in proportion, to about"
        f" `learning_rate={lower}`."
    ]


def _search(run: Run) -> list[str]:
    """Say where the search for the learning rate left something open: nothing asked, the best at the edge, or a tie."""
    why = run.plan.why("learning_rate")
    if rules.get(run.plan.rule).finds_rate:
        return []
    if why.source == "default" and run_text.status(run) == "finished" and not _timid(run):
        return ["The learning rate is a stated default. `thalweg fit` with `--effort standard` searches it."]
    ranked = trials_by_rate(run)
    if why.source != "searched" or len(ranked) < 3:
        return []
    (rate, score), (second, next_score) = ranked[0], ranked[1]
    rates = [float(r) for r in why.figures.get("learning_rates", [])]
    if rate in (min(rates), max(rates)):
        side, further = ("lowest", rate / 10) if rate == min(rates) else ("highest", rate * 10)
        return [
            f"The best learning rate of the search, {format_number(rate)}, was the {side} that was tried: one beyond it, such as"
            f" {format_number(further)}, may be better."
        ]
    if abs(next_score - score) <= TIE * abs(score):
        return [
            f"Learning rates {format_number(rate)} and {format_number(second)} came out alike in the search ("
            f"{format_number(score)} and {format_number(next_score)}): the choice between them matters little."
        ]
    return []


def trials_by_rate(run: Run) -> list[tuple[float, float]]:
    """Give (rate, mean score) of the search's longest short runs, best first; rates that failed once are left out."""
    figures = run.plan.why("learning_rate").figures
    trials = list(zip(*(figures.get(k, []) for k in ("learning_rates", "steps", "scores")), strict=False))
    longest = max((steps for _, steps, _ in trials), default=0)
    scores: dict[float, list[float]] = {}
    for rate, steps, score in trials:
        if steps == longest:
            scores.setdefault(float(rate), []).append(float(score))
    means = ((rate, sum(s) / len(s)) for rate, s in scores.items())
    return sorted((pair for pair in means if math.isfinite(pair[1])), key=lambda pair: (pair[1], pair[0]))


def _unvalidated(run: Run) -> list[str]:
    if run_text.validated(run) or run_text.status(run) == "running":
        return []
    return [
        "There were no validation data, so nobody can say how the model does on data it has not seen. Keep a tenth of the"
        " examples back and pass them as `validation=`."
    ]


def _memory(run: Run) -> list[str]:
    cut = [event for event in run.events if event.kind == "out_of_memory"]
    parts = cut[-1].data.get("accumulate") if cut else None
    return [f"Memory ran out on the way; next time start with {_give('accumulate', str(parts))}."] if parts else []


def _well(run: Run) -> str:
    x, y = _criterion(run)
    flat = len(y) >= 6 and all(abs(b - a) < STILL * abs(y[0]) for a, b in pairwise(y[x >= LATE * x[-1]].tolist()))
    levelled = " and had levelled off by the end" if flat else ""
    told = run_text.called(run, str(run.summary.get("select", "loss")))
    return f"All is well: the {told} improved{levelled}, and nothing had to be corrected. {_left_to_gain(run)}"


def _left_to_gain(run: Run) -> str:
    if _perfect(run):
        return "By this measure there is next to nothing left to gain."
    kept = run.summary.get("weights") or {}
    seen, unseen = run_text.training_loss(run, kept.get("step")), float(run.metrics.get("loss", math.nan))
    if 0 <= seen < GAP * unseen:
        return (
            f"The training loss of {format_number(seen)} is far below the validation loss of {format_number(unseen)}:"
            f" the model knows its training examples by heart, so what is left to gain lies in more data,"
            f" augmentation or dropout."
        )
    return "What is left to gain lies in more data or another model rather than in the knobs."


def _criterion(run: Run) -> tuple[Values, Values]:
    """Give the validations of the criterion, the better of raw and averaged weights at each step."""
    select = run.summary.get("select", "loss")
    x, y = run_text.recorded(run, f"validation/{select}")
    averaged = run_text.column(run, f"ema/{select}")
    if len(averaged):
        there = np.isin(run_text.column(run, "step"), x)
        costs = np.stack([_cost(run, y), _cost(run, averaged[there])])
        y = np.where(np.isnan(costs).all(0), np.nan, np.nan_to_num(costs, nan=np.inf).min(0))
        y = -y if run.summary.get("mode") == "max" else y
    good = np.isfinite(y)
    return x[good], y[good]


def _cost(run: Run, values: Any) -> Any:
    return -values if run.summary.get("mode") == "max" else values


def _times(count: int) -> str:
    return "once" if count == 1 else "twice" if count == 2 else f"{max(count, 1)} times"
