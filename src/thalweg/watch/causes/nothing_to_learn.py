"""Do the targets follow from the inputs?"""

from __future__ import annotations

from collections.abc import Iterator

from thalweg.landscape.initial_figures import InitialFigures
from thalweg.records.diagnosis import Cure, Diagnosis, Severity
from thalweg.watch.cause import Cause, finding
from thalweg.watch.probe import NotMeasuredError, Probe
from thalweg.watch.symptom import Symptom
from thalweg.watch.symptoms.overfitting import carries_nothing_over
from thalweg.watch.window import FEWEST_TRIES, Window

AT_CONSTANT = 0.02  # of the loss of one fixed answer: a loss so near it says that the inputs are not used
HELPS = 2.0  # standard errors, by which steps in their direction lower the loss of the next batch
BY_HEART = 0.5  # of it: with less left of the training loss, the examples may be few rather than their targets wrong
FROZEN = 0.9  # of the weights
EARLY = 0.8  # of the run: what stands until then may still begin to learn, as recurrent networks do, and is only noted
ON_BATCH = 0.05  # the same on the batch that was just learnt from
GENERALISED = 0.98  # of the constant predictor's loss on examples not learnt from: less is better than a constant


def stands_at_constant(symptom: Symptom, window: Window, probe: Probe) -> Diagnosis | None:
    """Diagnose a loss that stands where one fixed answer for all examples would be, with gradients and steps of a usual size; and
    a training loss below that, of which nothing carries over to validation."""
    if symptom.name == "overfitting":
        return _by_heart(symptom, window)
    if window.has_few_examples:
        raise NotMeasuredError("batches of at least eight examples")
    if window.frozen > FROZEN:
        raise NotMeasuredError("a network that may move: nearly all weights are frozen")
    if (tried := window.shortened(FEWEST_TRIES)) is not None and tried.quarter < -HELPS * tried.error:
        return None  # steps help other examples, as before late learning
    constant, of_model = probe.fixed_answer()
    usual = constant if window.constant_loss is None else window.constant_loss
    on_batch, on_average = abs(of_model - constant) / abs(constant), abs(window.smoothed - usual) / abs(usual)
    if not (on_batch < ON_BATCH and on_average < ON_BATCH) and not on_average < AT_CONSTANT:
        return None
    return symptom.explained(
        f". One fixed answer for all examples gives {constant:.4g}: nothing about the single examples is learnt",
        severity=_severity(window),
        evidence={"loss of one fixed answer": {"value": constant}},
        cure=Cure(
            "Check that labels belong to their examples and were not shuffled apart, and that the model sees its inputs."
        ),
    )


def _severity(window: Window) -> Severity | None:
    """Note what may still change; None, the symptom's own severity, near the end of the run or where its length is not known."""
    return "note" if window.step < EARLY * (window.total or 0) else None


def _by_heart(symptom: Symptom, window: Window) -> Diagnosis | None:
    """Diagnose single examples that are learnt by heart; where little is left of their loss, they may only be too few."""
    constant = window.constant_loss
    if constant is None or not carries_nothing_over(window) or window.smoothed < BY_HEART * constant:
        return None
    return symptom.explained(
        f". One fixed answer for all examples gives {constant:.4g}: what is learnt of the training examples says nothing about"
        " others",
        severity=_severity(window),
        evidence={"loss of one fixed answer": {"value": constant}},
        cure=Cure(
            "Check that labels belong to their examples and were not shuffled apart; a hard task may only need far more examples."
        ),
    )


def uninformative_targets(figures: InitialFigures) -> Iterator[Diagnosis]:
    """Diagnose targets that are all alike, or learning from some examples that does not help on others."""
    if figures.target_alike:
        yield finding(
            symptom="targets all alike",
            cause="all targets of a sample are one and the same, so there is nothing to tell apart.",
            cure="Check which column the targets come from, and whether a filter left one class only.",
            severity="warning",
            figure="different targets",
            value=1,
            threshold=2,
        )
    elif figures.held_out is not None and figures.held_out[0] > GENERALISED * figures.held_out[1]:
        reached, constant = figures.held_out
        yield finding(
            symptom="nothing carries over",
            cause=(
                f"what was learnt from some hundred examples says no more about others ({reached:.4g}) than one fixed answer for"
                f" all ({constant:.4g})."
            ),
            cure=(
                "Check that labels belong to their examples and were not shuffled apart; a hard task may only need far more"
                " examples."
            ),
            severity="note",
            figure="loss on other examples",
            value=reached,
            threshold=GENERALISED * constant,
        )


nothing_to_learn = Cause(
    name="nothing-to-learn",
    meaning="the targets say nothing that could be learnt from the inputs",
    rank=69,
    symptoms=("stagnant", "overfitting"),
    question=stands_at_constant,
    before=uninformative_targets,
    explains=("overfitting",),
    refutable=("nothing carries over",),
)
