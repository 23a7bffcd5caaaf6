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
Subject = TypeVar("Subject")  # what causes are asked about: figures before training, or a finished history


def findings_before_training(figures: InitialFigures, causes: Iterable[Cause] | None = None) -> list[Diagnosis]:
    """Ask all causes of the figures of an initial model; gravest first.

    A symptom that a graver finding explains is listed in that finding's `consequences`, not as a finding of its own.
    """
    causes = all_causes() if causes is None else causes
    return _ask([(cause, cause.before) for cause in causes if cause.before is not None], figures)


def findings_after_training(history: FinishedHistory, causes: Iterable[Cause] | None = None) -> list[Diagnosis]:
    """Ask all causes of a finished run's history; gravest first, consequences as in `findings_before_training`."""
    causes = all_causes() if causes is None else causes
    return _ask([(cause, cause.after) for cause in causes if cause.after is not None], history)


def diagnose_run(run: Run) -> list[Diagnosis]:
    """Give what was diagnosed before and during a run, and what its history shows in addition."""
    known = {(found.name, found.symptom) for found in run.diagnoses}
    # Older runs do not name their findings. Those from before training are told by their symptom, which no other cause has.
    unnamed = {found.symptom for found in run.diagnoses if not found.name and found.step is None}
    found = findings_after_training(FinishedHistory.of(run))
    new = (each for each in found if (each.name, each.symptom) not in known and each.symptom not in unnamed)
    return [*run.diagnoses, *new]


def _ask(
    questions: Iterable[tuple[Cause, Callable[[Subject], Iterable[Diagnosis]]]], subject: Subject
) -> list[Diagnosis]:
    found = [(cause, diagnosis) for cause, question in questions for diagnosis in question(subject)]
    return with_consequences(ranked(found))


def ranked(found: Iterable[tuple[Cause, Diagnosis]]) -> list[tuple[Cause, Diagnosis]]:
    """Order findings by severity, then by their causes' ranks; each carries its cause's name."""
    named = [(cause, replace(diagnosis, name=cause.name)) for cause, diagnosis in found]
    return sorted(named, key=lambda pair: (SEVERITIES.index(pair[1].severity), pair[0].rank, pair[0].name))


def with_consequences(found: list[tuple[Cause, Diagnosis]]) -> list[Diagnosis]:
    """Move those of the ranked findings that another one explains into its `consequences`."""
    for index, (cause, diagnosis) in enumerate(found):
        explained = tuple(d.symptom for _, d in found if d.symptom in cause.explains)
        if explained and diagnosis.severity != "note":
            found[index] = cause, replace(diagnosis, consequences=explained)
            return [d for _, d in found if d.symptom not in explained]
    return [diagnosis for _, diagnosis in found]
