"""Each piece of bad input gives one clear error of the family, from Python and on the command line, and loses nothing."""

import os
import resource
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import thalweg as tw
from thalweg import cli
from thalweg.records.task import parse_source

HEAD = """
import math, numpy as np, torch
import torch.nn.functional as F
from torch import nn
import thalweg as tw
generator = torch.Generator().manual_seed(0)
x = torch.randn(40, 4, generator=generator)
y = torch.arange(40) % 3
def model(): return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
parts = dict(model=model, loss=F.cross_entropy, data=(x, y))
"""
TAIL = "\ntask = tw.Task(**parts)\n"
GOOD = HEAD + TAIL


class Case(NamedTuple):
    text: str  # of the task file
    told: str
    words: tuple[str, ...] = ()
    plan: dict[str, Any] = {}
    budget: dict[str, Any] = {"steps": 3}


def bad(line: str, told: str) -> Case:
    return Case(HEAD + line + TAIL, told)


def knob(told: str, *words: str, budget: dict[str, Any] | None = None, **plan: Any) -> Case:
    return Case(GOOD, told, words, plan, {"steps": 3} if budget is None else budget)


CASES = {
    "a syntax error": Case("x = = 1\n", r"mine\.py, line 1: invalid syntax: x = = 1\. Mend the file\."),
    "a file that fails": Case("import nothing_of_the_kind\n", r"mine\.py does not run: line 1: ModuleNotFoundError"),
    "no task": Case(
        "x = 1\n", r"mine\.py has no task called 'task'\. Write `task = thalweg\.Task\(\.\.\.\)`, or a function"
    ),
    "empty data": bad("parts['data'] = (x[:0], y[:0])", r"`data` is empty: it has no example\. Check what you load\."),
    "empty validation": bad("parts['validation'] = []", r"`validation` is empty: it has no example\."),
    "unequal lengths": bad(
        "parts['data'] = (x, y[:-1])",
        r"The parts of `data` have different lengths: shapes \[\(40, 4\), \(39,\)\]\. The first dimension counts examples",
    ),
    "shapes that do not fit the loss": bad(
        "parts |= dict(loss=F.mse_loss, data=(x, x))",
        r"The loss failed on the first training batch: the model gives \(32, 3\) float32, the target is \(32, 4\) float32",
    ),
    "a target spread over the outputs": bad(
        "parts |= dict(model=lambda: nn.Linear(4, 1), loss=F.mse_loss, data=(x, x[:, 0]))",
        r"The model gives \(32, 1\) but the target is \(32,\), and the loss spreads one over the other",
    ),
    "inputs that do not fit the model": bad(
        "parts['data'] = (x[:, :3], y)", r"The model failed on the first training batch \(inputs \(32, 3\) float32\)"
    ),
    "a label out of range": bad(
        "y[37] = 12",
        r"The target is 12 in row 37, but the model has 3 outputs: labels run from 0 to 2\. Give the model 13 outputs",
    ),
    "a validation label out of range": bad(
        "parts['validation'] = (x, y + 1)", r"The target is 3 in row 2 of `validation`, but the model has 3 outputs"
    ),
    "a label below zero": bad("y[5] = -1", r"The target is -1 in row 5, .* Number the classes from 0\."),
    "labels in words": bad(
        "parts['data'] = (x, np.array(['a'] * 40))", r"holds what is no number \('a' in row 0\)\. Code labels as 0"
    ),
    "a loss that is no scalar": bad(
        "parts['loss'] = lambda o, t: F.cross_entropy(o, t, reduction='none')",
        r"The loss has the shape \(32,\), but it must be one number: the mean over the batch\.",
    ),
    "a loss without a gradient": bad(
        "parts['loss'] = lambda o, t: F.cross_entropy(o, t).detach()",
        r"The loss has no gradient: nothing that can be trained",
    ),
    "a loss that is not finite": bad(
        "parts['loss'] = lambda o, t: F.cross_entropy(o, t) / 0",
        r"The loss is inf at the very start, before any step\.",
    ),
    "a loss that is a float": bad("parts['loss'] = lambda o, t: 3.0", r"The loss is a float, not a tensor\."),
    "no trainable parameter": bad(
        "parts['model'] = nn.Identity", r"The model has no parameter, so there is nothing to train"
    ),
    "a frozen model": bad("parts['model'] = model().requires_grad_(False)", r"The model has no trainable parameter"),
    "NaN in the data": bad(
        "x[7, 1] = math.nan; x[9] = math.inf",
        r"`data` \(part 1, shape \(40, 4\)\) has NaN or infinity in 2 of 40 rows: rows 7, 9, columns 0, 1, 2, 3, and",
    ),
    "NaN in the targets": bad(
        "parts |= dict(model=lambda: nn.Linear(4, 1), loss=F.mse_loss, data=(x, (y / y)[:, None]))",
        r"`data` \(part 2, shape \(40, 1\)\) has NaN or infinity in 14 of 40 rows: rows 0, 3, 6, 9, 12, …",
    ),
    "NaN in the validation data": bad(
        "v = x.clone(); v[3, 3] = math.nan; parts['validation'] = (v, y)",
        r"`validation` \(part 1.*: rows 3, columns 3, and the loss is nan there\.",
    ),
    "a generator": bad(
        "parts['data'] = (r for r in [(x, y)])", r"`data` is an iterator, which can be gone through once only"
    ),
    "a loss class": bad(
        "parts['loss'] = nn.CrossEntropyLoss", r"`loss` is the class CrossEntropyLoss\. Give an instance"
    ),
    "a device that is not there": Case(
        GOOD, r"The device 'xyz' cannot be used here .* Use 'auto' or 'cpu'\.", ("--device", "xyz")
    ),
    "a batch larger than the data": knob(
        r"`batch_size` is 99, but the data have 40 examples\. Give at most 40\.",
        "--set",
        "batch_size=99",
        batch_size=99,
    ),
    "a batch of zero": knob(r"`batch_size` is 0, but it must be at least 1", "--set", "batch_size=0", batch_size=0),
    "a batch below zero": knob(r"`batch_size` is -3, but it must be", "--set", "batch_size=-3", batch_size=-3),
    "a rate of zero": knob(
        r"`learning_rate` is 0\.0, but it must be above zero", "--set", "learning_rate=0", learning_rate=0
    ),
    "a rate below zero": knob(r"`learning_rate` is -1\.0, but", "--set", "learning_rate=-1", learning_rate=-1),
    "a rate in words": knob(
        r"`learning_rate` is 'fast', but it is a number", "--set", "learning_rate=fast", learning_rate="fast"
    ),
    "no steps": knob(
        r"`steps` is 0, but a budget must be a number above zero and finite\.", "--steps", "0", budget={"steps": 0}
    ),
    "steps below zero": knob(
        r"`steps` is -5, but a budget must be a number above", "--steps", "-5", budget={"steps": -5}
    ),
    "no epochs": knob(
        r"`epochs` is 0\.0?, but a budget must be a number above zero and finite",
        "--epochs",
        "0",
        budget={"epochs": 0.0},
    ),
    "seconds below zero": knob(r"`seconds` is -1\.0, but a budget", "--seconds", "-1", budget={"seconds": -1.0}),
    "an unknown rule": knob(r"Did you mean 'adamw'\?", "--set", "rule=adamww", rule="adamww"),
    "an unknown schedule": knob(
        r"'cosin' is no shape of a schedule\. Did you mean 'cosine'\?", "--set", "schedule=cosin", schedule="cosin"
    ),
    "an unknown constant": knob(r"beta_2.*beta2", "--set", "constants.beta_2=0.9", constants={"beta_2": 0.9}),
    "a group that matches nothing": knob(
        r"The plan's group '\*\.bais' matches no trainable parameter\.",
        "--set",
        "groups.*.bais.learning_rate_factor=2",
        groups={"*.bais": {"learning_rate_factor": 2}},
    ),
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("thalweg.records.paths.STARTED_IN", tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def complaint(capsys, words):
    """Run the command, hold it to its promises, and give its one line."""
    assert cli.main(words) == 2
    shown = capsys.readouterr()
    lines = shown.err.splitlines()
    assert len(lines) == 1, shown.err
    assert lines[0].startswith("thalweg: ")
    assert "Traceback" not in shown.err + shown.out
    return lines[0]


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_before_the_first_step(case, folder, capsys):
    text, told, words, plan, budget = CASES[case]
    Path("mine.py").write_text(text)
    device = {"device": words[1]} if words[:1] == ("--device",) else {}
    with pytest.raises(tw.ThalwegError, match=told) as raised:
        tw.train(parse_source("mine.py").load(), tw.Plan(**plan), out="run", **budget, **device)
    steps = () if {"--steps", "--epochs", "--seconds"} & set(words) else ("--steps", "3")
    line = complaint(capsys, ["train", "mine.py", *steps, *words, "--out", "run", "--quiet"])
    assert line == f"thalweg: {raised.value}"
    assert not list(Path().rglob("step-*"))
    if not words:
        assert complaint(capsys, ["check", "mine.py"]) == line
        assert complaint(capsys, ["fit", "mine.py", "--steps", "3", "--quiet", "--out", "other"]) == line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["fit", "none.py", "--steps", "3"],
            "There is no file none.py. Give the path of a Python file with a task, or an",
        ),
        (["fit", "digitz", "--steps", "3"], "'digitz' is neither an example nor a Python file. Did you mean 'digits'?"),
        (["fit", "mine.py:tusk", "--steps", "3"], "mine.py has no task called 'tusk'. Did you mean 'task'?"),
        (["fit", ".", "--steps", "3"], "'.' is neither an example nor a Python file"),
        (["fit", "./", "--steps", "3"], "is a folder. Give the Python file that holds the task"),
        (["fit", "mine.py"], "No budget is given. Say how long to train: --epochs 20, --steps 2000 or --seconds 60."),
        (["fit", "mine.py", "--steps", "3", "--effort", "quik"], "`effort` is 'quik', which is none of"),
        (
            ["fit", "mine.py", "--steps", "3", "--effort", "0.5"],
            "`effort` is 0.5, but it is at least 1: one full training.",
        ),
        (
            ["fit", "mine.py", "--steps", "3", "--fix", "learning_rat=1"],
            "no knob of a plan. Did you mean 'learning_rate'?",
        ),
        (["fit", "mine.py", "--steps", "3", "--fix", "learning_rate"], "is not of the form KNOB=VALUE"),
        (
            ["fit", "mine.py", "--steps", "3", "--fix", "learning_rate=-1"],
            "`learning_rate` is -1.0, but it must be above zero",
        ),
        (
            ["train", "mine.py", "--plan", "none.toml"],
            "none.toml: the plan cannot be read (No such file or directory).",
        ),
        (["train", "mine.py", "--plan", "mine.py"], "mine.py: this is not TOML"),
        (
            ["train", "mine.py", "--plan", "bad.toml"],
            "bad.toml: Unknown key 'learning_rat' in the plan. Did you mean 'lear",
        ),
        (
            ["train", "mine.py", "--steps", "3", "--hidden", "3"],
            "The task has no option --hidden. It takes none of its own.",
        ),
        (["resume", "none"], "There is no folder none. Give the folder that `out` named."),
        (["diagnose", "none"], "There is no folder none."),
        (["resume", "."], "is not the folder of a run: it has no run.json."),
        (["report", "none"], "There is no folder none."),
        (["report", "."], "is not the folder of a run: it has no run.json."),
        (
            ["tune", "mine.py", "--steps", "20", "--effort", "1", "--out", "mine.py/p.toml"],
            "mine.py cannot be written: File exists. Choose another place with out=.",
        ),
        (
            ["fit", "mine.py", "--steps", "20", "--effort", "1", "--out", "mine.py"],
            "mine.py cannot be written: File exists. Choose another place with out=.",
        ),
        (
            ["fit", "mine.py", "--steps", "20", "--effort", "1", "--out", "mine.py/run"],
            "cannot be written: Not a directory.",
        ),
    ],
)
def test_a_command_that_cannot_be_done_says_why_in_one_line(words, told, capsys):
    Path("mine.py").write_text(GOOD)
    Path("bad.toml").write_text("learning_rat = 1\n")
    assert told in complaint(capsys, words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["fti"], "there is no verb 'fti'. Did you mean 'fit'?"),
        (["fit"], "the following arguments are required: task"),
        (
            ["fit", "mine.py", "--epochs", "many"],
            "argument --epochs: 'many' is no number. See `thalweg fit --help`.",
        ),
        (["fit", "mine.py", "--epochs", "1", "--steps", "2"], "not allowed with argument"),
        (["resume", "a", "--what"], "unrecognized arguments: --what"),
    ],
)
def test_a_command_that_is_none_ends_with_status_2_and_one_line(words, told, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    assert left.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert told in lines[0]


def test_a_parameter_without_a_gradient_is_named_in_a_warning(capsys):
    text = HEAD + (
        "class Unused(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.used, self.spare = nn.Linear(4, 3), nn.Linear(2, 2)\n"
        "    def forward(self, x): return self.used(x)\nparts['model'] = Unused\n"
    )
    Path("mine.py").write_text(text + TAIL)
    assert cli.main(["check", "mine.py"]) == 10
    assert (
        "warning: parameter without gradient: 2 parameters got no gradient from the first batch: spare.weight, spare.bias"
        in (capsys.readouterr().out)
    )
    run = tw.train(parse_source("mine.py").load(), tw.Plan(batch_size=10), steps=3)
    assert run.summary["idle_parameters"] == ["spare.weight", "spare.bias"]


@pytest.fixture
def run():
    Path("mine.py").write_text(GOOD)
    return tw.train(parse_source("mine.py").load(), tw.Plan(batch_size=10), steps=6, out="run")


def test_a_folder_that_holds_another_run_is_kept(run, capsys):
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file() and path.name != ".lock"}
    told = r"run already holds a run with another plan: .* Give a new folder, or resume that run\."
    with pytest.raises(tw.RunError, match=told):
        tw.train(parse_source("mine.py").load(), tw.Plan(batch_size=10, learning_rate=0.5), steps=6, out="run")
    assert "with another plan" in complaint(capsys, ["train", "mine.py", "--steps", "6", "--out", "run", "--quiet"])
    assert "already holds a run. Resume it (thalweg resume run)" in complaint(
        capsys, ["fit", "mine.py", "--steps", "6", "--out", "run"]
    )
    for path, content in before.items():
        if path.suffix not in (".sqlite", ".sqlite-wal", ".sqlite-shm"):
            assert path.read_bytes() == content, path


