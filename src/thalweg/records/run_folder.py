"""A run's folder: the one place where its files are named, written and read.

| file | holds | written |
| --- | --- | --- |
| `plan.toml` | the plan | when the folder is created |
| `task.toml` | how to make the task again, where that is known | when the folder is created |
| `request.json` | what was asked of `fit`, with which a stopped search goes on | when `fit` begins |
| `study.sqlite` | the study of a `fit`'s search, see `tuning/study.py` | while it searches |
| `candidates/` | states of a search's candidates, to go on with; removed when the run has begun | while it searches |
| `run.json` | the status: "status", "summary", "metrics", "diagnoses", "inputs" | when it starts and stops, in one move |
| `history.sqlite` | figures and events, see `records/history.py` | while it trains |
| `checkpoints/` | states to resume from and the best weights, see `records/checkpoint.py` | while it trains |
| `report.html` | the report, see `see/report.py` | when somebody asks for it |
| `survey.json` | the survey, see `records/survey.py` | at the end of `fit`, and when somebody asks for it |
| `.lock` | nothing; it is locked by the process that writes | |
"""

from __future__ import annotations

import errno
import json
import os
import warnings
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thalweg.errors import CheckpointError, PlanError, RunError, TaskError, error_text, shown
from thalweg.records import checkpoint, file_lock, files, json_values, sealed_json
from thalweg.records.diagnosis import Diagnosis
from thalweg.records.history import FILE as HISTORY
from thalweg.records.history import History
from thalweg.records.kinds import Kind, anything, check, count, flag, listing, number, optional, record, table, text
from thalweg.records.paths import as_path, typed
from thalweg.records.plan import Plan
from thalweg.records.request import Request
from thalweg.records.run_inputs import RunInputs, TaskSums, in_words, plan_changes
from thalweg.records.survey import Survey
from thalweg.records.task import Source, Task
from thalweg.records.trust import is_sealed, missing_key, seal

PLAN, TASK, REQUEST, STATUS, REPORT = "plan.toml", "task.toml", "request.json", "run.json", "report.html"
SURVEY = "survey.json"
CHECKPOINTS, BEST = "checkpoints", "best"
STUDY, CANDIDATES = "study.sqlite", "candidates"
TUNED = f"{Path(PLAN).stem}."  # before the names of what `tune` keeps beside a plan
STUDY_FILES = {f"{tuned}{STUDY}{part}" for tuned in ("", TUNED) for part in ("", "-wal", "-shm", "-journal")}
CANDIDATE_FOLDERS = {CANDIDATES, f"{TUNED}{CANDIDATES}"}
LOCK = ".lock"
LONGEST_PATH = 500  # bytes of a file that SQLite opens, with what it appends to the name
MEASURED = ("threads", "memory_format", "workers", "precision", "compile")  # knobs that are chosen by a clock
LEFT_BY_OLDER_VERSIONS = {f".{STATUS}.tmp", f".{REQUEST}.tmp"}  # where they were killed


