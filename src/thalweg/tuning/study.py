"""A search's trials in an Optuna study: a SQLite file beside the run, or a database that several machines reach.

A trial is one candidate. Its user attributes `run`, a sum of its plan, and `record`, a text with its own sum, are what a resumed
search goes by; parameters, intermediate values and all else are for people, Optuna and its dashboard.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from thalweg.errors import StudyError, error_text, nearest
from thalweg.records import database, files, sealed_json
from thalweg.records.kinds import anything, check, count, table
from thalweg.records.paths import typed
from thalweg.records.plan import Plan
from thalweg.rules import RULES
from thalweg.tuning.outcome import Trial, knobs, plan_sum

if TYPE_CHECKING:  # importing it takes a second, and only a search that is kept needs it
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

SECONDS = 10  # to wait for a database that is locked or does not answer
RATES, DECAYS = (1e-9, 1e6), (0.0, 1e3)  # more than any plan has
FORMAT = 1
SEARCH = {"format": count, **dict.fromkeys(("task", "request", "process", "begun"), table(anything))}


class DamagedStudyError(StudyError):
    """The file or the record of a search is damaged, so that nothing of it can be gone on with."""


class _Written(NamedTuple):
    """A trial of the study: its id, whether it is over, and the steps of the outcomes that are written."""

    id: int
    is_over: bool
    reported: frozenset[int]


class Study:
    """The trials of one search. Its methods raise StudyError where the database does not take or give them.

    Arguments:
        storage: the path of an SQLite file, made where it is missing; or a URL as SQLAlchemy takes them.
        name: of the study, made where it is missing.
        mode: "min" or "max" of the criterion.
        is_there: refuse a study that is not there yet.

    Raises StudyError where the database cannot be reached or written, before anything is spent.
    """

    def __init__(self, storage: str, name: str, mode: str, *, is_there: bool = False) -> None:
        self.storage, self.name, self._mode = storage, name, mode
        with self._naming_failures():
            path = sqlite_path(storage) if is_there else None
            if path is not None:
                path.stat()  # raises where it is not there, as opening it would make it
            self._storage = _open(storage)
        try:
            with self._naming_failures():
                self._id = self._found(is_there)
        except StudyError:
            self.close()
            raise
        self._written = dict[str, _Written]()

    def _found(self, is_there: bool) -> int:
        """Give the study's id. Raises StudyError where it is to be there and is not."""
        names = [one.study_name for one in self._storage.get_all_studies()] if is_there else [self.name]
        if self.name not in names:
            raise StudyError(
                f"There is no study '{self.name}' in {shown(self.storage)}.{nearest(self.name, names)} Give STORAGE/STUDY as the"
                f" search that is to be joined says it."
            )
        return _study_id(self._storage, self.name, self._mode)

    @property
    def address(self) -> str:
        """The storage and the study in it, without a password."""
        return f"{shown(self.storage)}/{self.name}"

    def read_search(self) -> dict[str, Any] | None:
        """Read what `write_search` wrote; None where this study is a new one."""
        with self._naming_failures():
            attributes = self._storage.get_study_user_attrs(self._id)
            if "search" not in attributes:
                if self._all():
                    raise DamagedStudyError(
                        f"The study '{self.name}' in {shown(self.storage)} is damaged: its record is lost."
                    )
                if self._storage.get_n_trials(self._id):
                    raise ValueError("it has trials of another program's")
                return None
            try:
                entries = sealed_json.load(attributes["search"])
            except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
                raise DamagedStudyError(_failure(self.storage, self.name, error)) from error
            if entries.get("format") != FORMAT:
                raise ValueError(f"it is of format {entries.get('format')}, this thalweg reads {FORMAT}")
            check(entries, SEARCH, ("task", "request", "process"))
            return entries

    def write_search(self, search: Mapping[str, Any]) -> None:
        """Write what the search goes by."""
        with self._naming_failures():
            self._storage.set_study_user_attr(self._id, "search", sealed_json.dump({**search, "format": FORMAT}))

    def show(self, **attributes: Any) -> None:
        """Write user attributes of the study, for people to read."""
        with self._naming_failures():
            for name, value in attributes.items():
                self._storage.set_study_user_attr(self._id, name, value)

    def clear(self) -> None:
        """Remove the study, and make a new one of its name."""
        with self._naming_failures():
            self._storage.delete_study(self._id)
            self._id = _study_id(self._storage, self.name, self._mode)
            self._written = {}

    def read_trials(self) -> dict[str, Trial]:
        """Read what is known of each candidate, by the sum of its plan. One whose record was damaged is as good as unknown."""
        found = dict[str, Trial]()
        with self._naming_failures():
            self._written = {}
            for one in self._all():
                run, record = one.user_attrs["run"], one.user_attrs.get("record")
                if run in self._written and not self._written[run].is_over:
                    continue  # the first that takes something counts
                with suppress(ValueError, TypeError, AttributeError, LookupError):
                    found[run] = Trial.from_dict(sealed_json.load(str(record)))
                steps = {*one.intermediate_values, *(found[run].outcomes if run in found else ())}
                self._written[run] = _Written(_id(one), one.state.is_finished(), frozenset(steps))
        return found

    def read_claims(self) -> dict[str, dict[str, Any]]:
        """Read who is at which candidate, by the sums of their plans."""
        with self._naming_failures():
            claims = {one.user_attrs["run"]: one.user_attrs.get("claim") for one in reversed(self._all())}
        return {run: claim for run, claim in claims.items() if isinstance(claim, dict)}

    def write_claim(self, plan: Plan, claim: Mapping[str, Any]) -> None:
        """Write who is at a candidate."""
        from optuna.exceptions import UpdateFinishedTrialError

        with self._naming_failures():
            with suppress(UpdateFinishedTrialError):  # somebody else is done with it
                self._storage.set_trial_user_attr(self._find(plan).id, "claim", dict(claim))

    def write(self, plan: Plan, trial: Trial) -> None:
        """Write all that is known of a candidate; what is written already is not written again."""
        from optuna.exceptions import UpdateFinishedTrialError

        with self._naming_failures():
            before = self._written.get(plan_sum(plan))
            if before is not None and before.is_over and before.reported >= trial.outcomes.keys():
                return
            try:
                self._update(self._find(plan), plan, trial)
            except UpdateFinishedTrialError:  # by somebody else who searches too, and knows the same of it
                self.read_trials()

    def _find(self, plan: Plan) -> _Written:
        """Give a candidate's trial, made where there is none that takes anything."""
        run = plan_sum(plan)
        if run not in self._written:
            self.read_trials()  # somebody else may have made it
        known = self._written.get(run)
        return self._add(plan, run) if known is None or known.is_over else known

    def _update(self, known: _Written, plan: Plan, trial: Trial) -> None:
        self._storage.set_trial_user_attr(known.id, "record", sealed_json.dump(trial.to_dict()))
        news = {step: one.value for step, one in trial.outcomes.items() if step not in known.reported}
        for step, value in news.items():
            if math.isfinite(value):
                self._storage.set_trial_intermediate_value(known.id, step, value)
        is_over = trial.state != "running"
        if is_over:
            self._end(known.id, plan, trial)
        self._written[plan_sum(plan)] = _Written(known.id, is_over, known.reported | {*news})

    def _add(self, plan: Plan, run: str) -> _Written:
        from optuna.distributions import CategoricalDistribution, FloatDistribution
        from optuna.trial import TrialState, create_trial

        template = create_trial(
            state=TrialState.RUNNING,
            params={"rule": plan.rule, "learning_rate": plan.learning_rate, "weight_decay": plan.weight_decay},
            distributions={
                "rule": CategoricalDistribution(sorted(RULES)),
                "learning_rate": FloatDistribution(*RATES, log=True),
                "weight_decay": FloatDistribution(*DECAYS),
            },
            user_attrs={"run": run, "seed": plan.seed, "plan": knobs(plan)},
        )
        number = self._storage.create_new_trial(self._id, template)
        first = next(_id(one) for one in self._all() if one.user_attrs["run"] == run and not one.state.is_finished())
        if first != number:  # somebody else who searches too has made one at the same moment
            self._storage.set_trial_state_values(number, TrialState.FAIL)
        self._written[run] = _Written(first, False, frozenset())
        return self._written[run]

    def _all(self) -> list[FrozenTrial]:
        """Give the trials that are candidates."""
        from optuna.trial import TrialState

        trials = self._storage.get_all_trials(self._id, deepcopy=False)
        return [one for one in trials if isinstance(one.user_attrs.get("run"), str) and one.state != TrialState.FAIL]

    def _end(self, trial_id: int, plan: Plan, trial: Trial) -> None:
        """End a trial: complete where it won, else pruned; without a value it is infeasible, which is not an infinite loss."""
        import optuna
        from optuna.trial import TrialState

        last = trial.last
        for name, value in _attributes(plan, trial).items():
            self._storage.set_trial_user_attr(trial_id, name, value)
        if last is not None and last.reason:
            study = optuna.load_study(
                study_name=self.name, storage=self._storage, sampler=optuna.samplers.RandomSampler()
            )
            optuna.trial.Trial(study, trial_id).set_constraint("trains", 1.0)
        has_value = last is not None and math.isfinite(last.value)
        state = TrialState.COMPLETE if trial.state == "won" and has_value else TrialState.PRUNED
        self._storage.set_trial_state_values(trial_id, state, [last.value] if last and has_value else None)

    def close(self) -> None:
        """Close the connections to the database."""
        with suppress(Exception):
            self._storage.remove_session()
            self._storage.engine.dispose()

    @contextmanager
    def _naming_failures(self) -> Generator[None]:
        """Turn whatever a database or its driver raises into a StudyError."""
        try:
            with _quiet():
                yield
        except StudyError:
            raise
        except Exception as error:
            kind = DamagedStudyError if _is_damage(_first_cause(error)) else StudyError
            raise kind(_failure(self.storage, self.name, error)) from error


