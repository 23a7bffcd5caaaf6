"""The verbs: functions that take records (task, plan, run) and give a record.

A run may be given as a `Run` or as its folder. Arguments are checked before anything is paid for. The modules that a verb needs
are imported when it is called, so that `import thalweg` costs little beyond `import torch`.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from thalweg.errors import ArgumentError, Interrupted, PlanError, RunError, ThalwegError, error_text, shown
from thalweg.formatting import format_count
from thalweg.records.diagnosis import Diagnosis
from thalweg.records.holdout import Holdout
from thalweg.records.names import verb
from thalweg.records.open_length import Auto, asked_length
from thalweg.records.paths import as_path, typed
from thalweg.records.plan import Plan
from thalweg.records.request import Request
from thalweg.records.run import Run
from thalweg.records.run_folder import PLAN, RunFolder, check_writable
from thalweg.records.task import Task, checked_task
from thalweg.terminal import standard_output, tell_error, warn

CHECK_SHARE = 0.05  # of `seconds=`, for each part of the checks before training

if TYPE_CHECKING:
    from thalweg.descent.callbacks import Callbacks, OnStep, OnValidation
    from thalweg.descent.problem import Problem
    from thalweg.descent.recorder import Progress
    from thalweg.landscape.processes import Processes
    from thalweg.records.comparison import Comparison
    from thalweg.records.escape import Escape
    from thalweg.records.forecast import Forecast
    from thalweg.records.survey import Survey
    from thalweg.tuning.search import SearchPlace
    from thalweg.tuning.tune import Chosen

Say = Callable[[str], None]
Prepared = TypeVar("Prepared")


@verb
def fit(
    task: Task,
    *,
    epochs: float | Auto | None = None,
    steps: int | Auto | None = None,
    seconds: float | None = None,
    pays: float | None = None,
    most: float | None = None,
    effort: str | float = "standard",
    seed: int = 0,
    fixed: Mapping[str, Any] | None = None,
    device: str = "auto",
    memory: int | str | None = None,
    out: str | os.PathLike[str] | None = None,
    storage: str | os.PathLike[str] | None = None,
    study: str | None = None,
    survey: bool = True,
    progress: bool | Progress | None = None,
    say: Say | None = None,
    on_step: OnStep | None = None,
    on_validation: OnValidation | None = None,
) -> Run:
    """Do everything: check the task, choose a plan, train with the watch on, survey where it ended, and report.

    Arguments:
        task: what to descend.
        epochs, steps, seconds: the budget, one of them; `seconds` includes the search, but not the steps (half of the run's at
            most) that are taken once more where the watch has the run begin again. epochs="auto" (or steps="auto", the same for
            data whose epochs have no known length) goes on until it no longer pays; `seconds` beside it is then the most that all
            of it may take.
        pays: with "auto", the share of the criterion that twice the steps must be projected to gain; None: 0.05.
        most: with "auto", the epochs (with steps="auto" the steps) of the run at most; None: 100 epochs, or 20,000 steps where
            these are more or epochs have no known length; no limit beside that of `seconds` where those are given.
        effort: the price of it all in full trainings: 1 (no search), "quick" 2, "standard" 4, "thorough" 12, or a number. Where
            trainings are short, a name buys 10, 30 or 120 seconds of search instead.
        seed: of everything random.
        fixed: knobs you have decided, such as {"batch_size": 64}.
        device: "auto", "cpu", "cuda", …
        memory: that the process (an accelerator's allocator) may use in all, in bytes or as "4 GB"; None: 80 % of what is free.
            Batches that need more go in parts.
        out: the run's folder; None keeps the run in memory.
        storage: where the search's trials are kept, by Optuna: a URL such as "postgresql://host/name", or the path of an SQLite
            file; None: `study.sqlite` in the run's folder, in memory where there is none.
        study: the study's name in the storage; None: one by the task's name and what is asked for.
        survey: whether to look briefly at where the descent ended, in 6 % of the training's time: `run.survey`. The run is the
            same with it and without, also where it fails, which is said, or is interrupted.
        progress: None shows a line that updates where there is a terminal or a notebook, and nothing elsewhere; False shows
            nothing; True shows lines of text where there is neither; or a display of your own, see `descent/recorder.py`.
        say: called with a sentence about each stage; None: the sentences are shown where the progress is.
        on_step: `on_step(model, figures)`, called after every step of the training (not of the search); `figures.step`,
            `.loss`, `.learning_rate`, `.gradient_norm` and more, see `StepFigures`. Return values are ignored.
        on_validation: `on_validation(model, step, figures)`, called after every validation, the first before any step; `figures`
            are {"loss": …, metric: …}.

    A callback gets the model as it is trained and changes no bit of the run unless it changes weights or buffers. An error in it
    ends the run after saving, with a CallbackError whose `__cause__` it is. One that raises KeyboardInterrupt stops the run.

    Raises TaskError, DataError, PlanError, ArgumentError before the first step; RunError where `out` cannot be used; StudyError
    where the storage cannot be reached, is locked, or its study is of another search; DivergedError where training diverges and
    no cure helps; `Interrupted`, a KeyboardInterrupt, where Ctrl-C or SIGTERM stopped it. The errors' `run` is what was trained
    until then, if anything. `resume` continues a stopped search or training to the same bits.
    """
    asked: dict[str, Any] = asked_length(epochs, steps, seconds, pays, most)
    asked |= {"storage": _storage(storage), "study": study}
    request = Request(**asked, effort=effort, seed=seed, fixed=fixed or {}, device=device, memory=memory)
    request.check_budget()
    folder = None if out is None else RunFolder.at(out)
    show = _Shown(progress, say, on_step, on_validation)
    return _fit(checked_task(task), request, folder, show, survey)


class _Shown:
    """What a verb tells while it works: the arguments `progress`, `say`, `on_step` and `on_validation`, checked."""

    def __init__(
        self,
        progress: bool | Progress | None,
        say: Say | None = None,
        on_step: OnStep | None = None,
        on_validation: OnValidation | None = None,
    ) -> None:
        from thalweg.descent.callbacks import Callbacks
        from thalweg.see.display import choose_display

        if say is not None and not callable(say):
            raise ArgumentError(
                f"`say` is {shown(say, 80)}, which cannot be called. Give a function such as print, or None."
            )
        self.display = choose_display(progress)
        self.callbacks: Callbacks = Callbacks(on_step, on_validation)
        self._say = say

    def say(self, text: str) -> None:
        """Tell a stage of the work. A function or display that fails is not used again: to tell must not end the work."""
        try:
            if self._say is not None:
                self._say(text)
            elif self.display is not None:
                self.display.event(0, "stage", text)
        except Exception as error:
            what = "The display" if self._say is None else "`say`"
            tell_error(f"{what} failed and is not used any more: {type(error).__name__}: {error}.")
            if self._say is None:
                self.display = None
            self._say = None

    def say_findings(self, problem: Problem, found: Sequence[Diagnosis]) -> None:
        """Tell what was found before training, and what is to be known about model and data."""
        for diagnosis in found:
            self.say(f"{diagnosis.severity}: {diagnosis}")
        for note in problem.notes:
            self.say(note)


def _fit(task: Task, request: Request, folder: RunFolder | None, show: _Shown, survey: bool) -> Run:
    from thalweg.descent.pretraining import SECONDS, check_task, findings_on_opening
    from thalweg.descent.process_state import interruptible, without_inference_mode
    from thalweg.descent.recorder import how_to_resume
    from thalweg.descent.train import train_in, train_plan
    from thalweg.tuning.search import SearchPlace

    limit = min(SECONDS, CHECK_SHARE * (request.seconds or math.inf))
    with interruptible(), without_inference_mode(), nullcontext() if folder is None else folder.locked():
        if folder is not None:
            folder.record_request(request, task.source)
        place = None if folder is None else SearchPlace(folder.study_path, folder.candidates_path)
        how = folder and how_to_resume(folder.path, task.source)
        with _telling_how_to_go_on(request, how and f"go on with: {how}"):
            check = lambda problem: (  # noqa: E731
                check_task(problem, request.seed, seconds=limit)
                if request.plan is None
                else findings_on_opening(problem)
            )
            problem, chosen, found = _choose(task, request, place, show, check)
        with _reporting():
            if folder is None:
                run = train_plan(problem, chosen.plan, None, show.display, found, show.callbacks, chosen.begun)
            else:
                run = train_in(folder, problem, chosen.plan, show.display, found, show.callbacks, chosen.begun)
            return _reported(_surveyed(run, problem, show) if survey else run)


def _surveyed(run: Run, problem: Problem, show: _Shown) -> Run:
    """Give the run with a brief survey of where it ended. What goes wrong is said; raises Interrupted, with the run."""
    from thalweg.descent.brief_survey import brief_survey

    if run.trained is None:  # it had finished before
        return run
    closer = f"thalweg survey {typed(run.folder)}" if run.folder is not None else "thalweg.survey(run)"
    try:
        found = brief_survey(run, problem)
        if found is None:
            show.say(f"The training was too short for a survey of where it ended in its time: `{closer}` makes one.")
            return run
        if run.folder is not None:
            RunFolder(run.folder).write_survey(found)
    except KeyboardInterrupt as stopped:
        message = f"Interrupted after the training, which is finished and kept: only the survey is missing. `{closer}` makes it."
        raise Interrupted(message, signal=_signal(stopped), run=run) from stopped
    except Exception as error:
        show.say(f"There is no survey of where the descent ended: {error_text(error)}")
        return run
    show.say(f"Where it ended: {found.kind or 'not known'}. {found.reason} `{closer}` looks closer.")
    return replace(run, surveyed=found)


def _choose(
    task: Task,
    request: Request,
    place: SearchPlace | None,
    show: _Shown,
    check: Callable[[Problem], list[Diagnosis]] | None = None,
) -> tuple[Problem, Chosen, list[Diagnosis]]:
    """Open and check the task, and choose the plan; what is known of the search from before is not found again."""
    from thalweg.tuning.search import searching
    from thalweg.tuning.tune import Begun, complete_plan, estimate_cost, start_plan

    started = time.perf_counter()
    problem = _open(task, request.device, request.to_hold_out)
    with searching(problem, request, place, show.say) as search:
        begun = Begun.read(search.record)
        found = begun.found if begun is not None else [] if check is None else check(problem)
        if check is not None:
            show.say_findings(problem, found)
        if begun is None:
            left = request.with_seconds_spent(time.perf_counter() - started)  # opening and checking is part of it
            start = start_plan(problem, left, show.say)
            begun = Begun(start, estimate_cost(problem, left, start), found)
            search.begin(begun.to_dict())
        else:
            show.say(f"The search goes on: {format_count(search.known, 'score')} of its candidates kept.")
        show.say(str(begun.cost))
        if search.sharing is not None and search.study is not None:
            show.say(f"Other processes and machines take part with: thalweg tune TASK --join {search.study.address}")
        anew, price, most = (
            not show.callbacks.is_empty,
            begun.cost.trainings,
            begun.cost.most,
        )  # callbacks see every step
        chosen = complete_plan(
            problem, request, begun.start, price, show.say, anew=anew, search=search, most=most, progress=show.display
        )
    return problem, chosen, found


@contextmanager
def _telling_how_to_go_on(request: Request, how: str | None) -> Generator[None]:
    """Say of an interruption within what is kept, and how to go on; `how` is None where nothing is."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        searches = request.trainings > 1 or request.open is not None
        stage = "while the plan was searched" if searches else "while the plan was made"
        hint = " --effort 1 (effort=1) leaves the search out." if how is None and request.trainings > 1 else ""
        kept = "what was found is kept" if searches else "nothing is trained yet"
        told = f"{kept}; {how}" if how else f"nothing is trained yet; start again{'.' if hint else ''}{hint}"
        raise Interrupted(f"Interrupted {stage}: {told}", signal=_signal(stopped)) from stopped


def _storage(storage: str | os.PathLike[str] | None) -> str | None:
    return os.fspath(storage) if isinstance(storage, os.PathLike) else storage


def _signal(stopped: KeyboardInterrupt) -> int:
    return stopped.signal if isinstance(stopped, Interrupted) else Interrupted().signal


@contextmanager
def _reporting() -> Generator[None]:
    """Write the report of a run in a folder that fails or is stopped within: then it is needed most."""
    try:
        yield
    except (ThalwegError, Interrupted) as error:
        with suppress(RunError):
            if isinstance(error.run, Run):
                _reported(error.run)
        raise


def _reported(run: Run) -> Run:
    """Give the run, with its report written where it has a folder. Raises RunError, with the run, where that fails.

    That a finished run, which was only opened, lies where nothing can be written is said, and no error.
    """
    if run.folder is not None:
        try:
            report(run)
        except RunError as error:
            if run.trained is None:
                tell_error(str(error))
                return run
            error.run = run
            raise
    return run


@verb
def estimate(
    task: Task,
    *,
    epochs: float | Auto | None = None,
    steps: int | Auto | None = None,
    seconds: float | None = None,
    pays: float | None = None,
    most: float | None = None,
    effort: str | float = "standard",
    seed: int = 0,
    fixed: Mapping[str, Any] | None = None,
    device: str = "auto",
    memory: int | str | None = None,
) -> str:
    """Say in a sentence what `fit` with the same arguments would cost; a few steps are timed, nothing is written.

    The knobs of speed that `fit` tries, such as the memory format, may make it less.

    Arguments and errors as for `fit`.
    """
    from thalweg.tuning.tune import estimate_cost, start_plan

    length = asked_length(epochs, steps, seconds, pays, most)
    request = Request(**length, effort=effort, seed=seed, fixed=fixed or {}, device=device, memory=memory)
    request.check_budget()
    problem = _open(task, request.device, request.to_hold_out)
    return str(estimate_cost(problem, request, start_plan(problem, request, for_estimate=True)))


@verb
def tune(
    task: Task,
    *,
    epochs: float | Auto | None = None,
    steps: int | Auto | None = None,
    seconds: float | None = None,
    pays: float | None = None,
    most: float | None = None,
    effort: str | float = "standard",
    seed: int = 0,
    fixed: Mapping[str, Any] | None = None,
    device: str = "auto",
    memory: int | str | None = None,
    out: str | os.PathLike[str] | None = None,
    storage: str | os.PathLike[str] | None = None,
    study: str | None = None,
    join: str | None = None,
    progress: bool | Progress | None = None,
    say: Say | None = None,
) -> Plan:
    """Choose a plan, each knob with its evidence; `out` is a TOML file to write it to, or a folder for plan.toml.

    Beside the plan's file the search is kept, in `plan.study.sqlite` and, until it is over, `plan.candidates`: the same call goes
    on with one that was stopped.

    `join`, "STORAGE/STUDY", takes part in a search that another process has begun with `storage=`, on this machine or another:
    they divide the candidates among them and come to the same plan. What is asked for is then the study's: budget, effort, seed
    and fixed knobs are not given.

    Arguments and errors as for `fit`; RunError where `out` is a run's plan or cannot be written.
    """
    from thalweg.descent.process_state import interruptible, without_inference_mode
    from thalweg.tuning.search import joined_request, kept_beside

    asked: dict[str, Any] = asked_length(epochs, steps, seconds, pays, most)
    asked |= {"storage": _storage(storage), "study": study}
    request = Request(**asked, effort=effort, seed=seed, fixed=fixed or {}, device=device, memory=memory)
    if join is not None:
        asked_else = fixed or effort != "standard" or seed or memory is not None
        if {epochs, steps, seconds, storage, study} != {None} or asked_else:
            raise ArgumentError("Whoever joins a search takes what is asked for from its study. Give `join` alone.")
        request = joined_request(join, checked_task(task).mode, device)
    request.check_budget()
    show = _Shown(progress, say)
    path = None if out is None else _plan_file(out)
    how = None if path is None and request.storage is None else "the same call goes on"
    with interruptible(), without_inference_mode(), _telling_how_to_go_on(request, how), kept_beside(path) as place:
        plan = _choose(checked_task(task), request, place, show)[1].plan
        if path is not None:
            plan.save(path)
    return plan


def _plan_file(out: str | os.PathLike[str]) -> Path:
    """Give the file to write a plan to. Raises RunError where it is a run's own, or cannot be written."""
    path = as_path(out, "the file of a plan", "plan.toml", RunError)
    if path.suffix != ".toml":
        path = path / PLAN
    if path.name == PLAN and RunFolder(path.parent).holds_run:
        raise RunError(f"{path} is the plan of the run in {path.parent}. Write the new plan to another file.")
    if os.path.lexists(path):
        try:
            Plan.load(path)
        except PlanError as error:
            raise RunError(f"{path} is there already and no plan: it is not overwritten. Give another file.") from error
    check_writable(path.parent)
    return path


@verb
def train(
    task: Task,
    plan: Plan,
    *,
    epochs: float | Auto | None = None,
    steps: int | Auto | None = None,
    seconds: float | None = None,
    pays: float | None = None,
    most: float | None = None,
    seed: int | None = None,
    device: str = "auto",
    out: str | os.PathLike[str] | None = None,
    survey: bool = False,
    progress: bool | Progress | None = None,
    say: Say | None = None,
    on_step: OnStep | None = None,
    on_validation: OnValidation | None = None,
) -> Run:
    """Train a plan; a budget or seed given here is written into the run's plan. With `out`, a report is written there.

    `survey` looks briefly at where the descent ended, as `fit` does.

    On an existing `out` the same request is resumed where it is unfinished, and opened where it is finished. One with another
    plan, data, model, loss, metrics or criterion is refused, with what differs. Arguments and errors as for `fit`.
    """
    from thalweg.descent.pretraining import findings_on_opening
    from thalweg.descent.settle import settle
    from thalweg.descent.train import train_plan

    if not isinstance(plan, Plan):
        raise PlanError(f"`plan` is a {type(plan).__name__}. Give a thalweg.Plan, such as Plan.load('plan.toml').")
    if seed is not None:
        plan = plan.replace(seed=seed)
    length = asked_length(epochs, steps, seconds, pays, most)
    is_open = "open" in length
    request = Request(**length, effort=1, seed=plan.seed, device=device, plan=plan if is_open else None)
    if plan.steps is None:
        request.check_budget()
    show = _Shown(progress, say, on_step, on_validation)
    task, folder = checked_task(task), None if out is None else RunFolder.at(out)
    if is_open and (folder is None or not folder.holds_run):
        return _fit(task, request, folder, show, survey)
    if is_open and folder is not None:
        plan, request = folder.with_found_length(plan), replace(request, open=None, seconds=None, plan=None)
    if folder is not None and not folder.holds_run:
        folder.check_usable()

    def prepare() -> tuple[Problem, Plan, list[Diagnosis]]:
        problem = _open(task, request.device, plan.to_hold_out)
        found = [] if folder is not None and folder.holds_run else findings_on_opening(problem)
        if folder is None or not folder.holds_run:
            show.say_findings(problem, found)
        return problem, settle(problem, plan, request), found

    def train_prepared(prepared: tuple[Problem, Plan, list[Diagnosis]]) -> Run:
        problem, plan, found = prepared
        run = train_plan(problem, plan, folder and folder.path, show.display, found, show.callbacks)
        return _surveyed(run, problem, show) if survey else run

    return _train(prepare, train_prepared)


def _train(prepare: Callable[[], Prepared], train: Callable[[Prepared], Run]) -> Run:
    """Train what `prepare` gives, and write the report of a run in a folder."""
    from thalweg.descent.process_state import interruptible, without_inference_mode

    with interruptible(), without_inference_mode():
        try:
            prepared = prepare()
        except KeyboardInterrupt as stopped:
            message = "Interrupted before the first step: nothing has changed."
            raise Interrupted(message, signal=_signal(stopped)) from stopped
        with _reporting():
            return _reported(train(prepared))


@verb
def resume(
    run: Run | str | os.PathLike[str],
    task: Task | None = None,
    *,
    changes: Mapping[str, Any] | None = None,
    device: str = "auto",
    trust: bool = False,
    survey: bool | None = None,
    progress: bool | Progress | None = None,
    say: Say | None = None,
    on_step: OnStep | None = None,
    on_validation: OnValidation | None = None,
) -> Run:
    """Continue a run where it stopped, to the same bits as if it had not; a `fit` that was stopped in its search begins anew.

    The data must be those that the run began with. A task whose criterion, loss, metrics, model or other code were edited is gone
    on by, from here on, with an event and a warning; what was best so far is then measured anew.

    Arguments:
        run: the run, or its folder.
        task: what to descend; None makes it again from the file and arguments that the run recorded. A task that was passed as
            an object must be passed again.
        changes: knobs of the plan to change from here on, such as {"learning_rate": 1e-4}, or {"steps": 2000} to train a finished
            run for longer. It becomes another run, which an event says. What the run has done so far depends on the other
            knobs, which are refused: rule, seed, batch size and order, groups, average.
        trust: make the task of a run that you did not make on this machine too, which runs the file or module that its folder
            names, and write to the storage that its search names. From then on the run is yours.
        survey: as for `fit`; None: only of a `fit` whose plan is still searched for.
        device, progress, say, on_step, on_validation: as for `fit`.

    Raises RunError where the folder holds no run, or does not record how its task is made, or is not yours, where the data are
    others, and where a finished run was one of another task; PlanError where the plan's file was edited, or a knob cannot be
    changed; else as `fit` does.
    """
    from thalweg.descent.train import resume_run

    folder = _folder_of(run)
    show = _Shown(progress, say, on_step, on_validation)
    if isinstance(run, Run):
        task, trust = task if task is not None else run.task, trust or run.trust
    task = None if task is None else checked_task(task)
    if folder.holds_request:
        if changes:
            Plan().with_knobs(changes)  # raises for what is no knob
            raise PlanError(
                f"The plan of {folder.path} is not chosen yet, so nothing of it can be changed. Resume it without a change, or"
                f" fit in another folder with fixed={shown(dict(changes))} (--fix)."
            )
        request = folder.read_request(trust=trust)
        request = request if device == "auto" else replace(request, device=device)
        return _fit(task or folder.read_task(trust=trust), request, folder, show, survey is not False)
    folder.check_holds_run()
    plan = folder.read_plan()
    if changes:
        plan.changed(changes)  # raises before anything is opened

    def prepare() -> tuple[Problem, Task | None]:
        made = task or folder.read_task(trust=trust)
        return _open(made, device, plan.to_hold_out), made if trust and task is None else None

    def resume_prepared(prepared: tuple[Problem, Task | None]) -> Run:
        problem, adopted = prepared
        run = resume_run(folder, problem, changes, show.display, show.callbacks, adopted)
        return _surveyed(run, problem, show) if survey else run

    return _train(prepare, resume_prepared)


def _folder_of(run: Run | str | os.PathLike[str]) -> RunFolder:
    """Give a run's folder. Raises RunError for a run in memory."""
    if not isinstance(run, Run):
        return RunFolder.at(run)
    if run.folder is None:
        raise RunError("This run is in memory and has no folder to continue from. Give `out` when you train.")
    return RunFolder(run.folder)


def _opened(run: Run | str | os.PathLike[str], task: Task | None = None, trust: bool = False) -> Run:
    return run if isinstance(run, Run) else Run.open(run, task, trust=trust)


def _open(task: Task, device: str, to_hold_out: Holdout) -> Problem:
    from thalweg.descent.problem import open_task

    return open_task(checked_task(task), device, to_hold_out)


@verb
def check(task: Task, *, device: str = "auto", seed: int = 0, say: Say | None = None) -> list[Diagnosis]:
    """Check the task before training, in seconds. Gives the faults found, gravest first; none is an empty list.

    Loss at the start against the constant predictor, a gradient for every parameter, outputs that depend on inputs, one batch
    that can be fitted, the scale of the data, the output layer.

    Arguments:
        task: what to check; nothing of it is changed.
        device, seed: as for `fit`.
        say: called with a sentence about what is no fault but good to know of model and data: what is cast, values missing that
            the loss takes, another output in evaluation mode.

    Raises TaskError or DataError for what cannot be trained at all.
    """
    from thalweg.descent.pretraining import check_task

    request, show = Request(seed=seed, device=device), _Shown(False, say)
    # All examples are looked at, but where there are metrics, which only held-out ones are measured on.
    to_hold_out = Holdout(None if checked_task(task).metrics else 0.0, seed=request.seed)
    problem = _open(task, request.device, to_hold_out)
    show.say_findings(problem, [])
    return check_task(problem, request.seed)


@verb
def evaluate(
    what: Task | Run | str | os.PathLike[str],
    data: Any = None,
    *,
    task: Task | None = None,
    device: str = "auto",
    trust: bool = False,
) -> dict[str, float]:
    """Give {"loss": …, metric: …} on a test set, measured as validation does: in evaluation mode, over all of the data.

    Arguments:
        what: a run or its folder, whose trained model is measured; or a task, whose model is measured as it is at the start.
        data: as the task's `validation` takes them, with targets; None: the task's `validation`. `task.data` gives the figures
            on the training data.
        task: the task of a run that was opened from a folder which does not say how to make it.
        device: "auto" is where the run's model is.
        trust: as for `resume`, of a folder.

    Raises TaskError or DataError where the data do not fit, RunError where the run has no model, its task is not known, or it is
    not yours.
    """
    from thalweg.descent.prediction import evaluate

    if isinstance(what, Task):
        return evaluate(what, data, device)
    return evaluate(_with_task(what, task, trust), data, device)


@verb
def diagnose(run: Run | str | os.PathLike[str]) -> list[Diagnosis]:
    """Give what went wrong in a run, finished or not: what was found before and during it, and what its history shows.

    Of another program's steps it gives what the figures show: a CSV file (also with tabs or semicolons), JSON lines, or
    TensorBoard's event file, or the folder of one training's, with a column or tag of the training loss; the step, the learning
    rate, the gradient norm and the validation loss are used where they are there, under their usual names. What more would help
    is in each diagnosis's `not_measured`. Where figures of a folder are damaged or lost it warns, and goes by the others.

    Arguments:
        run: the run, its folder, or the file or folder of another program.

    Raises RunError where the path is neither, or its files are damaged; it names the line and column, or the byte.
    """
    from thalweg.watch.findings import diagnose_run
    from thalweg.watch.foreign import diagnose_history, is_foreign, read_history

    if not isinstance(run, Run) and is_foreign(path := as_path(run, "a run's folder", "runs/mine", RunError)):
        return diagnose_history(read_history(path))
    opened = _opened(run)
    for text in [] if opened is run else opened.left_out:
        warn(text, stacklevel=3)
    return diagnose_run(opened)


@verb
def forecast(
    run: Run | str | os.PathLike[str],
    task: Task | None = None,
    *,
    device: str = "auto",
    trust: bool = False,
) -> Forecast:
    """Say what a run is worth now, were its rate to fall to zero from here on, and what its loss will be at the planned end.

    A copy of the newest checkpoint is trained on for a twentieth of the run, while its rate falls to zero. The run itself is only
    read: it may be under way elsewhere, interrupted, or finished; of a finished one the figures are known.

    Arguments:
        run: the run, or its folder.
        task: as for `resume`, of which the run is one.
        device, trust: as for `resume`.

    Gives a `Forecast`, whose text says it in a sentence. Its errors are standard errors: how often what came lay within them is
    measured on runs of other tasks (`bench/README.md`).

    Raises RunError where the run is in memory or diverged, or has no checkpoint yet, where the data are others than the run's,
    or it is not yours; CheckpointError where no checkpoint is intact; DivergedError where the copy diverges; `Interrupted` at a
    Ctrl-C.
    """
    from thalweg.descent.forecast import ended, forecast_run
    from thalweg.descent.process_state import interruptible, without_inference_mode

    if not isinstance(run, Run):
        folder = RunFolder.at(run)
        if folder.holds_request:
            raise RunError(f"The plan of {folder.path} is still searched for: there is no run yet to forecast.")
    opened = _opened(run, task, trust)
    status = opened.summary.get("status")
    if status == "finished":
        return ended(opened)
    if status == "diverged":
        raise RunError("The run diverged, and no cure helped: there is nothing to forecast. See `thalweg diagnose`.")
    if opened.folder is None:
        raise RunError("This run is in memory and has no checkpoint to cool down from. Give `out` when you train.")
    folder = RunFolder(opened.folder)
    made = opened.find_task() if task is None else checked_task(task)
    with interruptible(), without_inference_mode():
        return forecast_run(opened, folder, _open(made, device, opened.plan.to_hold_out))


@verb
def survey(
    run: Run | str | os.PathLike[str],
    task: Task | None = None,
    *,
    examples: int = 2048,
    slices: bool = True,
    seed: int = 0,
    device: str = "auto",
    trust: bool = False,
    parallel: bool = False,
    progress: bool | None = None,
    say: Say | None = None,
) -> Survey:
    """Say where a run's descent ended on the loss surface: what kind of place, how curved, and how it looks around it.

    The training loss is looked at, without weight decay, in evaluation mode, at the weights of `run.model`. A run in a folder
    gets the survey as `survey.json`, and its report a section with it.

    Arguments:
        run: the run, or its folder.
        task: as for `resume`, of which the run is one.
        examples: of the training data that are looked at, where there are more.
        slices: whether losses are measured along lines and over a plane too.
        seed: of the sample and of random directions.
        device, trust: as for `resume`.
        parallel: whether all processes of `torch.distributed`'s default group have called this with the same arguments, and share
            the examples. All get the survey, and the first one writes it.
        progress: whether to show how much of each stage is done and how long the rest takes at most; None: where the standard
            output is a terminal.
        say: called with a sentence about each stage; None: told beside the progress, where that is shown.

    Raises RunError where the run has no model, its loss is not finite, or it is not yours; TaskError where the loss differs
    between two calls; ArgumentError for a number of examples that is none, or `parallel` without a process group; `Interrupted`
    at a Ctrl-C: what was measured until then is in the run's folder, and `survey` of the error.
    """
    from thalweg.descent.process_state import interruptible, without_inference_mode
    from thalweg.descent.survey import survey_run
    from thalweg.see.survey_progress import SurveyProgress

    _check_whole("examples", examples)
    processes = _processes() if parallel else None
    opened = _with_task(run, task, trust)
    is_first = processes is None or processes.rank == 0
    shown_progress = SurveyProgress() if progress or (progress is None and standard_output().isatty()) else None
    shown_progress = shown_progress if is_first else None
    show = _Shown(False, shown_progress.say if say is None and shown_progress is not None else say)
    folder = RunFolder(opened.folder) if opened.folder is not None and is_first else None
    with interruptible(), without_inference_mode():
        problem = _open(opened.find_task(), device, opened.plan.to_hold_out)
        try:
            found = survey_run(
                opened, problem, examples=examples, slices=slices, seed=seed, say=show.say, processes=processes,
                count=(lambda stage, done, most: None) if shown_progress is None else shown_progress,
                keep=(lambda found: None) if folder is None else folder.write_survey,
            )  # fmt: skip
        except Interrupted as stopped:
            if folder is not None and stopped.survey is not None and stopped.survey.kind:
                folder.write_survey(stopped.survey)
            raise
        finally:
            if shown_progress is not None:
                shown_progress.clear()
    if folder is not None:
        folder.write_survey(found)
        _reported(opened)
    return found


def _processes() -> Processes:
    """Give the processes of the default group. Raises ArgumentError where there is none."""
    import torch.distributed as dist

    from thalweg.landscape.processes import Processes

    if not (dist.is_available() and dist.is_initialized()):
        raise ArgumentError(
            "`parallel` is for processes that torch.distributed has joined, and it has not: call"
            " torch.distributed.init_process_group() in each first, or leave `parallel` out."
        )
    return Processes()


@verb
def compare(
    runs: Sequence[Run | str | os.PathLike[str]],
    task: Task | None = None,
    *,
    examples: int = 2048,
    curves: bool = True,
    seed: int = 0,
    device: str = "auto",
    trust: bool = False,
    say: Say | None = None,
) -> Comparison:
    """Put several runs of one model on one loss surface: how flat each one's end is, how two ends are connected, and the paths
    of all in one plane.

    Between two ends the straight way is followed; where it has a barrier, once more with the hidden units of the second in
    the order that is nearest to the first's; where that has one too, along a curve that is trained to be low.

    The surface is that of the first run's task. Nothing of the runs is changed, and nothing written.

    Arguments:
        runs: two or more runs, or their folders.
        task: as for `resume`; None: the first run's.
        curves: whether curves are trained, of 200 gradients each, which is most of the work.
        examples, seed, device, trust, say: as for `survey`.

    Raises RunError where the models have other weights, or differ in what is not trained, or as `survey` does; ArgumentError for
    fewer than two runs; `Interrupted` at a Ctrl-C: what was measured until then is `comparison` of the error.
    """
    from thalweg.descent.comparison import compare_runs
    from thalweg.descent.process_state import interruptible, without_inference_mode

    if isinstance(runs, Run | str | os.PathLike) or len(runs) < 2:
        raise ArgumentError("`runs` are two or more: thalweg.compare(['runs/a', 'runs/b']).")
    _check_whole("examples", examples)
    opened = [_with_task(run, task, trust) for run in runs]
    show = _Shown(False, say)
    with interruptible(), without_inference_mode():
        problem = _open(opened[0].find_task(), device, opened[0].plan.to_hold_out)
        return compare_runs(opened, problem, examples=examples, curves=curves, seed=seed, say=show.say)


@verb
def escape(
    run: Run | str | os.PathLike[str],
    task: Task | None = None,
    *,
    steps: int | None = None,
    examples: int = 2048,
    seed: int = 0,
    device: str = "auto",
    trust: bool = False,
    out: str | os.PathLike[str] | None = None,
    say: Say | None = None,
) -> Escape:
    """Try to leave the place where a run ended for a better one: along negative curvature where the loss falls along it, and, but
    from a saddle point, by noise at three higher temperatures, as of a higher learning rate, or of smaller batches where they
    held all examples.

    Each way takes some steps from the run's weights, at a constant rate that then falls to zero, and is compared with as many
    steps at the run's last rates. The best way counts only if it ends better with each of three orders of the batches. Nothing of
    the run is changed.

    Arguments:
        run: the run, or its folder.
        task: as for `resume`, of which the run is one.
        steps: of each attempt; None: a tenth of the run's, at least 20. Four to eight attempts are made.
        examples: of the training data by which the kind of place and losses are measured, where there are more.
        seed: of the sample and of the attempts.
        device, trust: as for `resume`.
        out: a folder in which each attempt is kept as a run, so that what was interrupted goes on; None: in memory.
        say: called with a sentence about each stage; None: not told.

    Raises RunError where the run has no model, its loss is not finite, or it is not yours, and where `out` cannot be written or
    holds attempts of another request; TaskError where the loss differs between two calls; ArgumentError for a number of steps or
    examples that is none; `Interrupted` at a Ctrl-C.
    """
    from thalweg.descent.escape import escape_run
    from thalweg.descent.process_state import interruptible, without_inference_mode

    _check_whole("examples", examples)
    if steps is not None:
        _check_whole("steps", steps)
    folder = None if out is None else as_path(out, "the folder of the attempts", "runs/escape", RunError)
    opened = _with_task(run, task, trust)
    show = _Shown(False, say)
    with interruptible(), without_inference_mode():
        problem = _open(opened.find_task(), device, opened.plan.to_hold_out)
        return escape_run(opened, problem, steps=steps, examples=examples, seed=seed, out=folder, say=show.say)


def _check_whole(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArgumentError(f"`{name}` is {shown(value, 80)}, but it is a whole number, at least 1.")


def _with_task(run: Run | str | os.PathLike[str], task: Task | None, trust: bool) -> Run:
    """Open a run, with the task that was given and the trust, where they were."""
    opened = _opened(run, task, trust)
    if task is None and not trust:
        return opened
    return replace(opened, task=opened.task if task is None else checked_task(task), trust=trust or opened.trust)


@verb
def report(run: Run | str | os.PathLike[str], path: str | os.PathLike[str] | None = None) -> Path:
    """Write the run's report, one self-contained HTML file, and give its path.

    Arguments:
        run: the run, or its folder.
        path: the file to write; None: report.html in the run's folder.

    Raises RunError where the file cannot be written or is no HTML, or the folder holds no run.
    """
    from thalweg.see.report import write_report

    target = None if path is None else as_path(path, "the file of a report", "report.html", RunError)
    return write_report(_opened(run), target)
