"""Advice after a run, each sentence from figures of the run and only where they justify it.

Words between backticks are code: the report and the terminal format them as such.
"""

from __future__ import annotations

import math

import numpy as np

from thalweg import rules
from thalweg.errors import few
from thalweg.formatting import capitalized, format_count, format_number, format_share, is_share, printable
from thalweg.records.run import Run
from thalweg.see import longer_run, run_text
from thalweg.see.search_scores import scores_by_steps
from thalweg.tuning.priors import is_adaptive
from thalweg.tuning.until import next_length
from thalweg.watch.causes import all_causes
from thalweg.watch.findings import diagnose_run
from thalweg.watch.finished import FinishedHistory

NEGLIGIBLE = 1e-3  # of the loss at the start: where no more is left, there is next to nothing to gain
LEVEL = 0.01  # relative difference below which two values of the criterion are alike
MANY = 5  # validations, with more of which such a change is worth telling
LEAST_GAIN = 0.01  # share of the criterion that is worth a word
MOSTLY_CLIPPED = 0.5  # share of the steps above which clipping is the rule and no longer the exception


def next_steps(run: Run, *, repeat_diagnoses: bool = True) -> list[str]:
    """Give at least one sentence of advice, the most important first.

    `repeat_diagnoses`: include what `diagnose` finds in the history; not needed beside a list of the run's diagnoses.
    """
    history = FinishedHistory.of(run)
    faults_before, refuted_and_notes = _before_training(run, history)
    faults_after = _after_training(run) if repeat_diagnoses else []
    advice = [
        *_unfinished(run, history),
        *faults_before,
        *faults_after,
        *_changed_rate(run, history),
        *_begun_anew(run),
        *_other_changes(run, history),
        *_skipped_batches(run),
        *_not_a_number(history),
    ]
    advice += [*_worsened(run, history), *_longer_run(run, history), *_clipping(run, history), *_search(run, history)]
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
        exact = run.summary.get("exact")  # of a process that was killed nothing is known
        result = "; the result is bitwise that of an uninterrupted run" if exact else ""
        but = " It may differ from an uninterrupted run by what the notes say." if exact is False else ""
        return [f"The run is not finished. Resume it with `{run_text.resume(run)}`{result}.{but}"]
    if history.status == "diverged":
        planned, lowest = run.plan.learning_rate, run.plan.learning_rate * _rate_factor(run)
        tried = f" from {format_number(planned)} down to {format_number(lowest)}" if lowest < planned else ""
        return [
            f"The descent diverged, and lower rates{tried} and clipping did not save it. Run `thalweg check` on the task for its"
            f" data and loss; then try a learning rate of {format_number(min(lowest, planned / 100))} from the start."
        ]
    return []


def _rate_factor(run: Run) -> float:
    """Give the factor by which the watch lowered or raised the rate."""
    return float((run.summary.get("cures") or {}).get("rate_factor", 1.0))


def _changed_rate(run: Run, history: FinishedHistory) -> list[str]:
    """Advise the rate that a run was brought to, or where nothing was learnt with a lower one either, a far lower one."""
    factor = _rate_factor(run)
    rollbacks = sum(event.kind == "rollback" for event in run.events)
    if factor == 1.0 or history.status == "diverged":
        return []
    planned, lowered = run.plan.learning_rate, run.plan.learning_rate * factor
    if factor > 1.0:
        return [
            f"The rate of {format_number(planned)} was far too low for this descent: the watch raised it to"
            f" {format_number(lowered)} at the peak on the way. Plan anew around that:"
            f" {_how_to_set('learning_rate', f'{lowered:.3g}')}."
        ]
    went = (
        f"The rate of {format_number(planned)} was too high for this descent: it went back {_times(rollbacks)} and ended with"
        f" {format_number(lowered)} at the peak"
    )
    if not _halved_the_loss(run, history):
        far_lower = _how_to_set("learning_rate", f"{planned / 100:.3g}")
        return [f"{went}, which was too high as well: less than half of the loss is gone. Start with {far_lower}."]
    if any(event.data.get("by_courses") for event in run.events if event.kind == "rollback"):
        with_it = _how_to_set("learning_rate", f"{lowered:.3g}")
        return [
            f"{went}, which got furthest of those that were tried on its first steps. Plan anew with that: {with_it}."
        ]
    clip = (run.summary.get("cures") or {}).get("clip_norm")
    clipped = f" It was clipped too: set `clip_norm={clip:.3g}` as well." if clip and clip != run.plan.clip_norm else ""
    third = _how_to_set("learning_rate", f"{lowered / 3:.3g}")
    return [
        f"{went}. What barely holds is too high for the best result. Plan anew around a third of it: {third}.{clipped}"
    ]


