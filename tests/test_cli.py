import inspect
import io
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path

import pytest

from thalweg import cli, verbs
from thalweg.errors import DivergedError, PlanError, TaskError
from thalweg.formatting import format_metric
from thalweg.records.knob import knobs
from thalweg.records.plan import Plan
from thalweg.records.run import Run
from thalweg.rules import RULES, get

FILE = """
import torch
import torch.nn.functional as F
from torch import nn
import thalweg as tw

def task(hidden=8, rate=0.5, label="mine", wide=False, sizes=(1, 2), anything=None, steps=3):
    print("asked:", hidden, rate, label, wide, sizes, anything, steps)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=generator)
    y = (x[:, 0] > 0).long()
    return tw.Task(
        model=lambda: nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, 2)),
        loss=F.cross_entropy, data=(x[:40], y[:40]), validation=(x[40:], y[40:]),
    )
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("thalweg.records.paths.STARTED_IN", tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


@pytest.mark.parametrize("words", [["-v"], ["--verbose"], ["--epochs", "3"], ["report", "run", "--fast"]])
def test_an_option_that_nobody_takes_is_told(words, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    assert left.value.code == 2
    assert "See `thalweg" in capsys.readouterr().err


def test_nothing_shows_the_help(capsys):
    assert cli.main([]) == 0
    assert "verbs" in capsys.readouterr().out


def test_every_verb_has_help(capsys):
    for verb in ("fit", "tune", "train", "check", "resume", "evaluate", "forecast", "diagnose", "survey", "report"):
        with pytest.raises(SystemExit) as left:
            cli.main([verb, "--help"])
        assert left.value.code == 0
        assert verb in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["fit", "tune", "train"])
def test_help_describes_every_knob(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    shown = capsys.readouterr().out
    for name, knob in knobs(Plan).items():
        assert re.search(rf"^  {name} +{re.escape(knob.meaning)} \(.*default .*\)$", shown, re.MULTILINE), name
    assert (
        "steps between validations (steps, at least 1; none: once per epoch, 5 to 50 times per run; default none)"
        in shown
    )


def test_fit_chooses_trains_and_reports(capsys):
    assert cli.main(["fit", "mine.py", "--steps", "40", "--effort", "2", "--out", "größe 1/run"]) == 0
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    assert "\x1b" not in shown.out  # no control characters where no terminal is
    run = Run.open("größe 1/run")
    assert run.plan.why("learning_rate").source == "searched"
    assert Path("größe 1/run/report.html").stat().st_size > 1000
    assert cli.main(["diagnose", "größe 1/run"]) == 0
    assert cli.main(["report", "größe 1/run", "--out", "r.html"]) == 0
    assert Path("r.html").exists()


def test_a_diagnosis_says_which_figures_are_damaged_and_left_out(capsys, folder):
    assert cli.main(["train", "mine.py", "--steps", "80", "--out", "run", "--quiet"]) == 0
    with closing(sqlite3.connect("run/history.sqlite")) as history, history:
        number = history.execute("SELECT id FROM name WHERE name = 'loss'").fetchone()[0]
        history.execute(f"UPDATE figures SET c{number} = 7.0 WHERE step = 70")
    capsys.readouterr()
    said = "The figures of steps 64 to 127 in history.sqlite are damaged and left out."
    cli.main(["diagnose", "run"])
    shown = capsys.readouterr().out
    assert said in shown
    assert "No failure was noticed." not in shown
    with pytest.warns(UserWarning, match=re.escape(said)) as warned:
        found = verbs.diagnose("run")
    assert [Path(warning.filename) for warning in warned] == [Path(__file__)]
    run = Run.open("run")
    assert (run.left_out, verbs.diagnose(run)) == ([said], found)  # told by the run's events already


def test_a_dry_run_says_the_price_and_writes_nothing(capsys, folder):
    assert cli.main(["fit", "mine.py", "--epochs", "4", "--dry-run", "--quiet"]) == 0
    assert "steps of" in capsys.readouterr().out
    assert sorted(p.name for p in folder.iterdir()) in (["mine.py"], ["__pycache__", "mine.py"])


def test_tune_prints_a_plan_that_train_takes(capsys):
    assert cli.main(["tune", "mine.py", "--steps", "40", "--effort", "2", "--fix", "batch_size=10"]) == 0
    shown = capsys.readouterr()
    Path("plan.toml").write_text(shown.out.split("\n", 1)[1])  # behind what the task itself printed
    assert Plan.load("plan.toml").batch_size == 10
    assert "# learning rate" in shown.err
    assert (
        cli.main(["train", "mine.py", "--plan", "plan.toml", "--set", "learning_rate=1e-3", "--out", "r", "--quiet"])
        == 0
    )
    run = Run.open("r")
    assert run.plan.learning_rate == 1e-3
    assert run.plan.why("learning_rate").source == "given"
    assert run.plan.steps == 40


def test_tune_writes_a_plan(capsys):
    assert cli.main(["tune", "mine.py", "--steps", "30", "--effort", "1", "--out", "plans/p.toml", "--quiet"]) == 0
    assert "plan written to plans/p.toml" in capsys.readouterr().out
    assert Plan.load("plans/p.toml").steps == 30


@pytest.mark.parametrize("rule", [*RULES, "sgd"])
def test_every_rule_can_be_asked_for(rule, monkeypatch):
    asked = {}
    monkeypatch.setattr(cli, "open_task", lambda *_: None)
    monkeypatch.setattr("thalweg.verbs.estimate", lambda task, **options: asked.update(options))
    words = ["fit", "mine.py", "--steps", "40", "--dry-run", "--rule", rule, "--fix", "weight_decay=0"]
    assert cli.main([*words, *(f"--fix=constants.{n}={v}" for n, v in get(rule).constants.items())]) == 0
    assert asked["fixed"]["rule"] == rule
    assert Plan(**asked["fixed"]).constants == get(rule).constants


def test_a_rule_is_tuned_and_trained_by_its_name(capsys):
    assert cli.main(["tune", "mine.py", "--steps", "40", "--effort", "1", "--rule", "lion", "--out", "plan.toml"]) == 0
    plan = Plan.load("plan.toml")
    assert (plan.rule, plan.learning_rate, plan.why("rule").source) == ("lion", 0.0147, "given")
    assert cli.main(["train", "mine.py", "--steps", "20", "--rule", "nadam", "--out", "r", "--quiet"]) == 0
    plan = Run.open("r").plan
    assert (plan.rule, plan.learning_rate) == ("nadam", 2e-3)


def test_a_rule_that_nobody_has_or_that_is_named_twice_is_told(capsys):
    assert cli.main(["fit", "mine.py", "--steps", "9", "--rule", "adamww"]) == 2
    assert "Did you mean 'adamw'" in capsys.readouterr().err
    assert cli.main(["fit", "mine.py", "--steps", "9", "--rule", "adam", "--fix", "rule=lion"]) == 2
    assert "The rule is given twice, by --rule adam and as a knob." in capsys.readouterr().err


def test_set_reaches_into_tables(capsys):
    words = ["train", "mine.py", "--steps", "5", "--out", "r", "--quiet"]
    pairs = ["batch-size=all", "constants.beta2=0.9", "constants.beta1=0.5", "schedule=cosine", "seed=3", "ema=none"]
    for pair in pairs:
        words += ["--set", pair]
    assert cli.main(words) == 0
    plan = Run.open("r").plan
    assert plan.batch_size is None
    assert plan.constants == {"beta1": 0.5, "beta2": 0.9}
    assert plan.schedule.shape == "cosine"
    assert plan.seed == 3
    more = ["--set", "schedule.warmup=2", "--set", "groups.*.bias.learning_rate_factor=2", "--out", "r2"]
    more += ["--set", "weight_decay_schedule=inverse_time", "--set", "weight-decay=0.1"]
    assert cli.main([*words[:4], "--quiet", *more]) == 0
    plan = Run.open("r2").plan
    assert plan.schedule.warmup == 2
    assert plan.weight_decay_schedule.shape == "inverse_time"
    assert plan.groups["*.bias"].learning_rate_factor == 2.0


def test_runs_without_a_name_of_their_own_are_numbered():
    for _ in range(3):
        assert cli.main(["train", "mine.py", "--steps", "2", "--quiet"]) == 0
    assert sorted(p.name for p in Path("runs").iterdir()) == ["mine", "mine-2", "mine-3"]


def test_a_task_name_cannot_leave_the_folder_of_runs():
    Path("odd.py").write_text(FILE.replace("loss=F.", 'name="../größe / x", loss=F.'))
    assert cli.main(["train", "odd.py", "--steps", "2", "--quiet"]) == 0
    assert [p.name for p in Path("runs").iterdir()] == ["größe-x"]


def test_resume_opens_what_is_finished(capsys):
    assert cli.main(["train", "mine.py", "--steps", "4", "--out", "r", "--quiet", "--hidden", "5"]) == 0
    assert cli.main(["resume", "r", "--quiet"]) == 0
    assert capsys.readouterr().out.count("asked: 5 ") == 2
    assert Run.open("r").model[0].out_features == 5


def test_arguments_reach_the_tasks_function(capsys):
    words = [
        "--hidden",
        "16",
        "--rate",
        "2",
        "--label=3",
        "--wide",
        "--sizes",
        "[4, 5]",
        "--anything",
        "-1.5",
        "--task.steps",
        "9",
    ]
    assert cli.main(["train", "mine.py", "--steps", "2", "--out", "r", "--quiet", *words]) == 0
    assert "asked: 16 2.0 3 True [4, 5] -1.5 9" in capsys.readouterr().out
    assert Run.open("r").model[0].out_features == 16


def test_options_may_stand_anywhere(capsys):
    assert cli.main(["train", "--hidden=4", "--steps", "2", "mine.py", "--quiet", "--wide", "no", "--out", "r"]) == 0
    assert "asked: 4 0.5 mine False" in capsys.readouterr().out


def parameters(**defaults):
    return {
        name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value) for name, value in defaults.items()
    }


@pytest.mark.parametrize(
    ("text", "default", "value"),
    [
        ("3", 1, 3),
        ("-3", 1, -3),
        ("3", 1.0, 3.0),
        ("1e-3", 1.0, 1e-3),
        ("inf", 1.0, float("inf")),
        ("3", "x", "3"),
        ("a b", "x", "a b"),
        ("none", 1, None),
        ("yes", False, True),
        ("0", True, False),
        ("True", False, True),
        ("x/y", Path("."), Path("x/y")),
        ("[1, 2]", None, [1, 2]),
        ("{'a': 1}", None, {"a": 1}),
        ("word", None, "word"),
        ("", None, ""),
        ("1,2", (), (1, 2)),
    ],
)
def test_values_take_the_type_of_their_default(text, default, value):
    for words in (["--x", text], [f"--x={text}"]):
        found = cli.read_arguments(words, parameters(x=default))["x"]
        assert found == value
        assert type(found) is type(value)


def test_a_text_stays_a_text_where_the_annotation_says_so():
    def task(data: str): ...

    assert cli.read_arguments(["--data", "007"], inspect.signature(task).parameters) == {"data": "007"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--x", "abc"], r"--x is 'abc', but it is a whole number, such as 1\."),
        (["--x", "1.5"], r"--x is '1\.5', but it is a whole number"),
        (["--y", "abc"], r"--y is 'abc', but it is a number, such as 0\.5\."),
        (["--z", "abc"], r"--z is 'abc', but it is true or false, such as True\."),
        (["--yy", "1"], r"The task has no option --yy\. Did you mean '--y'\? It takes --x, --y, --z\."),
        (["stray"], r"'stray' is no option\. Options for the task look like --name VALUE\."),
    ],
)
def test_arguments_that_do_not_fit_are_told(words, told):
    with pytest.raises(TaskError, match=told):
        cli.read_arguments(words, parameters(x=1, y=0.5, z=True))


def test_a_mistyped_option_of_the_command_is_recognised(capsys):
    assert cli.main(["fit", "mine.py", "--epoch", "3"]) == 2
    assert "The task has no option --epoch. It is called --epochs here." in capsys.readouterr().err


@pytest.mark.parametrize("pair", ["learning_rate", "=3", " = 3"])
def test_pairs_of_another_form_are_told(pair):
    with pytest.raises(PlanError, match=r"is not of the form KNOB=VALUE, such as learning_rate=1e-3\."):
        cli.read_knobs([pair])


def test_a_table_is_set_in_one_way():
    with pytest.raises(
        PlanError, match=r"'schedule\.warmup=3' sets an entry of 'schedule', which another pair has set as a whole"
    ):
        cli.read_knobs(["schedule=linear", "schedule.warmup=3"])


def test_examples_are_listed(capsys):
    assert cli.main(["examples"]) == 0
    assert "digits" in capsys.readouterr().out


def test_faulty_programs_are_listed_by_a_part_of_their_names(capsys):
    assert cli.main(["examples", "fault/dead-units"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 2
    assert all(line.startswith("fault/") and "dead-units" in line for line in lines)


def test_a_faulty_program_is_trained_and_its_fault_is_told(capsys):
    assert cli.main(["examples", "fault/waves/deep/adamw/learning-rate-too-low/thousandfold"]) == 0
    assert "What is wrong with it: learning-rate-too-low." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("address", "said"),
    [("fault/waves/deep/adamw/helthy", "Did you mean 'waves/deep/adamw/healthy'"), ("digits", "fault/NAME")],
)
def test_an_unknown_faulty_program_is_refused(address, said, capsys):
    assert cli.main(["examples", address]) == 2
    assert said in capsys.readouterr().err


def test_check_says_what_it_finds_by_its_status(capsys):
    assert cli.main(["check", "mine.py"]) == 0
    assert "Nothing suspicious was found." in capsys.readouterr().out
    Path("dead.py").write_text(FILE.replace("y = (x", "x = x * 0\n    y = (x"))
    assert cli.main(["check", "dead.py"]) == 11
    assert "critical: output ignores input" in capsys.readouterr().out


FILLED = """
class Filled(nn.Module):
    def forward(self, x):
        return x.nan_to_num()
