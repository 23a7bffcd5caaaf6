"""The recorder: what happens in a descent goes to its history, to a progress display and into checkpoints."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from thalweg.descent.callbacks import Callbacks
from thalweg.descent.checkpoint_writer import CheckpointWriter
from thalweg.descent.memory_history import HistoryWriter, MemoryHistory
from thalweg.descent.process_state import StopRequest
from thalweg.descent.state import Descent, clone_into
from thalweg.descent.surroundings import differences, surroundings
from thalweg.descent.their_objects import not_kept, not_put_back
from thalweg.errors import CheckpointError, Interrupted, LostFolderError, RunError
from thalweg.formatting import capitalized
from thalweg.objects.state import ObjectState
from thalweg.records import checkpoint
from thalweg.records.diagnosis import Diagnosis
from thalweg.records.history import FILE, History
from thalweg.records.json_values import without_tuples
from thalweg.records.paths import typed
from thalweg.records.place import Place
from thalweg.records.plan import Plan
from thalweg.records.run_folder import RunFolder, inputs_of
from thalweg.records.run_inputs import RunInputs, plan_changes
from thalweg.records.step_figures import StepFigures
from thalweg.records.task import Source
from thalweg.terminal import tell_error, warn


class Progress(Protocol):
    """A display of a descent under way. `step` is called every step and must be cheap.

    The stages of `fit` are given to `event` too, before `begin`, as of step 0 and of the kind "stage".
    """

    def begin(self, plan: Plan, step: int, validation: bool) -> None:
        """A descent starts, or continues, after `step` steps; `validation`: there are validation data."""

    def step(self, figures: StepFigures) -> None:
        """A step was taken."""

    def validated(self, step: int, figures: Mapping[str, float]) -> None:
        """The validation gave these figures."""

    def event(self, step: int, kind: str, message: str) -> None:
        """Something happened."""

    def end(self) -> None:
        """The descent is over, for whatever reason."""


class NoProgress:
    """Shows nothing."""

    def begin(self, plan: Plan, step: int, validation: bool) -> None:
        """Show nothing."""

    def step(self, figures: StepFigures) -> None:
        """Show nothing."""

    def validated(self, step: int, figures: Mapping[str, float]) -> None:
        """Show nothing."""

    def event(self, step: int, kind: str, message: str) -> None:
        """Show nothing."""

    def end(self) -> None:
        """Show nothing."""


def how_to_resume(folder: Path, source: Source | None) -> str:
    """Say how to go on with a run: by the command, or from Python where only the caller can make the task again."""
    word = typed(folder)
    return f"thalweg.resume({word!r}, task)" if source is None else f"thalweg resume {shlex.quote(word)}"


class Recorder:
    """Writes history, events and checkpoints of a descent, and passes the same on to a progress display.

    Arguments:
        folder: the run's folder; None keeps everything in memory.
        history: where figures and events are written; None: memory.
        diagnoses: what was diagnosed before the descent.
        progress: shows the descent while it runs; None: nothing is shown.
        callbacks: functions of the user's that are told of steps and validations; None: there are none.
        inputs: what the run is made from, for its checkpoints.
    """

    def __init__(
        self,
        folder: RunFolder | None = None,
        history: HistoryWriter | None = None,
        diagnoses: Sequence[Diagnosis] = (),
        progress: Progress | None = None,
        callbacks: Callbacks | None = None,
        inputs: RunInputs | None = None,
    ) -> None:
        self.folder, self.inputs = folder, inputs
        self.history: HistoryWriter = history or MemoryHistory()
        self.diagnoses: list[Diagnosis] = list(diagnoses)
        self._display: Progress = progress or NoProgress()
        self.callbacks = callbacks or Callbacks()
        self.shown_plan: Plan | None = None  # what the display is told of, where that is not the descent's whole plan
        self.stop_request = StopRequest()
        self._checkpoints = None if folder is None else CheckpointWriter(folder, inputs)
        self._place = None if folder is None else Place(folder)
        self.differs = (
            False  # whether the run went on by another task, or in a process unlike the one it was stopped in
        )
        self.tries_rates = False  # whether cures may take courses beside the run
        self._is_put_off = False  # whether the last checkpoint that was due could not be written
        self._process = os.getpid()

    @property
    def is_in_forked_child(self) -> bool:
        """Whether this is a child that the user's code forked: the run is its parent's, and it is to end as without one."""
        return os.getpid() != self._process

    def begin(self, descent: Descent) -> None:
        """Announce that a descent starts, or continues."""
        validated = descent.problem.validation is not None
        plan = self.shown_plan or descent.plan
        self._on_display(descent.step, lambda display: display.begin(plan, descent.step, validated))
        self.callbacks.begin(descent)
        self._tell_not_kept(self.callbacks.objects, descent.step)

    def end(self) -> None:
        """Announce that the descent is over, for whatever reason; a forked child that ends is none."""
        if not self.is_in_forked_child:
            with suppress(Exception):
                self._display.end()

    def _on_display(self, step: int, show: Callable[[Progress], object]) -> None:
        """Show something; to show a run must not end it."""
        try:
            show(self._display)
        except Exception as error:
            self._without_display(step, error)

    def _without_display(self, step: int, error: Exception) -> None:
        """Go on without a display that failed, and say so."""
        failed, self._display = self._display, NoProgress()
        message = (
            f"The display ({type(failed).__name__}) failed and shows nothing more: {type(error).__name__}: {error}."
        )
        self.history.event(step, "note", message)
        tell_error(message)
        with suppress(Exception):
            failed.end()

    def step(self, figures: StepFigures, *, taken: bool = True) -> None:
        """Record a step, and show it where it was taken.

        A step that was not taken, or that a rollback is about to undo, is in the history only, until its number is used again.
        """
        self.history.append(figures.step, figures.scalars())
        if taken:
            self._on_display(figures.step, lambda display: display.step(figures))
            self.callbacks.step(figures)

    def validated(self, step: int, row: Mapping[str, float], shown: Mapping[str, float]) -> None:
        """Record a validation: `row` goes into the history; `shown`, the figures of the better weights, to the display."""
        self.history.append(step, row)
        self._on_display(step, lambda display: display.validated(step, shown))
        self.callbacks.validated(step, shown)

    def event(self, step: int, kind: str, message: str, data: Mapping[str, Any] | None = None) -> None:
        """Record that something happened, and show it."""
        self.history.event(step, kind, message, without_tuples(data or {}))
        self.show(step, kind, message)

    def show(self, step: int, kind: str, message: str) -> None:
        """Show that something happened, without recording it."""
        self._on_display(step, lambda display: display.event(step, kind, message))

    def warn(self, step: int, message: str) -> None:
        """Record, and show, that the run is or becomes another than it should be; where nothing is shown, as a Python warning."""
        self.event(step, "warning", message)
        if isinstance(self._display, NoProgress):
            warn(message, stacklevel=2)

    def add_diagnosis(self, found: Diagnosis) -> None:
        """Add a diagnosis to those of the run."""
        self.diagnoses.append(found)

    def supersede(self, after: int) -> None:
        """Mark all that was recorded after a step as superseded: training continues from there."""
        self.history.supersede(after + 1)
        if self._checkpoints is not None:
            self._checkpoints.written_step = None

    def checkpoint_when_due(self, descent: Descent) -> None:
        """Write a checkpoint where the plan's `checkpoint_seconds` have passed since the last one.

        With snapshots, twice as long: most often `checkpoint_snapshot` then comes first, which needs no further copy. The clock
        decides only when something is written, never what the descent does. Where the disk does not take it, that is said, and
        tried again when the next one is due.

        Raises Interrupted where the user pressed Ctrl-C or the process was asked to end, CallbackError where a callback failed,
        LostFolderError where the folder is gone.
        """
        self._stop_where_asked(descent)
        seconds = descent.plan.checkpoint_seconds
        grace = 0.0 if descent.snapshot is None else max(seconds, 1.0)
        if self._checkpoints is not None and self._checkpoints.is_due(seconds, grace):
            self._write_or_put_off(descent, present_state(descent))

    def checkpoint_snapshot(self, descent: Descent) -> None:
        """Write the snapshot just taken as the checkpoint, where one is due: both then need one copy and one file."""
        if self._checkpoints is not None and self._checkpoints.is_due(descent.plan.checkpoint_seconds):
            assert descent.snapshot is not None
            self._write_or_put_off(descent, {**descent.snapshot, **descent.state_beside()})

    def checkpoint(self, descent: Descent) -> None:
        """Write the present state, the best weights where they changed, and the snapshot where it is another state.

        Raises RunError where the folder does not take it; it is then written elsewhere if that is possible, and the error says
        where it is.
        """
        state = present_state(descent)
        try:
            self._write(descent, state)
        except RunError as error:
            raise type(error)(f"{error} {self._save_elsewhere(descent, state)}") from error

    def _write_or_put_off(self, descent: Descent, state: dict[str, Any]) -> None:
        """Write a checkpoint; where that fails, go on: a disk that is full for an hour must not end the training of a night."""
        assert self._checkpoints is not None
        try:
            self._write(descent, state)
        except LostFolderError as error:
            raise LostFolderError(f"{error} {self._save_elsewhere(descent, state)}") from error
        except RunError as error:
            self._checkpoints.put_off()
            if not self._is_put_off:
                message = f"The run could not be saved: {error} Training goes on, and saving is tried again."
                self.event(descent.step, "warning", message)
            self._is_put_off = True

    def _save_elsewhere(self, descent: Descent, state: dict[str, Any]) -> str:
        """Write the run, with this state of it, into another folder, where it goes on to be written, and say which.

        Where no other folder takes it either, what is recorded stays in memory.
        """
        assert self._place is not None
        self.keep_in_memory()
        for parent in self._place.elsewhere():
            with suppress(OSError, RunError):
                place = self._place.copy_to(parent)
                if isinstance(self.history, History):
                    self.history.copy_to(place.folder.history_path)
                checkpoints = CheckpointWriter(place.folder)
                checkpoints.write(self._completed(descent, state), descent.best_weights, descent.step)
                self.folder, self._place, self._checkpoints = place.folder, place, checkpoints
                how = how_to_resume(place.folder.path, descent.problem.task.source)
                return f"What was trained until step {descent.step} is saved in {place.folder.path}; go on with: {how}"
        return "It could not be saved elsewhere either; what was trained is the exception's `run`."

    def keep_in_memory(self) -> None:
        """Go on without the history's file, which cannot be written."""
        if isinstance(self.history, History):
            self.history.detach()

    def _check_place(self, descent: Descent) -> None:
        """Write again what somebody removed of the folder. Raises LostFolderError where that is all of it."""
        assert self._place is not None
        folder = self._place.folder.path
        if self._place.is_lost:
            raise LostFolderError(f"The folder {folder} was removed or replaced while the run was written to it.")
        try:
            restored = self._place.restore()
        except OSError as error:
            raise RunError(f"{folder} cannot be written: {error.strerror}. Check the disk.") from error
        if isinstance(self.history, History) and self.history.restore():
            restored.append(FILE)
        if restored:
            message = f"Somebody removed or replaced {', '.join(restored)} during the run. It is written anew; nothing is lost."
            self.event(descent.step, "warning", message)

    def _completed(self, descent: Descent, state: dict[str, Any]) -> dict[str, Any]:
        """Give a state to write, with what the recorder itself goes on with."""
        diagnoses = [diagnosis.to_dict() for diagnosis in self.diagnoses]
        loop = {**state["loop"], "diagnoses": diagnoses, "process": surroundings(descent.problem.device)}
        if self.differs:
            loop["differs"] = True
        return {**state, "loop": loop, "callbacks": self.callbacks.objects.read()}

    def _write(self, descent: Descent, state: dict[str, Any]) -> None:
        if self._checkpoints is None:
            return
        self._check_place(descent)
        # The history goes to the disk first. In the other order a power cut could leave a checkpoint ahead of its history, and
        # the resumed run would lack the figures of the steps in between.
        self.history.flush(durable=True)
        self._checkpoints.write(self._completed(descent, state), descent.best_weights, descent.step)
        if self._is_put_off:
            self._is_put_off = False
            self.event(descent.step, "note", "The run is saved again.")
        self.tell_not_kept(descent)

    def tell_not_kept(self, descent: Descent) -> None:
        """Say, once, what of the user's objects and of callbacks cannot be kept."""
        for objects in (descent.objects, self.callbacks.objects):
            self._tell_not_kept(objects, descent.step)

    def _tell_not_kept(self, objects: ObjectState, step: int) -> None:
        """Say, once, what of the user's objects cannot be kept; what shows before training is a note of the problem already."""
        for text in not_kept(objects):
            self.event(step, "note", text)

    def restore(self, descent: Descent, loaded: checkpoint.Loaded) -> None:
        """Take a descent to where a checkpoint was written. Raises CheckpointError where it is of another model."""
        # Callbacks first: what they share with a step, and what this time other callbacks reach, is the step's.
        lost = self.callbacks.objects.write(loaded.state.get("callbacks", {}))
        lost += descent.load_state_dict(loaded.state)
        if lost:
            self.warn(loaded.step, not_put_back(lost))
            descent.objects.give_up(lost)
        as_it_was = not self._compare_process(descent, loaded)
        self.differs = bool(loaded.state["loop"].get("differs", False)) or not as_it_was
        self.diagnoses = [Diagnosis.from_dict(entries) for entries in loaded.state["loop"].get("diagnoses", [])]
        if "snapshot" in loaded.state:
            descent.snapshot = clone_into(None, loaded.state["snapshot"])
        elif descent.plan.snapshot_every:  # the checkpoint itself was the snapshot
            descent.take_snapshot()
        if descent.best_validation is not None and descent.keeps_best:
            before = inputs_of(loaded)
            if before is not None and self.inputs is not None:
                as_it_was &= not plan_changes(before.plan, self.inputs.plan)
            self._restore_best(descent, before, as_it_was=as_it_was)
        self.supersede(descent.step)
        if self._checkpoints is not None:
            self._checkpoints.written_step = descent.step

    def _compare_process(self, descent: Descent, loaded: checkpoint.Loaded) -> bool:
        """Say what of versions, machine and settings differs from when the checkpoint was written, and give whether any does."""
        before = loaded.state["loop"].get("process", {})
        found = differences(before, surroundings(descent.problem.device))
        if found:
            self.warn(
                loaded.step,
                f"The run goes on in a process unlike the one it was stopped in: {'; '.join(found)}. It may differ from what it"
                f" would have been.",
            )
        return bool(found)

    def _restore_best(self, descent: Descent, before: RunInputs | None, *, as_it_was: bool) -> None:
        """Read the best weights; those of a later step than the checkpoint only where the run goes on `as_it_was`.

        Then it reaches that step again and finds the same weights; until then `best_validation` holds the value to improve on.
        Otherwise it would end with weights that it never comes to: these are moved aside.
        """
        assert self._checkpoints is not None
        assert descent.best_validation is not None
        step = descent.best_validation["step"]
        try:
            if before is not None and before.plan.get("keep") == "last":
                raise CheckpointError("none were kept, as the plan was to end with the last ones")
            best = self._checkpoints.load_best(before)
            if best.step != step and not (as_it_was and best.step > descent.step):
                aside = self._checkpoints.set_best_aside()
                raise CheckpointError(
                    f"those on the disk are of step {best.step} of the run as it was before; they are kept as {aside.name}"
                )
            descent.best_weights = best
        except CheckpointError as error:
            descent.best_validation = None
            message = f"The best weights, of step {step}, are lost ({error}); the best from here on is kept instead."
            self.history.event(descent.step, "note", message)

    def finish(self, descent: Descent) -> None:
        """Write the last checkpoint. Raises as `checkpoint_when_due` does; a run that is over is not interrupted any more."""
        self._stop_where_asked(descent)
        self.checkpoint(descent)

    def _stop_where_asked(self, descent: Descent) -> None:
        """Save, and raise, where a callback failed, somebody interrupted or the process is to end."""
        failure, stop = self.callbacks.failure, self.callbacks.stop
        if failure is not None:
            message = f"{failure} {capitalized(self._save(descent))}"
            self.event(descent.step, "interrupt", message)
            raise type(failure)(message) from failure.__cause__
        if (self.stop_request.received or stop is not None) and not descent.is_over:
            message = f"{str(stop or '') or 'Interrupted'} at step {descent.step}: {self._save(descent)}"
            self.event(descent.step, "interrupt", message)
            raise Interrupted(message, signal=getattr(stop, "signal", self.stop_request.signal)) from stop

    def how_to_go_on(self, descent: Descent) -> str:
        """Say how to go on with a run that is stopped amid a step, of which no checkpoint can be written."""
        if self.folder is None:
            return "it has no folder; what was trained is the exception's `run`"
        again = how_to_resume(self.folder.path, descent.problem.task.source)
        return f"it goes on from its last checkpoint, or its beginning, with: {again}"

    def _save(self, descent: Descent) -> str:
        """Write a checkpoint, and say what became of the run."""
        if self.folder is None:
            return "it has no folder; what was trained is the exception's `run`"
        place = self.folder
        try:
            self.checkpoint(descent)
        except RunError as error:
            if self.folder is place:
                raise
            return str(error)
        return f"saved; go on with: {how_to_resume(self.folder.path, descent.problem.task.source)}"


def present_state(descent: Descent) -> dict[str, Any]:
    """Give the state to resume from, with the snapshot where it is another."""
    state = descent.state_dict()
    if descent.snapshot is not None and descent.snapshot["loop"]["step"] != descent.step:
        state["snapshot"] = descent.snapshot
    return state
