import dataclasses
import os
import stat
import sys
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pytest
import torch

import thalweg as tw
from thalweg.cli import main
from thalweg.errors import RunError, TaskError
from thalweg.records import sealed_json, trust
from thalweg.records.request import Request
from thalweg.records.run import Run
from thalweg.records.run_folder import RunFolder
from thalweg.records.task import Source, parse_source

X, Y = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 2
FILE = """
import pathlib, torch, torch.nn.functional as F
from torch import nn
import thalweg as tw

pathlib.Path(__file__).with_suffix(".ran").touch()

def task(hidden=4) -> tw.Task:
    x, y = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 2
    model = lambda: nn.Sequential(nn.Linear(3, hidden), nn.ReLU(), nn.Linear(hidden, 2))
    return tw.Task(model, F.cross_entropy, (x, y), (x, y))
"""
ATTACK = 'name = "system"\nmodule = "os"\n[arguments]\ncommand = "touch {}"\n'


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "thalweg"


def become_somebody_else(monkeypatch, state: Path):
    """Another user, or this one on another machine: neither has the key of the one before."""
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    monkeypatch.setattr(trust, "_process_key", os.urandom(32))


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    made = tw.train(parse_source(str(path), {"hidden": 6}).load(), tw.Plan(batch_size=5), steps=2, out=tmp_path / "run")
    path.with_suffix(".ran").unlink()
    assert made.folder is not None
    return made.folder


def opened(folder: Path, **options):
    return [
        lambda: tw.resume(folder, **options),
        lambda: Run.open(folder, **options).model,
        lambda: Run.open(folder, **options).predict(X),
        lambda: tw.evaluate(folder, **options),
        lambda: tw.evaluate(Run.open(folder), **options),
    ]


def test_a_run_of_ones_own_needs_no_trust_and_may_be_moved(run, tmp_path):
    moved = run.rename(tmp_path / "elsewhere")
    for use in opened(moved):
        use()


def test_a_run_of_somebody_else_asks_first_and_says_what_it_would_run(run, tmp_path, monkeypatch, capsys):
    become_somebody_else(monkeypatch, tmp_path / "other")
    for use in opened(run):
        with pytest.raises(
            RunError, match=r"Nothing shows that you made the run in .* run the file '.*mine\.py' and take "
        ) as no:
            use()
        assert "called with (hidden=6). Where you trust it, say so with --trust, in Python trust=True" in str(no.value)
    assert main(["resume", str(run)]) == main(["evaluate", str(run)]) == 2
    assert capsys.readouterr().err.count("say so with --trust") == 2
    assert not (tmp_path / "mine.ran").exists()
    for use in reversed(opened(run, trust=True)):
        use()
    tw.resume(run)  # after it was trusted once


@pytest.mark.parametrize("name", ["file", "name", "arguments", "module"])
def test_a_seal_holds_for_nothing_but_what_was_sealed(run, name):
    path = run / "task.toml"
    other = {
        "file": ("mine.py", "yours.py"),
        "name": ('name = "task"', 'name = "tusk"'),
        "arguments": ("= 6", "= 7"),
        "module": ("file = ", "module = "),
    }[name]
    text = path.read_text()
    path.write_text(text.replace("\n", "\n\n").replace(" = ", "="))
    assert Source.read(path)[1]  # the layout does not matter
    path.write_text(text.replace(*other))
    assert not Source.read(path)[1]


@pytest.mark.parametrize("seal", ['""', '"ä"', "3", "[]", f'"{"0" * 64}"'])
def test_a_seal_that_is_made_up_is_none(run, seal):
    path = run / "task.toml"
    lines = path.read_text().split("\n", 1)
    path.write_text(f"seal = {seal}\n{lines[1]}")
    assert not Source.read(path)[1]