def _attributes(plan: Plan, trial: Trial) -> dict[str, Any]:
    """Give what people read of a trial that is over: the steps it came to, its price in full trainings, and what went wrong."""
    last = trial.last
    lost = {"lost_workers": list(trial.lost)} if trial.lost else {}
    if last is None:
        return lost
    shown = {"steps": last.step, "price": round(last.steps_paid / (plan.steps or 1), 4), **lost}
    return {**shown, "infeasible": last.reason} if last.reason else shown


def _id(trial: FrozenTrial) -> int:
    return trial._trial_id  # pyright: ignore[reportPrivateUsage]


# The database


def shown(storage: str) -> str:
    """Give a storage for a message: without its password."""
    if "://" not in storage:
        return typed(Path(storage))
    from sqlalchemy.engine import make_url

    try:
        return make_url(storage).render_as_string(hide_password=True)
    except Exception:  # no URL that it knows: what is wrong with it is said elsewhere
        return storage


def sqlite_path(storage: str) -> Path | None:
    """Give the file of a storage in SQLite; None of any other, and of one in memory."""
    if "://" not in storage:
        return Path(storage)
    from sqlalchemy.engine import make_url

    url = make_url(storage)
    is_file = url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:") and not url.query
    return Path(url.database) if is_file and url.database else None


