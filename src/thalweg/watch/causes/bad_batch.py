"""Do a few examples of the batch make the spike?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

from thalweg.errors import few
from thalweg.records.diagnosis import Cure, Diagnosis
from thalweg.sampling.sources import leaves
from thalweg.watch.cause import Cause
from thalweg.watch.cures import AVERAGE, back, usual_norm
from thalweg.watch.probe import ExampleLosses, NotMeasuredError, Probe
from thalweg.watch.replay import Batch
from thalweg.watch.symptom import Symptom
from thalweg.watch.symptoms.spiky import is_spike
from thalweg.watch.window import Window

FAR = 5.0  # interquartile ranges above the third quartile of the logarithms of usual losses
FEW = 0.3  # of the batch: where more examples are outliers, it is not single ones
FEWEST = 16  # usual losses that quartiles are of
APART = 10.0  # times the largest loss of the others, and the loss at the start: an example that belongs to other data
LARGE = 20.0  # times the usual size of a row of inputs or targets


def outlying_examples(symptom: Symptom, window: Window, probe: Probe) -> Diagnosis | None:
    """Diagnose a batch with a few examples whose losses, or sizes, are far outside the usual ones, and without which it would be
    as others are.

    That a few losses are outside the usual ones may pass by itself, and is noted; examples far apart from all others come again
    in every epoch, and are a warning.
    """
    runs_away = symptom.name != "spiky"
    if not window.losses:
        return None
    with suppress(NotMeasuredError):
        if not runs_away and (sized := _of_another_size(symptom, window, probe.batch())) is not None:
            return sized
    found = probe.example_losses()
    rows, limit = outliers(found)
    apart, least = far_apart(found.losses, _level(window))
    if not rows or len(apart) > len(rows):
        rows, limit = apart, least
    if not rows or len(rows) > FEW * len(found.losses) or (not apart and (runs_away or not is_spike(window))):
        return None
    numbers = [int(found.examples[row]) for row in rows] if len(found.examples) else []
    rest = torch.ones(len(found.losses), dtype=torch.bool)
    rest[rows] = False
    without, among = float(found.losses[rest].mean()), "training examples" if numbers else "rows of the batch"
    if not without <= max(window.losses):
        return None
    severity = "warning" if apart and symptom.severity == "note" else symptom.severity
    return symptom.explained(
        f". A few examples make it: {among} {few(numbers or rows)}, with losses up to {float(found.losses[rows].max()):.4g}; the"
        f" other {int(rest.sum())} of the batch have {without:.4g} on average",
        severity=severity,
        examples=tuple(numbers),
        evidence={
            "loss of the worst example": {"value": float(found.losses[rows].max()), "threshold": limit},
            "loss of the batch without them": {"value": without, "threshold": max(window.losses)},
            "rows of the batch": {"value": rows},
        },
        ruled_out=("learning-rate-too-high",),
        cure=back(window, 0.5) if runs_away else leave_out(window, numbers) if severity != "note" else None,
    )


def _level(window: Window) -> float:
    """Give the loss of what has learnt nothing; infinite where the network had learnt before, and that is not known."""
    if window.constant_loss is None:
        return math.inf if window.starts_trained or window.start is None else window.start
    return max(window.start or 0.0, window.constant_loss)


def _of_another_size(symptom: Symptom, window: Window, batch: Batch) -> Diagnosis | None:
    """Diagnose rows of inputs or targets that are far larger than the others."""
    rows, times = large_rows(batch)
    if not rows:
        return None
    numbers = batch.examples(rows)
    among = "training examples" if numbers else "rows of the batch"
    return symptom.explained(
        f". A few examples make it: {among} {few(list(numbers) or rows)}, whose numbers are up to {times:,.0f} times as large as"
        " those of the others",
        severity="warning",
        cure=leave_out(window, numbers),
        examples=numbers,
        evidence={
            "size of the largest row over the usual one": {"value": times, "threshold": LARGE},
            "rows of the batch": {"value": rows},
        },
        ruled_out=("learning-rate-too-high",),
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


def far_apart(values: Tensor, level: float, times: float = APART) -> tuple[list[int], float]:
    """Give the few rows whose value is ten times that of all others, and so many times a level, and the value from which on that
    is so.

    Squared errors, and what is distributed as incomes are, spread over so many decades that quartiles do not tell. There may be
    no such rows.

    >>> far_apart(torch.tensor([0.01, 900.0, 2.0, 0.3]), 1.0)
    ([1], 20.0)
    """
    ordered, order = values.double().nan_to_num(torch.inf, torch.inf).sort(descending=True)
    for count in range(1, int(FEW * len(values)) + 1):
        least = max(APART * float(ordered[count]), times * level)
        if float(ordered[count - 1]) > least > 0:
            return sorted(order[:count].tolist()), least
    return [], 0.0


def large_rows(batch: Batch) -> tuple[list[int], float]:
    """Give the few rows of a batch whose inputs or targets are far larger than all others', and how many times as large as the
    usual ones they are at most."""
    found, most, begin = set[int](), 0.0, 0
    for part, size in zip(batch.draw.parts, batch.draw.sizes, strict=True):
        for leaf in leaves(part):
            if not leaf.is_floating_point() or leaf.dim() < 1 or len(leaf) != size or size < FEWEST or not leaf.numel():
                continue
            sizes = leaf.detach().double().reshape(size, -1).square().mean(1).sqrt()
            usual = float(sizes.median())
            rows, _ = far_apart(sizes, usual, LARGE)
            if rows and 0 < usual < math.inf and math.isfinite(float(sizes.max())):
                found |= {begin + row for row in rows}
                most = max(most, float(sizes.max()) / usual)
        begin += size
    return sorted(found), most


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
    meaning="a few examples of a batch have losses, or sizes, far outside the usual ones",
    rank=20,
    symptoms=("spiky", "diverging", "non-finite"),
    question=outlying_examples,
    cure=list_them,
)