def test_a_run_calls_no_function_that_is_not_said_to_give_a_task(run, tmp_path):
    """The attack itself, also where the person trusts the folder."""
    done = tmp_path / "done"
    popen = f'name = "popen"\nfile = {os.__file__!r}\n[arguments]\ncmd = "touch {done}"\n'
    for text in (ATTACK.format(done), ATTACK.format(done).replace("system", "popen").replace("command", "cmd"), popen):
        (run / "task.toml").write_text(text)
        for use in opened(run):
            with pytest.raises(RunError, match=r"Nothing shows that you made"):
                use()
        for use in opened(run, trust=True):
            with pytest.raises(TaskError, match=r"has no task called 'system'|'popen' in .*os.* is not called"):
                use()
    assert not done.exists()


@pytest.mark.parametrize(
    ("line", "called"),
    [
        ("def task(): ...", True),
        ("def small_task(): ...", True),
        ("def make() -> tw.Task: ...", True),
        ("def make() -> 'tw.Task': ...", True),
        ("def make(): ...", False),
        ("def task() -> int: ...", False),
        ("from os import popen as task", False),
        ("import functools, os; task = functools.partial(os.system, 'true')", False),
    ],
)
def test_of_somebody_elses_source_only_functions_that_say_so_give_tasks(tmp_path, line, called):
    path = tmp_path / "mine.py"
    path.write_text(f"import thalweg as tw\n{line}\n")
    name = line.split("(")[0].rpartition(" ")[2] if line.startswith("def") else "task"
    source = Source(name, str(path), None, {"mode": "r"} if "popen" in line else {})
    with pytest.raises(TaskError, match="returned a NoneType" if called else "nothing there says that it gives a task"):
        source.load(strict=True)


