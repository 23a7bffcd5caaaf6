"""Does memory grow from step to step, and go on growing?"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from thalweg.formatting import format_number
from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.watch.cause import Cause
from thalweg.watch.window import Window

READINGS = 32  # that are compared; of twice as many every second one is kept, so that they reach over the whole run
QUARTERS = 4
STEADY = 0.85  # of the mean rise from quarter to quarter: a smaller one is that of memory that levels off
LEAST_BYTES, LEAST_SHARE = 100e6, 0.05  # that it grows by, of what was in use before: less is no harm
LEAST_PER_STEP = 4096  # bytes: what a run itself records of a step is less


class GrowingMemory:
    """Finds that the least memory in use has risen by about as much from each quarter of the run so far to the next.

    The least of each quarter, since what is in use at a moment goes up and down. Memory that levels off, as where something is
    set up or a cache fills, rises less and less. Said once in a run.
    """

    suspicious = False

    def __init__(self) -> None:
        self.was_found = False
        self.readings: dict[str, list[tuple[int, int]]] = {}  # whose memory -> (step, bytes)
        self._every = 1  # of the readings that come in, which are kept
        self._came = 0

    def observe(self, window: Window) -> Diagnosis | None:
        """Compare the readings of memory, where this step has one."""
        if not window.memory or self.was_found:
            return None
        self._came += 1
        if self._came % self._every:
            return None
        found: Diagnosis | None = None
        for whose, used in window.memory.items():
            readings = self.readings.setdefault(whose, [])
            if readings and readings[-1][0] >= window.step:  # the run went back
                readings.clear()
            readings.append((window.step, used))
            found = found or (_question(whose, readings) if len(readings) >= READINGS else None)
        if any(len(readings) >= 2 * READINGS for readings in self.readings.values()):
            self.readings = {whose: readings[1::2] for whose, readings in self.readings.items()}
            self._every *= 2
        self.was_found = found is not None
        return found

    def state_dict(self) -> dict[str, Any]:
        """Give nothing: a run that goes on does so in another process, whose memory is another."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore nothing."""


def _question(whose: str, readings: list[tuple[int, int]]) -> Diagnosis | None:
    length = len(readings) // QUARTERS
    ends = [len(readings) - length * k for k in reversed(range(QUARTERS))]
    least = [min(used for _, used in readings[end - length : end]) for end in ends]
    rises = [after - before for before, after in pairwise(least)]
    growth, steps = sum(rises), readings[-1][0] - readings[0][0]
    per_step = growth / (steps * (QUARTERS - 1) / QUARTERS)
    limit = max(LEAST_BYTES, LEAST_SHARE * least[0])
    if growth < limit or per_step < LEAST_PER_STEP or min(rises) < STEADY * growth / len(rises):
        return None
    return Diagnosis(
        symptom="memory grows",
        cause=f"{whose} holds {_text(growth)} more than some {steps * (QUARTERS - 1) // QUARTERS:,} steps before, and goes on"
        f" growing by {_text(per_step)} a step: something keeps what belongs to single steps.",
        severity="warning",
        step=readings[-1][0],
        since=readings[0][0],
        evidence={
            "growth in bytes": {"value": growth, "threshold": limit},
            "bytes a step": {"value": per_step, "threshold": LEAST_PER_STEP},
            "bytes in use": {"value": readings[-1][1]},
        },
        cure=Cure(
            "Look for losses or outputs that are kept with their graph (keep loss.item(), or loss.detach()), for lists that grow"
            " in a model, a metric or a data set, and for caches without a limit."
        ),
    )


def _text(count: float) -> str:
    return f"{format_number(count / 1e6)} MB" if count >= 1e6 else f"{format_number(count / 1e3)} kB"


def summarise(evidence: Mapping[str, Any]) -> str:
    """Say the finding in one sentence."""
    per_step, used = (evidence[name]["value"] for name in ("bytes a step", "bytes in use"))
    return f"Memory in use grew steadily by {_text(per_step)} a step, to {_text(used)}."


growing_memory = Cause(
    name="growing-memory",
    meaning="memory in use grows from step to step, so that a longer run would end for want of it",
    rank=60,
    during=GrowingMemory,
    only_memory=True,
    summary=summarise,
)