def test_a_folder_that_holds_other_things_is_kept(capsys):
    Path("mine.py").write_text(GOOD)
    Path("thesis").mkdir()
    Path("thesis/chapter.tex").write_text("all of it")
    line = complaint(capsys, ["train", "mine.py", "--steps", "3", "--out", "thesis", "--quiet"])
    assert "thesis holds other things (chapter.tex) and is no run. Give a new folder." in line
    assert Path("thesis/chapter.tex").read_text() == "all of it"


def test_a_task_that_was_passed_as_an_object_is_asked_for(capsys):
    Path("mine.py").write_text(GOOD)
    task = tw.Task(**{k: getattr(parse_source("mine.py").load(), k) for k in ("model", "loss", "data")})
    tw.train(task, tw.Plan(batch_size=10), steps=3, out="run")
    told = "does not say how to make its task, as it was passed as an object. Pass it again, as task=…."
    assert told in complaint(capsys, ["resume", "run"])


def test_weights_of_another_model_are_refused(run, capsys):
    text = Path("mine.py").read_text().replace("8", "9")
    Path("mine.py").write_text(text)
    with pytest.raises(
        tw.CheckpointError,
        match=r"of another model: .*0\.weight is \(8, 4\) in the checkpoint and \(9, 4\) in the model",
    ):
        _ = tw.Run.open("run").model