def test_reading_a_run_imports_and_runs_nothing(run, tmp_path, monkeypatch):
    become_somebody_else(monkeypatch, tmp_path / "other")
    (tmp_path / "planted.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)
    (run / "task.toml").write_text('name = "task"\nmodule = "planted"\n')
    before = set(sys.modules)
    read = Run.open(run, trust=True)
    assert [len(read.history["loss"]), len(read.events), read.metrics.keys(), read.plan.steps]
    assert repr(read)
    read.plot()
    tw.diagnose(run)
    tw.diagnose(read)
    tw.report(run)
    tw.report(read)
    assert main(["diagnose", str(run)]) in (0, 10, 11)
    assert main(["report", str(run)]) == 0
    assert not any(name.startswith("planted") or "mine" in name for name in set(sys.modules) - before)
    assert not (tmp_path / "planted.ran").exists()
    assert not (tmp_path / "mine.ran").exists()


def test_a_stopped_search_of_somebody_else_asks_first(run, tmp_path, monkeypatch):
    from thalweg.records.request import Request

    folder = RunFolder(tmp_path / "begun")
    folder.path.mkdir()
    folder.record_request(Request(steps=2, effort=1), Source(file=str(tmp_path / "mine.py")))
    become_somebody_else(monkeypatch, tmp_path / "other")
    with pytest.raises(RunError, match="Nothing shows that you made"):
        tw.resume(folder.path)
    assert not (tmp_path / "mine.ran").exists()
    assert tw.resume(folder.path, trust=True).summary["status"] == "finished"


def test_a_trusted_run_that_another_process_writes_to_is_not_sealed_as_ours(run, tmp_path, monkeypatch):
    become_somebody_else(monkeypatch, tmp_path / "other")
    task = run / "task.toml"
    before = task.read_bytes()
    with RunFolder(run).locked(), pytest.raises(RunError, match="Another process is writing"):
        tw.resume(run, trust=True)
    assert task.read_bytes() == before


def test_the_task_passed_as_an_object_needs_no_trust(run, tmp_path, monkeypatch):
    task = dataclasses.replace(parse_source(str(tmp_path / "mine.py"), {"hidden": 6}).load(), source=None)
    (tmp_path / "mine.ran").unlink()
    become_somebody_else(monkeypatch, tmp_path / "other")
    assert tw.resume(run, task).summary["status"] == "finished"
    Run.open(run, task).predict(X)
    tw.evaluate(run, task=task)
    assert not (tmp_path / "mine.ran").exists()


def test_a_key_belongs_to_its_user_alone(home):
    sealed = trust.seal("text")
    assert stat.S_IMODE((home / "key").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert [path.name for path in home.iterdir()] == ["key"]
    assert trust.is_sealed("text", sealed)
    assert not trust.is_sealed("other text", sealed)
    assert trust.missing_key() == ""


def spoil_folder_mode(home):
    home.chmod(0o755)


def spoil_key_mode(home):
    (home / "key").chmod(0o644)


def shorten_key(home):
    (home / "key").write_bytes(b"short")


def link_key(home):
    (home / "key").rename(home.parent / "key")
    (home / "key").symlink_to(home.parent / "key")


def link_folder(home):
    home.rename(home.parent / "other")
    home.symlink_to(home.parent / "other")


def pipe_for_key(home):
    (home / "key").unlink()
    os.mkfifo(home / "key")


@pytest.mark.parametrize("spoil", [spoil_folder_mode, spoil_key_mode, shorten_key, link_key, link_folder, pipe_for_key])
def test_a_key_that_others_may_know_or_have_put_there_is_not_used(home, spoil, monkeypatch):
    sealed = trust.seal("text")
    spoil(home)
    assert not trust.is_sealed("text", sealed)
    again = trust.seal("text")  # which holds in this process
    assert again != sealed
    assert trust.is_sealed("text", again)
    assert f"No key of yours is in {home}" in trust.missing_key()
    monkeypatch.setattr(trust, "_process_key", os.urandom(32))
    assert not trust.is_sealed("text", again)


@pytest.mark.parametrize("base", ["file", "none"])
def test_where_no_key_can_be_kept_a_run_is_its_own_processs(tmp_path, monkeypatch, base):
    (tmp_path / "file").touch()
    if base == "file":  # as in a home that cannot be written
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    else:
        monkeypatch.delenv("XDG_STATE_HOME")
        monkeypatch.setattr(Path, "home", lambda: Path("~").expanduser() if False else _no_home())
    assert trust.is_sealed("text", trust.seal("text"))
    assert "so your own runs are recognised only in the process that made them" in trust.missing_key()


def _no_home():
    raise RuntimeError("Could not determine home directory.")


def test_processes_that_make_the_key_at_once_agree_on_one(home):
    with ThreadPool(4) as pool:
        assert len(set(pool.map(trust.seal, ["text"] * 16))) == 1
    assert [path.name for path in home.iterdir()] == ["key"]


def test_root_makes_no_key_in_the_home_of_somebody_else(home, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    if tmp_path.stat().st_uid == 0:
        os.chown(tmp_path, 12345, -1)
    trust.seal("text")
    assert not home.exists()


@pytest.mark.parametrize("how", ["by somebody else", "edited"])
def test_a_search_of_somebody_else_connects_to_no_storage_before_it_is_asked(how, run, tmp_path, monkeypatch):
    """Also where the task is passed, or its own file is this user's: only the storage that the folder names is another's."""
    folder, theirs = RunFolder(tmp_path / "searched"), tmp_path / "theirs.sqlite"
    task = tw.Task(lambda: torch.nn.Linear(2, 1), torch.nn.functional.mse_loss, (torch.ones(60, 2), torch.ones(60, 1)))
    mine = Request(steps=6, effort=4.0, fixed={"batch_size": 8}, storage=str(tmp_path / "mine.sqlite"))
    with folder.locked():
        folder.record_request(mine, None)
    assert folder.read_request() == mine
    if how == "edited":
        entries = sealed_json.load(folder.request_path.read_text()) | {"storage": str(theirs)}
        folder.request_path.write_text(sealed_json.dump(entries))
    else:
        become_somebody_else(monkeypatch, tmp_path / "other")
    storage = theirs if how == "edited" else tmp_path / "mine.sqlite"
    with pytest.raises(RunError, match=r"its search would connect to the storage .*say so with --trust"):
        tw.resume(folder.path, task)
    assert not storage.exists()
    tw.resume(folder.path, task, trust=True)
    assert storage.exists()
    assert folder.read_request().storage == str(storage)
