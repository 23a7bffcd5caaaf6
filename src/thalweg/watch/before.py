"""Questions asked before training, of figures measured on one batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from thalweg.landscape.start import RATES, Scale, Start, is_finite
from thalweg.records.diagnosis import Cure, Diagnosis, Severity

HIGH_START = 3.0  # times the constant predictor's loss, or that of equal shares where that is higher
SPREAD = 1e3  # of columns' standard deviations
OFFSET = 10.0  # mean over standard deviation
LARGE_TARGET = 30.0  # root mean square under squared error: an output moves about as far as the rate in a step
SMALL_TARGET = 0.01  # standard deviation under squared error: outputs start some tenths away from each other
NARROW = 0.1  # largest minus least input
REACTION = 1e-4
CARRIED = 0.98  # of the constant predictor's loss, on examples that were not learnt from
LOG_SUM = 0.1  # of exp(output) over classes; 0 for log-probabilities, with room for half precision
BEYOND = 0.01  # share of targets that outputs cannot reach
REPEATED = 0.01  # share of validation rows
FEW = 3  # validation rows that may have a twin by chance
CROWDED = 0.3  # share of validation rows that say little new, however natural their twins


def ask(start: Start) -> list[Diagnosis]:
    """Give what the figures say, gravest first."""
    order = {"critical": 0, "warning": 1, "note": 2}
    causes = sorted(_hindrances(start), key=lambda found: order[found.severity])
    unfitted = list(_fitting(start))
    if unfitted and causes and causes[0].severity != "note":  # a cause is known: it is the one to cure
        causes[0] = replace(causes[0], consequences=tuple(found.symptom for found in unfitted))
        unfitted = []
    found = [*causes, *unfitted, *_idle(start), *_targets(start), *_repeats(start)]
    return sorted(found, key=lambda found: order[found.severity])


def _hindrances(start: Start) -> Iterator[Diagnosis]:
    """Give what keeps a model from fitting even a few examples."""
    yield from _slope(start)
    yield from _reaction(start)
    yield from _log_probabilities(start)
    yield from _probabilities(start)
    yield from _squashed(start)
    yield from _out_of_reach(start)
    yield from _inputs(start)
    yield from _columns(start)
    yield from _target_scale(start)
    yield from _start_loss(start)


def _found(
    symptom: str,
    cause: str,
    cure: str,
    severity: Severity,
    figure: str,
    value: object,
    threshold: object,
    **more: object,
) -> Diagnosis:
    evidence = {figure: {"value": value, "threshold": threshold}, **more}
    return Diagnosis(symptom=symptom, cause=cause, severity=severity, evidence=evidence, cure=Cure(cure))


def _idle(start: Start) -> Iterator[Diagnosis]:
    if start.idle:
        names = ", ".join(start.idle[:5]) + (" …" if len(start.idle) > 5 else "")
        yield _found(
            "parameter without gradient",
            f"{len(start.idle)} parameters got no gradient from the first batch: {names}.",
            "Use them in the forward pass, or freeze them with requires_grad_(False).",
            "warning",
            "parameters without gradient",
            len(start.idle),
            0,
            parameters=list(start.idle),
        )


def _slope(start: Start) -> Iterator[Diagnosis]:
    dead = [name for name, size in start.gradients.items() if size == 0.0]
    if dead and len(dead) == len(start.gradients):
        yield _found(
            "no slope",
            "every parameter's gradient is exactly zero: no step will move anything.",
            "Look for units that are all off (ReLU of negative inputs), an output that ignores the model, or a clamped loss.",
            "critical",
            "parameters whose gradient is zero",
            len(dead),
            0,
        )
    elif dead:
        yield _found(
            "zero gradient",
            f"{len(dead)} parameters' gradients are exactly zero: {', '.join(dead[:5])}.",
            "If they start at zero on purpose (a gate, a residual branch) all is well; else look at the units they feed.",
            "note",
            "parameters whose gradient is zero",
            len(dead),
            0,
        )


def _reaction(start: Start) -> Iterator[Diagnosis]:
    if start.reaction is not None and start.reaction < REACTION:
        yield _found(
            "output ignores input",
            "other inputs give the same outputs, so nothing about the examples can be learnt.",
            "Look for inputs that are all alike or multiplied by nearly zero, or a layer whose units are all off.",
            "critical",
            "change of outputs with other inputs, over their size",
            start.reaction,
            REACTION,
        )


def _start_loss(start: Start) -> Iterator[Diagnosis]:
    constant = start.constant_loss
    if constant is None or not is_finite(start.loss) or constant <= 0 or start.constant_kind != "entropy of the labels":
        return
    limit = HIGH_START * max(constant, math.log(start.classes or 1))
    if start.loss > limit:
        inputs = start.scale.get("inputs")
        now = "" if inputs is None else f" (now {_number(inputs.mean)} and {_number(inputs.sd)})"
        yield _found(
            "high start",
            f"the loss starts at {start.loss:.4g}, while one fixed answer for all examples gives {constant:.4g}:"
            f" the first steps go into unlearning.",
            f"Scale the inputs to mean 0 and standard deviation 1{now}, or start the last layer with smaller weights.",
            "warning",
            "loss at the start",
            start.loss,
            limit,
        )


def _log_probabilities(start: Start) -> Iterator[Diagnosis]:
    total = start.output_log_sum
    if start.compares == "log-probabilities" and total is not None and not abs(total) <= LOG_SUM:
        yield _found(
            "no log-probabilities",
            "the negative log-likelihood loss takes log-probabilities, whose exponentials sum to 1 over the classes; this"
            f" model's sum to {_exp(total):.3g}: the loss can fall without end while nothing is learnt.",
            "Use cross_entropy, or end the model with log_softmax over the classes.",
            "critical",
            "log of the sum of exp(output) over classes, off 0",
            abs(total),
            LOG_SUM,
        )


def _exp(power: float) -> float:
    return math.exp(min(power, 700.0))


def _probabilities(start: Start) -> Iterator[Diagnosis]:
    if start.output_sum_to_one and start.compares == "class scores" and start.constant_kind == "entropy of the labels":
        yield _found(
            "softmax twice",
            "the model's outputs are already probabilities, and cross-entropy applies softmax again: gradients are weak.",
            "Return the scores before the softmax (logits), or use the negative log-likelihood of log-probabilities.",
            "warning",
            "sum of each example's outputs",
            1.0,
            None,
        )


def _squashed(start: Start) -> Iterator[Diagnosis]:
    low, high = start.bounds
    if start.compares == "binary scores" and low == 0.0:
        yield _found(
            "squashed scores",
            f"outputs stay {_within(low, high)} even where the model is pushed out, as after a {_ending(low, high)}; this loss"
            " takes scores of either sign and applies the sigmoid itself, so no probability can go below 0.5.",
            f"End the model without the {_ending(low, high)}, or use BCELoss after a sigmoid.",
            "warning",
            "least output the model can be brought to",
            low,
            -1.0,
        )
    elif start.compares in ("binary scores", "class scores") and low is not None and high is not None:
        yield _found(
            "squashed scores",
            f"outputs stay {_within(low, high)} even where the model is pushed out, as after a {_ending(low, high)}; this loss"
            " takes scores of any size and makes probabilities of them itself, so none can come near 1.",
            f"End the model without the {_ending(low, high)}.",
            "warning",
            "width of the outputs' range",
            high - low,
            None,
        )


def _out_of_reach(start: Start) -> Iterator[Diagnosis]:
    share, targets = start.out_of_reach, start.scale.get("targets")
    if start.compares == "distance" and share is not None and share > BEYOND and targets is not None:
        yield _found(
            "targets out of reach",
            f"{share:.0%} of the targets, which run from {_number(targets.low)} to {_number(targets.high)}, are values that this"
            f" model cannot give: its outputs stay {_within(*start.bounds)} even where it is pushed out, as after a"
            f" {_ending(*start.bounds)}.",
            f"End the model without the {_ending(*start.bounds)}, or scale the targets into its range.",
            "warning",
            "share of targets out of reach",
            share,
            BEYOND,
        )


def _within(low: float | None, high: float | None) -> str:
    if low is None:
        return f"below {high:g}"
    return f"above {low:g}" if high is None else f"between {low:g} and {high:g}"


def _ending(low: float | None, high: float | None) -> str:
    known: dict[tuple[float | None, float | None], str] = {
        (0.0, 1.0): "sigmoid",
        (-1.0, 1.0): "tanh",
        (0.0, None): "ReLU",
        (-1.0, None): "ELU",
    }
    return known.get((low, high), "bounded last layer")


def _fitting(start: Start) -> Iterator[Diagnosis]:
    fit = start.fit
    if fit is None or fit.done or not is_finite(fit.started) or not is_finite(fit.reached):
        return
    same = f", where one fixed answer for all gives {fit.constant:.4g}" if fit.constant else ""
    rates = ", ".join(f"{rate:g}" for rate in RATES)
    yield _found(
        "one batch cannot be fitted",
        f"{fit.steps} steps on {fit.examples} examples took the loss from {fit.started:.4g} to {fit.reached:.4g}, at the best of"
        f" the learning rates {rates}{same}.",
        "Check that labels belong to their examples, that the last layer fits the loss, that nothing is frozen, and that no"
        " layer's units are all off.",
        "warning",
        f"loss after {fit.steps} steps",
        fit.reached,
        fit.goal,
    )


def _targets(start: Start) -> Iterator[Diagnosis]:
    if start.target_alike:
        yield _found(
            "targets all alike",
            "all targets of a sample are one and the same, so there is nothing to tell apart.",
            "Check which column the targets come from, and whether a filter left one class only.",
            "warning",
            "different targets",
            1,
            2,
        )
    elif start.held_out is not None and start.held_out[0] > CARRIED * start.held_out[1]:
        reached, constant = start.held_out
        yield _found(
            "nothing carries over",
            f"what was learnt from some hundred examples says no more about others ({reached:.4g}) than one fixed answer for"
            f" all ({constant:.4g}).",
            "Check that labels belong to their examples and were not shuffled apart; a hard task may only need far more"
            " examples.",
            "note",
            "loss on other examples",
            reached,
            CARRIED * constant,
        )


def _columns(start: Start) -> Iterator[Diagnosis]:
    if start.column_spread is not None and start.column_spread > SPREAD:
        yield _found(
            "columns of unlike scale",
            f"the widest input column spreads {start.column_spread:.3g} times as far as the narrowest.",
            "Standardise each column: subtract its mean, divide by its standard deviation (of the training part).",
            "warning",
            "widest over narrowest column",
            start.column_spread,
            SPREAD,
        )


def _inputs(start: Start) -> Iterator[Diagnosis]:
    inputs = start.scale.get("inputs")
    if start.column_offset is not None and start.column_offset[1] > OFFSET:
        column, offset = start.column_offset
        yield _found(
            "column far from zero",
            f"the mean of input column {column} is {_number(offset)} standard deviations away from zero.",
            "Subtract each column's mean and divide by its standard deviation (of the training part).",
            "warning",
            "mean over standard deviation of the column",
            offset,
            OFFSET,
        )
    elif inputs is not None and _offset(inputs) > OFFSET:
        yield _found(
            "inputs far from zero",
            f"inputs have mean {_number(inputs.mean)} and standard deviation {_number(inputs.sd)}.",
            f"{_standardise(inputs)}.",
            "warning",
            "mean over standard deviation of the inputs",
            _offset(inputs),
            OFFSET,
        )
    if inputs is not None and 0 < inputs.high - inputs.low < NARROW:
        yield _found(
            "tiny inputs",
            f"all inputs lie between {inputs.low:.3g} and {inputs.high:.3g}, so the model hardly feels their differences"
            f"{_coped(start)}.",
            f"{_standardise(inputs)}, or each column by its own.",
            "note" if start.fit is not None and start.fit.easy else "warning",
            "largest minus least input",
            inputs.high - inputs.low,
            NARROW,
        )


def _target_scale(start: Start) -> Iterator[Diagnosis]:
    targets = start.scale.get("targets")
    if start.compares != "distance" or targets is None or targets.sd == 0:
        return
    figures = f"targets have mean {_number(targets.mean)} and standard deviation {_number(targets.sd)}"
    cure = f"{_standardise(targets)}, and undo it on the outputs: {_number(targets.sd)} * output + {_number(targets.mean)}."
    severity: Severity = "note" if start.fit is not None and start.fit.easy else "warning"
    if targets.size > LARGE_TARGET:
        cause = f"{figures}: outputs that start near 0 need very many steps to get there{_coped(start)}."
        figure = "root mean square of the targets"
        yield _found("large targets", cause, cure, severity, figure, targets.size, LARGE_TARGET)
    elif _offset(targets) > OFFSET and abs(targets.mean) > 1:
        cause = f"{figures}: what tells them apart is small against what they share{_coped(start)}."
        figure = "mean over standard deviation of the targets"
        yield _found("targets far from zero", cause, cure, severity, figure, _offset(targets), OFFSET)
    elif targets.sd < SMALL_TARGET:
        cause = f"{figures}: outputs start much farther apart, and a usual step is larger than that{_coped(start)}."
        figure = "standard deviation of the targets"
        yield _found("small targets", cause, cure, severity, figure, targets.sd, SMALL_TARGET)


def _offset(scale: Scale) -> float:
    return abs(scale.mean) / scale.sd if scale.sd > 0 else 0.0


def _standardise(scale: Scale) -> str:
    return f"Standardise: subtract {_number(scale.mean)} and divide by {_number(scale.sd)}"


def _number(value: float) -> str:
    return f"{value:.0f}" if 1e3 <= abs(value) < 1e7 else f"{value:.3g}"


def _coped(start: Start) -> str:
    return "; this model coped on one batch" if start.fit is not None and start.fit.easy else ""


def _repeats(start: Start) -> Iterator[Diagnosis]:
    seen = start.repeats
    if seen is None or not seen.found:
        return
    share = seen.found / seen.looked
    expected = seen.natural * seen.looked  # as many twins as training rows have among themselves, give or take
    natural = seen.found <= expected + 3 * math.sqrt(expected)
    if natural and share < CROWDED:
        return
    pairs = ", ".join(f"{i} (training {j})" for i, j in seen.rows) + (" …" if seen.found > len(seen.rows) else "")
    told = f"; {seen.natural:.0%} of the training rows have a twin in training too" if natural else ""
    grave = not natural and seen.found >= FEW and share >= REPEATED
    found = _found(
        "validation repeats training",
        f"{seen.found} of {seen.looked} validation rows looked at are training rows, number for number: rows {pairs}{told}."
        f" Their loss does not tell how the model does on new examples.",
        "Drop double rows before splitting the data, and split by whatever several rows share (a person, a day, a source).",
        "warning" if grave else "note",
        "share of validation rows that are training rows",
        share,
        max(REPEATED, seen.natural),
    )
    yield replace(found, examples=tuple(j for _, j in seen.rows))
