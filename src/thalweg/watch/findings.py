"""Before and after training: ask every cause, name consequences, and rank what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from thalweg.landscape.initial_figures import InitialFigures
from thalweg.records.diagnosis import Diagnosis
from thalweg.records.run import Run
from thalweg.watch.cause import Cause
from thalweg.watch.causes import all_causes
from thalweg.watch.finished import FinishedHistory

SEVERITIES = ("critical", "warning", "note")
Evidence = TypeVar("Evidence")


def findings_before_training(figures: InitialFigures, causes: Iterable[Cause] | None = None) -> list[Diagnosis]:
    """Ask all causes of the figures of an initial model; gravest first.

    A symptom that a graver finding explains is named as its consequence, and is no finding of its own.
    """
    asked = all_causes() if causes is None else causes
    return _asked([(cause, cause.before) for cause in asked if cause.before is not None], figures)


def findings_after_training(history: FinishedHistory, causes: Iterable[Cause] | None = None) -> list[Diagnosis]:
    """Ask all causes of a finished run's history; gravest first, consequences as in `findings_before_training`."""
    asked = all_causes() if causes is None else causes
    return _asked([(cause, cause.after) for cause in asked if cause.after is not None], history)


def diagnose_run(run: Run) -> list[Diagnosis]:
    """Give what was diagnosed before and during a run, and what its history shows besides."""
    known = {(found.name, found.symptom) for found in run.diagnoses}
    found = findings_after_training(FinishedHistory.of(run))
    return [*run.diagnoses, *(diagnosis for diagnosis in found if (diagnosis.name, diagnosis.symptom) not in known)]


def _asked(
    questions: Iterable[tuple[Cause, Callable[[Evidence], Iterable[Diagnosis]]]], evidence: Evidence
) -> list[Diagnosis]:
    found = [(cause, diagnosis) for cause, question in questions for diagnosis in question(evidence)]
    return with_consequences(ranked(found))


def ranked(found: Iterable[tuple[Cause, Diagnosis]]) -> list[tuple[Cause, Diagnosis]]:
    """Order findings by severity, then by their causes' ranks; each carries its cause's name."""
    named = [(cause, replace(diagnosis, name=cause.name)) for cause, diagnosis in found]
    return sorted(named, key=lambda pair: (SEVERITIES.index(pair[1].severity), pair[0].rank, pair[0].name))


def with_consequences(found: list[tuple[Cause, Diagnosis]]) -> list[Diagnosis]:
    """Give ranked findings, those that the first one explains named as its consequences."""
    for place, (cause, diagnosis) in enumerate(found):
        explained = tuple(d.symptom for _, d in found if d.symptom in cause.explains)
        if explained and diagnosis.severity != "note":
            found[place] = cause, replace(diagnosis, consequences=explained)
            return [d for _, d in found if d.symptom not in explained]
    return [diagnosis for _, diagnosis in found]
