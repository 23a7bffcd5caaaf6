"""The contract of a cause, ours or a third party's: `check_cause(cause)` raises AssertionError with what is broken."""

from __future__ import annotations

import json
import math
import re

import numpy as np

from thalweg.landscape.initial_figures import InitialFigures
from thalweg.records import json_values
from thalweg.records.diagnosis import Diagnosis
from thalweg.records.step_figures import StepFigures
from thalweg.watch.cause import Cause, Detector
from thalweg.watch.finished import FinishedHistory
from thalweg.watch.probe import NotMeasuredError, Probe
from thalweg.watch.symptom import Symptom
from thalweg.watch.window import Window

STEPS = 300


def check_cause(cause: Cause) -> None:
    """Check a cause's names, that it finds nothing where nothing was measured or all is well, and that its state can be saved.

    Raises AssertionError that names the cause and what it breaks.
    """
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", cause.name), f"{cause.name!r}: a name has small letters and hyphens"
    assert cause.meaning, f"{cause.name}: `meaning` says in a sentence what the cause is"
    questions = (cause.before, cause.question, cause.during, cause.after)
    assert any(question is not None for question in questions), f"{cause.name}: no question at any moment"
    if cause.before is not None:
        diagnoses = list(cause.before(InitialFigures(loss=2.3)))
        assert not diagnoses, f"{cause.name}: judges figures that were not measured: {diagnoses}"
    if cause.after is not None:
        diagnoses = list(cause.after(FinishedHistory(columns={"step": np.zeros(0), "loss": np.zeros(0)})))
        assert not diagnoses, f"{cause.name}: judges an empty history: {diagnoses}"
    for name in cause.symptoms:
        _check_question(cause, name)
    if cause.during is not None:
        _check_detector(cause, cause.during(), cause.during())


def _check_question(cause: Cause, symptom: str) -> None:
    """Check that a question answers, or says what it would need, where next to nothing is known."""
    assert cause.question is not None, f"{cause.name}: has symptoms, but no question"
    window = Window()
    for known in (window, _pushed(window, _healthy(STEPS))):
        seen = Symptom(symptom, known.step, known.step, "it is so")
        try:
            diagnosis = cause.question(seen, known, Probe())
        except NotMeasuredError:
            continue
        assert diagnosis is None or isinstance(diagnosis, Diagnosis), (
            f"{cause.name}: gives a {type(diagnosis).__name__}, not a Diagnosis"
        )
        if cause.cure is not None:
            assert cause.cure(known, 1).action, f"{cause.name}: a cure says what to do in a sentence"


def _pushed(window: Window, steps: list[StepFigures]) -> Window:
    for figures in steps:
        window.push(figures)
    return window


def _check_detector(cause: Cause, detector: Detector, other: Detector) -> None:
    """Check that a healthy loss raises no alarm, and that a detector with loaded state answers as the one that was saved."""
    window = Window()
    for figures in _healthy(STEPS):
        window.push(figures)
        diagnosis = detector.observe(window)
        assert not _is_alarm(diagnosis), f"{cause.name}: alarm on a healthy loss at step {figures.step}: {diagnosis}"
    saved = json.loads(json.dumps(json_values.encode(detector.state_dict())))
    other.load_state_dict(json_values.decode(saved))
    for figures in _diverging(STEPS):
        window.push(figures)
        one, two = detector.observe(window), other.observe(window)
        assert str(one) == str(two), (
            f"{cause.name}: gives another answer after its state was saved and loaded: {one}, {two}"
        )
        assert one is None or isinstance(one, Diagnosis), f"{cause.name}: gives a {type(one).__name__}, not a Diagnosis"
        assert detector.suspicious == other.suspicious, f"{cause.name}: `suspicious` is not part of its state"
        if one is not None and cause.cure is not None:
            assert cause.cure(window, 1).action, f"{cause.name}: a cure says what to do in a sentence"


def _is_alarm(diagnosis: Diagnosis | None) -> bool:
    return diagnosis is not None and diagnosis.severity != "note"


def _healthy(count: int) -> list[StepFigures]:
    falling = [2.3 * math.exp(-step / 100) + 0.05 * (1 + math.sin(step)) for step in range(count)]
    return [StepFigures(step, loss, 1e-3, 1.0, examples=32) for step, loss in enumerate(falling, 1)]


def _diverging(count: int) -> list[StepFigures]:
    rising = [0.1 * math.exp(min(step / 5, 700)) for step in range(count)]
    losses = [*rising[: count // 2], math.nan, *rising[: count // 2]]
    return [StepFigures(count + step, loss, 1.0, loss, examples=32) for step, loss in enumerate(losses, 1)]