@dataclass(frozen=True)
class RunFolder:
    """The files of one run. Nothing is read or written until a method is called.

    >>> RunFolder.at("/runs/mine").history_path.as_posix()
    '/runs/mine/history.sqlite'
    """

    path: Path

    @staticmethod
    def at(folder: str | os.PathLike[str]) -> RunFolder:
        """Give the run folder at a path. Raises RunError where it cannot be a path."""
        return RunFolder(as_folder(folder))

    @property
    def shown(self) -> str:
        """The folder in a message."""
        return typed(self.path)

    @property
    def plan_path(self) -> Path:
        """The plan."""
        return self.path / PLAN

    @property
    def task_path(self) -> Path:
        """How to make the task again; missing where the task was passed as an object."""
        return self.path / TASK

    @property
    def request_path(self) -> Path:
        """What was asked of `fit`; missing where the run was made by another verb."""
        return self.path / REQUEST

    @property
    def status_path(self) -> Path:
        """The status, by which a folder is known as a run's."""
        return self.path / STATUS

    @property
    def history_path(self) -> Path:
        """Figures and events."""
        return self.path / HISTORY

    @property
    def checkpoints_path(self) -> Path:
        """The folder of checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def best_path(self) -> Path:
        """The checkpoint of the weights that validated best."""
        return self.checkpoints_path / BEST

    @property
    def study_path(self) -> Path:
        """The study of the search that chose the plan."""
        return self.path / STUDY

    @property
    def candidates_path(self) -> Path:
        """The folder of the states of that search's candidates."""
        return self.path / CANDIDATES

    @property
    def holds_run(self) -> bool:
        """Whether a run was created here: there is its status or, where that was lost, a checkpoint.

        Raises RunError where the system does not tell.
        """
        return _is_there(self.status_path) or any(self.checkpoints_path.glob("step-*"))

    @property
    def holds_request(self) -> bool:
        """Whether a `fit` began here that was stopped before its plan was found: its request is here, and no run."""
        return _is_there(self.request_path) and not self.holds_run

    @property
    def is_finished(self) -> bool:
        """Whether a run came to its end here."""
        with suppress(RunError):  # no run, or a status that is damaged and will be written anew
            return self.read_status().get("status") == "finished"
        return False

    def seconds_taken(self) -> tuple[float, int]:
        """Give how long the run had taken, validations and all, when a process last ended it, and the step that it was at."""
        status = self._status_or_none()
        summary = {} if status is None else status["summary"]
        return (summary["seconds"], summary["steps"]) if {"seconds", "steps"} <= summary.keys() else (0.0, 0)

    # Writing

    @contextmanager
    def locked(self) -> Generator[None]:
        """Make the folder where it is missing, and be the only process and thread that writes into it.

        The lock ends with the process, so that nothing needs to be tidied after a crash.

        Raises RunError where the folder cannot be made or another process writes to it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            held, locks = self._acquire()
        except BlockingIOError as error:
            raise RunError(
                f"Another process is writing to {self.shown}. Wait for it, or give another folder."
            ) from error
        except OSError as error:
            raise self._unwritable(error) from error
        with held:
            if not locks:
                message = f"{self.shown} is on a file system without locks: see that no other process writes to it."
                warnings.warn(message, stacklevel=3)
            files.remove_old_drafts(self.path)
            yield

    @contextmanager
    def locked_to_go_on(self, *, changed: bool = False) -> Generator[bool]:
        """Lock as `locked` does; a finished run that stays so may lie where nothing can be written, as it is only opened.

        Gives whether it is locked, and can be written.
        """
        with ExitStack() as held:
            try:
                held.enter_context(self.locked())
                locks = True
            except RunError as error:
                if changed or isinstance(error.__cause__, BlockingIOError) or not self.is_finished:
                    raise
                locks = False
            yield locks

    def _acquire(self) -> tuple[ExitStack, bool]:
        """Lock the folder, and the file in it that systems and versions lock which do not lock folders.

        Gives what unlocks them, and whether the file system has locks. Whoever removes the file, or puts another in its place,
        lets nobody in: the folder itself is still locked. Raises OSError.
        """
        with ExitStack() as held:
            folder = file_lock.acquire_folder(self.path)
            if folder is not None:
                held.callback(file_lock.release, folder)
            files.set_aside_unless_regular(self.path / LOCK)
            file = file_lock.open(self.path / LOCK)
            locks = file_lock.acquire(file)
            held.callback(file_lock.release, file)
            return held.pop_all(), locks

    def create(self, plan: Plan, source: Source | None, summary: Mapping[str, Any], inputs: RunInputs) -> Path | None:
        """Write plan, task source and status of a new run; `summary` is the status's until the run has one of its own.

        The status comes last: a process killed before that leaves a folder that holds no run yet, and in which the same call
        succeeds. Another plan that lay there, as `tune` writes one, is kept under another name, which is given; else None.

        Raises RunError where the folder holds a run or other files.
        """
        self.check_vacant()
        text = plan.to_toml()
        kept = self._keep_other_plan(text)
        self._write(self.plan_path, text)
        self._write_source(source)
        self.write_status(
            {
                "status": "running",
                "summary": {"status": "running", **summary},
                "inputs": json_values.without_tuples(inputs.to_dict()),
            }
        )
        return kept

    def _keep_other_plan(self, text: str) -> Path | None:
        """Rename a plan that lies here, unless it is of this text; gives its new path."""
        try:
            if files.is_regular(self.plan_path) and files.read(self.plan_path) != text.encode():
                return files.set_aside(self.plan_path)
        except OSError as error:
            raise self._unwritable(error) from error
        return None

    def write_plan(self, plan: Plan) -> None:
        """Write the plan. Raises RunError where that fails."""
        self._write(self.plan_path, plan.to_toml())

    def change_plan(self, plan: Plan, inputs: RunInputs) -> None:
        """Write another plan, which `inputs` has, in place of the run's. A process killed meanwhile leaves one of the two."""
        status = self._status_or_none() or {"summary": {}}
        self._remove(self.plan_path)  # without it, the plan is that of the status
        summary = {**status["summary"], "status": "running"}
        self.write_status(
            {**status, "status": "running", "summary": summary, "inputs": json_values.without_tuples(inputs.to_dict())}
        )
        self.write_plan(plan)

    def record_request(self, request: Request, source: Source | None) -> None:
        """Write what is asked of `fit`, and how to make its task, before anything is paid for.

        Raises RunError where the folder holds a run or other files.
        """
        self.check_vacant()
        self._write_source(source)
        sealed = {} if request.storage is None else {"seal": seal(_storage_of(request))}
        self._write_json(self.request_path, request.to_dict() | sealed)

    def discard_request(self) -> None:
        """Remove the request of a `fit` that was stopped before its plan was found: another verb uses the folder."""
        if self.holds_request:
            self._remove(self.request_path)

    def discard_candidates(self) -> None:
        """Remove the states of a search's candidates: the run has begun."""
        checkpoint.remove(self.candidates_path)

    @property
    def survey_path(self) -> Path:
        """Where the descent ended."""
        return self.path / SURVEY

    def write_survey(self, survey: Survey) -> None:
        """Write `survey.json`. Raises RunError where that fails."""
        self._write(self.survey_path, survey.to_json())

    def read_survey(self) -> Survey | None:
        """Read the survey; None where there is none. Raises RunError where the file is damaged."""
        return Survey.load(self.survey_path) if self.survey_path.exists() else None

    def write_status(self, status: Mapping[str, Any]) -> None:
        """Write `run.json`. Raises RunError where that fails."""
        self._write_json(self.status_path, status)

    def _write_source(self, source: Source | None) -> None:
        """Write how the task is made again; where that is not known, remove what a stopped `fit` wrote of another task."""
        if source is not None:
            self._write(self.task_path, source.to_toml())
        else:
            self._remove(self.task_path)

    def _remove(self, path: Path) -> None:
        """Remove one of the run's files, where it is there. Raises RunError."""
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error

    def _write_json(self, path: Path, entries: Mapping[str, Any]) -> None:
        self._write(path, sealed_json.dump(entries))

    def _write(self, path: Path, text: str) -> None:
        """Write one of the run's files; what lies under its name and is no file is moved aside. Raises RunError."""
        try:
            files.set_aside_unless_regular(path)
            files.replace(path, text.encode())
        except OSError as error:
            raise RunError(
                f"{path} cannot be written: {error.strerror}. Free some space or choose another folder."
            ) from error

    def _unwritable(self, error: OSError) -> RunError:
        return RunError(f"{self.shown} cannot be written: {error.strerror}. Choose another place with out=.")

    # Reading

    def read_plan(self) -> Plan:
        """Read the plan; a file that is missing is no loss, as `run.json` and every checkpoint hold the plan too.

        Raises PlanError where the file is damaged, or another plan than the run's.
        """
        recorded = self._recorded_inputs()
        if recorded is None:
            return self._load_plan()
        if not os.path.lexists(self.plan_path):
            return Plan.from_dict(recorded.plan)
        remedy = "Remove the file: it is written anew, as the run's record has the plan too"
        try:
            plan = self._load_plan()
        except PlanError as error:
            raise PlanError(f"{error} {remedy}.") from error
        if changed := plan_changes(recorded.plan, plan.to_dict()):
            raise PlanError(
                f"{self.plan_path} was edited since the run began: {in_words(changed, most=3)}. {remedy}; what is to change is"
                f" asked for: thalweg resume {self.shown} --set KNOB=VALUE."
            )
        return plan

    def _load_plan(self) -> Plan:
        try:
            files.read(self.plan_path)
        except OSError as error:
            raise PlanError(f"{self.plan_path}: the plan cannot be read ({error.strerror}).") from error
        return Plan.load(self.plan_path)

    def read_inputs(self) -> RunInputs:
        """Read what the run was made from, as `run.json` says it or, where that was lost, the newest checkpoint.

        Raises PlanError where neither does and the plan's file is damaged.
        """
        recorded = self._recorded_inputs()
        if recorded is not None:
            return recorded
        status = self._status_or_none()  # of an earlier version, or lost with all checkpoints
        return RunInputs(self.read_plan().to_dict(), TaskSums.of_summary({} if status is None else status["summary"]))

    def _recorded_inputs(self) -> RunInputs | None:
        status = self._status_or_none()
        if status is not None:
            return RunInputs.from_dict(status["inputs"]) if "inputs" in status else None
        with suppress(CheckpointError):
            return inputs_of(checkpoint.load(self.checkpoints_path))
        return None

    def _status_or_none(self) -> dict[str, Any] | None:
        with suppress(RunError):
            return self.read_status()
        return None

    def read_task(self, *, trust: bool = False) -> Task:
        """Make the task again from what the folder says of it, which runs the code that it names.

        Raises RunError where it says nothing, or this user did not make the run on this machine and it is not to be trusted.
        """
        if not os.path.lexists(self.task_path):
            raise RunError(
                f"{self.shown} does not say how to make its task, as it was passed as an object. Pass it again, as task=…."
            )
        source, is_ours = Source.read(self.task_path)
        if not is_ours and not trust:
            raise RunError(
                f"Nothing shows that you made the run in {self.shown} on this machine, and it would {source.effect}. Where you"
                f" trust it, say so with --trust, in Python trust=True; or pass the task yourself, as task=….{missing_key()}"
            )
        return source.load(strict=not is_ours)

    def adopt(self, task: Task) -> None:
        """Seal the task of a run that is trusted and resumed as this user's, so that it is asked about once. Raises RunError."""
        if task.source is not None and os.path.lexists(self.task_path):
            self._write_source(task.source)

    def read_request(self, *, trust: bool = False) -> Request:
        """Read what was asked of `fit`. Raises RunError where it is damaged, or it names a storage that this user did not."""
        try:
            entries = sealed_json.load(files.read(self.request_path).decode())
            found = entries.pop("seal", "")
            request = Request.from_dict(entries)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, PlanError) as error:
            raise RunError(
                f"{self.request_path} cannot be read ({error_text(error):.500}). Start again in another folder."
            ) from error
        if request.storage is None or trust or is_sealed(_storage_of(request), str(found)):
            return request
        raise RunError(
            f"Nothing shows that you made the run in {self.shown} on this machine, and its search would connect to the storage"
            f" {shown(request.storage)} and write there. Where you trust it, say so with --trust, in Python trust=True."
            f"{missing_key()}"
        )

    def read_status(self) -> dict[str, Any]:
        """Read `run.json`: "status", "summary", "metrics", "diagnoses" and, unless it is of an earlier version, "inputs".

        Raises RunError where the folder is no run's, or the file is damaged.
        """
        try:
            status = sealed_json.load(files.read(self.status_path).decode())
            check(
                status, {"status": text, "metrics": table(number), "diagnoses": listing(table(anything))}, ("summary",)
            )
            check(status["summary"], SUMMARY)
            status.setdefault("metrics", {})
            for entries in status.setdefault("diagnoses", []):
                Diagnosis.from_dict(entries)
            if "inputs" in status:
                RunInputs.from_dict(status["inputs"])
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RunError(self._not_a_run()) from error
        except PermissionError as error:
            raise RunError(f"{self.status_path} cannot be read: {error.strerror}. Check its permissions.") from error
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, PlanError) as error:
            raise RunError(
                f"{self.status_path} cannot be read ({error_text(error):.500}). Restore it from a copy, or resume the"
                f" run, which writes it anew."
            ) from error
        return status

    def open_history(self, *, readonly: bool = False) -> History:
        """Open the history, to write it (made where it is missing) or only to read it. Raises RunError as `History` does."""
        return History(self.history_path, readonly=readonly)

    # Refusing

    def check_usable(self) -> None:
        """Refuse, before anything is spent, a folder that no new run can be written to; it is made. Raises RunError."""
        check_writable(self.path)
        self.check_vacant()

    def check_vacant(self) -> None:
        """Refuse a folder that holds a run or other files. Raises RunError."""
        longest = max(len(os.fsencode(path.absolute())) for path in (self.history_path, self.study_path))
        if longest > LONGEST_PATH:
            raise RunError(
                f"The path of the run's folder is too long for its databases: {longest:,} bytes with a file's name, where SQLite"
                f" takes {LONGEST_PATH}. Give a shorter one with out=."
            )
        if self.holds_run:
            raise RunError(
                f"{self.shown} already holds a run. Resume it (thalweg resume {self.shown}), or give a new folder."
            )
        if files.is_regular(self.history_path):
            raise RunError(
                f"{self.shown} holds the history of a run whose {STATUS} and checkpoints are gone. Give a new folder."
            )
        # What a process leaves that was killed before the run began.
        started = {PLAN, TASK, REQUEST, LOCK, *STUDY_FILES, *CANDIDATE_FOLDERS, *LEFT_BY_OLDER_VERSIONS}
        others = [
            name
            for name in self._names()
            if files.name_before_aside(name) not in started
            and (name not in started or self._is_foreign(name))
            and not (files.is_draft(name) and files.is_regular(self.path / name))
        ]
        if others:
            raise RunError(
                f"{self.shown} holds other things ({', '.join(sorted(others)[:3])}) and is no run. Give a new folder."
            )

    def _names(self) -> list[str]:
        try:
            return os.listdir(self.path)
        except OSError as error:
            raise RunError(
                f"{self.shown} cannot be listed: {error.strerror}. Give another folder with out=."
            ) from error

    def _is_foreign(self, name: str) -> bool:
        """Whether something under this name is not what a run has under it: a link or a pipe, or a file of another program's."""
        path = self.path / name
        if name == CHECKPOINTS or name in CANDIDATE_FOLDERS:
            return path.is_symlink() or not path.is_dir()
        if not files.is_regular(path):
            return True
        try:
            if name == TASK and path.stat().st_size:  # earlier versions, killed, may have left it empty
                Source.read(path)
            elif name == REQUEST:
                self.read_request(trust=True)  # nothing is done with it
        except (OSError, RunError, TaskError):
            return True
        return False

    def check_holds_run(self) -> None:
        """Refuse a folder that has no run to resume. Raises RunError."""
        if not self.holds_run:
            raise RunError(self._not_a_run())

    def _not_a_run(self) -> str:
        if self.holds_request:
            return (
                f"The run in {self.shown} has not begun: its plan was still searched. `thalweg resume {self.shown}` goes on with"
                f" the search."
            )
        if self.holds_run:
            return f"{self.shown} holds a run whose {STATUS} is gone. Resume it, which writes it anew."
        if not _is_there(self.path):
            return f"There is no folder {self.shown}. Give the folder that `out` named."
        reason = f"it has no {STATUS}" if self.path.is_dir() else "it is a file"
        return f"{self.shown} is not the folder of a run: {reason}. Give the folder that `out` named."

    def with_found_length(self, plan: Plan) -> Plan:
        """Give a plan of open length as the run here has it, whose length was found. Raises RunError where it was not."""
        recorded = self.read_plan()
        if "pays" not in recorded.why("steps").figures:
            raise RunError(
                f"{self.shown} already holds a run of {recorded.steps or 0:,} steps, which were given. Give a new folder, or"
                f" resume that run."
            )
        knobs = ("steps", "schedule", "weight_decay_schedule", "validate_every")
        why = {name: recorded.why(name) for name in knobs}
        return plan.replace(**{name: getattr(recorded, name) for name in knobs}, evidence={**plan.evidence, **why})

    def check_plan(self, plan: Plan) -> Plan:
        """Refuse another plan than the recorded one, and give the recorded one.

        What was measured for both is no difference: the knobs of speed, and the steps that fit into the same seconds.

        Raises RunError with the first knob that differs.
        """
        recorded = self.read_plan()  # raises where it was edited
        there, here = recorded.to_dict(), plan.to_dict()
        knobs = {**there, **here}.keys() - {"evidence"} - _measured_knobs(recorded, plan)
        differing = sorted(knob for knob in knobs if there.get(knob) != here.get(knob))
        if differing:
            knob, more = differing[0], len(differing) - 1
            raise RunError(
                f"{self.shown} already holds a run with another plan: {knob} is {there.get(knob)} there and {here.get(knob)}"
                f" here{f', and {more} more differ' if more else ''}. Give a new folder, or resume that run."
            )
        return recorded


