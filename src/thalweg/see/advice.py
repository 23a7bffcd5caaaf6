"""What to do next: said from the run's figures, and only where they say something.

Words between backticks are code: the report and the terminal set them apart.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np

from thalweg import rules
from thalweg.formatting import format_number, is_share, percent, printable, sentence, several
from thalweg.records.run import Run
from thalweg.see import run_text
from thalweg.tuning.priors import is_adaptive
from thalweg.watch.causes import all_causes
from thalweg.watch.findings import diagnose_run
from thalweg.watch.finished import LATE_SHARE, FinishedHistory

NEGLIGIBLE = 1e-3  # share of the improvement over the start below which a further one is not worth a longer run
STILL = 0.05  # share by which the last fifth must have improved for a longer budget to be worth it
OFTEN = 0.5  # share of the steps that were clipped
GAP = 0.2  # training loss over validation loss below which the model knows its examples by heart
TIE = 0.01  # relative difference of two scores that no choice should rest on


def next_steps(run: Run, *, repeat_diagnoses: bool = True) -> list[str]:
    """Give a few sentences, most important first; there is always one.

    `repeat_diagnoses`: say again what the history shows; not needed beside a list of the run's diagnoses.
    """
    causes, asides = _before_training(run)
    faults = _after_training(run) if repeat_diagnoses else []
    found = [*_unfinished(run), *causes, *faults, *_cures(run), *_skips(run)]
    found += [*_still_improving(run), *_clipping(run), *_search(run), *_unvalidated(run), *_memory(run)]
    return (found or [_well(run)]) + asides


def _before_training(run: Run) -> tuple[list[str], list[str]]:
    """Give what was found before training, with its cure: what matters most, and what comes last."""
    causes, asides = list[str](), list[str]()
    disproved = {symptom for cause in all_causes() for symptom in cause.refutable}
    for found in run.diagnoses:
        if found.step is not None:
            continue
        said = f"Found before training: {printable(found.symptom)}."
        if found.symptom in disproved and _learnt_much(run):
            asides.append(f"{said} But the training did learn, so nothing needs to be mended.")
            continue
        cure = f" {printable(found.cure.action)}" if found.cure else ""
        (asides if found.severity == "note" else causes).append(f"{said} {sentence(printable(found.cause))}{cure}")
    return causes, asides


def _after_training(run: Run) -> list[str]:
    """Give what the run's history shows that was not diagnosed on the way, each with its cure."""
    found = diagnose_run(run)[len(run.diagnoses) :]
    return [f"{sentence(each.cause)} {each.cure.action}" if each.cure else sentence(each.cause) for each in found]


def _learnt_much(run: Run) -> bool:
    """Tell whether at least half of the loss at the start is gone."""
    before, after = run_text.start(run).get("loss", math.nan), float(run.metrics.get("loss", math.nan))
    return math.isfinite(before) and after <= before - 0.5 * abs(before)


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
    steps = Counter(event.step for event in run.events if "batch" in event.data)
    back = sum(event.kind == "rollback" for event in run.events)
    if not steps or back:
        return []
    return [
        f"{several(sum(steps.values()), 'batch')} gave a loss or gradient that is not finite and were left out. Look for bad rows"
        f" in the data, and for log(0) or overflow in the loss."
    ]


def _still_improving(run: Run) -> list[str]:
    """The criterion was at its best at the end, and the last fifth of the run took a good part of what was left."""
    history = FinishedHistory.of(run)
    x, y = history.criterion()
    if history.status != "finished" or len(y) < 6 or int(np.argmin(history.cost(y))) < len(y) - 2:
        return []
    earlier = y[x <= LATE_SHARE * x[-1]]
    before, after = float(earlier[-1]), float(y[-1])
    left = abs(before) if run.summary.get("mode", "min") == "min" else abs(before - y[0])
    gained = abs(after - before)
    if (
        not left
        or gained < max(STILL * left, NEGLIGIBLE * abs(after - y[0]))
        or not run_text.is_better(run, after, before)
    ):
        return []
    if _perfect(run) or history.fell_steadily_but_little():
        return []
    told = run_text.metric_label(run, str(run.summary.get("select", "loss")))
    longer = f"Give it twice the budget ({run_text.epochs(run, 2 * x[-1]) or several(2 * int(x[-1]), 'step')})"
    if run.plan.schedule.shape != "constant":
        longer += ", from the start: the schedule is cut to the run's length"
    return [
        f"The {told} was still improving: {run_text.format_criterion(run, before)} after four fifths of the run,"
        f" {run_text.format_criterion(run, after)} at the end. {longer}."
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
    if (
        why.source == "default"
        and run_text.status(run) == "finished"
        and not FinishedHistory.of(run).fell_steadily_but_little()
    ):
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
    x, y = FinishedHistory.of(run).criterion()
    flat = len(y) >= 6 and all(abs(b - a) < STILL * abs(y[0]) for a, b in pairwise(y[x >= LATE_SHARE * x[-1]].tolist()))
    levelled = " and had levelled off by the end" if flat else ""
    told = run_text.metric_label(run, str(run.summary.get("select", "loss")))
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


def _times(count: int) -> str:
    return "once" if count == 1 else "twice" if count == 2 else f"{max(count, 1)} times"
