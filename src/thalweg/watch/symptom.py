"""A symptom: what the figures of the last steps show to be wrong, whatever brings it about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from thalweg.records.diagnosis import Cure, Diagnosis, Severity

# Names in evidence.
CRITICAL_STEP = "critical step"
FIRST_STEPS = "largest loss of the first steps over that at the start"
QUARTER = "how a quarter of a step changes the next batch's loss, over its standard error"
BEST_LENGTH = "multiple of a step that is best for the next batch"
LIKELY_LENGTH = "the same, by few tries"  # too few to say it of a rate that cannot be tried


@dataclass(frozen=True)
class Symptom:
    """What a window shows.

    Arguments:
        name: "diverging", "non-finite", "stagnant", "spiky", "oscillating" or "overfitting".
        step: at which it is seen; `since`: the first abnormal step.
        text: what is seen, as the beginning of a sentence, without a full stop.
        evidence: figures with their thresholds, as in a `Diagnosis`.
        severity: of a diagnosis that explains it: "note" where it may pass by itself.
        asked: names of the causes that are asked; empty: all.
    """

    name: str
    step: int
    since: int
    text: str
    evidence: Mapping[str, Any] = field(default_factory=dict[str, Any])
    severity: Severity = "warning"
    asked: tuple[str, ...] = ()

    def explained(
        self, why: str, *, cure: Cure | None = None, severity: Severity | None = None, **more: Any
    ) -> Diagnosis:
        """Give the diagnosis that a cause makes of it.

        Arguments:
            why: the cause in a sentence's second half, or in sentences of its own.
            cure: None: that of `Cause.cure`. `severity`: None: the symptom's.
            more: further fields of `Diagnosis`; an `evidence` is added to the symptom's.
        """
        evidence = {**self.evidence, **more.pop("evidence", {})}
        cause = f"{self.text}{why}"
        return Diagnosis(
            symptom=self.name,
            cause=cause if cause.endswith(".") else f"{cause}.",
            severity=severity or self.severity,
            step=self.step,
            since=self.since,
            evidence=evidence,
            cure=cure,
            **more,
        )