def _begun_anew(run: Run) -> list[str]:
    """Advise to start layers in the model as the watch did, and a rule's memory that follows."""
    restarted = [name for event in run.events if event.kind == "rollback" for name in event.data.get("restarted", ())]
    said: list[str] = []
    if restarted:
        names = few([printable(name) for name in dict.fromkeys(restarted)])
        said.append(
            f"Layers that could not learn ({names}) were started anew on the way. Start them so in the model: their weights by"
            " fan-in for the activation after them, and biases at zero."
        )
    if any(event.data.get("forgot") for event in run.events):
        how = _how_to_set("constants.beta2", "0.95")
        said.append(f"Gradients changed faster than the optimiser's memory of them. A shorter one follows: {how}.")
    return said


def _other_changes(run: Run, history: FinishedHistory) -> list[str]:
    """Advise the weight decay, the warm-up and the schedule that a run was brought to."""
    cures = run.summary.get("cures") or {}
    if history.status == "diverged":
        return []
    said: list[str] = []
    decay = run.plan.weight_decay
    if cures.get("decay_factor", 1.0) != 1.0 and decay is not None:
        how = _how_to_set("weight_decay", f"{decay * cures['decay_factor']:.3g}")
        said.append(f"The weight decay of {format_number(decay)} was too high for this descent and was lowered: {how}.")
    if cures.get("warmup"):
        said.append(
            f"The first steps went too far at the full rate, and were taken again with a warm-up. Plan one of"
            f" {cures['warmup'][1]:,} steps in the schedule."
        )
    if cures.get("anneal"):
        said.append(
            "The schedule ended long before the run, and the rate was raised again. Let it last as long as the run."
        )
    return said


def _skipped_batches(run: Run) -> list[str]:
    skipped = sum("batch" in event.data for event in run.events)
    if not skipped or any(event.kind == "rollback" for event in run.events):
        return []
    return [
        f"{format_count(skipped, 'batch')} gave a loss or gradient that is not finite and were left out. Look for bad rows"
        f" in the data, and for log(0) or overflow in the loss."
    ]


def _not_a_number(history: FinishedHistory) -> list[str]:
    """Say of a metric to select by that it was no number in some validations, whose weights could not be chosen by it."""
    if history.select == "loss" or not history.validated:
        return []
    validations, measured = len(history.recorded("validation/loss")[0]), len(history.criterion()[0])
    if not 0 < measured < validations:
        return []
    return [
        f"The {history.metric_name(history.select)} was not a number in {validations - measured:,} of"
        f" {format_count(validations, 'validation')}, by which no weights could be chosen there."
    ]


def _worsened(run: Run, history: FinishedHistory) -> list[str]:
    """Say that the criterion got worse again, where the training loss does not tell why: else it is a diagnosis."""
    worsened = history.worsened()
    if worsened is None or worsened.reason or history.status != "finished":
        return []
    training, last = (format_number(loss) for loss in (worsened.training, worsened.last_training))
    lower = "lower rate" if run.plan.schedule.shape != "constant" else "lower rate, or a schedule that falls to zero,"
    return [
        f"{history.worsened_text(worsened)}. The training loss, {training} then and {last} at the end, does not tell whether that"
        f" is overfitting or steps too long: a {lower} would."
    ]


def _more_than_the_most(run: Run) -> list[str]:
    """Advise more than the most that a run of open length was given, where that ended it."""
    why, steps = run.plan.why("steps"), run.plan.steps or 0
    found = [why.number(name) for name in ("projected_gain", "pays", "most")]
    numbers = [value for value in found if value is not None]
    if len(numbers) < len(found):  # it ended otherwise, or another program wrote the plan
        return []
    gain, pays, most = numbers
    if gain < max(pays, LEAST_GAIN) or next_length(steps, round(most)) is not None:
        return []
    return [
        f"{steps:,} steps were the most that was allowed, and twice as many would probably gain another {gain:.0%}: give a larger"
        f" `most`, or more seconds."
    ]


def _longer_run(run: Run, history: FinishedHistory) -> list[str]:
    """Advise a longer run where runs of other lengths show that it pays."""
    if run.plan.why("steps").source == "searched":
        return _more_than_the_most(run)
    found = longer_run.lengths(run, history)
    if found is None or not found.pays or history.memorised((run.summary.get("weights") or {}).get("step")):
        return []
    if _is_perfect(run, history) or history.fell_steadily_but_little():
        return []
    metric, outcomes = history.metric_name(history.select), [history.value_text(value) for _, value in found.outcomes]
    if run.plan.why("learning_rate").source == "searched":
        short = " and ".join(f"{steps:,}" for steps, _ in found.outcomes[:-1])
        shown = (
            f"In the search the best candidates, cooled down after {short} steps, brought the {metric} to"
            f" {' and '.join(outcomes[:-1])}, this one of {history.steps:,} to {outcomes[-1]}"
        )
    else:
        shown = f"At a constant rate the {metric} was {outcomes[0]} by half of the run and {outcomes[-1]} at its end"
    longer = f"({history.epochs(2 * history.steps) or format_count(2 * history.steps, 'step')})"
    anew = "" if run.plan.schedule.shape == "constant" else ", from the start: the schedule is cut to the run's length"
    return [f"{shown}: a longer run will probably bring it further. Give it twice the budget {longer}{anew}."]


