"""Do a few examples of the batch make the spike?"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from thalweg.errors import few
from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.watch.cause import Cause
from thalweg.watch.cures import AVERAGE, usual_norm
from thalweg.watch.probe import ExampleLosses, NotMeasuredError, Probe
from thalweg.watch.symptom import Symptom
from thalweg.watch.window import Window

FAR = 5.0  # interquartile ranges above the third quartile of the logarithms of usual losses
FEW = 0.3  # of the batch: where more examples are outliers, it is not single ones
FEWEST = 16  # usual losses that quartiles are of


def outlying_examples(symptom: Symptom, window: Window, probe: Probe) -> Diagnosis | None:
    """Diagnose a batch with a few examples far outside the usual losses, without which it would be as others are."""
    found = probe.example_losses()
    rows, limit = outliers(found)
    if not rows or len(rows) > FEW * len(found.losses):
        return None
    numbers = [int(found.examples[row]) for row in rows] if len(found.examples) else []
    rest = torch.ones(len(found.losses), dtype=torch.bool)
    rest[rows] = False
    without, among = float(found.losses[rest].mean()), "training examples" if numbers else "rows of the batch"
    if not without <= max(window.losses):
        return None
    return symptom.explained(
        f". A few examples make it: {among} {few(numbers or rows)}, with losses up to {float(found.losses[rows].max()):.4g}; the"
        f" other {int(rest.sum())} of the batch have {without:.4g} on average",
        examples=tuple(numbers),
        evidence={
            "loss of the worst example": {"value": float(found.losses[rows].max()), "threshold": limit},
            "loss of the batch without them": {"value": without, "threshold": max(window.losses)},
            "rows of the batch": {"value": rows},
        },
        ruled_out=("learning-rate-too-high",),
        cure=leave_out(window, numbers) if symptom.severity != "note" else None,
    )


def outliers(found: ExampleLosses) -> tuple[list[int], float]:
    """Give the rows whose loss lies far outside the usual ones, and the loss from which on that is so."""
    usual = found.usual if len(found.usual) >= FEWEST else found.losses
    if len(usual) < FEWEST:
        raise NotMeasuredError("losses of at least sixteen examples")
    logs = usual.double().clamp_min(1e-6).log()
    first, third = torch.quantile(logs, torch.tensor([0.25, 0.75], dtype=torch.double)).tolist()
    limit = float(torch.tensor(third + FAR * max(third - first, 0.1)).exp())
    return [row for row, loss in enumerate(found.losses.tolist()) if not loss <= limit], limit


def leave_out(window: Window, examples: Sequence[int]) -> Cure:
    """Leave them out where that happens again and again, clip so that others of their kind move less, and average the weights."""
    norm = usual_norm(window)
    return Cure(
        f"Look at these examples: their labels, or the inputs, may be wrong. They are left out, the gradient's norm is clipped at"
        f" {norm:.3g}, and an average of the weights is kept.",
        leave_out=True,
        clip_norm=norm,
        ema=AVERAGE,
        code=f"watch.change(clip_norm={norm:.3g}, ema={AVERAGE:g})  # and leave out {few(examples) or 'them'}",
    )


def list_them(window: Window, attempt: int) -> Cure:
    """List them; a single spike needs no more."""
    return Cure(
        "Look at these examples: their labels, or the inputs, may be wrong. Clip the gradient so that single ones move less.",
        code="torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # before optimizer.step()",
    )


bad_batch = Cause(
    name="bad-batch",
    meaning="a few examples of a batch have losses far outside the usual ones",
    rank=20,
    symptoms=("spiky",),
    question=outlying_examples,
    cure=list_them,
)
