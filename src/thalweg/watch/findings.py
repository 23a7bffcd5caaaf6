"""Before and after training: ask every cause, name consequences, and rank what was found."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from thalweg.landscape.initial_figures import InitialFigures
from thalweg.records.diagnosis import Diagnosis
from thalweg.records.run import Run
from thalweg.watch.cause import Cause, check_diagnosis, warn_of_failure
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
    found: list[tuple[Cause, Diagnosis]] = []
    for cause, question in questions:
        try:
            found += [(cause, check_diagnosis(diagnosis)) for diagnosis in question(subject)]
        except Exception as error:
            warn_of_failure(cause, error, "is left out")
    return with_consequences(ranked(found))


def ranked(found: Iterable[tuple[Cause, Diagnosis]]) -> list[tuple[Cause, Diagnosis]]:
    """Order findings by severity, then by their causes' ranks; each carries its cause's name."""
    named = [(cause, replace(diagnosis, name=cause.name)) for cause, diagnosis in found]
    return sorted(named, key=lambda pair: (SEVERITIES.index(pair[1].severity), pair[0].rank, pair[0].name))


def with_consequences(found: list[tuple[Cause, Diagnosis]]) -> list[Diagnosis]:
    """Move those of the ranked findings that others explain into the others' `consequences`, and theirs with them."""
    first = [pair for pair in found if not any(_explains(other, pair[1]) for other in found)]
    if not first:  # each explains another
        return [diagnosis for _, diagnosis in found]
    return [replace(diagnosis, consequences=_follows((cause, diagnosis), found)) for cause, diagnosis in first]


def _explains(one: tuple[Cause, Diagnosis], other: Diagnosis) -> bool:
    cause, diagnosis = one
    return (
        diagnosis is not other
        and diagnosis.severity != "note"
        and bool({other.symptom, other.name} & {*cause.explains})
    )


def _follows(one: tuple[Cause, Diagnosis], found: list[tuple[Cause, Diagnosis]]) -> tuple[str, ...]:
    """Name what follows from a finding, directly or by way of others: causes by their names where those are what is explained."""
    names, known, reached = list(one[1].consequences), [one], [one]
    while reached:
        cause, diagnosis = reached.pop()
        for pair in found:
            if _explains((cause, diagnosis), pair[1]) and not any(pair is each for each in known):
                names.append(pair[1].name if pair[1].name in cause.explains else pair[1].symptom)
                known.append(pair)
                reached.append(pair)
    return tuple(dict.fromkeys(names))