"""


def test_check_notes_what_is_no_fault(capsys):
    Path("noted.py").write_text(FILE.replace("    y = (x", "    x = x.double()\n    y = (x"))
    assert cli.main(["check", "noted.py"]) == 0
    out = capsys.readouterr().out
    assert "note: `data` is float64 and was cast to the model's torch.float32." in out
    filled = FILE.replace("def task(", f"{FILLED}\n\ndef task(").replace("nn.Sequential(", "nn.Sequential(Filled(), ")
    Path("filled.py").write_text(filled.replace("    y = (x[:, 0]", "    x[3, 1] = torch.nan\n    y = (x[:, 0]"))
    assert cli.main(["check", "filled.py"]) == 0
    assert "has NaN or infinity in 1 of 40 rows" in capsys.readouterr().out
    assert cli.main(["check", "mine.py"]) == 0
    assert "note:" not in capsys.readouterr().out


def test_evaluate_measures_a_run_on_its_validation_data_or_on_another_tasks(capsys):
    test_set = FILE.replace("validation=(x[40:], y[40:])", "validation=(x[:40], y[:40])")
    Path("test_set.py").write_text(test_set + "\nother = task()\n")
    assert cli.main(["train", "mine.py", "--steps", "12", "--out", "run", "--quiet"]) == 0
    run = Run.open("run")
    for words, task in (
        ([], None),
        (["--task", "mine.py"], None),
        (["--task", "test_set.py:other"], "test_set.py:other"),
    ):
        capsys.readouterr()
        assert cli.main(["evaluate", "run", *words]) == 0
        line = capsys.readouterr().out.splitlines()[-1]
        expected = run.metrics if task is None else verbs.evaluate(run, task=cli.open_task(task, []))
        assert line == f"loss {format_metric('loss', expected['loss'])}"
    assert cli.main(["evaluate", "mine.py"]) == 2
    assert "it is a file" in capsys.readouterr().err


def test_forecast_says_what_a_run_is_worth_and_changes_nothing_of_it(capsys):
    stopping = FILE.replace("def task(", "CALLS = []\n\n\ndef task(")
    Path("mine.py").write_text(stopping)
    task = cli.open_task("mine.py", [])

    def stop(model, figures):
        if figures.step == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verbs.train(task, Plan(learning_rate=0.01, batch_size=8, steps=40), out="run", on_step=stop)
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    capsys.readouterr()
    assert cli.main(["forecast", "run"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"After step 20 of 40, cooled down now: loss .* ± .*; at the planned end: loss .* ± ", said), said
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before
    assert cli.main(["forecast", "nothing"]) == 2
    assert cli.main(["forecast", "mine.py"]) == 2


@pytest.mark.parametrize("verb", ["fit", "tune", "train"])
@pytest.mark.parametrize("option", ["--fix", "--set"])
def test_each_verb_takes_the_others_word_for_a_knob(verb, option, capsys):
    out = ["--out", "plan.toml" if verb == "tune" else "run"]
    words = [] if verb == "train" else ["--effort", "1"]
    assert cli.main([verb, "mine.py", "--steps", "4", *words, option, "learning_rate=0.25", *out, "--quiet"]) == 0
    assert Plan.load("plan.toml" if verb == "tune" else "run/plan.toml").learning_rate == 0.25


@pytest.mark.heavy
def test_a_reader_that_goes_away_in_training_does_not_end_the_run(folder):
    Path("silent.py").write_text(re.sub(r"    print.*", "", FILE))
    words = [sys.executable, "-m", "thalweg", "fit", "silent.py", "--steps", "40", "--effort", "1", "--out", "run"]
    with subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        process.stderr.read()
    assert process.returncode == 0
    assert Run.open(folder / "run").summary["status"] == "finished"


def fails_with(error):
    def verb(options, rest):
        raise error

    return verb


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (DivergedError("lost"), 3, "thalweg: lost\n"),
        (TaskError("of two\nlines"), 2, "thalweg: of two lines\n"),
        (KeyboardInterrupt("Saved."), 130, "thalweg: Saved.\n"),
        (KeyboardInterrupt(), 130, "thalweg: Interrupted.\n"),
        (
            OSError(28, "No space left on device", "/x/y"),
            2,
            "thalweg: /x/y: No space left on device. Check the path, its p",
        ),
    ],
)
def test_every_end_has_its_status(monkeypatch, capsys, error, status, told):
    monkeypatch.setattr(cli, "run_examples", fails_with(error))
    assert cli.main(["examples"]) == status
    assert capsys.readouterr().err.startswith(told)


def test_what_nobody_foresaw_keeps_its_traceback(monkeypatch):
    for error in (ZeroDivisionError(), OSError("odd")):
        monkeypatch.setattr(cli, "run_examples", fails_with(error))
        with pytest.raises(type(error)):
            cli.main(["examples"])


def test_a_reader_that_goes_away_is_no_error():
    script = "import sys; from thalweg.cli import main; sys.exit(main(['examples']))"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        error = process.stderr.read()
    assert (process.returncode, error) == (0, b"")


def test_a_terminal_that_knows_ascii_only_is_served(folder):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "OMP_NUM_THREADS": "1"}
    words = ["-m", "thalweg", "fit", "mine.py", "--steps", "20", "--effort", "1"]
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_output_to_a_pipe_has_no_control_characters(monkeypatch):
    held = io.StringIO()
    monkeypatch.setattr(sys, "stdout", held)
    assert cli.main(["train", "mine.py", "--steps", "12", "--out", "r"]) == 0
    assert not [c for c in held.getvalue() if ord(c) < 32 and c != "\n"]


SIGNALS = """
import itertools, os, signal, torch, torch.nn.functional as F, thalweg as tw
from torch import nn

