"""The keeper: writes history and checkpoints, keeps the best weights, and notices when the person wants to stop."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from thalweg.descent.averages import averaged
from thalweg.descent.ledger import Ledger, Memory
from thalweg.descent.progress import Progress
from thalweg.descent.state import Best, Descent, clone_into
from thalweg.descent.validation import LARGEST, validate
from thalweg.errors import CheckpointError
from thalweg.records import checkpoint
from thalweg.records.diagnosis import Diagnosis
from thalweg.records.task import Task
from thalweg.records.weights import model_state

KEPT = 2  # checkpoints besides the best
BEST = "best"


class Keeper:
    """Keeps what a descent gives.

    Arguments:
        folder: the run's folder; None keeps everything in memory.
        ledger: where figures go; None: memory.
        found: what was diagnosed before.
    """

    def __init__(
        self, folder: Path | None = None, ledger: Ledger | None = None, found: Sequence[Diagnosis] = ()
    ) -> None:
        self.folder = folder
        self.ledger: Ledger = ledger or Memory()
        self.diagnoses: list[Diagnosis] = list(found)
        self.interrupted = False
        self._best_written: tuple[int, float] | None = None
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
        """Validate, keep what was judged where it is the best so far, and say where patience ends.

        What is judged: of a rule with an average of its own that average alone, else the weights, and an EMA beside them.
        """
        task, step, plan = descent.problem.task, descent.step, descent.plan
        shown = figures = self._judge(descent, average=descent.walks_apart and step > 0)
        row = {f"validation/{name}": value for name, value in figures.items()}
        if plan.ema is not None and step > 0:
            second = self._judge(descent, average=True)
            row |= {f"ema/{name}": value for name, value in second.items()}
            shown = min(figures, second, key=lambda figures: _order(task, figures))
        self.ledger.append(step, row)
        if step == 0:
            descent.start = figures
            if task.evaluate is None:  # else it may be another figure than the training loss
                descent.monitor.expect(figures["loss"])
        descent.last = shown
        if descent.shape_state and step > 0:
            descent.shape_state = descent.schedule.observe(descent.shape_state, shown[task.select], step)
        progress.validated(step, shown)
        descent.stale = 0 if descent.leading is not None and descent.leading["step"] == step else descent.stale + 1
        if descent.out_of_patience:
            message = f"No better {task.select} in {descent.stale} validations: stopped at step {step}."
            self.tell(step, "early_stop", message, {}, progress)

    def _judge(self, descent: Descent, *, average: bool) -> dict[str, float]:
        with averaged(descent) if average else nullcontext():
            figures = self._measure(descent)
            self._compare(descent, figures, averaged=average)
        return figures

    def _measure(self, descent: Descent) -> dict[str, float]:
        plan = descent.plan
        descent.optimizer.zero_grad(set_to_none=True)  # done with, and a validation may need the room
        micro = LARGEST if descent.accumulate == plan.accumulate else min(LARGEST, descent.batches.micro)
        return validate(descent.problem, descent.model, plan.precision, micro, plan.seed)

    def _compare(self, descent: Descent, figures: dict[str, float], *, averaged: bool) -> None:
        value, leading = figures[descent.problem.task.select], descent.leading
        sign = 1 if descent.problem.task.mode == "min" else -1
        if not math.isfinite(value) or (leading is not None and sign * value >= sign * leading["value"]):
            return
        descent.leading = {"value": value, "step": descent.step}
        if keeps_best(descent):
            self._keep(descent, figures, averaged)

    def _keep(self, descent: Descent, figures: dict[str, float], averaged: bool) -> None:
        kept = descent.best.model if descent.best else None
        weights = clone_into(kept, model_state(descent.model))
        descent.best = Best(figures[descent.problem.task.select], descent.step, figures, averaged, weights)

    def diagnose(self, found: Diagnosis) -> None:
        """Keep a diagnosis."""
        self.diagnoses.append(found)

    def tell(self, step: int, kind: str, message: str, data: Mapping[str, Any], progress: Progress) -> None:
        """Write an event and say it."""
        self.ledger.event(step, kind, message, plain(data))
        progress.event(step, kind, message)

    def checkpoint_when_due(self, descent: Descent, progress: Progress) -> None:
        """Write a checkpoint where the clock asks for one; with snapshots on, one that is overdue by as long again.

        The clock decides only when something is written, never what the descent does. Raises KeyboardInterrupt where the
        person asked to stop.
        """
        if self.interrupted:
            self._stop(descent, progress)
        apart = descent.plan.checkpoint_seconds
        if self._overdue(apart, patience=0.0 if descent.snapshot is None else max(apart, 1.0)):
            self.checkpoint(descent)
            self._due = time.monotonic() + apart

    def checkpoint_snapshot(self, descent: Descent) -> None:
        """Write the snapshot just taken as the checkpoint, where the clock asks for one: so one copy serves both."""
        apart = descent.plan.checkpoint_seconds
        if self._overdue(apart):
            assert descent.snapshot is not None
            self._write(descent, dict(descent.snapshot))
            self._due = time.monotonic() + apart

    def _overdue(self, apart: float, patience: float = 0.0) -> bool:
        if self.folder is None:
            return False
        now = time.monotonic()
        if self._due is math.inf:
            self._due = now + apart
        return now >= self._due + patience

    def checkpoint(self, descent: Descent) -> None:
        """Write the present state, the best weights where they changed, and the snapshot where it is another state."""
        state = descent.state_dict()
        if descent.snapshot is not None and descent.snapshot["loop"]["step"] != descent.step:
            state["snapshot"] = descent.snapshot
        self._write(descent, state)

    def _write(self, descent: Descent, state: dict[str, Any]) -> None:
        if self.folder is None:
            return
        self.ledger.flush(durable=True)  # else a power cut could leave a checkpoint ahead of its history
        self._write_best(descent)
        if self._written == descent.step:
            return
        state["loop"] = {**state["loop"], "diagnoses": [found.to_dict() for found in self.diagnoses]}
        checkpoint.save(self.folder / "checkpoints", plain(state), step=descent.step, keep=KEPT)
        self._written = descent.step

    def _write_best(self, descent: Descent) -> None:
        best = descent.best
        if self.folder is None or best is None or self._best_written == (best.step, best.value):
            return
        checkpoint.save(self.folder / "checkpoints", best.state_dict(), step=best.step, name=BEST)
        self._best_written = best.step, best.value

    def restore(self, descent: Descent, loaded: checkpoint.Loaded) -> None:
        """Take a descent to where a checkpoint was written. Raises CheckpointError where it is of another model."""
        descent.load_state_dict(loaded.state)
        self.diagnoses = [Diagnosis.from_dict(entries) for entries in loaded.state["loop"].get("diagnoses", [])]
        if "snapshot" in loaded.state:
            descent.snapshot = clone_into(None, loaded.state["snapshot"])
        elif descent.plan.snapshot_every:
            descent.take_snapshot()
        if descent.leading is not None and keeps_best(descent):
            self._restore_best(descent)
        self.went_back(descent.step)
        self._written = descent.step

    def went_back(self, step: int) -> None:
        """Take in that all after a step is walked anew."""
        self.ledger.supersede(step + 1)
        self._written = None

    def _restore_best(self, descent: Descent) -> None:
        # The file may be of a later step than the checkpoint: the resumed run comes to that step again and finds the same,
        # and until then `leading` says what is to be beaten.
        assert self.folder is not None
        assert descent.leading is not None
        try:
            descent.best = Best.from_state(checkpoint.load(self.folder / "checkpoints" / BEST).state)
        except CheckpointError as error:
            step, descent.leading = descent.leading["step"], None
            message = f"The best weights, of step {step}, are lost ({error}); the best from here on is kept instead."
            self.ledger.event(descent.step, "note", message)
            return
        self._best_written = descent.best.step, descent.best.value

    def finish(self, descent: Descent, progress: Progress) -> None:
        """Write the last checkpoint."""
        over = descent.step == descent.total or descent.out_of_patience
        if self.interrupted and not over:
            self._stop(descent, progress)
        if over and descent.best is None:
            self._keep_last(descent)
        self.checkpoint(descent)
        self.ledger.flush()

    def _keep_last(self, descent: Descent) -> None:
        task, only = descent.problem.task, descent.walks_apart
        raw = {} if only else self._measure(descent)
        if only or descent.plan.ema is not None:
            with averaged(descent):
                figures = self._measure(descent)
                if only or _order(task, figures) < _order(task, raw):
                    self._keep(descent, figures, averaged=True)
                    return
        # No step follows, so the weights themselves serve and need no copy.
        descent.best = Best(raw[task.select], descent.step, raw, averaged=False, model=model_state(descent.model))

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


def keeps_best(descent: Descent) -> bool:
    """Whether the run gives the weights that validated best, rather than the last ones."""
    return descent.plan.keep == "best" and descent.problem.validation is not None


def _order(task: Task, figures: Mapping[str, float]) -> float:
    value = figures[task.select] if task.mode == "min" else -figures[task.select]
    return math.inf if math.isnan(value) else value


def plain(value: Any) -> Any:
    """Turn tuples into lists, which is all that a checkpoint's JSON knows."""
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value
