"""A cause: one question about a training run, which can be asked before it, during it and after it.

Each cause is one file in `watch/causes/`. It does not depend on who asks: `check`, the monitor of a descent, `diagnose` and
the report ask all causes in the same way, and a third party's cause comes by an entry point of the group `thalweg.causes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, get_args

from thalweg.landscape.initial_figures import InitialFigures
from thalweg.records import json_values
from thalweg.records.diagnosis import Cure, Diagnosis, Severity
from thalweg.terminal import warn
from thalweg.watch.finished import FinishedHistory
from thalweg.watch.probe import Probe
from thalweg.watch.symptom import Symptom
from thalweg.watch.window import Window

Question = Callable[[Symptom, Window, Probe], Diagnosis | None]


class Detector(Protocol):
    """Asks a cause's question after every step of one run, and holds its own state between steps."""

    def observe(self, window: Window) -> Diagnosis | None:
        """Give a diagnosis where the last steps show the symptom."""

    @property
    def suspicious(self) -> bool:
        """Whether a recent step looked abnormal, though not enough for a diagnosis: no snapshot is taken then."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Give the state as built-in types."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""


@dataclass(frozen=True)
class Cause:
    """One thing that can be wrong with a training run.

    Arguments:
        name: stable name, as the file's, with hyphens: "learning-rate-too-low". It is the kind of the events about it.
        meaning: what it is, in a sentence for people.
        rank: of several findings of one severity, those of lower rank come first; certain causes have low ranks.
        before: the question asked before training, of the figures of the initial model; gives any number of diagnoses.
        symptoms: those that it may bring about. `question` is asked where one of them is seen during training, and gives a
            diagnosis, or None, which rules this cause out; it raises NotMeasuredError where it cannot tell.
        early: the step, 16 or 51, at which the question is asked once too, of a "stagnant" that nothing shows yet; 0: none. After
            50 steps weights and updates have been measured.
        during: makes a detector that asks after every step, for what shows itself in no symptom; `each_step` makes one of a
            function without state.
        only_memory: whether that looks at nothing but readings of memory, so that it need not be asked after steps without one.
        after: the question asked of a finished run's history.
        cure: the cure for what was found during training, from the recent steps and how often it was tried here.
        summary: says the finding in one short sentence, from its evidence, for lists of events; None: the diagnosis's own.
        explains: symptoms, or names of causes, that follow from this cause: where both are found, they are named as its
            consequences.
        refutable: symptoms found before training that are disproved where the training then learns.
    """

    name: str
    meaning: str
    rank: int = 50
    before: Callable[[InitialFigures], Iterable[Diagnosis]] | None = None
    symptoms: tuple[str, ...] = ()
    question: Question | None = None
    early: int = 0
    during: Callable[[], Detector] | None = None
    only_memory: bool = False
    after: Callable[[FinishedHistory], Iterable[Diagnosis]] | None = None
    cure: Callable[[Window, int], Cure] | None = None
    summary: Callable[[Mapping[str, Any]], str] | None = None
    explains: tuple[str, ...] = ()
    refutable: tuple[str, ...] = ()


class _EachStep:
    """A detector without state."""

    suspicious = False

    def __init__(self, question: Callable[[Window], Diagnosis | None]) -> None:
        self.question = question

    def observe(self, window: Window) -> Diagnosis | None:
        return self.question(window)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


def each_step(question: Callable[[Window], Diagnosis | None]) -> Callable[[], Detector]:
    """Make a detector of a question that needs only the recent steps, and has no state."""
    return lambda: _EachStep(question)


def warn_of_failure(cause: Cause, error: Exception, consequence: str) -> None:
    """Say that a cause itself failed. No cause stops a training or a report, however it fails."""
    warn(
        f"The cause '{cause.name}' failed and {consequence} ({type(error).__name__}: {error}).",
        RuntimeWarning,
        stacklevel=2,
    )


def check_diagnosis(diagnosis: Diagnosis) -> Diagnosis:
    """Give a diagnosis that can be ranked and written down. Raises TypeError or ValueError for another one."""
    if not isinstance(diagnosis, Diagnosis):
        raise TypeError(f"it gave a {type(diagnosis).__name__}, not a Diagnosis")
    if diagnosis.severity not in get_args(Severity):
        raise ValueError(f"its severity is {diagnosis.severity!r}, which is none of {', '.join(get_args(Severity))}")
    json_values.encode(diagnosis.to_dict())
    return diagnosis


def finding(
    symptom: str,
    cause: str,
    cure: str,
    severity: Severity,
    figure: str,
    value: object,
    threshold: object,
    **more: object,
) -> Diagnosis:
    """Give a diagnosis that rests on one figure and its threshold, with a cure that a person applies."""
    evidence = {figure: {"value": value, "threshold": threshold}, **more}
    return Diagnosis(symptom=symptom, cause=cause, severity=severity, evidence=evidence, cure=Cure(cure))
