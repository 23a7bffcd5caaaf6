"""Replaying steps from the last snapshot, where the figures alone do not decide between causes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from thalweg.descent.gradient import backward
from thalweg.descent.process_state import rng_lock
from thalweg.descent.state import Descent
from thalweg.records.diagnosis import Cure
from thalweg.records.step_figures import StepFigures
from thalweg.watch.replay import Batch


class SnapshotReplay:
    """Takes steps of a descent again, from its last snapshot.

    Weights, buffers and the optimiser's state are the snapshot's; counters, cures and the position in the data stay the
    descent's, and so do not fit its weights any more: the caller then restores the snapshot as a whole.
    """

    def __init__(self, descent: Descent) -> None:
        self.descent = descent

    def __call__(self, batches: Sequence[Batch], change: Cure | None = None) -> list[StepFigures]:
        """Give the figures of a step on each batch, with this change; of the last one only loss and gradient are computed."""
        descent = self.descent
        assert descent.snapshot is not None
        descent.load_tensors(descent.snapshot)
        factor = 1.0 if change is None else change.rate_factor
        before = descent.optimizer.clip_norm
        if change is not None and change.clip_norm is not None:
            descent.optimizer.clip_norm = min(change.clip_norm, before or math.inf)
        replayed: list[StepFigures] = []
        try:
            for number, batch in enumerate(batches):
                if number:
                    descent.optimizer.step()
                replayed.append(self._gradient(batch, descent.snapshot["loop"]["step"] + number, factor))
        finally:
            descent.optimizer.clip_norm = before
        return replayed

    def _gradient(self, batch: Batch, step: int, factor: float) -> StepFigures:
        descent = self.descent
        rate = factor * descent.rate(step)
        descent.set_rate(rate)
        with rng_lock:
            loss = backward(descent, batch.draw, (batch.epoch, batch.index_in_epoch))
        gradients = [p.grad for p in descent.parameters if p.grad is not None]
        nonfinite = sum(int((~torch.isfinite(g)).sum()) for g in gradients)
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients)) if not nonfinite else math.nan
        return StepFigures(step + 1, loss, rate, norm, nonfinite=nonfinite, examples=sum(batch.draw.sizes))
