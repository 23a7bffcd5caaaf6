"""The report's charts: which figures of a run are drawn, and what is marked on them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from thalweg.errors import ThalwegError
from thalweg.formatting import format_count, format_number, is_share
from thalweg.records.run import Run
from thalweg.records.step_figures import TERM, TERM_GRADIENT
from thalweg.see import batch_sizes, plan_text, run_text
from thalweg.see import noise as noise_figures
from thalweg.see.axes import Values
from thalweg.see.charts import MARKS, Mark, Series, Stretch, chart
from thalweg.see.events import event_sentences, event_step, is_diagnosis, mark_kind
from thalweg.see.rolled_back import rolled_back_stretches
from thalweg.see.search_scores import Scores, scores_by_rule
from thalweg.watch.finished import FinishedHistory

MAX_METRICS = 8
MAX_TERMS, TERM_COLOURS = 16, 8  # of a loss; from the ninth on lines are dashed
NEAR = 20.0  # times what is needed: a limit beyond is not drawn, as it would flatten the line
PLANNED_POINTS = 400  # points of the planned schedule


def loss(run: Run) -> str:
    """Draw training and validation loss, and the losses of the steps that were rolled back."""
    history = FinishedHistory.of(run)
    data = "validation" if history.validated else "training, evaluated"
    lines = [
        Series("training", *history.recorded("loss"), "train", smooth=True),
        Series(_with_average(run, data), *history.recorded("validation/loss"), "validation"),
        Series(f"{data}, averaged weights (EMA)", *history.recorded("ema/loss"), "ema"),
        *_rolled_back(run, "loss"),
    ]
    note = "Each step's loss is drawn faintly behind the running mean. Lower is better."
    if not history.validated:
        note += " Evaluated: on a sample of the training examples, in eval mode."
    return chart(
        "Loss", _not_empty(lines), note=note, marks=marks(run), stretches=repeated_stretches(run), **_epochs(run)
    )


def _with_average(run: Run, data: str) -> str:
    """Name what was evaluated, with the rule's own average of the weights where it keeps one."""
    return ", ".join(filter(None, [data, run_text.rule_average(run)]))


def metrics(run: Run) -> list[str]:
    """Draw each metric that validations measure."""
    history = FinishedHistory.of(run)
    names = [key.removeprefix("validation/") for key in run.history if key.startswith("validation/")]
    charts: list[str] = []
    for name in [n for n in names if n != "loss"][:MAX_METRICS]:
        lines = [
            Series(_with_average(run, "validation"), *history.recorded(f"validation/{name}"), "validation"),
            Series("averaged weights (EMA)", *history.recorded(f"ema/{name}"), "ema"),
        ]
        title = history.metric_name(name)
        values = np.concatenate([line.y[np.isfinite(line.y)] for line in lines])
        share = is_share(name) and bool(((values >= 0) & (values <= 1)).all())
        charts.append(
            chart(
                title[:1].upper() + title[1:],
                _not_empty(lines),
                marks=_kept_weights_mark(run),
                share=share,
                **_epochs(run),
            )
        )
    return charts


def terms(run: Run) -> list[str]:
    """Draw the terms that the loss is made of, and the norm of each one's gradient."""
    history = FinishedHistory.of(run)
    drawn: list[str] = []
    for column, title, note, options in (
        (
            TERM,
            "Terms of the loss",
            "What the steps' loss is made of; each step faintly behind the running mean.",
            {"smooth": True},
        ),
        (
            TERM_GRADIENT,
            "Gradient of each term",
            "The norm of each term's own gradient, measured now and then: the term with the largest one steers the steps.",
            {},
        ),
    ):
        names = [key.removeprefix(column) for key in run.history if key.startswith(column)]
        lines = [
            Series(name, *history.recorded(column + name), f"t{k % TERM_COLOURS}", dashed=k >= TERM_COLOURS, **options)
            for k, name in enumerate(names[:MAX_TERMS])
        ]
        more = "" if len(names) <= MAX_TERMS else f" The first {MAX_TERMS} of {len(names)}."
        drawn.append(
            chart(title, _not_empty(lines), note=note + more, marks=marks(run), **_epochs(run)) if lines else ""
        )
    return drawn


