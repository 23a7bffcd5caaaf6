"""The run: what happened, in memory or opened from a folder that is written while it happens."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from thalweg.errors import CheckpointError, RunError, nearest
from thalweg.formatting import format_count
from thalweg.records import checkpoint
from thalweg.records.diagnosis import Diagnosis
from thalweg.records.history import Event
from thalweg.records.names import verb
from thalweg.records.plan import Plan
from thalweg.records.run_folder import RunFolder
from thalweg.records.survey import Survey
from thalweg.records.task import Task, checked_task
from thalweg.records.weights import load_model_state, make_late_buffers, make_writable
from thalweg.terminal import warn

if TYPE_CHECKING:
    import pandas


class HistoryColumns(dict[str, npt.NDArray[np.float64]]):
    """The history as columns: "step", "loss", "learning_rate", "validation/loss", …; NaN where a step has no such figure.

    The first row is step 0: the validation before the first step.
    """

    def __missing__(self, name: object) -> npt.NDArray[np.float64]:
        raise KeyError(f"The history has no column {name!r}.{nearest(str(name), self)} It has {', '.join(self)}.")

    def __repr__(self) -> str:
        return f"<History of {len(self.get('step', ())):,} rows: {', '.join(self)}>"

    def to_pandas(self) -> pandas.DataFrame:
        """Give a data frame indexed by step. Raises RunError where pandas is not installed."""
        try:
            import pandas
        except ImportError as error:
            raise RunError("to_pandas() needs pandas: pip install pandas.") from error
        return pandas.DataFrame(dict(self)).set_index("step")


@dataclass(frozen=True)
class Run:
    """What happened.

    `metrics` are the final figures of `model` ("loss" is the validation loss where there are validation data). `summary` says
    how the run went: status, steps, seconds, which weights `model` has, the figures at the start, and as "training" the loss and
    metrics on the training data (the first 4,096 examples at most), where the task has metrics. `trained` is the model of a run
    that this process trained, `trail` its weights after some steps, `surveyed` the brief survey after it. `trust` allows a run
    that somebody else made to run the code that makes its task.
    """

    plan: Plan
    history: HistoryColumns
    events: tuple[Event, ...] = ()
    diagnoses: tuple[Diagnosis, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    summary: Mapping[str, Any] = field(default_factory=dict[str, Any])
    folder: Path | None = None
    task: Task | None = None
    trained: nn.Module | None = field(default=None, repr=False)
    trust: bool = field(default=False, repr=False)
    trail: Mapping[int, Tensor] = field(default_factory=dict[int, "Tensor"], repr=False)
    surveyed: Survey | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        words = [str(self.summary.get("status", "")), format_count(self.summary.get("steps", 0), "step")]
        words += [f"{name} {value:.4g}" for name, value in self.metrics.items()]
        words += (
            [f"{len(self.diagnoses)} diagnos{'is' if len(self.diagnoses) == 1 else 'es'}"] if self.diagnoses else []
        )
        words += [f"in {self.folder}"] if self.folder else []
        return f"<Run {self.summary.get('name', '')!r}: {', '.join(word for word in words if word)}>"

    @property
    def model(self) -> nn.Module:
        """The trained model. For an opened run it is rebuilt from the task and the best checkpoint.

        Raises RunError where no task is known, or the run is not yours and was opened without `trust`; CheckpointError where the
        checkpoint is damaged or of another model.
        """
        if self.trained is None:
            object.__setattr__(self, "trained", self._rebuild())
        assert self.trained is not None
        return self.trained

    @property
    def survey(self) -> Survey | None:
        """The survey of where the descent ended: the newest in the run's folder, else the one that `fit` made; None without.

        Raises RunError where the file is damaged.
        """
        return (RunFolder(self.folder).read_survey() if self.folder is not None else None) or self.surveyed

    @verb
    def predict(self, inputs: Any, *, batch_size: int | None = None) -> Any:
        """Give the model's outputs for inputs, joined over all batches: what `model` returns, its tensors on the CPU.

        The model is in evaluation mode and no gradient is kept; inputs are cast as for training, and a run in half precision
        gives float32. Modes, random states and whatever else of the process are as they were afterwards.

        Arguments:
            inputs: an array, tensor, frame or nested list; a tuple of several, for model(*inputs); a mapping, for
                model(**inputs); or a `Dataset` or `DataLoader` that gives batches as for training, of which the last part, the
                target, is left out (a batch of one part has none). Outputs are in the order of the data set; a loader that only
                shuffles is read in order.
            batch_size: None: 1,024, and less where memory runs out. A loader with a sampler of its own keeps its batches.

        Raises RunError where the run has no model, DataError where the model does not take the inputs.
        """
        return _above("descent.prediction").predict(self, inputs, batch_size)

    def plot(self) -> Any:
        """Draw loss, validation and learning rate over the steps as a matplotlib `Figure`, which a notebook shows.

        Raises RunError where matplotlib is not installed.
        """
        return _above("see.figure").plot(self)

    def find_task(self) -> Task:
        """Give the task: the one that the run was opened with, else made again from what the folder says of it.

        Raises RunError where neither is known, or the run is not yours and was opened without `trust`.
        """
        if self.task is not None:
            return self.task
        if self.folder is None:
            raise RunError("This run does not know its task, and has no folder to read it from.")
        return RunFolder(self.folder).read_task(trust=self.trust)

    def _rebuild(self) -> nn.Module:
        if self.folder is None:
            raise RunError("This run has neither a model nor a folder to read it from.")
        task = self.find_task()
        path = RunFolder(self.folder).best_path
        loaded = checkpoint.load(path)
        step = (self.summary.get("weights") or {}).get("step", loaded.step)
        if self.summary.get("status") == "finished" and loaded.step != step:
            raise CheckpointError(
                f"{path} holds the weights of step {loaded.step}, but the run ended with those of step {step}. Restore it from a"
                f" copy."
            )
        model = task.make_model()
        make_writable(model)
        weights = loaded.state.get("model")
        if not isinstance(weights, Mapping):
            raise CheckpointError(f"{loaded.path} holds no weights. Give another run's folder, or resume this one.")
        make_late_buffers(model, cast("Mapping[str, Any]", weights))
        load_model_state(model, cast("Mapping[str, Any]", weights))
        _put_back(model, loaded)
        return model.eval()

    @property
    def left_out(self) -> list[str]:
        """What of figures and events was damaged or lost when the run was opened, and is not among them: a sentence each."""
        return [event.message for event in self.events if event.data.get("left_out") is True]

    @staticmethod
    def open(folder: str | os.PathLike[str], task: Task | None = None, *, trust: bool = False) -> Run:
        """Open a run's folder, finished or still being written. No code that the folder names is run by that. Figures and events
        that are damaged are left out, and `left_out` and the last events say so.

        Only `model`, `predict` and what else needs the task make it again, where `task` is None, by running the file or module
        that the folder names. For a run that you did not make on this machine they do so only with `trust`.

        Raises RunError where it is no run's folder, or its files are damaged; PlanError where its plan is; TaskError where
        `task` is none.
        """
        files, task = RunFolder.at(folder), None if task is None else checked_task(task)
        status = files.read_status()
        with files.open_history(readonly=True) as history:
            figures, events = HistoryColumns(history.columns()), history.events()
            faults = history.damage() + history.lost(_reached(files, status))
            events += [Event(0, "warning", text, {"left_out": True}, 0, False) for text in faults]
        return Run(
            plan=files.read_plan(),
            history=figures,
            events=tuple(events),
            diagnoses=tuple(Diagnosis.from_dict(entries) for entries in status["diagnoses"]),
            metrics=status["metrics"],
            summary=status["summary"],
            folder=files.path,
            task=task,
            trust=trust,
        )


def _reached(folder: RunFolder, status: Mapping[str, Any]) -> int:
    """Give the step that a run came to, by its status and its checkpoints."""
    steps = [status["summary"].get("steps", 0)]
    with suppress(CheckpointError):  # something else is in the place of their folder
        steps += checkpoint.steps(folder.checkpoints_path)
    return max((step for step in steps if isinstance(step, int)), default=0)


def _above(module: str) -> Any:
    """Give a module that is built on this one; a method that is a face of it hands over to it when it is called."""
    return importlib.import_module(f"thalweg.{module}")


def _put_back(model: nn.Module, loaded: checkpoint.Loaded) -> None:
    """Give a model's modules what they carried besides weights. Raises CheckpointError where that is none at all."""
    from thalweg.objects.state import ObjectState  # takes a while to import, and most runs are opened for their figures

    objects = ObjectState({"model": model}, {id(tensor) for tensor in (*model.parameters(), *model.buffers())})
    try:
        lost = objects.write(loaded.state.get("objects", {}), attributes_of="model")
    except TypeError as error:
        raise CheckpointError(f"{loaded.path} is as it was written, but {error}. Restore it from a copy.") from error
    if lost:
        warn(
            f"What {', '.join(f'`{path}`' for path in lost[:3])} held in {loaded.path} could not be put back: the model may"
            f" give other outputs than the trained one.",
            stacklevel=2,
        )