calls = itertools.count(1)  # no number, which would be put back after every trial

def loss(output, target):
    if next(calls) == int(os.environ.get("AT", 0)):
        os.kill(os.getpid(), getattr(signal, os.environ["SENT"]))
    return F.mse_loss(output, target)

x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
task = tw.Task(model=lambda: nn.Linear(4, 1), loss=loss, data=(x, x[:, :1]), validation=(x[:9], x[:9, :1]))
"""


def in_process(words, **environment):
    return subprocess.run(
        [sys.executable, "-m", "thalweg", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_search_that_is_stopped_or_killed_is_resumed_to_the_same_result(folder):
    (folder / "stopped.py").write_text(SIGNALS)
    words = ["fit", "stopped.py", "--steps", "300", "--effort", "2", "--fix", "batch_size=16", "--seed", "4", "--out"]
    assert in_process([*words, "whole"]).returncode == 0
    for sent, status in (("SIGTERM", 143), ("SIGINT", 130), ("SIGKILL", -9)):
        stopped = in_process([*words, sent], AT="200", SENT=sent)
        assert stopped.returncode == status, stopped.stderr
        assert "Traceback" not in stopped.stderr
        if status > 0:
            assert f"what was found is kept; go on with: thalweg resume {sent}" in stopped.stderr
        names = {path.name for path in (folder / sent).iterdir()}
        assert names - {"study.sqlite-wal", "study.sqlite-shm"} == {
            ".lock",
            "request.json",
            "study.sqlite",
            "task.toml",
        }
        assert cli.main(["diagnose", sent]) == 2
    assert cli.main(["resume", "SIGKILL"]) == 0
    resumed, whole = Run.open("SIGKILL"), Run.open("whole")
    assert resumed.metrics == whole.metrics
    assert resumed.plan.learning_rate == whole.plan.learning_rate
    assert resumed.plan.why("learning_rate").source == "searched"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["fit", "--lr", "0.1"], "has no option --lr. It is a knob of the plan: --fix learning_rate=0.1."),
        (["fit", "--lr=0.1"], "--fix learning_rate=0.1."),
        (["train", "--batch-size", "8"], "has no option --batch_size. It is a knob of the plan: --set batch_size=8."),
        (["tune", "--wd", "0"], "--fix weight_decay=0."),
        (["fit", "--optimizer", "sgd"], "has no option --optimizer. It is called --rule here."),
        (["fit", "--max-epochs", "3"], "It is called --epochs here."),
        (["train", "--output-dir", "x"], "It is called --out here."),
        (["check", "--lr", "3"], "The task has no option --lr. Did you mean '--rate'? It takes --hidden"),
        (["fit", "--momentum", "0.9"], "It is a constant of the rule: --fix constants.momentum=0.9."),
        (["fit", "--steps", "5", "--fix", "lr=0.1"], "which is no knob of a plan. It is called 'learning_rate' here."),
        (["train", "--steps", "5", "--set", "wd=0.1"], "A plan has no 'wd'. It is called 'weight_decay' here."),
        (["train", "--steps", "5", "--set", "groups.*.learning_rate=2"], "It is called 'learning_rate_factor' here."),
    ],
)
def test_names_from_elsewhere_are_answered_with_the_right_word(words, told, capsys):
    assert cli.main([words[0], "mine.py", *words[1:]]) == 2
    assert told in capsys.readouterr().err


def test_resume_changes_what_is_set_and_refuses_what_cannot_be(capsys):
    assert cli.main(["train", "mine.py", "--steps", "4", "--out", "r", "--quiet"]) == 0
    for pair, said in (
        ("rule=lion", "`rule` cannot be changed within a run"),
        ("steps=4", "nothing remains to be done"),
        ("steps=-1", "must be at least 1"),
        ("nonsense=1", "has no 'nonsense'"),
        ("steps", "not of the form KNOB=VALUE"),
    ):
        capsys.readouterr()
        with suppress(SystemExit):
            assert cli.main(["resume", "r", "--set", pair]) == 2
        assert said in capsys.readouterr().err
        assert Run.open("r").plan.steps == 4
    assert cli.main(["resume", "r", "--set", "steps=6", "--set", "learning_rate=0.01", "--quiet"]) == 0
    run = Run.open("r")
    assert (run.plan.steps, run.plan.learning_rate, run.summary["steps"]) == (6, 0.01, 6)
    change = next(event for event in run.events if event.kind == "change")
    assert {"steps", "learning_rate"} <= set(change.data["knobs"])