def _storage_of(request: Request) -> str:
    """Give what is sealed of a request: where its search connects to and writes."""
    return f"the storage of a search: {json.dumps([request.to_dict()['storage'], request.study])}"


def inputs_of(loaded: checkpoint.Loaded) -> RunInputs | None:
    """Give what a checkpoint says that its run was made from; None where it is of an earlier version."""
    try:
        entries = loaded.state["loop"].get("inputs")
        return entries and RunInputs.from_dict(entries)
    except (TypeError, ValueError, KeyError, AttributeError, PlanError) as error:
        raise CheckpointError(f"{loaded.path.name}: its plan cannot be read ({error_text(error):.500}).") from error


SUMMARY: Mapping[str, Kind] = {
    **dict.fromkeys(("status", "name", "device", "torch", "select", "mode"), text),
    **dict.fromkeys(("steps", "parameters", "trainable_parameters"), count),
    "examples": optional(count),
    "seconds": number,
    **dict.fromkeys(("validated", "stopped_early", "exact"), flag),
    **dict.fromkeys(("start", "training"), table(number)),
    "weights": optional(record({"step": count, "averaged": flag}, ("step",))),
    "cures": record(
        {
            **dict.fromkeys(("rate_factor", "decay_factor"), number),
            "clip_norm": optional(number),
            **dict.fromkeys(("warmup", "anneal"), optional(listing(number))),
        }
    ),
    **dict.fromkeys(("notes", "idle_parameters", "drifting_statistics"), listing(text)),
    **dict.fromkeys(("casts", "code"), table(text)),
}
"""What the entries of the status's summary are that are read again."""