def test_a_task_file_that_is_gone_is_told(run, capsys):
    Path("mine.py").unlink()
    assert "is no longer there. Put it back, or pass the task itself." in complaint(capsys, ["resume", "run"])


@contextmanager
def nobody():
    """Root may write anywhere: be somebody else for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_no_permission_to_write_is_told(tmp_path_factory, capsys):
    Path("mine.py").write_text(GOOD)
    task = parse_source("mine.py").load()
    locked = tmp_path_factory.mktemp("locked")
    for parent in [locked, *locked.parents][:4]:  # down from the folder that pytest closes to others
        parent.chmod(0o755)
    locked.chmod(0o555)
    try:
        for verb in (tw.fit, lambda *a, **k: tw.train(a[0], tw.Plan(batch_size=10), **k)):
            with (
                nobody(),
                pytest.raises(tw.RunError, match=r"cannot be written: Permission denied\. Choose another"),
            ):
                verb(task, steps=3, out=locked / "run")
    finally:
        locked.chmod(0o755)
    assert list(locked.iterdir()) == []


@contextmanager
def small_files(most: int):
    """A disk that takes no file longer than this; Python ignores the signal, so that writing fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("most", [0, 300, 40_000])
def test_a_disk_that_is_full_is_told_in_one_line(most, capsys):
    wide = GOOD.replace("8", "2000")
    Path("mine.py").write_text(wide)
    with small_files(most):
        line = complaint(capsys, ["train", "mine.py", "--steps", "3", "--out", "run", "--quiet"])
    assert "run" in line
    assert "File too large" in line or "disk" in line.lower() or "cannot be written" in line


def test_a_finished_run_is_opened_where_nothing_can_be_written(tmp_path_factory, capsys):
    task = tw.Task(
        model=lambda: torch.nn.Linear(3, 1),
        loss=torch.nn.functional.mse_loss,
        data=(torch.ones(8, 3), torch.ones(8, 1)),
    )
    folder = tmp_path_factory.mktemp("shelf") / "run"
    run = tw.train(task, tw.Plan(), steps=3, out=folder)
    tw.resume(folder, task)  # imports what somebody else may not read
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    for parent in [*folder.parents][:4]:  # down from the folder that pytest closes to others
        parent.chmod(0o755)
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    with nobody():
        opened = tw.resume(folder, task)
        again = tw.train(task, run.plan, out=folder)
        with pytest.raises(tw.RunError, match="cannot be written: Permission denied"):
            tw.resume(folder, task, changes={"steps": 5})
    assert opened.metrics == again.metrics == run.metrics
    assert "report.html cannot be written" in capsys.readouterr().err
    assert sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*")) == before