def rate(run: Run) -> str:
    """Draw the learning rate that was used, and the planned one where it differs."""
    x, y = FinishedHistory.of(run).recorded("learning_rate")
    planned_x, planned_y = planned(run)
    lines = [Series("used", x, y, "train")]
    note = f"The planned schedule: {plan_text.value(run.plan, 'schedule')}." if run.plan.steps else ""
    if len(planned_x) and (not len(x) or x[-1] < planned_x[-1] or _differs(x, y, planned_x, planned_y)):
        lines.insert(0, Series("planned", planned_x, planned_y, "limit", dashed=True))
    lines += _rolled_back(run, "learning_rate")
    return chart(
        "Learning rate", _not_empty(lines), note=note, marks=marks(run), log_y=False, zero=True, **_epochs(run)
    )


def planned(run: Run) -> tuple[Values, Values]:
    """Give the schedule as planned: steps and rates. Reductions at plateaus are left out: they depend on validations."""
    plan = run.plan
    if not plan.steps:
        return np.zeros(0), np.zeros(0)
    x = np.unique(np.linspace(1, plan.steps, min(PLANNED_POINTS, plan.steps)).round())
    try:
        schedule = plan.schedule.resolve(plan.steps, plan.steps_per_epoch)
        return x, np.array([plan.learning_rate * schedule.factor(int(step) - 1) for step in x])
    except ThalwegError:
        return np.zeros(0), np.zeros(0)


def _differs(x: Values, y: Values, planned_x: Values, planned_y: Values) -> bool:
    common = np.isin(planned_x, x) & (planned_x <= x[-1])
    used = y[np.searchsorted(x, planned_x[common])]
    return not np.allclose(used, planned_y[common], rtol=1e-3, atol=0, equal_nan=True)


def noise(run: Run) -> list[str]:
    """Draw how hot the steps were, and how noisy their gradients."""
    return [
        drawn
        for draw in (noise_figures.temperature_chart, noise_figures.scale_chart)
        if (drawn := draw(run, marks=_kept_weights_mark(run), **_epochs(run)))
    ]


def gradient(run: Run) -> str:
    """Draw the gradient's norm before clipping, and the limit at which it was clipped."""
    history = FinishedHistory.of(run)
    x, y = history.recorded("gradient_norm")
    lines = [Series("gradient norm", x, y, "train", smooth=True)]
    limit_x = np.zeros(0)
    if len(x):
        limit_x, limit_y = clip_line(run, float(x[0]), float(x[-1]))
        lines.append(Series("limit (clip_norm)", limit_x, limit_y, "limit", dashed=True))
    lines += _rolled_back(run, "gradient_norm")
    return chart(
        "Gradient norm",
        _not_empty(lines),
        note=_clipping_note(history, limited=len(limit_x) > 0),
        marks=marks(run),
        stretches=repeated_stretches(run),
        **_epochs(run),
    )


def _clipping_note(history: FinishedHistory, limited: bool) -> str:
    """Say how many gradients were shortened to the limit, or that there was none."""
    _, scales = history.recorded("clip_scale")
    finite = scales[np.isfinite(scales)]
    if not limited:
        return "No limit was set (clip_norm), so none was shortened." if len(finite) else ""
    if not len(finite):
        return ""
    clipped = int((finite < 1).sum())
    verb = "was" if clipped == 1 else "were"
    return f"Before clipping. {format_count(clipped, 'step')} of {len(finite):,} {verb} shortened to the limit."


def _epochs(run: Run) -> dict[str, Any]:
    return {"steps_per_epoch": run.plan.steps_per_epoch}


