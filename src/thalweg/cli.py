"""The command: parse, call one verb, print.

Exit statuses: see `STATUSES`.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import fill
from typing import Any, NoReturn, cast

from thalweg.errors import (
    ArgumentError,
    DivergedError,
    Interrupted,
    PlanError,
    RunError,
    TaskError,
    ThalwegError,
    nearest,
)
from thalweg.formatting import format_count, format_metric, printable
from thalweg.records.comparison import Comparison
from thalweg.records.diagnosis import Diagnosis
from thalweg.records.knob import knobs
from thalweg.records.names import right_word
from thalweg.records.paths import as_path, typed
from thalweg.records.plan import Plan
from thalweg.records.run import Run
from thalweg.records.task import Source, Task, find_task, parse_source
from thalweg.rules import RULES
from thalweg.terminal import (
    UnfailingStream,
    discard_unwritten,
    open_descriptors,
    tell,
    tell_error,
    unfailing_streams,
)

STATUSES: Mapping[str, int] = {
    "well": 0,  # done; `check` and `diagnose`: nothing found
    "failed": 1,  # an unexpected error, with a traceback
    "bad input": 2,  # a ThalwegError: what, where, what to do
    "diverged": 3,  # training diverged, and no cure helped
    "not printed": 4,  # what a command is to print could not be written: a full disk, say
    "warning": 10,  # `check` and `diagnose`: the most severe diagnosis
    "critical": 11,
    "interrupted": 130,  # Ctrl-C; what was done is saved
    "terminated": 143,  # SIGTERM; likewise
}

BUDGETS = ("epochs", "steps", "seconds")
LENGTH = (*BUDGETS, "pays", "most")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and give its exit status.

    Output that cannot be written ends nothing. What a training came to is in its run, and its status is that of the training. Of
    verbs whose result is what they print the status is "not printed", unless their reader went away on purpose, as `head` does.
    """
    with unfailing_streams() as out:
        status = _run(list(sys.argv[1:] if arguments is None else arguments), out)
    lost = not (out.loss is None or isinstance(out.loss, BrokenPipeError) or out.work)
    return STATUSES["not printed"] if lost and status in map(STATUSES.get, ("well", "warning", "critical")) else status


def _run(words: list[str], out: UnfailingStream) -> int:
    parser = build_parser()
    options, task_words = parser.parse_known_args(words)
    if task_words and not hasattr(options, "task"):
        parser.error(f"unrecognized arguments: {' '.join(task_words)}")
    if not hasattr(options, "verb"):
        parser.print_help()
        return STATUSES["well"]
    out.work = _work(options)
    try:
        _make_absolute(options)
        return options.verb(options, task_words)
    except KeyboardInterrupt as interrupt:
        tell_error(str(interrupt) or "Interrupted.")
        return interrupt.exit_status if isinstance(interrupt, Interrupted) else STATUSES["interrupted"]
    except DivergedError as error:
        tell_error(str(error))
        return STATUSES["diverged"]
    except ThalwegError as error:
        tell_error(str(error))
        return STATUSES["bad input"]
    except OSError as error:
        if error.filename is None:
            raise
        tell_error(f"{error.filename}: {error.strerror}. Check the path, its permissions and the space left.")
        return STATUSES["bad input"]


