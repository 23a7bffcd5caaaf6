"""The command: parse, call one verb, print.

Exit statuses: see `STATUSES`.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, cast

from thalweg.errors import DivergedError, PlanError, RunError, TaskError, ThalwegError, nearest
from thalweg.records.diagnosis import Diagnosis
from thalweg.records.run import Run
from thalweg.records.task import Source, Task, find_task, parse_source

STATUSES: Mapping[str, int] = {
    "well": 0,  # done; `check` and `diagnose`: nothing found
    "failed": 1,  # something nobody foresaw, with a traceback
    "bad input": 2,  # a ThalwegError: what, where, what to do
    "diverged": 3,  # the descent could not be saved
    "warning": 10,  # `check` and `diagnose`: the gravest finding
    "critical": 11,
    "interrupted": 130,  # Ctrl-C; what was done is saved
}

BUDGETS = ("epochs", "steps", "seconds")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and give its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = build_parser()
    options, rest = parser.parse_known_args(words)
    if not hasattr(options, "verb"):
        parser.print_help()
        return STATUSES["well"]
    try:
        if rest and not hasattr(options, "task"):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        return options.verb(options, rest)
    except KeyboardInterrupt as stopped:
        _complain(str(stopped) or "Interrupted.")
        return STATUSES["interrupted"]
    except DivergedError as error:
        _complain(str(error))
        return STATUSES["diverged"]
    except ThalwegError as error:
        _complain(str(error))
        return STATUSES["bad input"]
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader went away, as `head` does
        return STATUSES["well"]
    except OSError as error:
        if error.filename is None:
            raise
        _complain(f"{error.filename}: {error.strerror}. Check the path, its permissions and the space left.")
        return STATUSES["bad input"]


def _complain(text: str) -> None:
    print(f"thalweg: {' '.join(text.split())}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and takes no shortened options: they may be the task's own."""

    def __init__(self, *words: Any, **options: Any) -> None:
        super().__init__(*words, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"argument VERB: invalid choice: '(.*)' \(choose from (.*)\)", message)
        if wrong:
            verbs = re.findall(r"\w+", wrong[2])
            message = f"there is no verb '{wrong[1]}'.{nearest(wrong[1], verbs)} There are {', '.join(verbs)}"
        _complain(f"{message}. See `{self.prog} --help`.")
        raise SystemExit(STATUSES["bad input"])


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    from thalweg import __version__
    from thalweg.records.plan import Plan

    parser = _Parser(
        prog="thalweg", description="Train a PyTorch model by gradient descent, with the knobs chosen on evidence."
    )
    parser.add_argument("--version", action="version", version=f"thalweg {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    fit = _task_verb(verbs, "fit", run_fit, "do everything: check, choose a plan, train, report")
    tune = _task_verb(verbs, "tune", run_tune, "choose a plan and print it")
    train = _task_verb(verbs, "train", run_train, "train a plan")
    check = _task_verb(verbs, "check", run_check, "look a task over before training, in seconds")
    for parser_ in (fit, tune):
        _budget(parser_)
        parser_.add_argument(
            "--effort",
            default="standard",
            help="price in full trainings: 1, quick (2), standard (4), thorough (12), or a number",
        )
        parser_.add_argument(
            "--fix",
            action="append",
            default=[],
            metavar="KNOB=VALUE",
            help="a knob you have decided; may be given often",
        )
    fit.add_argument("--dry-run", action="store_true", help="say what it would cost, and stop")
    _budget(train)
    train.add_argument("--plan", help="a plan.toml; default: stated defaults")
    train.add_argument(
        "--set", action="append", default=[], metavar="KNOB=VALUE", help="change a knob of the plan; may be given often"
    )
    for parser_ in (fit, tune, train):
        parser_.add_argument("--rule", metavar="NAME", help="the update rule, such as adamw, lion, muon, sgd, …")
        parser_.add_argument(
            "--out",
            help="folder of the run (tune: a file.toml); default: runs/NAME"
            if parser_ is not tune
            else "file to write the plan to",
        )
        parser_.add_argument("--quiet", action="store_true", help="no progress")
    for parser_ in (fit, tune, train, check):
        parser_.add_argument("--device", default="auto", help="auto, cpu, cuda, mps, …")
        parser_.add_argument("--seed", type=_whole, default=None, help="of everything random; default 0")
        parser_.set_defaults(own=[word for word in parser_._option_string_actions if word.startswith("--")])
    resume = _verb(verbs, "resume", run_resume, "go on with a run where it stopped")
    resume.add_argument("folder", help="the run's folder")
    resume.add_argument("--device", default="auto")
    resume.add_argument("--quiet", action="store_true", help="no progress")
    diagnose = _verb(verbs, "diagnose", run_diagnose, "say what went wrong in a run")
    diagnose.add_argument("folder", help="the run's folder")
    report = _verb(verbs, "report", run_report, "write a run's report again")
    report.add_argument("folder", help="the run's folder")
    report.add_argument("--out", help="the HTML file; default: report.html in the folder")
    examples = _verb(verbs, "examples", run_examples, "list the built-in examples")
    for parser_ in (diagnose, report, examples):
        parser_.add_argument("--device", default="auto", help="taken as by the other verbs; nothing is computed here")
    for parser_ in (check, diagnose):
        parser_.epilog = (
            f"{parser_.epilog or ''} Exit status: 0 nothing found, 10 a warning, 11 something critical.".strip()
        )
    for parser_ in (fit, tune, train):
        knobs = ", ".join(name for name in Plan.__dataclass_fields__ if name != "evidence")
        parser_.epilog = (
            f"{parser_.epilog or ''} Knobs: {knobs}; constants.beta2, schedule.warmup reach into tables.".strip()
        )
    return parser


def _verb(verbs: Any, name: str, run: Callable[..., int], told: str) -> argparse.ArgumentParser:
    parser = cast(argparse.ArgumentParser, verbs.add_parser(name, help=told, description=told.capitalize() + "."))
    parser.set_defaults(verb=run)
    return parser


def _task_verb(verbs: Any, name: str, run: Callable[..., int], told: str) -> argparse.ArgumentParser:
    parser = _verb(verbs, name, run, told)
    parser.add_argument("task", help="a built-in example (see `thalweg examples`), or path/to/task.py[:name]")
    parser.epilog = (
        "Further options, such as --hidden 64, are passed to the task's function;"
        " --task.steps 64 where an option of this command has the same name."
    )
    return parser


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number") from error


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is no number") from error


def _budget(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--epochs", type=_number, help="passes over the data")
    group.add_argument("--steps", type=_whole, help="update steps")
    group.add_argument("--seconds", type=_number, help="seconds of training, turned into steps at the start")


def open_task(address: str, rest: Sequence[str], own: Sequence[str] = ()) -> Task:
    """Find a task by an example's name or a file's path, with its arguments from the command line.

    `own` are the command's options, of which a mistyped one may be meant.

    Raises TaskError where there is none, or it refuses the arguments.
    """
    from thalweg import examples

    if address in examples.EXAMPLES:
        source = Source(module=f"thalweg.examples.{address}", name="task")
    elif address.endswith(".py") or ".py:" in address or os.sep in address:
        source = parse_source(address)
    else:
        near = (
            f" Did you mean {address}.py?" if Path(f"{address}.py").is_file() else nearest(address, examples.EXAMPLES)
        )
        raise TaskError(
            f"'{address}' is neither an example nor a Python file.{near}"
            f" Examples: {', '.join(examples.EXAMPLES)}; or give path/to/task.py."
        )
    found = find_task(source)
    parameters = {} if isinstance(found, Task) else dict(inspect.signature(found).parameters)
    return Source(source.name, source.file, source.module, read_arguments(rest, parameters, own)).load(found)


def read_arguments(
    words: Sequence[str], parameters: Mapping[str, inspect.Parameter], own: Sequence[str] = ()
) -> dict[str, Any]:
    """Read `--hidden 64 --flag --name=value` for a task's function; values take the type of its defaults.

    Raises TaskError for a word that is no option, or a value of another type.
    """
    arguments: dict[str, Any] = {}
    left = list(words)
    while left:
        word = left.pop(0)
        if not word.startswith("--"):
            raise TaskError(f"'{word}' is no option. Options for the task look like --name VALUE.")
        name, equals, text = word[2:].partition("=")
        name = name.removeprefix("task.").replace("-", "_")
        positive = name.removeprefix("no_")
        if name not in parameters and positive in parameters and isinstance(parameters[positive].default, bool):
            arguments[positive] = False
            continue
        if name not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            takes = (
                f"It takes {', '.join('--' + n for n in parameters)}." if parameters else "It takes none of its own."
            )
            near = nearest(f"--{name.replace('_', '-')}", [*own, *("--" + n for n in parameters)])
            raise TaskError(f"The task has no option --{name}.{near} {takes}")
        if equals:
            arguments[name] = _argument(name, text, parameters.get(name))
        elif left and not left[0].startswith("--"):
            arguments[name] = _argument(name, left.pop(0), parameters.get(name))
        else:
            arguments[name] = _flag(name, parameters.get(name))
    return arguments


def _flag(name: str, parameter: inspect.Parameter | None) -> bool:
    """Read an option without a value: true, unless its default says that it is something else."""
    default = None if parameter is None or parameter.default is parameter.empty else parameter.default
    if default is not None and not isinstance(default, bool):
        raise TaskError(f"--{name} needs a value, such as --{name} {default}.")
    return True


def _argument(name: str, text: str, parameter: inspect.Parameter | None) -> Any:
    """Read one value as the parameter's default, or else its annotation, says it is."""
    default = None if parameter is None or parameter.default is parameter.empty else parameter.default
    if isinstance(default, str) or (parameter is not None and parameter.annotation in (str, "str")):
        return text
    if isinstance(default, Path):
        return Path(text)
    value = _value(text)
    if isinstance(default, bool):
        value = {"yes": True, "no": False, "1": True, "0": False}.get(text.lower(), value)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    for kind, told in ((bool, "true or false"), (int, "a whole number"), (float, "a number")):
        if isinstance(default, kind):
            if value is None or (isinstance(value, kind) and isinstance(value, bool) is (kind is bool)):
                return value
            raise TaskError(f"--{name} is {text!r}, but it is {told}, such as {default}.")
    return value


def _value(text: str) -> Any:
    lowered = text.strip().lower()
    if lowered in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[lowered]
    if lowered in ("inf", "+inf", "-inf", "nan"):
        return float(lowered)
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def read_knobs(pairs: Sequence[str]) -> dict[str, Any]:
    """Read `KNOB=VALUE` pairs; `constants.beta2=0.99`, `schedule.warmup=100` and `groups.*.bias.learning_rate=2` reach into
    tables.

    Raises PlanError for another form.

    >>> read_knobs(["learning-rate=1e-3", "batch_size=all", "constants.beta2=0.99"])
    {'learning_rate': 0.001, 'batch_size': None, 'constants': {'beta2': 0.99}}
    """
    knobs: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        head, _, key = name.strip().partition(".")
        head = head.replace("-", "_")
        if not equals or not head:
            raise PlanError(f"'{pair}' is not of the form KNOB=VALUE, such as learning_rate=1e-3.")
        value: Any = None if head == "batch_size" and text.strip() == "all" else _value(text)
        if key and not isinstance(knobs.get(head, {}), dict):
            raise PlanError(
                f"'{pair}' reaches into '{head}', which another pair has set as a whole. Give it in one way."
            )
        if key and head == "groups":
            pattern, _, setting = key.rpartition(".")
            knobs.setdefault(head, {}).setdefault(pattern, {})[setting] = value
        elif key:
            knobs.setdefault(head, {})[key] = value
        else:
            knobs[head] = value
    return knobs


def _with_rule(options: argparse.Namespace, pairs: Sequence[str]) -> list[str]:
    """Put `--rule NAME` among the knobs."""
    if options.rule is None:
        return list(pairs)
    if any(pair.partition("=")[0].strip() == "rule" for pair in pairs):
        raise PlanError(f"The rule is given twice, by --rule {options.rule} and as a knob. Give it once.")
    return [f"rule={options.rule}", *pairs]


def _budget_of(options: argparse.Namespace, task: Task) -> dict[str, Any]:
    given = {name: getattr(options, name) for name in BUDGETS if getattr(options, name) is not None}
    if given:
        return given
    module = task.source.module if task.source else None
    if module is not None:
        from thalweg import examples

        return {"epochs": examples.info(module.rsplit(".", 1)[-1]).epochs}
    raise PlanError("No budget is given. Say how long to train: --epochs 20, --steps 2000 or --seconds 60.")


def _out(options: argparse.Namespace, task: Task) -> Path:
    """Give the run's folder: the one named, else the first free one of runs/NAME, runs/NAME-2, …"""
    if options.out:
        return Path(options.out)
    base = Path("runs") / (re.sub(r"[^\w.-]+", "-", task.name).strip("-.") or "task")
    number, folder = 1, base
    while folder.exists():
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


def _effort(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def run_fit(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """`thalweg fit`."""
    from thalweg import verbs
    from thalweg.see.live import make_progress
    from thalweg.see.summary import print_summary

    task = open_task(options.task, rest, options.own)
    budget, effort = _budget_of(options, task), _effort(options.effort)
    fixed, seed = read_knobs(_with_rule(options, options.fix)), options.seed or 0
    if options.dry_run:
        print(verbs.estimate(task, **budget, effort=effort, fixed=fixed, seed=seed, device=options.device))
        return STATUSES["well"]
    folder = _out(options, task)
    say, progress = _voice(options), None if options.quiet else make_progress()
    run = verbs.fit(
        task,
        **budget,
        effort=effort,
        fixed=fixed,
        seed=seed,
        device=options.device,
        out=folder,
        progress=progress,
        say=say,
    )
    print_summary(run)
    return STATUSES["well"]


def _voice(options: argparse.Namespace) -> Callable[[str], None]:
    if options.quiet:  # no progress; what was found wrong is no progress
        return lambda text: _complain(text) if text.startswith(("warning: ", "critical: ")) else None
    return lambda text: print(text, flush=True)


def run_tune(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """`thalweg tune`."""
    import tomlkit

    from thalweg import verbs

    task = open_task(options.task, rest, options.own)
    plan = verbs.tune(
        task,
        **_budget_of(options, task),
        effort=_effort(options.effort),
        fixed=read_knobs(_with_rule(options, options.fix)),
        seed=options.seed or 0,
        device=options.device,
        out=options.out,
        say=(lambda _: None) if options.quiet else (lambda text: print(f"# {text}", file=sys.stderr)),
    )
    print(tomlkit.dumps(plan.to_dict()) if not options.out else f"plan written to {options.out}")
    return STATUSES["well"]


def run_train(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """`thalweg train`."""
    from thalweg import verbs
    from thalweg.records.plan import Plan
    from thalweg.see.live import make_progress
    from thalweg.see.summary import print_summary

    task = open_task(options.task, rest, options.own)
    plan = Plan.load(options.plan) if options.plan else Plan()
    knobs = read_knobs(_with_rule(options, options.set))
    there = plan.to_dict()
    for table in ("constants", "groups", "schedule"):
        if isinstance(knobs.get(table), dict):
            knobs[table] = {**there[table], **knobs[table]}
    if knobs:
        plan = plan.replace(**knobs)
    given = {name: getattr(options, name) for name in BUDGETS if getattr(options, name) is not None}
    if not given and plan.steps is None:
        given = _budget_of(options, task)
    run = verbs.train(
        task,
        plan,
        **given,
        seed=options.seed,
        device=options.device,
        out=_out(options, task),
        progress=None if options.quiet else make_progress(),
    )
    _tell_finished(run)
    verbs.report(run)
    print_summary(run)
    return STATUSES["well"]


def _tell_finished(run: Run) -> None:
    if run.trained is None:  # opened, not trained
        print(f"The run in {run.folder} had finished already: nothing was done.")


def run_check(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """`thalweg check`."""
    from thalweg import verbs

    found = verbs.check(open_task(options.task, rest, options.own), device=options.device, seed=options.seed or 0)
    return _tell(found, "Nothing suspicious was found.")


def run_diagnose(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """`thalweg diagnose`."""
    from thalweg import verbs
    from thalweg.see.advice import next_steps
    from thalweg.see.events import treatments

    run = Run.open(options.folder)
    status = run.summary.get("status", "unknown")
    if status == "running":
        print("The run is under way, or was ended from outside.")
    elif status != "finished":
        print(f"The run ended early ({status}) at step {run.summary.get('steps', 0):,} of {run.plan.steps or 0:,}.")
    gravest = _tell(verbs.diagnose(run), "No failure was noticed.", treatments(run))
    for line in next_steps(run, repeat_diagnoses=False):
        print(f"next: {line}")
    return gravest


def _tell(found: Sequence[Diagnosis], nothing: str, treated: Sequence[tuple[Diagnosis, str]] = ()) -> int:
    done = {id(diagnosis): told for diagnosis, told in treated}
    for diagnosis in found:
        told = done.get(id(diagnosis))
        print(
            f"{diagnosis.severity}: {replace(diagnosis, cure=None)} Done: {told}"
            if told
            else f"{diagnosis.severity}: {diagnosis}"
        )
    if not found:
        print(nothing)
    gravest = {diagnosis.severity for diagnosis in found}
    return STATUSES["critical" if "critical" in gravest else "warning" if "warning" in gravest else "well"]


def run_resume(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """`thalweg resume`."""
    from thalweg import verbs
    from thalweg.see.live import make_progress
    from thalweg.see.summary import print_summary

    run = verbs.resume(options.folder, device=options.device, progress=None if options.quiet else make_progress())
    _tell_finished(run)
    verbs.report(run)
    print_summary(run)
    return STATUSES["well"]


def run_report(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """`thalweg report`."""
    from thalweg import verbs

    if not Path(options.folder).exists():
        raise RunError(f"There is no folder {options.folder}.")
    print(verbs.report(Run.open(options.folder), options.out))
    return STATUSES["well"]


def run_examples(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """`thalweg examples`."""
    from thalweg import examples

    for name, line in examples.EXAMPLES.items():
        known = examples.info(name)
        expected = ", ".join(f"{k} {low:g} to {high:g}" for k, (low, high) in known.expected.items())
        print(
            f"{name:10s} {line}\n{'':10s} {known.epochs:g} epochs, about {known.seconds:g} s; usual result: {expected}"
        )
    return STATUSES["well"]


def script() -> NoReturn:
    """The entry point of the installed command."""
    sys.exit(main())
