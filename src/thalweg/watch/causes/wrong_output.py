"""Does the model's output fit the loss?"""

from __future__ import annotations

import math
from collections.abc import Iterator

from thalweg.formatting import typed_number
from thalweg.landscape.initial_figures import InitialFigures
from thalweg.records.diagnosis import Diagnosis
from thalweg.watch.cause import Cause, finding

REACTION = 1e-4  # relative change of the outputs with other inputs: with less they ignore the input
LOG_SUM = 0.1  # most |log sum exp(output)| over classes; 0 for log-probabilities, but for half precision's rounding
UNREACHABLE = 0.01  # share of targets that outputs cannot reach


def misfits(figures: InitialFigures) -> Iterator[Diagnosis]:
    """Say where outputs ignore the input, are of another kind than the loss takes, or cannot reach the targets."""
    yield from _reaction(figures)
    yield from _log_probabilities(figures)
    yield from _probabilities(figures)
    yield from _squashed(figures)
    yield from _out_of_reach(figures)


def _reaction(figures: InitialFigures) -> Iterator[Diagnosis]:
    if figures.reaction is not None and figures.reaction < REACTION:
        yield finding(
            symptom="output ignores input",
            cause="other inputs give the same outputs, so nothing about the examples can be learnt.",
            cure="Look for inputs that are all alike or multiplied by nearly zero, or a layer whose units are all off.",
            severity="critical",
            figure="change of outputs with other inputs, over their size",
            value=figures.reaction,
            threshold=REACTION,
        )


def _log_probabilities(figures: InitialFigures) -> Iterator[Diagnosis]:
    total = figures.output_log_sum
    if figures.compares == "log-probabilities" and total is not None and not abs(total) <= LOG_SUM:
        yield finding(
            symptom="no log-probabilities",
            cause=(
                "the negative log-likelihood loss takes log-probabilities, whose exponentials sum to 1 over the classes; this"
                f" model's sum to {_finite_exp(total):.3g}: the loss can fall without end while nothing is learnt."
            ),
            cure="Use cross_entropy, or end the model with log_softmax over the classes.",
            severity="critical",
            figure="log of the sum of exp(output) over classes, off 0",
            value=abs(total),
            threshold=LOG_SUM,
        )


def _finite_exp(power: float) -> float:
    return math.exp(min(power, 700.0))


def _probabilities(figures: InitialFigures) -> Iterator[Diagnosis]:
    if (
        figures.output_sum_to_one
        and figures.compares == "class scores"
        and figures.constant_kind == "entropy of the labels"
    ):
        yield finding(
            symptom="softmax twice",
            cause="the model's outputs are already probabilities, and cross-entropy applies softmax again: gradients are weak.",
            cure="Return the scores before the softmax (logits), or use the negative log-likelihood of log-probabilities.",
            severity="warning",
            figure="sum of each example's outputs",
            value=1.0,
            threshold=None,
        )


def _squashed(figures: InitialFigures) -> Iterator[Diagnosis]:
    low, high = figures.bounds
    if figures.compares == "binary scores" and low == 0.0:
        yield finding(
            symptom="squashed scores",
            cause=(
                f"outputs stay {_within(low, high)} even where the model is pushed out, as after a {_ending(low, high)}; this"
                " loss takes scores of either sign and applies the sigmoid itself, so no probability can go below 0.5."
            ),
            cure=f"End the model without the {_ending(low, high)}, or use BCELoss after a sigmoid.",
            severity="warning",
            figure="least output the model can be brought to",
            value=low,
            threshold=-1.0,
        )
    elif figures.compares in ("binary scores", "class scores") and low is not None and high is not None:
        yield finding(
            symptom="squashed scores",
            cause=(
                f"outputs stay {_within(low, high)} even where the model is pushed out, as after a {_ending(low, high)}; this"
                " loss takes scores of any size and makes probabilities of them itself, so none can come near 1."
            ),
            cure=f"End the model without the {_ending(low, high)}.",
            severity="warning",
            figure="width of the outputs' range",
            value=high - low,
            threshold=None,
        )


def _out_of_reach(figures: InitialFigures) -> Iterator[Diagnosis]:
    share, targets = figures.out_of_reach, figures.scale.get("targets")
    if figures.compares == "distance" and share is not None and share > UNREACHABLE and targets is not None:
        yield finding(
            symptom="targets out of reach",
            cause=(
                f"{share:.0%} of the targets, which run from {typed_number(targets.low)} to {typed_number(targets.high)}, are"
                f" values that this model cannot give: its outputs stay {_within(*figures.bounds)} even where it is pushed out,"
                f" as after a {_ending(*figures.bounds)}."
            ),
            cure=f"End the model without the {_ending(*figures.bounds)}, or scale the targets into its range.",
            severity="warning",
            figure="share of targets out of reach",
            value=share,
            threshold=UNREACHABLE,
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


wrong_output = Cause(
    name="wrong-output",
    meaning="the last layer and the loss do not fit each other, or the output ignores the input",
    rank=30,
    before=misfits,
    explains=("one batch cannot be fitted",),
)
