"""Questions asked before training, of figures measured on one batch."""

from __future__ import annotations

from collections.abc import Iterator

from thalweg.landscape.start import Start, is_finite
from thalweg.records.diagnosis import Cure, Diagnosis, Severity

HIGH_START = 3.0  # times the constant predictor's loss
SPREAD = 1e3  # of columns' standard deviations
OFFSET = 10.0  # mean over standard deviation
LARGE_TARGET = 100.0  # standard deviation under squared error
FITTED = 0.7  # of the constant predictor's loss: a few examples can be learnt by heart well below it
MOVED = (
    0.02  # of the start that must at least be taken away where no such loss is known (it may be all noise, or negative)
)
REACTION = 1e-4
CARRIED = 0.98  # of the constant predictor's loss, on examples that were not learnt from


def ask(start: Start) -> list[Diagnosis]:
    """Give what the figures say, gravest first."""
    order = {"critical": 0, "warning": 1, "note": 2}
    return sorted(_ask(start), key=lambda found: order[found.severity])


def _ask(start: Start) -> Iterator[Diagnosis]:
    yield from _gradients(start)
    yield from _reaction(start)
    yield from _start_loss(start)
    yield from _output_layer(start)
    yield from _fitting(start)
    yield from _targets(start)
    yield from _scale(start)


def _found(
    symptom: str, cause: str, cure: str, severity: Severity, value: object, threshold: object, **more: object
) -> Diagnosis:
    evidence = {symptom: {"value": value, "threshold": threshold}, **more}
    return Diagnosis(symptom=symptom, cause=cause, severity=severity, evidence=evidence, cure=Cure(cure))


def _gradients(start: Start) -> Iterator[Diagnosis]:
    if start.idle:
        names = ", ".join(start.idle[:5]) + (" …" if len(start.idle) > 5 else "")
        yield _found(
            "parameter without gradient",
            f"{len(start.idle)} parameters got no gradient from the first batch: {names}.",
            "Use them in the forward pass, or freeze them with requires_grad_(False).",
            "warning",
            len(start.idle),
            0,
            parameters=list(start.idle),
        )
    dead = [name for name, size in start.gradients.items() if size == 0.0]
    if dead and len(dead) == len(start.gradients):
        yield _found(
            "no slope",
            "every parameter's gradient is exactly zero: no step will move anything.",
            "Look for units that are all off (ReLU of negative inputs), an output that ignores the model, or a clamped loss.",
            "critical",
            len(dead),
            0,
        )
    elif dead:
        yield _found(
            "zero gradient",
            f"{len(dead)} parameters' gradients are exactly zero: {', '.join(dead[:5])}.",
            "If they start at zero on purpose (a gate, a residual branch) all is well; else look at the units they feed.",
            "note",
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
            start.reaction,
            REACTION,
        )


def _start_loss(start: Start) -> Iterator[Diagnosis]:
    constant = start.constant_loss
    if constant is None or not is_finite(start.loss) or constant <= 0 or start.target_sd is not None:
        return
    if start.loss > HIGH_START * constant:
        yield _found(
            "high start",
            f"the loss starts at {start.loss:.4g}, while always saying the same gives {constant:.4g} ({start.constant_kind}):"
            f" the first steps go into unlearning.",
            "Scale the inputs to mean 0 and standard deviation 1, or start the last layer with smaller weights.",
            "warning",
            start.loss,
            HIGH_START * constant,
        )


def _output_layer(start: Start) -> Iterator[Diagnosis]:
    if start.output_sum_to_one and start.constant_kind == "entropy of the labels":
        yield _found(
            "softmax twice",
            "the model's outputs are already probabilities, and cross-entropy applies softmax again: gradients are weak.",
            "Return the scores before the softmax (logits), or use the negative log-likelihood of log-probabilities.",
            "warning",
            1.0,
            "logits",
        )


def _limit(start: Start) -> float:
    """Give the loss that a few examples can be brought down to."""
    known = start.constant_loss
    return FITTED * known if known is not None and known > 0 else start.loss - MOVED * abs(start.loss)


def _fitting(start: Start) -> Iterator[Diagnosis]:
    reached = start.fitted_loss
    if reached is None or not is_finite(reached) or not is_finite(start.loss):
        return
    limit = _limit(start)
    if reached > limit:
        yield _found(
            "one batch cannot be fitted",
            f"{start.fitted_steps} steps on a few examples took the loss only from {start.loss:.4g} to {reached:.4g}.",
            "Check that labels belong to their examples, that the last layer fits the loss, and that nothing is frozen.",
            "warning",
            reached,
            limit,
        )


def _targets(start: Start) -> Iterator[Diagnosis]:
    if start.target_alike:
        yield _found(
            "targets all alike",
            "all targets of a sample are one and the same, so there is nothing to tell apart.",
            "Check which column the targets come from, and whether a filter left one class only.",
            "warning",
            1,
            "two kinds",
        )
    elif start.held_out is not None and start.held_out[0] > CARRIED * start.held_out[1]:
        reached, constant = start.held_out
        yield _found(
            "nothing carries over",
            f"what was learnt from some hundred examples says no more about others ({reached:.4g}) than always saying the same"
            f" ({constant:.4g}).",
            "Check that labels belong to their examples and were not shuffled apart; a hard task may only need far more"
            " examples.",
            "note",
            reached,
            CARRIED * constant,
        )


def _scale(start: Start) -> Iterator[Diagnosis]:
    if start.column_spread is not None and start.column_spread > SPREAD:
        yield _found(
            "columns of unlike scale",
            f"the widest input column spreads {start.column_spread:.3g} times as far as the narrowest.",
            "Standardise each column: subtract its mean, divide by its standard deviation (of the training part).",
            "warning",
            start.column_spread,
            SPREAD,
        )
    mean, spread = start.scale.get("inputs", (0.0, 1.0))
    if start.column_offset is not None and start.column_offset[1] > OFFSET:
        column, offset = start.column_offset
        yield _found(
            "column far from zero",
            f"the mean of input column {column} is {offset:.3g} of its standard deviations away from zero.",
            "Subtract each column's mean and divide by its standard deviation (of the training part).",
            "warning",
            offset,
            OFFSET,
        )
    elif spread > 0 and abs(mean) / spread > OFFSET:
        yield _found(
            "inputs far from zero",
            f"inputs have mean {mean:.3g} and standard deviation {spread:.3g}.",
            "Subtract the mean and divide by the standard deviation.",
            "warning",
            abs(mean) / spread,
            OFFSET,
        )
    if start.target_sd is not None and start.target_sd > LARGE_TARGET:
        yield _found(
            "large targets",
            f"targets have a standard deviation of {start.target_sd:.3g}, so losses and gradients are its square.",
            "Standardise the targets and undo it on the outputs.",
            "warning",
            start.target_sd,
            LARGE_TARGET,
        )