def _open(storage: str) -> RDBStorage:
    """Open a storage, whose tables are made where they are missing."""
    from optuna.storages import RDBStorage
    from sqlalchemy.pool import SingletonThreadPool

    path = sqlite_path(storage)
    if path is None:
        options: dict[str, Any] = {"pool_pre_ping": True}
        if storage.startswith(("postgresql", "mysql", "mariadb")):
            options["connect_args"] = {"connect_timeout": SECONDS}
        return RDBStorage(storage.replace("{", "{{").replace("}", "}}"), engine_kwargs=options)
    is_new = _prepare(path)
    # By a function, so that any path will do; one connection for each thread, as closing the last one costs a sync.
    options = {"creator": lambda: _connect(path), "poolclass": SingletonThreadPool}
    return RDBStorage("sqlite://", engine_kwargs=options, skip_compatibility_check=is_new)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=SECONDS)
    connection.execute("PRAGMA synchronous = NORMAL")  # a lost power may cost the last trials, but no order in the file
    return connection


def _prepare(path: Path) -> bool:
    """Make an SQLite file that writers and readers may use at once; gives whether it is a new one.

    Raises where it is no file, is locked, or is another program's.
    """
    files.check_regular(path)
    with closing(_connect(path)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if tables and "studies" not in tables:
            raise ValueError("it is a database of another program's")
        with suppress(sqlite3.OperationalError):  # where the file system does not share memory
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")  # raises where it is locked, or cannot be written
        connection.rollback()
    return not tables


def _study_id(storage: RDBStorage, name: str, mode: str) -> int:
    """Find a study, made where it is missing."""
    from optuna.exceptions import DuplicatedStudyError
    from optuna.study import StudyDirection

    direction = StudyDirection.MINIMIZE if mode == "min" else StudyDirection.MAXIMIZE
    with suppress(KeyError):
        return storage.get_study_id_from_name(name)
    with suppress(DuplicatedStudyError):  # made by somebody else since
        return storage.create_new_study([direction], name)
    return storage.get_study_id_from_name(name)


@contextmanager
def _quiet() -> Generator[None]:
    """Within, Optuna writes only errors, whatever the person has asked of it elsewhere."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.ERROR))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def set_aside(path: Path) -> Path:
    """Rename a study's file that is damaged, with what SQLite keeps beside it, and give its new path. Raises OSError."""
    aside = files.set_aside(path)
    for one in database.beside(path):
        if os.path.lexists(one):
            files.set_aside(one)
    return aside


def _first_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _is_damage(cause: BaseException) -> bool:
    """Whether it shows that bytes of the file are others than were written: no such table say, or a text that is none."""
    name = getattr(cause, "sqlite_errorname", None) or ""
    is_unread = isinstance(cause, (json.JSONDecodeError, UnicodeDecodeError)) or "decode to UTF-8" in str(cause)
    return is_unread or name in ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_ERROR")


def _failure(storage: str, name: str, error: Exception) -> str:
    """Say why a database did not take or give a search, and what to do."""
    cause = _first_cause(error)
    text = error_text(cause)
    where = f"The study '{name}' in {shown(storage)}"
    if isinstance(cause, ImportError):
        return (
            f"{where} needs a driver that is not installed ({text}). Install it: pip install thalweg[postgresql], say."
        )
    if "locked" in text:
        return f"{where} is locked by another program. Close that, or give another storage."
    return f"{where} cannot be used: {text}. Check that the database is there and takes what you write, or give another one."
