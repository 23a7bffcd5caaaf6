"""What cannot be told is dropped, and ends no work; the command's status says what came of the work."""

import errno
import functools
import io
import logging
import os
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import thalweg as tw
from thalweg import cli
from thalweg.records.run_folder import RunFolder
from thalweg.terminal import UnfailingStream, open_descriptors, tell, tell_error, unfailing_streams, warn

FILE = """
import torch
from torch import nn
import thalweg as tw

def task() -> tw.Task:
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    return tw.Task(model=lambda: nn.Linear(4, 2), loss=nn.functional.cross_entropy, data=(x, (x[:, 0] > 0).long()),
                   validation=(x[:20], (x[:20, 0] > 0).long()))
"""
X = torch.randn(48, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


def classes(data=(X, Y)):
    return tw.Task(model=lambda: nn.Linear(4, 2), loss=nn.functional.cross_entropy, data=data, validation=(X, Y))


def plan(steps=6):
    return tw.Plan(learning_rate=1e-2, batch_size=16, steps=steps)


def same_bits(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


FULL = OSError(errno.ENOSPC, "No space left on device")


class Failing(io.StringIO):
    """A terminal that raises at every write, or only as it is flushed."""

    def __init__(self, error: BaseException, *, flush_only: bool = False) -> None:
        super().__init__()
        self.error, self.flush_only = error, flush_only

    def write(self, text: str) -> int:
        if not self.flush_only:
            raise self.error
        return super().write(text)

    def flush(self) -> None:
        raise self.error

    def isatty(self) -> bool:
        return True


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


def narrow(encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n", write_through=True)


BROKEN = {
    "a reader that went away": lambda: Failing(BrokenPipeError()),
    "a full disk": lambda: Failing(FULL),
    "a full disk, noticed late": lambda: Failing(FULL, flush_only=True),
    "a notebook that lost its kernel": lambda: Failing(RuntimeError("the kernel died")),
    "a wrapper without methods": types.SimpleNamespace,
    "a closed file": closed,
    "no stream": lambda: None,
    "ascii": lambda: narrow("ascii"),
    "cp1252": lambda: narrow("cp1252"),
}


@functools.cache
def undisturbed():
    return tw.train(classes(), plan(), progress=False)


@pytest.mark.parametrize("kind", BROKEN)
def test_no_output_changes_a_bit_of_a_run(kind, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", BROKEN[kind]())
    monkeypatch.setattr(sys, "stderr", BROKEN[kind]())
    run = tw.train(classes(), plan(), progress=True)
    assert run.summary["status"] == "finished"
    assert same_bits(run.model, undisturbed().model)


def test_a_loss_is_said_once_and_where_it_can_be(monkeypatch, capsys):
    stream = UnfailingStream(lambda: Failing(FULL), "The training goes on.")
    for _ in range(3):
        print("step", file=stream, flush=True)
    said = capsys.readouterr().err
    assert (
        said
        == "thalweg: The output cannot be written: OSError: [Errno 28] No space left on device. The training goes on.\n"
    )
    assert stream.loss is FULL


def test_what_is_told_has_no_control_characters(capsys):
    tell("a\x1b[2Jb\nc\x07\u202e")
    tell_error("d\x1b]0;title\x07\ne")
    said = capsys.readouterr()
    assert said.out == "a[2Jb\nc\n"
    assert said.err == "thalweg: d]0;title e\n"


def test_a_warning_that_raises_is_said_instead(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn("it has changed")
    with pytest.warns(UserWarning, match="it has changed") as caught:
        warn("it has changed")
    assert caught[0].filename == __file__
    assert capsys.readouterr().err == "thalweg: warning: it has changed\n"


def test_a_logging_handler_that_raises_ends_no_run():
    class Raises(logging.Handler):
        def emit(self, record):
            raise RuntimeError("no disk for logs")

    handler = Raises()
    logging.getLogger("py.warnings").addHandler(handler)
    logging.captureWarnings(True)
    try:
        warn("it has changed")
        assert tw.train(classes(), plan(steps=3)).summary["status"] == "finished"
    finally:
        logging.captureWarnings(False)
        logging.getLogger("py.warnings").removeHandler(handler)


class Fragile:
    """A display that fails in one of its methods."""

    def __init__(self, where):
        self.where, self.calls = where, []

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append(name)
            if name == self.where:
                raise ValueError("I/O operation on closed file")

        return call


@pytest.mark.parametrize("where", ["begin", "step", "validated", "event", "end"])
def test_a_display_that_fails_is_left_out_and_the_run_says_so(where, tmp_path, capsys):
    display = Fragile(where)
    task = classes(data=(X.double(), Y))  # is cast, of which there is a note to show
    run = tw.train(task, plan(), progress=display, out=tmp_path / "run")
    assert run.summary["status"] == RunFolder(tmp_path / "run").read_status()["status"] == "finished"
    assert display.calls.count(where) == 1
    assert same_bits(run.model, undisturbed().model)
    if where in ("begin", "step", "validated"):
        assert [e.message for e in run.events if "display" in e.message] == [
            "The display (Fragile) failed and shows nothing more: ValueError: I/O operation on closed file."
        ]
        assert "The display (Fragile) failed" in capsys.readouterr().err


def test_a_say_that_fails_ends_no_fit():
    def say(text):
        raise BrokenPipeError

    assert tw.fit(classes(), steps=6, effort=1, say=say).summary["status"] == "finished"


def test_an_output_that_the_persons_code_puts_in_its_place_stays(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    terminal, log = Failing(BrokenPipeError()), io.StringIO()
    monkeypatch.setattr(sys, "stdout", terminal)

    def replace(model, figures):
        if figures.step == 2:
            sys.stdout = log

    tw.train(classes(), plan(steps=4), on_step=replace)
    assert sys.stdout is log


def test_the_streams_are_as_they_were_after_the_command(capsys):
    before = sys.stdout, sys.stderr
    with unfailing_streams() as out:
        assert sys.stdout is out
        print("é", end="")
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr().out == "é"


@pytest.fixture
def trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("task.py").write_text(FILE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert cli.main(["train", "task.py", "--steps", "20", "--out", "run", "--quiet"]) == 0
    return tmp_path / "run"


@pytest.mark.parametrize("error", [BrokenPipeError(), FULL], ids=["pipe", "disk"])
def test_a_training_has_the_status_of_the_training_whatever_becomes_of_its_output(error, trained, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Failing(error))
    assert cli.main(["train", "task.py", "--steps", "40", "--out", "other"]) == 0
    assert RunFolder(Path("other")).read_status()["status"] == "finished"
    assert "The training goes on." in capsys.readouterr().err


def test_a_verb_whose_result_is_what_it_prints_says_where_that_is_lost(trained, monkeypatch, capsys):
    for words in (["evaluate", "run"], ["diagnose", "run"], ["examples"], ["check", "task.py"]):
        usual = cli.main(words)
        monkeypatch.setattr(sys, "stdout", Failing(BrokenPipeError()))
        assert cli.main(words) == usual
        monkeypatch.setattr(sys, "stdout", Failing(FULL))
        assert cli.main(words) == cli.STATUSES["not printed"]
        monkeypatch.undo()
        monkeypatch.chdir(trained.parent)
    assert capsys.readouterr().err.count("The output cannot be written") == 4


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_every_verb_prints_in_whatever_encoding_there_is(encoding, trained, monkeypatch):
    for words in (
        ["fit", "task.py", "--steps", "20", "--effort", "1", "--out", f"fit-{encoding}"],
        ["diagnose", "run"],
        ["evaluate", "run"],
        ["report", "run"],
        ["tune", "task.py", "--steps", "20", "--effort", "1", "--quiet"],
    ):
        out = narrow(encoding)
        monkeypatch.setattr(sys, "stdout", out)
        assert cli.main(words) in (0, 10, 11)
        assert out.buffer.getvalue()  # pyright: ignore


def test_a_plan_printed_in_another_encoding_is_still_utf8_toml():
    import tomllib

    shown = cli._as_toml(tw.Plan(groups={"é.*": tw.Group(learning_rate_factor=0.5)}), "latin-1")
    assert shown.isascii()
    assert list(tomllib.loads(shown)["groups"]) == ["é.*"]


@pytest.mark.heavy
def test_closed_descriptors_and_a_full_device_end_no_command(trained):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = f"{sys.executable} -m thalweg train task.py --steps 30"
    for number, way in enumerate((">/dev/full", "<&- >&- 2>&-", "| true")):
        shell = f"set -o pipefail; {command} --out run-{number} {way}"
        assert subprocess.run(["bash", "-c", shell], env=environment, check=False).returncode == 0, way
        assert RunFolder(Path(f"run-{number}")).read_status()["status"] == "finished", way


def test_descriptors_that_are_open_stay():
    highest = os.dup(2)
    os.close(highest)
    open_descriptors()
    again = os.dup(2)
    os.close(again)
    assert again == highest