def _make_absolute(options: argparse.Namespace) -> None:
    """Make the paths that are given absolute, before a task's file runs, which may change the working directory."""
    for name in ("storage", "join"):
        place = getattr(options, name, None)
        if place and "://" not in place:
            setattr(options, name, os.path.abspath(os.path.expanduser(place)))
    for name in ("folder", "out", "plan"):
        if getattr(options, name, None):
            setattr(options, name, str(as_path(getattr(options, name), f"the argument {name}", "runs/mine", RunError)))
    options.runs = as_path("runs", "the folder of runs", "runs", RunError)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line. It takes no abbreviated options: they may be options of the task."""

    def __init__(self, *words: Any, **options: Any) -> None:
        super().__init__(*words, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"argument VERB: invalid choice: '(.*)' \(choose from (.*)\)", message)
        if wrong:
            verbs = re.findall(r"\w+", wrong[2])
            message = f"there is no verb '{wrong[1]}'.{nearest(wrong[1], verbs)} There are {', '.join(verbs)}"
        tell_error(f"{message}. See `{self.prog} --help`.")
        raise SystemExit(STATUSES["bad input"])


def build_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    from thalweg import __version__

    parser = _Parser(
        prog="thalweg", description="Train a PyTorch model by gradient descent, with the knobs chosen on evidence."
    )
    parser.add_argument("--version", action="version", version=f"thalweg {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    _add_fit(verbs)
    _add_tune(verbs)
    _add_train(verbs)
    _add_check(verbs)
    _add_resume(verbs)
    _add_evaluate(verbs)
    _add_forecast(verbs)
    _add_diagnose(verbs)
    _add_survey(verbs)
    _add_escape(verbs)
    _add_report(verbs)
    _add_examples(verbs)
    return parser


def _add_fit(verbs: Any) -> None:
    fit = _task_verb(verbs, "fit", run_fit, "do everything: check, choose a plan, train, report")
    _add_budget(fit)
    _add_search(fit)
    fit.add_argument("--dry-run", action="store_true", help="say what it would cost, and stop")
    _add_rule(fit)
    fit.add_argument("--out", help="folder of the run; default: runs/NAME")
    fit.add_argument("--no-survey", action="store_true", help="do not look at where the descent ended")
    _add_quiet(fit)
    _add_device_and_seed(fit)
    _describe_knobs(fit)


def _add_tune(verbs: Any) -> None:
    tune = _task_verb(verbs, "tune", run_tune, "choose a plan and print it")
    _add_budget(tune)
    _add_search(tune)
    _add_rule(tune)
    tune.add_argument("--out", help="file to write the plan to, such as plan.toml")
    tune.add_argument(
        "--join",
        metavar="STORAGE/STUDY",
        help="take part in a search that was begun with --storage, by what is asked for there",
    )
    _add_quiet(tune)
    _add_device_and_seed(tune)
    _describe_knobs(tune)


def _add_train(verbs: Any) -> None:
    train = _task_verb(verbs, "train", run_train, "train a plan")
    _add_budget(train)
    train.add_argument("--plan", help="a plan.toml; default: stated defaults")
    _add_knobs(train, "--set", "--fix", "change a knob of the plan; may be given often")
    _add_rule(train)
    train.add_argument("--out", help="folder of the run; default: runs/NAME")
    train.add_argument("--survey", action="store_true", help="look briefly at where the descent ended, as fit does")
    _add_quiet(train)
    _add_device_and_seed(train)
    _describe_knobs(train)


def _add_check(verbs: Any) -> None:
    check = _task_verb(verbs, "check", run_check, "look for faults in a task before training, in seconds")
    _add_device_and_seed(check)
    _describe_exit_status(check)


def _add_resume(verbs: Any) -> None:
    resume = _verb(verbs, "resume", run_resume, "resume a run where it stopped")
    resume.add_argument("folder", help="the run's folder")
    _add_knobs(
        resume, "--set", "--fix", "change a knob of the plan from here on, such as steps=2000; may be given often"
    )
    resume.add_argument("--device", default="auto")
    _add_trust(resume)
    _add_quiet(resume)


def _add_evaluate(verbs: Any) -> None:
    evaluate = _verb(verbs, "evaluate", run_evaluate, "measure a run's model, on validation data or a test set")
    evaluate.add_argument("folder", help="the run's folder")
    evaluate.add_argument(
        "--task",
        metavar="TASK",
        help="a task, as for fit, on whose validation data the model is measured, such as test_set.py; default: the run's own",
    )
    evaluate.add_argument("--device", default="auto", help="auto, cpu, cuda, mps, …")
    _add_trust(evaluate)


def _add_trust(parser: argparse.ArgumentParser) -> None:
    text = "run the code that the folder names also where you did not make the run on this machine"
    parser.add_argument("--trust", action="store_true", help=text)


def _add_forecast(verbs: Any) -> None:
    forecast = _verb(
        verbs,
        "forecast",
        run_forecast,
        "say what a run is worth now, cooled down, and what it will be at its planned end",
    )
    forecast.add_argument("folder", help="the run's folder; the run may be under way")
    forecast.add_argument("--device", default="auto", help="auto, cpu, cuda, mps, …")
    _add_trust(forecast)


def _add_survey(verbs: Any) -> None:
    survey = _verb(verbs, "survey", run_survey, "say what kind of place a run's descent reached, and draw it")
    survey.add_argument(
        "folders", nargs="+", metavar="folder", help="the run's folder; of two or more, ends and paths are compared"
    )
    survey.add_argument(
        "--examples", type=int, default=2048, help="training examples that are looked at; default: 2048"
    )
    survey.add_argument("--no-slices", action="store_true", help="leave out the losses along lines and over a plane")
    survey.add_argument("--no-curves", action="store_true", help="of several runs: train no low curve between two ends")
    survey.add_argument(
        "--figure", metavar="FILE", help="draw the slices into a file: .svg, .png or .pdf (needs matplotlib)"
    )
    survey.add_argument(
        "--report", metavar="FILE", help="of several runs: write a page with figures and pictures: .html"
    )
    survey.add_argument("--arrays", metavar="FILE", help="write coordinates and losses as NumPy arrays: .npz")
    survey.add_argument("--json", action="store_true", help="print the figures as JSON")
    survey.add_argument("--seed", type=int, default=0, help="of the sample and of random directions")
    survey.add_argument(
        "--parallel",
        action="store_true",
        help="share the examples between the processes that torchrun has started: torchrun … -m thalweg survey FOLDER --parallel",
    )
    survey.add_argument("--device", default="auto", help="auto, cpu, cuda, mps, …")
    _add_trust(survey)
    _add_quiet(survey)


def _add_escape(verbs: Any) -> None:
    escape = _verb(verbs, "escape", run_escape, "try to leave the place where a run ended for a better one")
    escape.add_argument("folder", help="the run's folder")
    escape.add_argument("--steps", type=int, help="of each of four to eight attempts; default: a tenth of the run's")
    escape.add_argument(
        "--examples", type=int, default=2048, help="training examples by which losses are measured; default: 2048"
    )
    escape.add_argument(
        "--out", metavar="FOLDER", help="where each attempt is kept as a run; default: the run's folder with -escape"
    )
    escape.add_argument("--json", action="store_true", help="print the figures as JSON")
    escape.add_argument("--seed", type=int, default=0, help="of the sample and of the attempts")
    escape.add_argument("--device", default="auto", help="auto, cpu, cuda, mps, …")
    _add_trust(escape)
    _add_quiet(escape)


def _add_diagnose(verbs: Any) -> None:
    diagnose = _verb(verbs, "diagnose", run_diagnose, "say what went wrong in a run")
    diagnose.add_argument(
        "folder", help="the run's folder, or another program's history: CSV, JSON lines or TensorBoard's event files"
    )
    _add_unused_device(diagnose)
    _describe_exit_status(diagnose)


def _add_report(verbs: Any) -> None:
    report = _verb(verbs, "report", run_report, "write a run's report again")
    report.add_argument("folder", help="the run's folder")
    report.add_argument("--out", help="the HTML file; default: report.html in the folder")
    _add_unused_device(report)


def _add_examples(verbs: Any) -> None:
    examples = _verb(verbs, "examples", run_examples, "list the built-in examples, or train one with a planted fault")
    examples.add_argument(
        "name",
        nargs="?",
        help="fault/NAME: train this small faulty program, watched; a part of a name lists those that have it",
    )
    _add_unused_device(examples)


def _verb(verbs: Any, name: str, run: Callable[..., int], summary: str) -> argparse.ArgumentParser:
    """Add a verb's parser; `run` takes the parsed options and the remaining words of the command line."""
    parser = cast(argparse.ArgumentParser, verbs.add_parser(name, help=summary, description=summary.capitalize() + "."))
    parser.set_defaults(verb=run)
    return parser


