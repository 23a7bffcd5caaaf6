"""What is known of a search, so that nothing in it is done twice: of each candidate its outcomes, and where it stands.

Where a search goes on it is replayed from its beginning: a race asks for the same scores in the same order, and those that are
known are given at once. So it comes to the same plan, wherever it was stopped and how often.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from thalweg.descent.problem import Problem
from thalweg.descent.same_task import changes, data_changes, starts_elsewhere, sum_task
from thalweg.descent.settle import settle
from thalweg.descent.state import Descent
from thalweg.descent.surroundings import differences, surroundings
from thalweg.descent.their_objects import as_found
from thalweg.errors import ArgumentError, RunError, StudyError, ThalwegError, error_text, shown
from thalweg.records import checkpoint, file_lock, json_values
from thalweg.records.plan import Plan
from thalweg.records.request import Request
from thalweg.records.run_folder import CANDIDATES, STUDY
from thalweg.records.run_inputs import TaskSums, in_words
from thalweg.tuning.candidate_files import CandidateFiles
from thalweg.tuning.outcome import Outcome, Trial, plan_sum
from thalweg.tuning.sharing import Sharing
from thalweg.tuning.study import DamagedStudyError, Study, set_aside

Say = Callable[[str], None]


RETRY_SECONDS = 60.0  # before a study that did not take something is tried again


class SearchPlace(NamedTuple):
    """Where a search is kept: an SQLite file for its study, and a folder for the states of its candidates."""

    study: Path
    candidates: Path


class Search:
    """A search's trials, in memory and, where there is a study, in that too; with files, also where its candidates stand.

    `record` is what the search goes by, which was measured when it was begun; empty where it is a new one.
    """

    def __init__(
        self, study: Study | None = None, files: CandidateFiles | None = None, say: Say = lambda _: None
    ) -> None:
        self.study, self.files, self.record = study, files, dict[str, Any]()
        self.sharing: Sharing | None = None
        self._scratch: TemporaryDirectory[str] | None = None
        self._say = say
        self._trials: dict[str, Trial] = {} if study is None else study.read_trials()
        self._known = {(run, step) for run, trial in self._trials.items() for step in trial.outcomes}
        self._unwritten = dict[str, Plan]()
        self._next_try, self._is_told = 0.0, False

    def begin(self, begun: Mapping[str, Any]) -> None:
        """Record what was measured before the search. Raises StudyError where the study does not take it."""
        self.record["begun"] = json_values.without_tuples(begun)
        if self.study is not None:
            self.study.write_search(self.record)

    def trial(self, plan: Plan) -> Trial:
        """Give what is known of a plan's candidate."""
        return self._trials.setdefault(plan_sum(plan), Trial())

    @property
    def seconds_per_step(self) -> float:
        """About how long a step takes, as it was measured when the search was begun; 0 where it was not."""
        cost = self.record.get("begun", {}).get("cost", {})
        return cost["seconds"] / max(1, cost["steps"] * cost["trainings"]) if cost else 0.0

    def have_files(self) -> CandidateFiles:
        """Give the files of the states of candidates; in memory they get a folder that is removed when the search is over."""
        if self.files is None:
            self._scratch = TemporaryDirectory(prefix="thalweg-search-", ignore_cleanup_errors=True)
            self.files = CandidateFiles(Path(self._scratch.name))
        return self.files

    @property
    def known(self) -> int:
        """How many outcomes were known when the search went on here."""
        return len(self._known)

    def was_known(self, plan: Plan, step: int) -> bool:
        """Whether an outcome is one of those."""
        return (plan_sum(plan), step) in self._known

    def outcome(self, plan: Plan, step: int) -> Outcome | None:
        """Give what a candidate is known to be worth after some steps; None where that is not known."""
        return self.trial(plan).outcomes.get(step)

    def refresh(self) -> None:
        """Read what others who share the search have found. Raises StudyError."""
        if self.study is not None:
            for run, trial in self.study.read_trials().items():
                known = self._trials.setdefault(run, trial)
                known.outcomes = {**trial.outcomes, **known.outcomes}

    def enter(self, plan: Plan) -> None:
        """Record that a candidate is about to be trained."""
        trial = self.trial(plan)
        if not trial.outcomes:
            self._write(plan)

    def add(self, plan: Plan, outcome: Outcome) -> None:
        """Record what a candidate was found to be worth; where others share the search, what was recorded first counts."""
        trial = self.trial(plan)
        if self.sharing is not None:
            with suppress(StudyError):  # it is told where the outcome is written
                self.refresh()
            if outcome.step in trial.outcomes:
                return
        trial.outcomes[outcome.step] = outcome
        trial.state = "running"
        self._write(plan)

    def lose(self, plan: Plan, how: str) -> None:
        """Record that the worker was lost that trained a candidate."""
        self.trial(plan).lost.append(how)
        self._write(plan)

    def stop(self, plan: Plan) -> None:
        """Record that a candidate fell behind, and remove its state."""
        self._end(plan, "stopped")
        if self.files is not None:
            self.files.remove(plan)

    def win(self, plan: Plan, chosen: Plan) -> None:
        """Record which candidate won, and the whole plan that was chosen with it."""
        self._end(plan, "won")
        self._write_all()
        if self.study is not None and not self._unwritten:
            with suppress(StudyError):
                self.study.show(plan=chosen.to_toml())

    def _end(self, plan: Plan, state: str) -> None:
        trial = self.trial(plan)
        if trial.state != state:
            trial.state = state
            self._write(plan)

    def close(self) -> None:
        """Write what the study has not taken yet, and let go of it."""
        if self._unwritten:
            self._write_all()
        if self.study is not None:
            self.study.close()
        if self._scratch is not None:
            self.files = None
            self._scratch.cleanup()

    def _write(self, plan: Plan) -> None:
        if self.study is None:
            return
        self._unwritten[plan_sum(plan)] = plan
        if time.monotonic() >= self._next_try:
            self._write_all()

    def _write_all(self) -> None:
        """Bring the study up to date; where it does not take it, that is said, and tried again a minute later."""
        if self.study is None:
            return
        try:
            for run, plan in list(self._unwritten.items()):
                self.study.write(plan, self._trials[run])
                del self._unwritten[run]
        except StudyError as error:
            self._next_try = time.monotonic() + RETRY_SECONDS
            if not self._is_told:
                self._say(f"warning: {error} The search goes on without it, and what is found is written there later.")
            self._is_told = True
            return
        if self._is_told:
            self._say("The search is written to its study again.")
            self._is_told = False


