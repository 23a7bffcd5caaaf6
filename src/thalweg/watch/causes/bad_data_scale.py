"""Do inputs and targets have a scale that a model can learn from?"""

from __future__ import annotations

import math
from collections.abc import Iterator

from thalweg.formatting import typed_number
from thalweg.landscape.initial_figures import InitialFigures, Scale, is_finite
from thalweg.records.diagnosis import Diagnosis, Severity
from thalweg.watch.cause import Cause, finding

SPREAD = 1e3  # widest over narrowest column, by standard deviation
OFFSET = 10.0  # mean over standard deviation
LARGE_TARGET = 30.0  # root mean square: outputs move by about the learning rate per step, so this is far away
SMALL_TARGET = 0.01  # standard deviation: the outputs of a new model already differ by some tenths
NARROW = 0.1  # largest minus least input: less is hard to react to
HIGH_START = 3.0  # times the constant predictor's loss, or that of equal probabilities where that is higher


def unlike_scales(figures: InitialFigures) -> Iterator[Diagnosis]:
    """Say where inputs, columns or targets hinder learning by their scale, and where the loss starts far too high."""
    yield from _inputs(figures)
    yield from _columns(figures)
    yield from _target_scale(figures)
    yield from _initial_loss(figures)


def _inputs(figures: InitialFigures) -> Iterator[Diagnosis]:
    inputs = figures.scale.get("inputs")
    if figures.column_offset is not None and figures.column_offset[1] > OFFSET:
        column, offset = figures.column_offset
        yield finding(
            symptom="column far from zero",
            cause=f"the mean of input column {column} is {typed_number(offset)} standard deviations away from zero.",
            cure="Subtract each column's mean and divide by its standard deviation (of the training part).",
            severity="warning",
            figure="mean over standard deviation of the column",
            value=offset,
            threshold=OFFSET,
        )
    elif inputs is not None and _offset(inputs) > OFFSET:
        yield finding(
            symptom="inputs far from zero",
            cause=f"inputs have mean {typed_number(inputs.mean)} and standard deviation {typed_number(inputs.sd)}.",
            cure=f"{_standardise(inputs)}.",
            severity="warning",
            figure="mean over standard deviation of the inputs",
            value=_offset(inputs),
            threshold=OFFSET,
        )
    if inputs is not None and 0 < inputs.high - inputs.low < NARROW:
        yield finding(
            symptom="tiny inputs",
            cause=(
                f"all inputs lie between {inputs.low:.3g} and {inputs.high:.3g}, so the model hardly reacts to their differences"
                f"{_fitted_anyway(figures)}."
            ),
            cure=f"{_standardise(inputs)}, or each column by its own.",
            severity="note" if figures.fit is not None and figures.fit.easy else "warning",
            figure="largest minus least input",
            value=inputs.high - inputs.low,
            threshold=NARROW,
        )


def _columns(figures: InitialFigures) -> Iterator[Diagnosis]:
    if figures.column_spread is not None and figures.column_spread > SPREAD:
        yield finding(
            symptom="columns of unlike scale",
            cause=f"the widest input column spreads {figures.column_spread:.3g} times as far as the narrowest.",
            cure="Standardise each column: subtract its mean, divide by its standard deviation (of the training part).",
            severity="warning",
            figure="widest over narrowest column",
            value=figures.column_spread,
            threshold=SPREAD,
        )


def _target_scale(figures: InitialFigures) -> Iterator[Diagnosis]:
    targets = figures.scale.get("targets")
    if figures.compares != "distance" or targets is None or targets.sd == 0:
        return
    mean, sd = typed_number(targets.mean), typed_number(targets.sd)
    described = f"targets have mean {mean} and standard deviation {sd}"
    cure = f"{_standardise(targets)}, and undo it on the outputs: {sd} * output + {mean}."
    severity: Severity = "note" if figures.fit is not None and figures.fit.easy else "warning"
    if targets.size > LARGE_TARGET:
        cause = f"{described}: outputs that start near 0 need very many steps to get there{_fitted_anyway(figures)}."
        figure = "root mean square of the targets"
        yield finding("large targets", cause, cure, severity, figure, targets.size, LARGE_TARGET)
    elif _offset(targets) > OFFSET and abs(targets.mean) > 1:
        cause = f"{described}: what tells them apart is small against what they share{_fitted_anyway(figures)}."
        figure = "mean over standard deviation of the targets"
        yield finding("targets far from zero", cause, cure, severity, figure, _offset(targets), OFFSET)
    elif targets.sd < SMALL_TARGET:
        cause = f"{described}: outputs start much farther apart, and a usual step is larger than that{_fitted_anyway(figures)}."
        figure = "standard deviation of the targets"
        yield finding("small targets", cause, cure, severity, figure, targets.sd, SMALL_TARGET)


def _initial_loss(figures: InitialFigures) -> Iterator[Diagnosis]:
    constant = figures.constant_loss
    if (
        constant is None
        or not is_finite(figures.loss)
        or constant <= 0
        or figures.constant_kind != "entropy of the labels"
    ):
        return
    limit = HIGH_START * max(constant, math.log(figures.classes or 1))
    if figures.loss > limit:
        inputs = figures.scale.get("inputs")
        now = "" if inputs is None else f" (now {typed_number(inputs.mean)} and {typed_number(inputs.sd)})"
        yield finding(
            symptom="high start",
            cause=(
                f"the loss starts at {figures.loss:.4g}, while one fixed answer for all examples gives {constant:.4g}:"
                f" the first steps only undo that."
            ),
            cure=f"Scale the inputs to mean 0 and standard deviation 1{now}, or start the last layer with smaller weights.",
            severity="warning",
            figure="loss at the start",
            value=figures.loss,
            threshold=limit,
        )


def _offset(scale: Scale) -> float:
    return abs(scale.mean) / scale.sd if scale.sd > 0 else 0.0


def _standardise(scale: Scale) -> str:
    return f"Standardise: subtract {typed_number(scale.mean)} and divide by {typed_number(scale.sd)}"


def _fitted_anyway(figures: InitialFigures) -> str:
    return "; this model could fit one batch all the same" if figures.fit is not None and figures.fit.easy else ""


bad_data_scale = Cause(
    name="bad-data-scale",
    meaning="inputs or targets are orders of magnitude apart, or far from zero",
    rank=40,
    before=unlike_scales,
    explains=("one batch cannot be fitted",),
)