def _task_verb(verbs: Any, name: str, run: Callable[..., int], summary: str) -> argparse.ArgumentParser:
    """Add the parser of a verb that takes a task, whose own options may follow."""
    parser = _verb(verbs, name, run, summary)
    parser.add_argument("task", help="a built-in example (see `thalweg examples`), or path/to/task.py[:name]")
    parser.epilog = (
        "Further options, such as --hidden 64, are passed to the task's function;"
        " --task.steps 64 where an option of this command has the same name."
    )
    return parser


def _add_budget(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--epochs", type=_number_or_auto, help="passes over the data; auto: until it no longer pays")
    group.add_argument("--steps", type=_whole_number_or_auto, help="update steps; auto: as --epochs auto")
    parser.add_argument(
        "--seconds",
        type=_number,
        help="seconds of training, turned into steps at the start; with auto, the most of it all",
    )
    parser.add_argument(
        "--pays",
        type=_number,
        help="with auto, the share of the criterion that twice the steps must gain; default: 0.05",
    )
    parser.add_argument(
        "--most",
        type=_number,
        help="with auto, the most epochs (or steps); default: 100 epochs, or 20,000 steps if more",
    )


def _add_search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--effort",
        default="standard",
        help="price in full trainings: 1, quick (2), standard (4), thorough (12), or a number",
    )
    _add_knobs(parser, "--fix", "--set", "a knob you have decided; may be given often")
    parser.add_argument(
        "--storage",
        help="where the search's trials are kept: a URL such as postgresql://host/name, or an SQLite file; default: by the run",
    )
    parser.add_argument("--study", metavar="NAME", help="the study's name in the storage; default: by the task")
    parser.add_argument("--memory", help="that training may use in all, such as '4 GB'; default: 80 %% of what is free")


