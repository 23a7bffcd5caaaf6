"""Does the noise of few examples drown the slope?"""

from __future__ import annotations

import math
from statistics import fmean, median, pstdev

from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.watch.cause import Cause
from thalweg.watch.cures import AVERAGE
from thalweg.watch.probe import Probe
from thalweg.watch.symptom import BEST_LENGTH, Symptom
from thalweg.watch.window import FEW_EXAMPLES, Window

NOISY = 0.3  # standard deviation of the loss over its mean, from batch to batch: of less, a swing is none of noise
MORE = 4  # batches that make up one step then
HARM = 2.0  # multiple of a step that is best for the next batch: more, and steps help others


def drowns(symptom: Symptom, window: Window, probe: Probe) -> Diagnosis | None:
    """Diagnose a loss that stands at batches of very few examples, where steps do not help the next batch."""
    if not window.has_few_examples or len(window.losses) < 16 or BEST_LENGTH in symptom.evidence:
        return None
    losses = list(window.losses)
    spread = pstdev(losses) / abs(fmean(losses)) if fmean(losses) else math.inf
    lengths = [multiple for _, multiple in window.lengths]
    if not lengths or median(lengths) > HARM or (symptom.name == "oscillating" and spread < NOISY):
        return None
    return symptom.explained(
        f". Each step sees {window.examples} examples, and the loss varies by {spread:.0%} from batch to batch: their noise"
        " drowns the slope",
        evidence={
            "examples of a batch": {"value": window.examples, "threshold": FEW_EXAMPLES},
            "standard deviation of the loss over its mean": {"value": spread, "threshold": None},
        },
    )


def average_more(window: Window, attempt: int) -> Cure:
    """Lower the noise, with more examples a step and an average of the weights."""
    return Cure(
        f"Take larger batches. From here on the gradients of {MORE} batches make up one step, and an average of the weights is"
        " kept.",
        accumulate=MORE,
        ema=AVERAGE,
        code=f"if (number + 1) % {MORE} == 0: optimizer.step(); optimizer.zero_grad()  # of (loss / {MORE}).backward()",
    )


batch_too_small = Cause(
    name="batch-too-small",
    meaning="steps follow the noise of very few examples more than the slope",
    rank=19,
    symptoms=("stagnant", "oscillating"),
    question=drowns,
    cure=average_more,
    explains=("nothing-to-learn", "learning-rate-too-low", "dead-units"),
)