def _is_there(path: Path) -> bool:
    """Whether something is under a name, at the end of a link too. Raises RunError where the system does not tell."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise RunError(f"{path} cannot be read: {error.strerror}. Check its path and permissions.") from error
    return True


def as_folder(folder: str | os.PathLike[str]) -> Path:
    """Turn the argument for a run's folder into a path. Raises RunError where it cannot be one."""
    return as_path(folder, "a run's folder", "runs/mine", RunError)


def is_in_run(path: Path) -> bool:
    """Whether a path lies in a run's folder, among its checkpoints or in one of them."""
    return any(RunFolder(folder).holds_run or RunFolder(folder).holds_request for folder in list(path.parents)[:3])


def check_writable(folder: Path) -> None:
    """Make a folder, and a file in it that is removed again. Raises RunError where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.check_writable(folder)
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror}. Choose another place with out=.") from error


def _measured_knobs(one: Plan, other: Plan) -> set[str]:
    """Name the knobs that two plans for the same task may have with different values, as each plan's were measured."""
    knobs = {name for name in MEASURED if {one.why(name).source, other.why(name).source} <= {"measured"}}
    seconds = {plan.why("steps").number("seconds") for plan in (one, other)}
    if len(seconds) == 1 and None not in seconds:
        knobs |= {"steps", "validate_every"}
    return knobs