def _machine(options: argparse.Namespace) -> dict[str, Any]:
    return {"device": options.device, "memory": options.memory}


def _add_knobs(parser: argparse.ArgumentParser, name: str, synonym: str, text: str) -> None:
    """Add the option for knobs; whoever knows one verb's word for it may give it to the others."""
    options: dict[str, Any] = {"action": "append", "default": [], "dest": "knobs", "metavar": "KNOB=VALUE"}
    parser.add_argument(name, help=text, **options)
    parser.add_argument(synonym, help=argparse.SUPPRESS, **options)


def _add_rule(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rule", metavar="NAME", help="the update rule, such as adamw, lion, muon, sgd, …")


def _add_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="no progress")


def _add_device_and_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps, …")
    parser.add_argument("--seed", type=_whole_number, default=None, help="of everything random; default 0")
    known = [word for word in parser._option_string_actions if word.startswith("--")]
    parser.set_defaults(command_options=known)


def _add_unused_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="accepted as by the other verbs, but not used")


def _describe_exit_status(parser: argparse.ArgumentParser) -> None:
    statuses = "Exit status: 0 nothing found, 10 a warning, 11 something critical."
    parser.epilog = f"{parser.epilog or ''} {statuses}".strip()


def _describe_knobs(parser: argparse.ArgumentParser) -> None:
    """Add a list of the plan's knobs below the command's own options."""
    from thalweg.see.plan_text import help_lines

    width = shutil.get_terminal_size().columns - 2
    knobs = [
        fill(text, width, initial_indent=f"  {name:18}  ", subsequent_indent=" " * 22) for name, text in help_lines()
    ]
    tables = (
        "constants.beta2=0.99, schedule.warmup=100 and groups.PATTERN.learning_rate_factor=2 set entries of tables."
    )
    parser.epilog = "\n".join([fill(parser.epilog or "", width), "", "knobs:", *knobs, "", fill(tables, width)])
    parser.formatter_class = argparse.RawDescriptionHelpFormatter


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number") from error


def _whole_number_or_auto(text: str) -> int | str:
    return text if text == "auto" else _whole_number(text)


