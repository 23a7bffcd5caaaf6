"""Is a normalisation given what it cannot normalise without harm?"""

from __future__ import annotations

import math

from thalweg.formatting import format_number
from thalweg.landscape.normalisation import Normalisation
from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.watch.cause import Cause
from thalweg.watch.cures import restart
from thalweg.watch.probe import Probe
from thalweg.watch.symptom import Symptom
from thalweg.watch.window import Window

TURNS = (
    1.0  # a step over the weights before a normalisation: their size does not matter to it, so this turns them around
)
TINY = 0.05  # of the usual norm of a matrix at the start
VARIES = 10.0  # times eps: inputs that vary less are normalised by eps, not by themselves
CERTAIN = 0.9  # of an attention's queries look at one key only


def is_unstable(symptom: Symptom, window: Window, probe: Probe) -> Diagnosis | None:
    """Diagnose weights before a normalisation that are so small that one step turns them around, inputs of a normalisation that
    hardly vary, and attention that looks at one key only from the beginning."""
    if window.upset is not None and window.upset[0] > 1:
        return None  # steps too long leave weights and inputs of every kind
    seen = probe.normalisations()
    for found in seen:
        if (turned := _turned(found, window)) is not None and turned > TURNS:
            return symptom.explained(
                f". `{found.name}` normalises the output of `{found.before}`, whose weights are so small that one step moves"
                f" them by {format_number(turned)} times their norm",
                evidence={f"step over weights of {found.before}": {"value": turned, "threshold": TURNS}},
                cure=restart(
                    [each.before for each in seen if _turned(each, window) is not None],
                    "A warm-up of the learning rate helps too.",
                ),
            )
        # A channel of a batch normalisation that is off has no variance, and harms nothing.
        if "Batch" not in found.kind and 0 < found.variance < VARIES * found.eps:
            return symptom.explained(
                f". The inputs of `{found.name}` hardly vary: their least variance is {format_number(found.variance)}, its"
                f" eps {found.eps:.3g}",
                evidence={f"variance before {found.name}": {"value": found.variance, "threshold": VARIES * found.eps}},
            )
        if found.certain > CERTAIN:
            return symptom.explained(
                f". In an attention {found.certain:.0%} of the queries look at one key only: hardly any gradient passes its"
                " softmax",
                evidence={"share of queries that look at one key": {"value": found.certain, "threshold": CERTAIN}},
            )
    return None


def _turned(found: Normalisation, window: Window) -> float | None:
    """Give the last measured step of the weights before a normalisation, over their norm."""
    weights, updates = window.first_weight_norms, window.update_norms
    if not found.before or weights is None or updates is None or len(weights) != len(window.places):
        return None
    index = next((k for k, place in enumerate(window.places) if place.name == f"{found.before}.weight"), None)
    if index is None or not weights[index] > 0:
        return None
    usual = math.sqrt(max(1, window.places[index].shape[0]))  # norm of a matrix that is started by fan-in
    if weights[index] > TINY * usual:
        return None
    return float(updates[index] / weights[index])


def settle(window: Window, attempt: int) -> Cure:
    """Say how to bring the inputs of a normalisation to a usual size."""
    return Cure(
        "Start the layer before it by fan-in, so that its outputs have a variance of about one; warm the learning rate up; of an"
        " attention, divide the scores by the root of the width, or normalise queries and keys.",
        code="torch.nn.init.kaiming_normal_(layer.weight)  # of the layer before",
    )


unstable_norm = Cause(
    name="unstable-norm",
    meaning="a normalisation is given inputs that hardly vary, or follows weights so tiny that each step turns them around",
    rank=17,
    symptoms=("spiky", "diverging", "stagnant", "non-finite"),
    question=is_unstable,
    early=16,
    cure=settle,
    explains=("vanishing-gradient", "learning-rate-too-high", "learning-rate-too-low", "nothing-to-learn"),
)