def _is_perfect(run: Run, history: FinishedHistory) -> bool:
    """Tell whether next to nothing is left to gain: accuracies and the like are 100 %, or the loss fell to a thousandth."""
    shares = [float(value) for name, value in run.metrics.items() if is_share(name) and "error" not in name]
    if shares:
        return min(shares) >= 1
    before, after = history.initial.get("loss", math.nan), float(run.metrics.get("loss", math.nan))
    return 0 <= after <= NEGLIGIBLE * before


def _clipping(run: Run, history: FinishedHistory) -> list[str]:
    """Advise a higher limit where most steps were clipped.

    Not for rules such as Adam: they divide by the gradient's size, so that there the limit says nothing about the rate. Nor where
    a rollback set another limit than the plan's, or the steps are far too short.
    """
    if any(event.kind == "rollback" for event in run.events) or history.fell_steadily_but_little():
        return []
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
    """Say what the search for the learning rate left open: no search was made, or the best rate lay at the edge."""
    why = run.plan.why("learning_rate")
    if rules.get(run.plan.rule).finds_rate:
        return []
    if why.source == "default" and history.status == "finished" and not history.fell_steadily_but_little():
        return ["The learning rate is a stated default. `thalweg fit` with `--effort standard` searches it."]
    return _edge(run) if why.source == "searched" else []


def _edge(run: Run) -> list[str]:
    """Advise a rate beyond the edge of the search where the best one lay there and was clearly better than its neighbour."""
    by_steps, best = scores_by_steps(run), run.plan.learning_rate
    rates = sorted({rate for scores in by_steps.values() for rate in scores})
    if len(rates) < 3 or best not in (rates[0], rates[-1]):
        return []
    longest = {rate: float(np.mean(scores)) for rate, scores in by_steps[max(by_steps)].items()}
    neighbours = sorted((abs(math.log(rate / best)), score) for rate, score in longest.items() if rate != best)
    if best not in longest or not neighbours or neighbours[0][1] - longest[best] <= LEVEL * abs(longest[best]):
        return []
    side, further = ("lowest", best / 10) if best == rates[0] else ("highest", best * 10)
    return [
        f"The best learning rate of the search, {format_number(best)}, was the {side} that was tried: one beyond it, such as"
        f" {format_number(further)}, may be better."
    ]


def _unvalidated(history: FinishedHistory) -> list[str]:
    if history.validated or history.status == "running":
        return []
    return [
        "There were no validation data, so nobody can say how the model does on data it has not seen. Pass some as"
        f" `validation=`, or keep a fifth of the training examples for that: {_how_to_set('holdout', '0.2')}."
    ]


def _memory(run: Run) -> list[str]:
    shortages = [event for event in run.events if event.kind == "out_of_memory"]
    parts = shortages[-1].data.get("accumulate") if shortages else None
    return [f"Memory ran out; next time start with {_how_to_set('accumulate', str(parts))}."] if parts else []


def _all_is_well(run: Run, history: FinishedHistory) -> str:
    said = [_outcome(history)]
    x, y = history.criterion()
    early, late = y[x <= x[-1] / 2] if len(y) else y, float(run.metrics.get(history.select, math.nan))
    if len(y) > MANY and len(early) > 1:
        half = history.cost(float(history.cost(early).min()))
        if abs(half - late) <= LEVEL * abs(half):
            said.append(
                f"It had levelled off: {history.value_text(half)} by half of the run, {history.value_text(late)} at its end."
            )
    step = (run.summary.get("weights") or {}).get("step")
    if _is_perfect(run, history):
        said.append("By this measure there is next to nothing left to gain.")
    elif history.memorised(step):
        training, loss = (
            format_number(history.training_loss(step)),
            format_number(float(run.metrics.get("loss", math.nan))),
        )
        said.append(
            f"The training loss of {training} is far below the validation loss of {loss}: the model knows its training examples"
            " by heart, so more data, augmentation or dropout promise more than a longer run."
        )
    return " ".join(said)


def _outcome(history: FinishedHistory) -> str:
    """Say that nothing had to be corrected, and of the criterion no more than its figures do."""
    name = history.metric_name(history.select)
    before, after = history.initial.get(history.select, math.nan), float(history.final.get(history.select, math.nan))
    if not math.isfinite(after):
        return f"Nothing had to be corrected, but nobody can say how good the model is: the {name} is not a number."
    if not math.isfinite(before):
        return f"All is well: the {name} is {history.value_text(after)}, and nothing had to be corrected."
    if history.better(after, before):
        return f"All is well: the {name} improved, and nothing had to be corrected."
    return f"Nothing had to be corrected, but the {name} is no better than at the start."


def _times(count: int) -> str:
    return "once" if count == 1 else "twice" if count == 2 else f"{max(count, 1)} times"
