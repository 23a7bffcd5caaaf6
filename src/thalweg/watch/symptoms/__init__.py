"""What is seen to be wrong: one symptom a file, each a pure function of the window of the last steps."""

from __future__ import annotations

from collections.abc import Callable

from thalweg.watch.symptom import Symptom
from thalweg.watch.symptoms.diverging import diverging
from thalweg.watch.symptoms.nonfinite import nonfinite
from thalweg.watch.symptoms.oscillating import oscillating
from thalweg.watch.symptoms.overfitting import overfitting
from thalweg.watch.symptoms.spiky import spiky
from thalweg.watch.symptoms.stagnant import stagnant
from thalweg.watch.window import Window

SYMPTOMS: tuple[Callable[[Window], Symptom | None], ...] = (
    nonfinite,
    diverging,
    spiky,
    stagnant,
    oscillating,
    overfitting,
)
"""All of them, those first whose step cannot stand."""