def _rolled_back(run: Run, key: str) -> list[Series]:
    """Give the steps that rollbacks undid, a line for each rollback."""
    return [
        Series("rolled-back steps", steps["step"], steps[key], "rolled-back", dashed=True, secondary=True)
        for steps in rolled_back_stretches(run)
    ]


def clip_line(run: Run, first: float, last: float) -> tuple[Values, Values]:
    """Give the clipping limit over the steps: the plan's, and the one that a rollback set."""
    x, y = [first], [run.plan.clip_norm or math.nan]
    for event in run.events:
        new_limit = event.data.get("clip_norm") if event.kind == "rollback" else None
        if new_limit is None or event.superseded:
            continue
        step = min(max(float(event.step), first), last)
        x, y = [*x, step, step], [*y, y[-1], float(new_limit)]
    steps, limits = np.array([*x, last]), np.array([*y, y[-1]])
    return steps[np.isfinite(limits)], limits[np.isfinite(limits)]


def marks(run: Run) -> list[Mark]:
    """Mark the step whose weights were kept, and the events that have a sign in the charts."""
    return [
        *_kept_weights_mark(run),
        *(
            Mark(e.step, mark_kind(e), f"{event_step(e)}: {text}")
            for e, text in event_sentences(run)
            if mark_kind(e) in MARKS or is_diagnosis(e)
        ),
    ]


def _kept_weights_mark(run: Run) -> list[Mark]:
    weights = run.summary.get("weights")
    return [Mark(weights["step"], "best", run_text.weights(run))] if weights else []


def repeated_stretches(run: Run) -> list[Stretch]:
    """Give the steps that were repeated after a rollback; of several rollbacks to one step, the longest stretch."""
    rollbacks = [(e.data.get("to", e.step), e.data.get("from")) for e in run.events if e.kind == "rollback"]
    ends: dict[float, float] = {}  # by the step that the stretch starts at
    for start, end in rollbacks:
        if end is not None:
            ends[float(start)] = max(ends.get(float(start), 0.0), float(end))
    return [Stretch(start, end, f"steps {start:,.0f} to {end:,.0f} were repeated") for start, end in ends.items()]


def search(run: Run) -> str:
    """Draw the search: one line for each rule and step where candidates were judged, a point for each rate."""
    why, by_rule = run.plan.why("learning_rate"), scores_by_rule(run)
    if not by_rule:
        return ""
    sign = -1.0 if run.summary.get("mode") == "max" else 1.0
    lengths = sorted({steps for by_steps in by_rule.values() for steps in by_steps})
    lines = [line for rule in by_rule for line in _search_lines(rule, by_rule, lengths, sign)]
    chosen = Mark(run.plan.learning_rate, "chosen", f"chosen: {format_number(run.plan.learning_rate)}")
    history = FinishedHistory.of(run)
    tries = [scores for by_steps in by_rule.values() for of_rate in by_steps.values() for scores in of_rate.values()]
    count = format_count(sum(map(len, tries)), "score")
    note = f"{count} of this run itself at other rates: at its end, or after a cool-down on the way."
    if any(len(scores) > 1 for scores in tries):
        note += " Where a rate was tried from several seeds, its point is their mean."
    unstable, price = why.number("lowest_unstable_rate"), why.number("price")
    if unstable is not None:
        rate = format_number(unstable)
        note += f" At {rate} and above, {run.plan.rule} diverged or had to be slowed down: the edge of stability lies below."
    if price is not None:
        note += f" Search and training together cost as much as {format_number(price)} full trainings."
    return chart(
        "Learning-rate search",
        lines,
        note=note,
        marks=[chosen],
        x_name="learning rate",
        y_name=f"{history.metric_name(history.select)} at the end",
        log_x=True,
        enlarge=len(lengths) > 1,
        nonfinite="diverged",
    )


