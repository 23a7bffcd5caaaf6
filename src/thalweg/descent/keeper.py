"""The keeper: writes history and checkpoints, keeps the best weights, and notices when the person wants to stop."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from thalweg.descent.ledger import Ledger, Memory
from thalweg.descent.progress import Progress
from thalweg.descent.state import Best, Descent, clone_into
from thalweg.descent.validation import LARGEST, validate
from thalweg.errors import CheckpointError
from thalweg.records import checkpoint
from thalweg.records.diagnosis import Diagnosis
from thalweg.records.weights import model_state

KEPT = 2  # checkpoints besides the best


class Keeper:
    """Keeps what a descent gives.

    Arguments:
        folder: the run's folder; None keeps everything in memory.
        ledger: where figures go; None: memory.
    """

    def __init__(self, folder: Path | None = None, ledger: Ledger | None = None) -> None:
        self.folder = folder
        self.ledger: Ledger = ledger or Memory()
        self.diagnoses: list[Diagnosis] = []
        self.stopped_early = False
        self.interrupted = False
        self._best_written: int | None = None
        self._written: int | None = None
        self._due = math.inf

    def record(self, step: int, loss: float, rate: float, felt: Any, examples: int, seconds: float) -> None:
        """Write one step's figures."""
        self.ledger.append(
            step,
            {
                "loss": loss,
                "learning_rate": rate,
                "gradient_norm": felt.gradient_norm,
                "clip_scale": felt.clip_scale,
                "examples": examples,
                "seconds": seconds,
            },
        )

    def validate(self, descent: Descent, progress: Progress) -> None:
        """Validate raw and averaged weights, keep the better where it is the best so far, and stop where patience ends."""
        task, step, plan = descent.problem.task, descent.step, descent.plan
        micro = max(LARGEST, 1) if descent.accumulate == plan.accumulate else descent.batches.micro
        raw = validate(descent.problem, descent.model, plan.precision, micro)
        candidates = [(raw, False)]
        row = {f"validation/{name}": value for name, value in raw.items()}
        if plan.ema is not None and step > 0:
            with descent.optimizer.averaged():
                averaged = validate(descent.problem, descent.model, plan.precision, micro)
                self._keep_if_best(descent, averaged, averaged=True)
            candidates.append((averaged, True))
            row |= {f"ema/{name}": value for name, value in averaged.items()}
        self._keep_if_best(descent, raw, averaged=False)
        self.ledger.append(step, row)
        if step == 0:
            descent.start = raw
        sign = 1 if task.mode == "min" else -1
        descent.last = min((figures for figures, _ in candidates), key=lambda f: _order(sign * f[task.select]))
        progress.validated(step, descent.last)
        descent.stale = 0 if descent.best is not None and descent.best.step == step else descent.stale + 1
        if plan.patience is not None and descent.stale >= plan.patience:
            self.stopped_early = True
            message = f"No better {task.select} in {descent.stale} validations: stopped at step {step}."
            self.tell(step, "early_stop", message, {}, progress)

    def _keep_if_best(self, descent: Descent, figures: dict[str, float], *, averaged: bool) -> None:
        task, plan = descent.problem.task, descent.plan
        value = figures[task.select]
        if plan.keep != "best" or descent.problem.validation is None or not math.isfinite(value):
            return
        sign = 1 if task.mode == "min" else -1
        if descent.best is None or sign * value < sign * descent.best.value:
            kept = descent.best.model if descent.best else None
            weights = clone_into(kept, model_state(descent.model))
            descent.best = Best(value, descent.step, figures, averaged, weights)

    def diagnose(self, found: Diagnosis) -> None:
        """Keep a diagnosis."""
        self.diagnoses.append(found)

    def tell(self, step: int, kind: str, message: str, data: Mapping[str, Any], progress: Progress) -> None:
        """Write an event and say it."""
        self.ledger.event(step, kind, message, dict(data))
        progress.event(step, kind, message)

    def checkpoint_when_due(self, descent: Descent, progress: Progress) -> None:
        """Write a checkpoint where the clock asks for one; with snapshots on, at a snapshot, so that one copy serves both.

        The clock decides only when something is written, never what the descent does. Raises KeyboardInterrupt where the
        person asked to stop.
        """
        if self.interrupted:
            self._stop(descent, progress)
        if self.folder is None:
            return
        now = time.monotonic()
        if self._due is math.inf:
            self._due = now + descent.plan.checkpoint_seconds
        snapped = descent.snapshot is None or descent.snapshot["loop"]["step"] == descent.step
        if now >= self._due and snapped:
            self.checkpoint(descent)
            self._due = time.monotonic() + descent.plan.checkpoint_seconds

    def checkpoint(self, descent: Descent) -> None:
        """Write the present state, the best weights where they changed, and the snapshot where it is another state."""
        if self.folder is None:
            return
        self.ledger.flush()
        place = self.folder / "checkpoints"
        if descent.best is not None and descent.best.step != self._best_written:
            checkpoint.save(place, descent.best.state_dict(), step=descent.best.step, name="best")
            self._best_written = descent.best.step
        state: dict[str, Any] = descent.state_dict()
        state["loop"]["best"] = descent.best.step if descent.best else None
        state["loop"]["diagnoses"] = [found.to_dict() for found in self.diagnoses]
        if descent.snapshot is not None and descent.snapshot["loop"]["step"] != descent.step:
            state["snapshot"] = descent.snapshot
        checkpoint.save(place, _plain(state), step=descent.step, keep=KEPT)
        self._written = descent.step

    def restore(self, descent: Descent, loaded: checkpoint.Loaded) -> None:
        """Take a descent to where a checkpoint was written."""
        descent.load_state_dict(loaded.state)
        self.diagnoses = [Diagnosis.from_dict(entries) for entries in loaded.state["loop"].get("diagnoses", [])]
        if "snapshot" in loaded.state:
            descent.snapshot = clone_into(None, loaded.state["snapshot"])
        elif descent.plan.snapshot_every:
            descent.take_snapshot()
        self._restore_best(descent, loaded.state["loop"].get("best"))
        self._written = descent.step
        self.ledger.supersede(descent.step + 1)

    def _restore_best(self, descent: Descent, wanted: int | None) -> None:
        # The file may be of a later step than the checkpoint: the resumed run comes to that step again and finds the same.
        if wanted is None or self.folder is None:
            return
        try:
            descent.best = Best.from_state(checkpoint.load(self.folder / "checkpoints" / "best").state)
        except CheckpointError as error:
            message = f"The best weights of step {wanted} are lost ({error}); the best from here on is kept instead."
            self.ledger.event(descent.step, "note", message)
            return
        self._best_written = descent.best.step

    def finish(self, descent: Descent, progress: Progress) -> None:
        """Write the last checkpoint."""
        if self.interrupted and descent.step < descent.total:
            self._stop(descent, progress)
        if descent.best is None and descent.step == descent.total:
            self._keep_last(descent)
        if self._written != descent.step:
            self.checkpoint(descent)
        self.ledger.flush()

    def _keep_last(self, descent: Descent) -> None:
        raw = validate(descent.problem, descent.model, descent.plan.precision)
        descent.best = Best(raw["loss"], descent.step, raw, False, clone_into(None, model_state(descent.model)))
        if descent.plan.ema is None:
            return
        with descent.optimizer.averaged():
            averaged = validate(descent.problem, descent.model, descent.plan.precision)
            if averaged["loss"] < raw["loss"]:
                weights = clone_into(None, model_state(descent.model))
                descent.best = Best(averaged["loss"], descent.step, averaged, True, weights)

    def _stop(self, descent: Descent, progress: Progress) -> None:
        where = "nothing was written, as the run has no folder"
        if self.folder is not None:
            self.checkpoint(descent)
            where = f"saved; go on with: thalweg resume {os.path.relpath(self.folder)}"
        message = f"Interrupted at step {descent.step}: {where}"
        self.tell(descent.step, "interrupt", message, {}, progress)
        raise KeyboardInterrupt(message)

    @contextmanager
    def interruptible(self) -> Generator[None]:
        """Let Ctrl-C end the run between two steps; a second one ends it at once. Only the main thread hears signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGINT)
        if before is not signal.default_int_handler:  # somebody else's arrangement stays in force
            yield
            return

        def ask(number: int, frame: Any) -> None:
            if self.interrupted:
                signal.default_int_handler(number, frame)
            self.interrupted = True

        signal.signal(signal.SIGINT, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def _order(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _plain(value: Any) -> Any:
    """Turn tuples into lists, which is all that a checkpoint's JSON knows."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value
