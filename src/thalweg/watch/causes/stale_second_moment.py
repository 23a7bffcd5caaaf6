"""Does an optimiser divide by a size of gradients that are no more?"""

from __future__ import annotations

import math
from statistics import median

from thalweg.formatting import format_number
from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.watch.cause import Cause
from thalweg.watch.probe import NotMeasuredError, Probe
from thalweg.watch.symptom import Symptom
from thalweg.watch.window import Window

LARGER = 5.0  # times the usual gradient, at weights from before: the batch is other, not the weights
REMEMBERS = 100.0  # steps over which squared gradients are averaged: fewer are soon forgotten
SETTLED = 32  # steps, before which nothing is usual
WARMUP = 16  # steps that the cure raises the rate over, while new squares are gathered


def has_aged(symptom: Symptom, window: Window, probe: Probe) -> Diagnosis | None:
    """Diagnose steps that became too long because gradients grew, at the same weights, and the running mean of their squares,
    which the rule divides by, did not follow."""
    memory = probe.second_moment_memory()
    usual = [norm for norm in window.gradient_norms if math.isfinite(norm) and norm > 0]
    if memory < REMEMBERS:
        return None
    if window.count < SETTLED or len(usual) < SETTLED:
        raise NotMeasuredError("more steps before it")
    at_snapshot, before = probe.gradient_at_snapshot(), median(usual[: -len(usual) // 4 or None])
    if not at_snapshot > LARGER * before:
        return None
    return symptom.explained(
        f". The gradient of this batch is {format_number(at_snapshot)} at weights from before too, where it was"
        f" {format_number(before)} usually: it grew, and the running mean of its squares, which remembers some {memory:,.0f}"
        " steps, divides it by what it was",
        evidence={
            "gradient at earlier weights over the usual one": {"value": at_snapshot / before, "threshold": LARGER},
            "steps that squares are averaged over": {"value": memory, "threshold": REMEMBERS},
        },
    )


def forget(window: Window, attempt: int) -> Cure:
    """Go back, and let the optimiser begin anew."""
    return Cure(
        "Go back to the last good snapshot, let the optimiser begin anew with its running means, and raise the rate over"
        f" {WARMUP} steps. A lower beta2, such as 0.95, follows gradients that change.",
        rollback=True,
        forget=True,
        warmup=WARMUP,
        code=f"watch.go_back(); optimizer.state.clear(); watch.change(warmup={WARMUP})",
    )


stale_second_moment = Cause(
    name="stale-second-moment",
    meaning="gradients grew, and the running mean of their squares, by which steps are divided, is that of small ones",
    rank=35,
    symptoms=("diverging", "non-finite"),
    question=has_aged,
    cure=forget,
)