def _search_lines(rule: str, by_rule: Mapping[str, Scores], lengths: list[int], sign: float) -> list[Series]:
    """Make the lines of a rule's candidates, one for each stage of the search; the first rule's are solid."""
    prefix = f"{rule} " if len(by_rule) > 1 else ""
    lines: list[Series] = []
    for steps, scores in sorted(by_rule[rule].items()):
        rates = sorted(scores)
        with np.errstate(over="ignore", invalid="ignore"):
            means = [sign * float(np.mean(scores[rate])) for rate in rates]
        colour = _shade(lengths.index(steps), len(lengths))
        name = f"{prefix}after {format_count(steps, 'step')}"
        lines.append(Series(name, np.array(rates), np.array(means), colour, dashed=rule != next(iter(by_rule))))
    return lines


def _shade(index: int, count: int) -> str:
    """Give the style sheet's class, r0 (shortest runs) to r3 (longest), of one line of several; up to three begin at r1."""
    return f"r{index + 1}" if count < 4 else f"r{index * 4 // count}"


def length(run: Run) -> str:
    """Draw what finished runs of each length came to, where the length was found so."""
    why, history = run.plan.why("steps"), FinishedHistory.of(run)
    pairs = zip(why.listed("lengths"), why.listed("costs"), strict=False)
    tried = [pair for pair in pairs if all(isinstance(one, int | float) for one in pair) and pair[0] > 0]
    if len(tried) < 2:
        return ""
    name, is_max = history.metric_name(history.select), run.summary.get("mode") == "max"
    if is_max and not is_share(history.select):
        tried, is_max = [(steps, -cost) for steps, cost in tried], False
    steps, costs = (np.array(column, np.float64) for column in zip(*tried, strict=True))
    gain = why.number("projected_gain")
    note = "Each point is a finished run of this plan with so many steps."
    if gain is not None:
        note += f" One of more was projected to gain another {gain:.1%}."
    return chart(
        "Length of the run",
        [Series("finished runs", steps, costs, "validation")],
        note=note,
        marks=[] if run.plan.steps is None else [Mark(run.plan.steps, "chosen", f"chosen: {run.plan.steps:,} steps")],
        x_name="steps",
        y_name=f"1 - {name}" if is_max else name,
        log_x=True,
        nonfinite="diverged",
    )


def throughput(run: Run) -> str:
    """Draw the examples per second of each batch size."""
    rows = batch_sizes.measured(run)
    if len(rows) < 2:
        return ""
    sizes = np.array([row.batch_size for row in rows], np.float64)
    speeds = np.array([row.examples_per_second or math.nan for row in rows])
    return chart(
        "Throughput",
        [Series("examples per second", sizes, speeds, "train")],
        note=batch_sizes.noise_text(run),
        marks=_chosen_size(run),
        x_name="batch size",
        y_name="examples per second",
        log_x=True,
        nonfinite="does not run",
    )


def memory(run: Run) -> str:
    """Draw the memory that each batch size needs, and what there is of it where that comes near."""
    rows = [row for row in batch_sizes.measured(run) if row.megabytes is not None]
    if len(rows) < 2:
        return ""
    sizes = np.array([row.batch_size for row in rows], np.float64)
    needed = np.array([row.megabytes for row in rows], np.float64)
    lines, limit = [Series("needed", sizes, needed, "train")], batch_sizes.limit(run)
    if limit is not None and limit < NEAR * needed.max():
        lines.append(Series("limit", sizes[[0, -1]], np.array([limit, limit]), "limit", dashed=True))
    return chart(
        "Memory",
        lines,
        note=batch_sizes.memory_text(run),
        marks=_chosen_size(run),
        x_name="batch size",
        y_name="megabytes",
        log_x=True,
    )


def _chosen_size(run: Run) -> list[Mark]:
    size = run.plan.batch_size
    return [] if size is None else [Mark(size, "chosen", f"chosen: {format_number(size)}")]


def _not_empty(lines: list[Series]) -> list[Series]:
    return [line for line in lines if len(line.x)]
