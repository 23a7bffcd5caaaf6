"""Are the weights kept in too few bits for the steps that they take?"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.watch.cause import Cause
from thalweg.watch.cures import lower_rate_and_clip
from thalweg.watch.probe import NotMeasuredError, Probe
from thalweg.watch.symptom import Symptom
from thalweg.watch.window import Window

COARSE = 1e-4  # between a number and the next: sixteen bits have 0.001 to 0.008, thirty-two 1e-7
SMALL_RANGE = 1e5  # float16 ends at 65,504
SETTLED = 50  # steps: before, weights and steps are as they were made, and the rate may be warming up


def are_rounded(symptom: Symptom, window: Window, probe: Probe) -> Diagnosis | None:
    """Diagnose weights of sixteen bits whose usual step is smaller than the distance to the next number, and what is not finite
    in float16."""
    coarse = [index for index, place in enumerate(window.places) if place.resolution > COARSE]
    if not coarse:
        return None
    if symptom.name == "non-finite":
        if not any(window.places[index].largest < SMALL_RANGE for index in coarse):
            return None
        return symptom.explained(
            ". The weights are kept in float16, which ends at 65,504 and in which an optimiser's eps of 1e-8 is zero",
            evidence={"parameters in float16": {"value": len(coarse), "threshold": 0}},
        )
    if window.step < SETTLED or not window.is_at_height:
        return None
    weights, updates = window.weight_norms, window.update_norms
    if weights is None or updates is None or len(weights) != len(window.places):
        raise NotMeasuredError("norms of weights and updates")
    matrices = [index for index in coarse if len(window.places[index].shape) > 1 and weights[index] > 0]
    if not matrices:
        return None
    resolution = max(window.places[index].resolution for index in matrices)
    usual = float(np.median([updates[index] / weights[index] for index in matrices]))
    if not math.isfinite(usual) or usual > resolution:
        return None
    return symptom.explained(
        f". The weights are kept in sixteen bits, where the next number is up to {resolution:.2g} of a number away, and a usual"
        f" step moves a weight by {usual:.2g} of it: most steps are rounded away",
        evidence={"step over weight": {"value": usual, "threshold": resolution}},
    )


def keep_in_full(window: Window, attempt: int) -> Cure:
    """Say how to train in half precision; after what is not finite, also go back."""
    advice = Cure(
        "Keep the weights in float32 and compute in sixteen bits only: `precision = 'bfloat16'` in the plan, or torch.autocast.",
        code="model.float()  # before the optimiser is made; and `with torch.autocast(device, torch.bfloat16):` around the loss",
    )
    if window.is_finite:
        return advice
    cure = lower_rate_and_clip(window, attempt)
    return replace(cure, action=f"{advice.action} {cure.action}", code=advice.code)


low_precision = Cause(
    name="low-precision",
    meaning="weights of sixteen bits round most steps away, or leave their range",
    rank=11,
    symptoms=("non-finite", "stagnant", "diverging"),
    question=are_rounded,
    early=51,
    cure=keep_in_full,
    explains=("learning-rate-too-low", "nothing-to-learn", "learning-rate-too-high", "loss-overflow"),
)
