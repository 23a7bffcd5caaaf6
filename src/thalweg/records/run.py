"""The run: what happened, in a folder that is written while it happens."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
from torch import nn

from thalweg.errors import RunError, nearest
from thalweg.records import checkpoint, history, json_values
from thalweg.records.diagnosis import Diagnosis
from thalweg.records.history import Event
from thalweg.records.plan import Plan
from thalweg.records.task import Source, Task
from thalweg.records.weights import load_model_state, make_writable

if TYPE_CHECKING:
    import pandas

PLAN, TASK, STATUS, REPORT, CHECKPOINTS = "plan.toml", "task.toml", "run.json", "report.html", "checkpoints"


class Figures(dict[str, npt.NDArray[np.float64]]):
    """The history as columns: "step", "loss", "learning_rate", "validation/loss", …; NaN where a step has no such figure.

    The first row is step 0: what was validated before the first step.
    """

    def __missing__(self, name: object) -> npt.NDArray[np.float64]:
        raise KeyError(f"The history has no column {name!r}.{nearest(str(name), self)} It has {', '.join(self)}.")

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

    `metrics` are the final figures of `model` ("loss" is the validation loss where there are validation data), `summary` says
    in plain values how the run went: status, steps, seconds, which weights `model` has, the figures at the start.
    """

    plan: Plan
    history: Figures
    events: tuple[Event, ...] = ()
    diagnoses: tuple[Diagnosis, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    summary: Mapping[str, Any] = field(default_factory=dict[str, Any])
    folder: Path | None = None
    task: Task | None = None
    trained: nn.Module | None = field(default=None, repr=False)

    @property
    def model(self) -> nn.Module:
        """The trained model. For an opened run it is rebuilt from the task and the best checkpoint.

        Raises RunError where no task is known, CheckpointError where the checkpoint is damaged or of another model.
        """
        if self.trained is None:
            object.__setattr__(self, "trained", self._rebuild())
        assert self.trained is not None
        return self.trained

    def _rebuild(self) -> nn.Module:
        if self.folder is None:
            raise RunError("This run has neither a model nor a folder to read it from.")
        task = self.task or recorded_task(self.folder)
        loaded = checkpoint.load(self.folder / CHECKPOINTS / "best")
        model = task.make_model()
        make_writable(model)
        load_model_state(model, loaded.state["model"])
        return model.eval()

    @staticmethod
    def open(folder: str | os.PathLike[str], task: Task | None = None) -> Run:
        """Open a run's folder, finished or still being written.

        Raises RunError where it is no run's folder, or its files are damaged.
        """
        place = as_folder(folder)
        status = read_status(place)
        with history.History(place / history.FILE, readonly=True) as kept:
            figures, events = Figures(kept.columns()), tuple(kept.events())
        return Run(
            plan=Plan.load(place / PLAN),
            history=figures,
            events=events,
            diagnoses=tuple(Diagnosis.from_dict(d) for d in status["diagnoses"]),
            metrics=status["metrics"],
            summary=status["summary"],
            folder=place,
            task=task,
        )


def recorded_task(folder: Path) -> Task:
    """Make the task again from what the run's folder says of it. Raises RunError where it says nothing."""
    path = folder / TASK
    if not path.is_file():
        raise RunError(
            f"{folder} does not say how to make its task, as it was passed as an object. Pass it again, as task=…."
        )
    return Source.read(path).load()


def as_folder(folder: str | os.PathLike[str]) -> Path:
    """Turn what somebody gave as a run's folder into a path. Raises RunError where it cannot be one."""
    if not isinstance(folder, str | os.PathLike) or "\0" in os.fspath(folder):
        raise RunError(f"{folder!r} cannot be a run's folder. Give a path, such as 'runs/mine'.")
    return Path(folder).expanduser()


def read_status(folder: Path) -> dict[str, Any]:
    """Read `run.json`: "status", "summary", "metrics", "diagnoses". Raises RunError where the folder is no run's."""
    path = folder / STATUS
    try:
        status = json_values.decode(json.loads(path.read_text("utf-8")))
        for entry in (status, status["summary"], status.setdefault("metrics", {})):
            if not isinstance(entry, dict) or not all(isinstance(key, str) for key in cast("dict[Any, Any]", entry)):
                raise TypeError(f"{entry!r:.60} is no table")
        for found in status.setdefault("diagnoses", []):
            Diagnosis.from_dict(found)
    except FileNotFoundError as error:
        raise RunError(
            f"{folder} is not the folder of a run: it has no {STATUS}. Give the folder that `out` named."
        ) from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RunError(
            f"{path} cannot be read ({type(error).__name__}: {error}). Restore it from a copy, or resume the run, which writes"
            f" it anew."
        ) from error
    return status


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a run that came to its end."""
    with suppress(RunError):  # no run, or a status that is damaged and will be written anew
        return read_status(folder).get("status") == "finished"
    return False


def write_status(folder: Path, status: Mapping[str, Any]) -> None:
    """Write `run.json` in one move, so that a reader never sees half of it. Raises RunError where the disk refuses."""
    path, fresh = folder / STATUS, folder / f".{STATUS}.tmp"
    try:
        fresh.write_text(json.dumps(json_values.encode(dict(status)), indent=1, allow_nan=False), "utf-8")
        fresh.replace(path)
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error.strerror}. Free some space or choose another folder."
        ) from error