@contextmanager
def kept_beside(plan: Path | None) -> Generator[SearchPlace | None]:
    """Give the place of the search for a plan's file, and be the only one that searches there; in the end only the study stays.

    Raises RunError where another process searches there, or the folder cannot be made.
    """
    if plan is None:
        yield None
        return
    place = SearchPlace(plan.with_name(f"{plan.stem}.{STUDY}"), plan.with_name(f"{plan.stem}.{CANDIDATES}"))
    try:
        checkpoint.set_aside_unless_folder(place.candidates)
        place.candidates.mkdir(exist_ok=True)
        lock = file_lock.acquire_folder(place.candidates)
    except BlockingIOError as error:
        raise RunError(f"Another process searches the plan {plan}. Wait for it, or give another file.") from error
    except OSError as error:
        raise RunError(f"{place.candidates} cannot be written: {error.strerror}. Give another file.") from error
    try:
        yield place
        checkpoint.remove(place.candidates)
    finally:
        with suppress(OSError):  # where there is something to go on with
            place.candidates.rmdir()
        if lock is not None:
            file_lock.release(lock)


@contextmanager
def searching(
    problem: Problem, request: Request, place: SearchPlace | None, say: Say = lambda _: None
) -> Generator[Search]:
    """Give what is known of a search, as `open_search` does; afterwards its study is up to date, where it can be."""
    is_kept = (request.searches_rate and request.trainings > 1) or request.open is not None
    search = open_search(problem, request, place, say) if is_kept else Search()
    try:
        yield search
    finally:
        search.close()


def open_search(problem: Problem, request: Request, place: SearchPlace | None, say: Say = lambda _: None) -> Search:
    """Find what is known of a search: in the study of `request.storage`, or in that of the place where it is kept.

    Without both it is in memory. In its own place a search whose task has changed since begins anew, which is said.

    Raises StudyError where a storage cannot be used, or its study is of another search.
    """
    storage = request.storage or (place and str(place.study))
    if storage is None:
        return Search()
    try:
        return _open_study(problem, request, storage, place, say)
    except DamagedStudyError as error:
        if request.storage is not None or place is None:
            raise
        aside = _set_aside(place.study, error)
        say(f"warning: {error} It is kept as {aside.name}, and the search begins anew.")
    return _open_study(problem, request, storage, place, say)


def _open_study(problem: Problem, request: Request, storage: str, place: SearchPlace | None, say: Say) -> Search:
    study = Study(storage, request.study or study_name(problem.task.name, request), problem.task.mode)
    try:
        return _opened(problem, request, study, place, say)
    except BaseException:
        study.close()
        raise