def _number_or_auto(text: str) -> float | str:
    return text if text == "auto" else _number(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is no number") from error


def open_task(address: str, task_words: Sequence[str], command_options: Sequence[str] = ()) -> Task:
    """Find a task by an example's name or a file's path, with its arguments from the command line.

    `command_options` are the command's own options, of which an unknown option may be a misspelling.

    Raises TaskError where there is none, or it refuses the arguments.
    """
    from thalweg import examples

    if address in examples.EXAMPLES:
        source = Source(module=f"thalweg.examples.{address}", name="task")
    elif address.endswith(".py") or ".py:" in address or os.sep in address:
        source = parse_source(address)
    else:
        hint = (
            f" Did you mean {address}.py?" if Path(f"{address}.py").is_file() else nearest(address, examples.EXAMPLES)
        )
        raise TaskError(
            f"'{address}' is neither an example nor a Python file.{hint}"
            f" Examples: {', '.join(examples.EXAMPLES)}; or give path/to/task.py."
        )
    task_or_function = find_task(source)
    parameters = {} if isinstance(task_or_function, Task) else dict(inspect.signature(task_or_function).parameters)
    return Source(
        source.name, source.file, source.module, read_arguments(task_words, parameters, command_options)
    ).load(task_or_function)


def read_arguments(
    words: Sequence[str], parameters: Mapping[str, inspect.Parameter], command_options: Sequence[str] = ()
) -> dict[str, Any]:
    """Read `--hidden 64 --flag --name=value` for a task's function; values take the type of its defaults.

    Raises TaskError for a word that is no option, or a value of another type.
    """
    arguments: dict[str, Any] = {}
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        if not word.startswith("--"):
            raise TaskError(f"'{word}' is no option. Options for the task look like --name VALUE.")
        name, equals, text = word[2:].partition("=")
        name = name.removeprefix("task.").replace("-", "_")
        flag = name.removeprefix("no_")
        if name not in parameters and flag in parameters and isinstance(parameters[flag].default, bool):
            arguments[flag] = False
            continue
        if name not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            accepted = (
                f"It takes {', '.join('--' + n for n in parameters)}." if parameters else "It takes none of its own."
            )
            value = text or next((word for word in remaining[:1] if not word.startswith("--")), "VALUE")
            hint = _hint(name, value, parameters, command_options)
            raise TaskError(f"The task has no option --{name}.{hint} {accepted}")
        if equals:
            arguments[name] = _argument(name, text, parameters.get(name))
        elif remaining and not remaining[0].startswith("--"):
            arguments[name] = _argument(name, remaining.pop(0), parameters.get(name))
        else:
            arguments[name] = _flag(name, parameters.get(name))
    return arguments


def _hint(name: str, value: str, parameters: Mapping[str, Any], command_options: Sequence[str]) -> str:
    """Say what an unknown option may mean: an option of the command or the task by another name, or a knob of the plan."""
    options = {option.removeprefix("--").replace("-", "_") for option in command_options} | set(parameters)
    if (word := right_word(name, options)) is not None:
        return f" It is called --{word.replace('_', '-')} here."
    setting = next((option for option in command_options if option in ("--fix", "--set")), None)
    if setting is not None and (knob := name if name in knobs(Plan) else right_word(name, knobs(Plan))) is not None:
        return f" It is a knob of the plan: {setting} {knob}={value}."
    if setting is not None and any(name in rule.constants for rule in RULES.values()):
        return f" It is a constant of the rule: {setting} constants.{name}={value}."
    return nearest(f"--{name.replace('_', '-')}", [*command_options, *("--" + n for n in parameters)])


def _flag(name: str, parameter: inspect.Parameter | None) -> bool:
    """Read an option without a value as true. Raises TaskError where its default is no truth value."""
    default = None if parameter is None or parameter.default is parameter.empty else parameter.default
    if default is not None and not isinstance(default, bool):
        raise TaskError(f"--{name} needs a value, such as --{name} {default}.")
    return True


def _argument(name: str, text: str, parameter: inspect.Parameter | None) -> Any:
    """Read a value as the type of the parameter's default, or else of its annotation."""
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
    for kind, kind_name in ((bool, "true or false"), (int, "a whole number"), (float, "a number")):
        if isinstance(default, kind):
            if value is None or (isinstance(value, kind) and isinstance(value, bool) is (kind is bool)):
                return value
            raise TaskError(f"--{name} is {text!r}, but it is {kind_name}, such as {default}.")
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
    """Read `KNOB=VALUE` pairs; `constants.beta2=0.99`, `schedule.warmup=100` and `groups.*.bias.learning_rate_factor=2` set
    entries of tables.

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
                f"'{pair}' sets an entry of '{head}', which another pair has set as a whole. Give it in one way."
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


def _budget(options: argparse.Namespace, task: Task) -> dict[str, Any]:
    """Give the budget of the command line, else a built-in example's usual one. Raises PlanError where there is neither."""
    given = _length(options)
    if _is_budgeted(options):
        return given
    module = task.source.module if task.source else None
    if module is not None:
        from thalweg import examples

        return {"epochs": examples.info(module.rsplit(".", 1)[-1]).epochs, **given}
    raise PlanError(
        "No budget is given. Say how long to train: --epochs 20, --steps 2000 or --seconds 60. With --epochs auto it goes on"
        " until it no longer pays."
    )


def _length(options: argparse.Namespace) -> dict[str, Any]:
    """Give what the command line says of the length."""
    return {name: getattr(options, name) for name in LENGTH if getattr(options, name) is not None}


def _is_budgeted(options: argparse.Namespace) -> bool:
    return any(getattr(options, name) is not None for name in BUDGETS)


def _run_folder(options: argparse.Namespace, task: Task) -> Path:
    """Give the run's folder: the one named, else the first free one of runs/NAME, runs/NAME-2, …"""
    if options.out:
        return Path(options.out)
    base = options.runs / (re.sub(r"[^\w.-]+", "-", task.name).strip("-.") or "task")
    suffix, folder = 1, base
    while folder.exists():
        suffix += 1
        folder = base.with_name(f"{base.name}-{suffix}")
    return folder


def _effort(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def run_fit(options: argparse.Namespace, task_words: Sequence[str]) -> int:
    """`thalweg fit`."""
    from thalweg import verbs
    from thalweg.see.summary import print_summary

    task = open_task(options.task, task_words, options.command_options)
    budget, effort = _budget(options, task), _effort(options.effort)
    fixed, seed = read_knobs(_with_rule(options, options.knobs)), options.seed or 0
    if options.dry_run:
        tell(verbs.estimate(task, **budget, effort=effort, fixed=fixed, seed=seed, **_machine(options)))
        return STATUSES["well"]
    run = verbs.fit(
        task,
        **budget,
        effort=effort,
        fixed=fixed,
        seed=seed,
        **_machine(options),
        out=_run_folder(options, task),
        storage=options.storage,
        study=options.study,
        survey=not options.no_survey,
        **_shown(options),
    )
    print_summary(run)
    return STATUSES["well"]


def _shown(options: argparse.Namespace) -> dict[str, Any]:
    """Give the arguments `progress` and `say` of `fit` and `resume`; with --quiet only warnings and critical ones are said."""
    if options.quiet:
        say = lambda text: tell_error(text) if text.startswith(("warning: ", "critical: ")) else None  # noqa: E731
        return {"progress": False, "say": say}
    return {"progress": True, "say": tell}


def run_tune(options: argparse.Namespace, task_words: Sequence[str]) -> int:
    """`thalweg tune`."""
    from thalweg import verbs

    task = open_task(options.task, task_words, options.command_options)
    plan = verbs.tune(
        task,
        **(_budget(options, task) if options.join is None or _is_budgeted(options) else {}),
        effort=_effort(options.effort),
        fixed=read_knobs(_with_rule(options, options.knobs)),
        seed=options.seed or 0,
        **_machine(options),
        out=options.out,
        storage=options.storage,
        study=options.study,
        join=options.join,
        say=(lambda _: None) if options.quiet else (lambda text: tell(f"# {text}", sys.stderr)),
    )
    if options.out:
        tell(f"plan written to {typed(Path(options.out))}")
    else:
        print(_as_toml(plan, getattr(sys.stdout, "encoding", "utf-8")), flush=True)
    return STATUSES["well"]


def run_train(options: argparse.Namespace, task_words: Sequence[str]) -> int:
    """`thalweg train`."""
    from thalweg import verbs
    from thalweg.see.summary import print_summary

    task = open_task(options.task, task_words, options.command_options)
    plan = Plan.load(options.plan) if options.plan else Plan()
    knobs = read_knobs(_with_rule(options, options.knobs))
    if knobs:
        plan = plan.with_knobs(knobs)
    budget = _length(options)
    if not _is_budgeted(options) and plan.steps is None:
        budget = _budget(options, task)
    run = verbs.train(
        task,
        plan,
        **budget,
        seed=options.seed,
        device=options.device,
        out=_run_folder(options, task),
        survey=options.survey,
        progress=not options.quiet,
    )
    _print_if_already_finished(run)
    print_summary(run)
    return STATUSES["well"]


def _print_if_already_finished(run: Run) -> None:
    if run.trained is None:  # opened from its folder
        tell(f"The run in {run.folder} had finished already: nothing was done.")


def run_check(options: argparse.Namespace, task_words: Sequence[str]) -> int:
    """`thalweg check`."""
    from thalweg import verbs

    diagnoses = verbs.check(
        open_task(options.task, task_words, options.command_options),
        device=options.device,
        seed=options.seed or 0,
        say=lambda text: tell(f"note: {' '.join(text.split())}"),
    )
    return _print_diagnoses(diagnoses, "Nothing suspicious was found.")


def run_evaluate(options: argparse.Namespace, task_words: Sequence[str]) -> int:
    """`thalweg evaluate`."""
    from thalweg import verbs

    task = None if options.task is None else open_task(options.task, task_words)
    for name, value in verbs.evaluate(options.folder, task=task, device=options.device, trust=options.trust).items():
        tell(f"{printable(name)} {format_metric(name, value)}")
    return STATUSES["well"]


def run_forecast(options: argparse.Namespace, task_words: Sequence[str]) -> int:
    """`thalweg forecast`."""
    from thalweg import verbs

    tell(str(verbs.forecast(options.folder, device=options.device, trust=options.trust)))
    return STATUSES["well"]


def run_survey(options: argparse.Namespace, task_words: Sequence[str]) -> int:
    """`thalweg survey`."""
    quiet = options.quiet or options.json
    if len(options.folders) > 1:
        return _compare(options, None if quiet else tell)
    if options.no_curves:
        raise ArgumentError("--no-curves is for the survey of several runs.")
    if options.report is not None:
        raise ArgumentError("--report is for the survey of several runs: one run's own report has its survey.")
    if options.parallel:
        return _survey_in_parallel(options)
    return _survey(options, None if quiet else tell)


def _survey_in_parallel(options: argparse.Namespace) -> int:
    """`thalweg survey --parallel` in one of the processes that torchrun has started. The first one tells what was found."""
    import torch
    import torch.distributed as dist

    if "RANK" not in os.environ:
        raise ArgumentError(
            "--parallel needs torchrun: torchrun --nproc-per-node 2 -m thalweg survey FOLDER --parallel."
        )
    dist.init_process_group()
    try:
        if options.device == "auto" and torch.cuda.is_available():
            options.device = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
        if dist.get_rank() == 0:
            return _survey(options, None if options.quiet or options.json else tell)
        options.arrays = options.figure = None
        return _survey(options, None, is_told=False)
    finally:
        dist.destroy_process_group()


def _survey(options: argparse.Namespace, say: Callable[[str], None] | None, *, is_told: bool = True) -> int:
    from thalweg import verbs

    found = verbs.survey(
        options.folders[0],
        examples=options.examples,
        slices=not options.no_slices,
        seed=options.seed,
        device=options.device,
        trust=options.trust,
        parallel=options.parallel,
        progress=say is not None,
    )
    if is_told:
        tell(found.to_json() if options.json else str(found))
    if options.arrays is not None:
        found.save_arrays(options.arrays)
    if options.figure is not None:
        found.figure(options.figure)
    return STATUSES["well"]


def _compare(options: argparse.Namespace, say: Callable[[str], None] | None) -> int:
    """`thalweg survey` of several runs."""
    from thalweg import verbs

    alone = {"--arrays": options.arrays is not None, "--no-slices": options.no_slices, "--parallel": options.parallel}
    for name, given in alone.items():
        if given:
            raise ArgumentError(f"{name} is for the survey of one run.")
    try:
        found = verbs.compare(
            options.folders,
            examples=options.examples,
            curves=not options.no_curves,
            seed=options.seed,
            device=options.device,
            trust=options.trust,
            say=say,
        )
    except Interrupted as stopped:
        if stopped.comparison is not None:
            _show_comparison(stopped.comparison, options)
        raise
    _show_comparison(found, options)
    return STATUSES["well"]


def _show_comparison(found: Comparison, options: argparse.Namespace) -> None:
    tell(found.to_json() if options.json else str(found))
    if options.figure is not None:
        found.figure(options.figure)
    if options.report is not None:
        found.report(options.report)


def run_escape(options: argparse.Namespace, task_words: Sequence[str]) -> int:
    """`thalweg escape`."""
    from thalweg import verbs

    folder = Path(options.folder).absolute()
    found = verbs.escape(
        options.folder,
        steps=options.steps,
        examples=options.examples,
        seed=options.seed,
        device=options.device,
        trust=options.trust,
        out=folder.with_name(f"{folder.name}-escape") if options.out is None else options.out,
        say=None if options.quiet or options.json else tell,
    )
    tell(found.to_json() if options.json else str(found))
    if found.run is not None and found.run.folder is not None and not options.json:
        tell(f"The best attempt is the run in {found.run.folder}.")
    return STATUSES["well"]


def run_diagnose(options: argparse.Namespace, task_words: Sequence[str]) -> int:
    """`thalweg diagnose`."""
    from thalweg import verbs
    from thalweg.watch.foreign import is_foreign

    if is_foreign(Path(options.folder)):
        return _diagnose_table(Path(options.folder))
    from thalweg.see.advice import next_steps
    from thalweg.see.events import treatments

    run = Run.open(options.folder)
    status = run.summary.get("status", "unknown")
    if status == "running":
        tell("The run is still running, or its process was killed.")
    elif status != "finished":
        tell(f"The run ended early ({status}) at step {run.summary.get('steps', 0):,} of {run.plan.steps or 0:,}.")
    for text in run.left_out:
        tell(f"{text} What follows goes by the others.")
    none_found = "No failure was noticed in the others." if run.left_out else "No failure was noticed."
    exit_status = _print_diagnoses(verbs.diagnose(run), none_found, treatments(run))
    for line in next_steps(run, repeat_diagnoses=False):
        tell(f"next: {line}")
    return exit_status


def _diagnose_table(path: Path) -> int:
    """Diagnose another program's steps, and say what was read of them."""
    from thalweg.watch.foreign import diagnose_history, read_history

    history = read_history(path)
    rows = len(history.columns["step"])
    read = ", ".join(f"{ours} from `{printable(theirs)}`" for ours, theirs in history.taken.items())
    tell(f"{format_count(rows, 'row')} of {path.name}: {read}.")
    for note in history.notes:
        tell(f"{note}.")
    exit_status = _print_diagnoses(diagnose_history(history), "No failure was noticed.")
    if history.lacks:
        tell(f"More could be told with {'; '.join(history.lacks)}.")
    return exit_status


def _print_diagnoses(
    diagnoses: Sequence[Diagnosis], none_found: str, treatments: Sequence[tuple[Diagnosis, str]] = ()
) -> int:
    """Print the diagnoses, with what was done about those that were treated, and give the exit status."""
    done = {id(diagnosis): treatment for diagnosis, treatment in treatments}
    for diagnosis in diagnoses:
        treatment = done.get(id(diagnosis))
        tell(
            f"{diagnosis.severity}: {replace(diagnosis, cure=None)} Done: {treatment}"
            if treatment
            else f"{diagnosis.severity}: {diagnosis}"
        )
    if not diagnoses:
        tell(none_found)
    severities = {diagnosis.severity for diagnosis in diagnoses}
    return STATUSES["critical" if "critical" in severities else "warning" if "warning" in severities else "well"]


def run_resume(options: argparse.Namespace, task_words: Sequence[str]) -> int:
    """`thalweg resume`."""
    from thalweg import verbs
    from thalweg.see.summary import print_summary

    changes = read_knobs(options.knobs)
    run = verbs.resume(options.folder, changes=changes, device=options.device, trust=options.trust, **_shown(options))
    _print_if_already_finished(run)
    print_summary(run)
    return STATUSES["well"]


def run_report(options: argparse.Namespace, task_words: Sequence[str]) -> int:
    """`thalweg report`."""
    from thalweg import verbs

    tell(typed(verbs.report(options.folder, options.out)))
    return STATUSES["well"]


def run_examples(options: argparse.Namespace, task_words: Sequence[str]) -> int:
    """`thalweg examples`."""
    from thalweg import examples

    if options.name is not None:
        return _run_faulty(options.name)
    for name, line in examples.EXAMPLES.items():
        info = examples.info(name)
        expected = ", ".join(f"{k} {low:g} to {high:g}" for k, (low, high) in info.expected.items())
        tell(f"{name:10s} {line}\n{'':10s} {info.epochs:g} epochs, about {info.seconds:g} s; usual result: {expected}")
    return STATUSES["well"]


def _run_faulty(address: str) -> int:
    """Train a program with a planted fault, or list those whose names hold what is given."""
    from thalweg import verbs
    from thalweg.examples import faults
    from thalweg.see.summary import print_summary

    kind, _, name = address.partition("/")
    if kind != "fault":
        raise TaskError(
            f"'{address}' is no faulty program. Give fault/NAME, such as fault/dead-units, which lists some."
        )
    found = [program for program in faults.programs() if name in program.name]
    exact = [program for program in found if program.name == name] or found[:1] * (len(found) == 1)
    if not exact:
        for program in found:
            tell(f"fault/{program.name}")
        if not found:
            faults.find(name)  # raises, with the nearest name
        return STATUSES["well"]
    (program,) = exact
    truth = ", ".join(sorted(program.causes)) or "nothing: it is healthy"
    tell(f"{program.name}. What is wrong with it: {truth}.")
    run = verbs.train(program.task(), program.plan())
    for diagnosis in run.diagnoses:
        tell(f"{diagnosis.name}: {diagnosis}")
    print_summary(run)
    return STATUSES["well"]


def _work(options: argparse.Namespace) -> str:
    """Say what becomes of a verb whose output cannot be written; nothing of one whose result is what it prints."""
    if options.verb is run_report:
        return "The report is written."
    if options.verb is run_tune:
        return "The search goes on." if options.out else ""
    trains = options.verb in (run_fit, run_train, run_resume) and not getattr(options, "dry_run", False)
    return "The training goes on." if trains else ""


def _as_toml(plan: Plan, encoding: str) -> str:
    """Give a plan as TOML, which is UTF-8: in another encoding what is not ASCII is escaped."""
    text = plan.to_toml()
    if encoding.lower().replace("-", "") == "utf8":
        return text
    return "".join(c if c.isascii() else f"\\U{ord(c):08x}" for c in text)


def script() -> NoReturn:
    """The entry point of the installed command."""
    open_descriptors()
    try:
        status = main()
    finally:
        discard_unwritten()
    sys.exit(status)
