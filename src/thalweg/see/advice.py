"""Advice after a run, each sentence from figures of the run and only where they justify it.

Words between backticks are code: the report and the terminal format them as such.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from thalweg import rules
from thalweg.formatting import capitalized, format_count, format_number, format_share, is_share, printable
from thalweg.records.run import Run
from thalweg.see import run_text
from thalweg.tuning.priors import is_adaptive
from thalweg.watch.causes import all_causes
from thalweg.watch.findings import diagnose_run
from thalweg.watch.finished import LATE_SHARE, FinishedHistory

NEGLIGIBLE = 1e-3  # share of the improvement over the start below which a further one is not worth a longer run
STILL_IMPROVING = 0.05  # share by which the last fifth must have improved for a longer budget to be worth it
MOSTLY_CLIPPED = 0.5  # share of the steps above which clipping is the rule and no longer the exception
MEMORISED = 0.2  # training loss over validation loss below which the model has memorised its training examples
TIE = 0.01  # relative difference of two scores that no choice should rest on


def next_steps(run: Run, *, repeat_diagnoses: bool = True) -> list[str]:
    """Give at least one sentence of advice, the most important first.

    `repeat_diagnoses`: include what `diagnose` finds in the history; not needed beside a list of the run's diagnoses.
    """
    history = FinishedHistory.of(run)
    faults_before, refuted_and_notes = _before_training(run, history)
    faults_after = _after_training(run) if repeat_diagnoses else []
    advice = [*_unfinished(run, history), *faults_before, *faults_after, *_lowered_rate(run), *_skipped_batches(run)]
    advice += [*_still_improving(run, history), *_clipping(run, history), *_search(run, history)]
    advice += [*_unvalidated(history), *_memory(run)]
    return (advice or [_all_is_well(run, history)]) + refuted_and_notes


def _before_training(run: Run, history: FinishedHistory) -> tuple[list[str], list[str]]:
    """Say what was diagnosed before training: faults with their cures, and apart from them what was refuted and mere notes."""
    faults, refuted_and_notes = list[str](), list[str]()
    refutable = {symptom for cause in all_causes() for symptom in cause.refutable}
    for diagnosis in run.diagnoses:
        if diagnosis.step is not None:
            continue
        text = f"Found before training: {printable(diagnosis.symptom)}."
        if diagnosis.symptom in refutable and _halved_the_loss(run, history):
            refuted_and_notes.append(f"{text} But the training did learn, so nothing needs to be mended.")
            continue
        cure = f" {printable(diagnosis.cure.action)}" if diagnosis.cure else ""
        target = refuted_and_notes if diagnosis.severity == "note" else faults
        target.append(f"{text} {capitalized(printable(diagnosis.cause))}{cure}")
    return faults, refuted_and_notes


def _after_training(run: Run) -> list[str]:
    """Say what the finished history shows that was not diagnosed during the run, each with its cure."""
    new = diagnose_run(run)[len(run.diagnoses) :]
    return [f"{capitalized(each.cause)} {each.cure.action}" if each.cure else capitalized(each.cause) for each in new]


def _halved_the_loss(run: Run, history: FinishedHistory) -> bool:
    """Tell whether at least half of the loss at the start is gone."""
    before, after = history.initial.get("loss", math.nan), float(run.metrics.get("loss", math.nan))
    return math.isfinite(before) and after <= before - 0.5 * abs(before)


def _how_to_set(knob: str, value: str) -> str:
    """Say how to set a knob: `train` and `fit` have different options for it."""
    return f"`{knob}={value}` (with `--set` for `thalweg train`, with `--fix` for `thalweg fit`)"


def _unfinished(run: Run, history: FinishedHistory) -> list[str]:
    if history.status in ("interrupted", "running", "failed"):
        if run.folder is None:
            return [
                "The run is not finished, and was kept in memory only: give `out=` to be able to resume after a stop."
            ]
        return [
            f"The run is not finished. Resume it with `{run_text.resume(run)}`; the result is bitwise that of an"
            " uninterrupted run."
        ]
    if history.status == "diverged":
        rate = run.plan.learning_rate
        return [
            f"The descent diverged, and lower rates and clipping did not save it. Run `thalweg check` on the task for its data"
            f" and loss; then try a learning rate of {format_number(rate / 100)} instead of {format_number(rate)}."
        ]
    return []


def _lowered_rate(run: Run) -> list[str]:
    factor = float((run.summary.get("cures") or {}).get("rate_factor", 1.0))
    rollbacks = sum(event.kind == "rollback" for event in run.events)
    if factor >= 1.0:
        return []
    planned, lowered = run.plan.learning_rate, run.plan.learning_rate * factor
    return [
        f"The rate of {format_number(planned)} was too high for this descent: it went back {_times(rollbacks)} and ended with"
        f" {format_number(lowered)} at the peak. Plan anew around that: {_how_to_set('learning_rate', f'{lowered:.3g}')}."
    ]


def _skipped_batches(run: Run) -> list[str]:
    skipped = sum("batch" in event.data for event in run.events)
    if not skipped or any(event.kind == "rollback" for event in run.events):
        return []
    return [
        f"{format_count(skipped, 'batch')} gave a loss or gradient that is not finite and were left out. Look for bad rows"
        f" in the data, and for log(0) or overflow in the loss."
    ]


def _still_improving(run: Run, history: FinishedHistory) -> list[str]:
    """Advise a longer run where the criterion was best at the end and improved much in the last fifth of the run."""
    x, y = history.criterion()
    if history.status != "finished" or len(y) < 6 or int(np.argmin(history.cost(y))) < len(y) - 2:
        return []
    earlier = y[x <= LATE_SHARE * x[-1]]
    before, after = float(earlier[-1]), float(y[-1])
    scale = abs(before) if history.mode == "min" else abs(before - y[0])
    gain = abs(after - before)
    worthwhile = max(STILL_IMPROVING * scale, NEGLIGIBLE * abs(after - y[0]))
    if not scale or gain < worthwhile or not history.better(after, before):
        return []
    if _is_perfect(run, history) or history.fell_steadily_but_little():
        return []
    longer = f"Give it twice the budget ({history.epochs(2 * x[-1]) or format_count(2 * int(x[-1]), 'step')})"
    if run.plan.schedule.shape != "constant":
        longer += ", from the start: the schedule is cut to the run's length"
    return [
        f"The {history.metric_name(history.select)} was still improving: {history.value_text(before)} after four fifths of the"
        f" run, {history.value_text(after)} at the end. {longer}."
    ]


def _is_perfect(run: Run, history: FinishedHistory) -> bool:
    """Tell whether next to nothing is left to gain: accuracies and the like are 100 %, or the loss fell to a thousandth."""
    shares = [float(value) for name, value in run.metrics.items() if is_share(name) and "error" not in name]
    if shares:
        return min(shares) >= 1
    before, after = history.initial.get("loss", math.nan), float(run.metrics.get("loss", math.nan))
    return 0 <= after <= NEGLIGIBLE * before


def _clipping(run: Run, history: FinishedHistory) -> list[str]:
    """Advise a higher limit where most steps were clipped.

    Not for rules such as Adam: they divide by the gradient's size, so that there the limit says nothing about the rate.
    """
    _, scales = history.recorded("clip_scale")
    _, norms = history.recorded("gradient_norm")
    scales, norms = scales[np.isfinite(scales)], norms[np.isfinite(norms)]
    clipped = float((scales < 1).mean()) if len(scales) else 0.0
    if clipped <= MOSTLY_CLIPPED or run.plan.clip_norm is None or len(scales) < 10 or is_adaptive(run.plan.rule):
        return []
    median, higher = float(np.median(norms)), f"{float(np.quantile(norms, 0.9)):.3g}"
    text = (
        f"The gradient was shortened in {format_share(clipped)} of the steps (median norm {format_number(median)}, `clip_norm`"
        f" {format_number(run.plan.clip_norm)}), so most steps were equally long, however steep the slope."
    )
    if run.plan.why("learning_rate").source == "searched":
        return [
            f"{text} The rate was searched with this limit, so the two fit each other. To shorten outliers only, fix"
            f" `clip_norm={higher}` and search anew."
        ]
    lower = f"{run.plan.learning_rate * min(1.0, run.plan.clip_norm / median):.3g}"
    return [
        f"{text} To shorten outliers only, raise it to `clip_norm={higher}` and lower the rate in proportion, to about"
        f" `learning_rate={lower}`."
    ]


def _search(run: Run, history: FinishedHistory) -> list[str]:
    """Say what the search for the learning rate left open: no search was made, the best rate lay at the edge, or two tied."""
    why = run.plan.why("learning_rate")
    if rules.get(run.plan.rule).finds_rate:
        return []
    if why.source == "default" and history.status == "finished" and not history.fell_steadily_but_little():
        return ["The learning rate is a stated default. `thalweg fit` with `--effort standard` searches it."]
    ranked = trials_by_rate(run)
    if why.source != "searched" or len(ranked) < 3:
        return []
    (best, best_score), (second, second_score) = ranked[0], ranked[1]
    rates = [float(r) for r in why.figures.get("learning_rates", [])]
    if best in (min(rates), max(rates)):
        side, further = ("lowest", best / 10) if best == min(rates) else ("highest", best * 10)
        return [
            f"The best learning rate of the search, {format_number(best)}, was the {side} that was tried: one beyond it, such as"
            f" {format_number(further)}, may be better."
        ]
    if abs(second_score - best_score) <= TIE * abs(best_score):
        return [
            f"Learning rates {format_number(best)} and {format_number(second)} came out alike in the search ("
            f"{format_number(best_score)} and {format_number(second_score)}): the choice between them matters little."
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


def _unvalidated(history: FinishedHistory) -> list[str]:
    if history.validated or history.status == "running":
        return []
    return [
        "There were no validation data, so nobody can say how the model does on data it has not seen. Keep a tenth of the"
        " examples back and pass them as `validation=`."
    ]


def _memory(run: Run) -> list[str]:
    shortages = [event for event in run.events if event.kind == "out_of_memory"]
    parts = shortages[-1].data.get("accumulate") if shortages else None
    return [f"Memory ran out; next time start with {_how_to_set('accumulate', str(parts))}."] if parts else []


def _all_is_well(run: Run, history: FinishedHistory) -> str:
    x, y = history.criterion()
    late = y[x >= LATE_SHARE * x[-1]].tolist() if len(y) >= 6 else []
    flat = len(y) >= 6 and all(abs(b - a) < STILL_IMPROVING * abs(y[0]) for a, b in pairwise(late))
    levelled = " and had levelled off by the end" if flat else ""
    metric = history.metric_name(history.select)
    return (
        f"All is well: the {metric} improved{levelled}, and nothing had to be corrected. {_left_to_gain(run, history)}"
    )


def _left_to_gain(run: Run, history: FinishedHistory) -> str:
    if _is_perfect(run, history):
        return "By this measure there is next to nothing left to gain."
    weights = run.summary.get("weights") or {}
    training, validation = history.training_loss(weights.get("step")), float(run.metrics.get("loss", math.nan))
    if 0 <= training < MEMORISED * validation:
        return (
            f"The training loss of {format_number(training)} is far below the validation loss of {format_number(validation)}:"
            f" the model has memorised its training examples, so what is left to gain lies in more data,"
            f" augmentation or dropout."
        )
    return "What is left to gain lies in more data or another model rather than in the knobs."


def _times(count: int) -> str:
    return "once" if count == 1 else "twice" if count == 2 else f"{max(count, 1)} times"