def _set_aside(study: Path, error: StudyError) -> Path:
    """Move a damaged study out of the way. Raises the error where that fails."""
    try:
        return set_aside(study)
    except OSError as failure:
        raise error from failure


def _opened(problem: Problem, request: Request, study: Study, place: SearchPlace | None, say: Say) -> Search:
    """Compare a search with its study, and give what is known of it. Raises StudyError where it is another one."""
    record, asked = study.read_search(), _asked(request)
    with as_found(problem.task):
        descent = some_descent(problem, request.seed)
        with naming_damage(study.name):
            there = None if record is None else TaskSums.from_dict(record["task"])
        here = sum_task(descent, there)
        found = list[str]()
        if record is not None and there is not None:
            found = [*data_changes(problem, there, here), *changes(problem, there, here)]
            found += ["the model starts from other weights"] * starts_elsewhere(descent, there, here)
            found += _differing(record["request"], asked)
        is_whole = can_be_copied(descent)
    if found and request.storage is not None:
        raise StudyError(
            f"{study.address} is the study of another search: {in_words(found)}. Give another name with study=…, or another"
            f" storage."
        )
    files = None if place is None or not is_whole else CandidateFiles(place.candidates)
    sharing = None if request.storage is None else Sharing(study)
    if record is None or found:
        if found:
            say(f"The search begins anew, as its task has changed since it was stopped: {in_words(found)}.")
            study.clear()
        if files is not None:
            files.clear()  # of another search
        search = Search(study, files, say)
        search.sharing = sharing
        search.record |= {"task": here.to_dict(), "request": asked, "process": surroundings(problem.device)}
        return search
    with naming_damage(study.name):
        changed = differences(record["process"], surroundings(problem.device))
    if changed:
        say(f"warning: The search goes on in a process unlike the one it was begun in: {'; '.join(changed)}.")
    search = Search(study, files, say)
    search.record |= record
    search.sharing = sharing
    return search


def joined_request(address: str, mode: str, device: str) -> Request:
    """Give what is asked of the search of a study, "STORAGE/STUDY", that another process has begun.

    Raises StudyError where there is none, or it has not begun; ArgumentError where the address is none.
    """
    storage, slash, name = address.rpartition("/") if isinstance(address, str) else ("", "", "")
    if not slash or not storage.strip() or not name.strip():
        raise ArgumentError(
            f"`join` is {shown(address)}. Give the storage and the study as the search says it, such as"
            f" 'postgresql://host/db/digits-1a2b3c4d'."
        )
    asked = Request(storage=storage, study=name)
    with closing(Study(str(asked.storage), name, mode, is_there=True)) as study:
        record = study.read_search()
    if record is None:
        raise StudyError(
            f"The search of the study '{name}' has not begun yet: its task is still checked. Join it later."
        )
    with naming_damage(name):
        return Request.from_dict({**record["request"], "device": device, "storage": asked.storage, "study": name})


@contextmanager
def naming_damage(study: str = "") -> Generator[None]:
    """Turn what reading a search's record raises, where it holds something else than a search's, into a StudyError."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, ThalwegError):
            raise
        what = f"The study '{study}'" if study else "The study"
        raise StudyError(
            f"{what} holds no search that this thalweg can read: {error_text(error)}. Give another name with study=…, or another"
            f" storage; of a run that was stopped remove {STUDY} from its folder, and the search begins anew."
        ) from error


def some_descent(problem: Problem, seed: int) -> Descent:
    """Give a descent of a problem before its first step, by whatever plan: what model, loss and data are is the same by all."""
    return Descent(problem, settle(problem, Plan(seed=seed), Request(steps=1)))


def can_be_copied(descent: Descent) -> bool:
    """Whether a state of this descent is all of it: nothing of the user's is left out that no checkpoint holds."""
    return not (descent.objects.problems or descent.batches.unkept)


def study_name(task: str, request: Request) -> str:
    """Give the name of a search's study where none is given: the task's, and a sum of what is asked for."""
    text = json.dumps(json_values.encode(json_values.without_tuples(_asked(request))), sort_keys=True)
    return f"{task}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _asked(request: Request) -> dict[str, Any]:
    """Give what of a request makes a search the search that it is."""
    asked = {**request.to_dict()}
    return {name: value for name, value in asked.items() if name not in ("device", "storage", "study")}


def _differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Say what was asked of a search that is not asked of it now."""
    names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    return [f"`{name}` was {there.get(name)} and is {here.get(name)}" for name in names]
