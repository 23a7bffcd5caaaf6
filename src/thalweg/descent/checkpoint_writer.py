"""Writing a run's checkpoints: when one is due, the state to resume from, and the weights that validated best."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from thalweg.descent.state import BestWeights
from thalweg.errors import CheckpointError
from thalweg.records import checkpoint, files
from thalweg.records.json_values import without_tuples
from thalweg.records.run_folder import BEST, RunFolder
from thalweg.records.run_inputs import RunInputs

KEEP = 2  # checkpoints besides the best weights: where the newest is damaged, the one before it is used


class CheckpointWriter:
    """Writes the checkpoints of one run, and remembers what it wrote, so that nothing is written twice.

    `written_step` is the step of the state that was written last. Set it to None where training goes back to an earlier step:
    the same step is then reached again with another state. `inputs`: what the run is made from, which every checkpoint holds.
    """

    def __init__(self, folder: RunFolder, inputs: RunInputs | None = None) -> None:
        self.folder, self.inputs = folder, inputs
        self.written_step: int | None = None
        self._written_best: tuple[int, float] | None = None  # step and value
        self._written_at: float | None = None  # by the monotonic clock

    def is_due(self, interval: float, grace: float = 0.0) -> bool:
        """Whether `interval` + `grace` seconds have passed since the last checkpoint, or since this was first asked."""
        now = time.monotonic()
        if self._written_at is None:
            self._written_at = now
        return now >= self._written_at + interval + grace

    def put_off(self) -> None:
        """Try again after the usual interval: the disk did not take the last one."""
        self._written_at = time.monotonic()

    def write(self, state: dict[str, Any], best: BestWeights | None, step: int) -> None:
        """Write the state after `step` steps and the best weights, each unless it is on the disk already.

        Raises CheckpointError where they cannot be written.
        """
        if best is not None and self._written_best != (best.step, best.value):
            kept = best.state_dict()
            if self.inputs is not None:
                kept["loop"]["task"] = self.inputs.task.sum
            checkpoint.save(self.folder.checkpoints_path, kept, step=best.step, name=BEST)
            self._written_best = best.step, best.value
        if self.written_step != step:
            if self.inputs is not None:
                state["loop"] = {**state["loop"], "inputs": self.inputs.to_dict()}
            checkpoint.save(self.folder.checkpoints_path, without_tuples(state), step=step, keep=KEEP)
            self.written_step = step
        self._written_at = time.monotonic()

    def load_best(self, before: RunInputs | None = None) -> BestWeights:
        """Read the best weights back. `before`: what the run was made from when the checkpoint that it resumes from was written.

        Raises CheckpointError where they are missing, damaged, or were chosen by neither that task nor the present one.
        """
        state = checkpoint.load(self.folder.best_path).state
        best, task = BestWeights.from_state(state), state["loop"].get("task")
        known = [inputs.task.sum for inputs in (before, self.inputs) if inputs is not None]
        if task is not None and known and task not in known:
            raise CheckpointError(f"those of step {best.step} on the disk were chosen by the task as it was in between")
        self._written_best = best.step, best.value
        return best

    def set_best_aside(self) -> Path:
        """Rename the best weights on the disk, which are not this run's as it goes on, and give where they are now.

        Raises CheckpointError where that fails.
        """
        self._written_best = None
        try:
            return files.set_aside(self.folder.best_path)
        except OSError as error:
            raise CheckpointError(f"{self.folder.best_path} cannot be moved: {error.strerror}") from error
