"""A run in its folder: founded, resumed, opened, refused; and what a full disk or a damaged file does to it."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from small import blobs, classes, kinds, network, plan, same_bits
from torch import nn

import thalweg as tw
from thalweg import cli
from thalweg.descent.problem import open_task
from thalweg.descent.recorder import Recorder
from thalweg.descent.same_task import sum_task
from thalweg.descent.settle import settle
from thalweg.descent.state import Descent
from thalweg.descent.train import create
from thalweg.records import checkpoint, files
from thalweg.records.request import Request
from thalweg.records.run_folder import RunFolder
from thalweg.records.run_inputs import RunInputs


def stopped(folder: Path, monkeypatch: pytest.MonkeyPatch, at: int = 20, made: tw.Plan | None = None) -> None:
    """Walk a run in a folder to a checkpoint and stop it there."""
    record = Recorder.step

    def recorded(self: Recorder, figures: Any, *rest: Any) -> None:
        record(self, figures, *rest)
        if figures.step == at:
            self.stop_request.received = True

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "step", recorded)
        with pytest.raises(KeyboardInterrupt):
            tw.train(classes(), made or plan(), out=folder)


def test_a_finished_run_is_opened_not_walked_again(tmp_path: Path) -> None:
    first = tw.train(classes(), plan(), out=tmp_path / "r")
    stamp = (tmp_path / "r" / "history.sqlite").stat().st_mtime_ns
    for again in (tw.train(classes(), plan(), out=tmp_path / "r"), tw.resume(tmp_path / "r", classes())):
        assert again.metrics == first.metrics
        assert same_bits(again.model, first.model)
        assert again.summary["status"] == "finished"
    assert (tmp_path / "r" / "history.sqlite").stat().st_mtime_ns == stamp


def test_a_stopped_run_says_how_to_resume_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tw.train(classes(), plan())
    stopped(tmp_path / "r", monkeypatch)
    assert RunFolder(tmp_path / "r").read_status()["status"] == "interrupted"
    told = tw.Run.open(tmp_path / "r").events[-1]
    assert told.kind == "interrupt"
    assert told.message.endswith(f"saved; go on with: thalweg.resume('{tmp_path / 'r'}', task)")
    run = tw.train(classes(), plan(), out=tmp_path / "r")
    assert "resume" in kinds(run)
    assert same_bits(run.model, whole.model)
    assert run.history["loss"].tolist()[1:] == whole.history["loss"].tolist()[1:]


def test_a_run_stopped_between_snapshots_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: Any) -> None:
    whole = tw.train(classes(), plan(ema=0.9))
    stopped(tmp_path / "r", monkeypatch, at=17, made=plan(ema=0.9))
    assert same_bits(tw.resume(tmp_path / "r", classes()).model, whole.model)


@pytest.mark.parametrize("rule", ["muon", "adafactor"])
def test_a_rule_of_whole_matrices_goes_on_to_the_same_bits(rule: str, tmp_path: Path, monkeypatch: Any) -> None:
    made = plan(rule=rule, weight_decay=0.1, ema=0.9, clip_norm=1.0)
    whole = tw.train(classes(), made)
    stopped(tmp_path / "r", monkeypatch, at=17, made=made)
    gone_on = tw.resume(tmp_path / "r", classes())
    assert same_bits(gone_on.model, whole.model)
    assert gone_on.history["loss"].tolist()[1:] == whole.history["loss"].tolist()[1:]


def test_another_plan_is_refused_with_the_knob_that_differs(tmp_path: Path) -> None:
    tw.train(classes(), plan(), out=tmp_path / "r")
    with pytest.raises(tw.RunError, match=r"learning_rate is 0\.01 there and 0\.5 here"):
        tw.train(classes(), plan(learning_rate=0.5), out=tmp_path / "r")


def test_other_threads_and_the_same_seconds_are_no_other_plan(tmp_path: Path) -> None:
    made = tw.Plan(batch_size=16, validate_every=50)
    first = tw.train(classes(), made, seconds=0.05, out=tmp_path / "r")
    torch.set_num_threads(2)
    again = tw.train(classes(), made, seconds=0.05, out=tmp_path / "r")
    assert again.plan.steps == first.plan.steps
    with pytest.raises(tw.RunError, match="another plan"):
        tw.train(classes(), made, seconds=0.1, out=tmp_path / "r")


def test_a_run_goes_on_with_its_own_data_only(tmp_path: Path, monkeypatch: Any) -> None:
    stopped(tmp_path / "r", monkeypatch)
    with pytest.raises(tw.RunError, match=r"The training data have 97 examples instead of 96"):
        tw.resume(tmp_path / "r", classes(data=blobs(97)))
    with pytest.raises(
        tw.RunError, match=r"The training data have other values \(by a sum of all examples\): the task"
    ):
        tw.resume(tmp_path / "r", classes(data=blobs(96, seed=1)))
    with pytest.raises(tw.RunError, match="The validation data have other values"):
        tw.resume(tmp_path / "r", classes(validation=blobs(60, seed=2)))
    assert tw.resume(tmp_path / "r", classes()).summary["status"] == "finished"


def test_a_run_that_was_killed_before_its_end_knows_its_data_too(tmp_path: Path) -> None:
    problem = open_task(classes())
    (tmp_path / "r").mkdir()
    descent = Descent(problem, settle(problem, plan(), Request()))
    create(RunFolder(tmp_path / "r"), problem, descent.plan, RunInputs(descent.plan.to_dict(), sum_task(descent)))
    with pytest.raises(tw.RunError, match="The training data have other values"):
        tw.resume(tmp_path / "r", classes(data=blobs(96, seed=1)))


def test_a_damaged_status_is_written_anew(tmp_path: Path) -> None:
    first = tw.train(classes(), plan(), out=tmp_path / "r")
    (tmp_path / "r" / "run.json").write_text("{")
    again = tw.resume(tmp_path / "r", classes())
    assert again.summary["status"] == "finished"
    assert again.metrics == first.metrics
    assert tw.Run.open(tmp_path / "r").metrics == first.metrics


def test_a_history_that_is_gone_is_said(tmp_path: Path, monkeypatch: Any) -> None:
    stopped(tmp_path / "r", monkeypatch)
    for file in (tmp_path / "r").glob("history.sqlite*"):
        file.unlink()
    run = tw.resume(tmp_path / "r", classes())
    assert any("figures before step 20 are lost" in event.message for event in run.events)


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(tw.RunError, match=r"thesis\.tex"):
        tw.train(classes(), plan(), out=tmp_path)
    assert not (tmp_path / "plan.toml").exists()


def test_a_run_killed_while_its_folder_was_made_starts(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text("half a pl")
    (tmp_path / ".run.json.tmp").write_text("{")
    assert tw.train(classes(), plan(), out=tmp_path).summary["status"] == "finished"


def test_links_under_the_names_of_drafts_are_not_followed_by_resume_and_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(tmp_path / "r", monkeypatch)
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "r" / "report.html").unlink()
    for name in (".run.json.tmp", f".report.html.{os.getpid()}.tmp", "report.html", "checkpoints/.tmp-best"):
        (tmp_path / "r" / name).symlink_to(precious)
    tw.resume(tmp_path / "r", classes())
    assert "Went on from" in tw.report(tmp_path / "r").read_text("utf-8")
    assert precious.read_text() == "mine"
    assert (tmp_path / "r" / "report.html.set-aside").is_symlink()


def test_a_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(tw.RunError, match="cannot be written"):
            tw.train(classes(), plan(), out=out)


def test_a_folder_without_write_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(tw.RunError, match=r"cannot be written: Permission denied\. Choose another place"):
        tw.train(classes(), plan(), out=tmp_path / "r")


def test_a_folder_that_another_thread_or_process_writes_to_is_refused(tmp_path: Path) -> None:
    with RunFolder(tmp_path).locked(), pytest.raises(tw.RunError, match="Another process is writing"):
        tw.train(classes(), plan(), out=tmp_path)
    assert tw.train(classes(), plan(), out=tmp_path).summary["status"] == "finished"


def test_training_that_is_refused_leaves_the_request_of_a_search_under_way(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.locked():
        folder.record_request(Request(steps=9), None)
        with pytest.raises(tw.RunError, match="Another process is writing"):
            tw.train(classes(), plan(), out=tmp_path)
    assert folder.read_request().steps == 9


def test_a_full_disk_is_an_error_that_leaves_older_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tw.train(classes(), plan())
    write, written = files.create, list[bool]()

    def full(path: Path, parts: Any) -> Any:
        written.append("checkpoints" in path.parts)
        if written[-1] and sum(written) > 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, parts)

    with monkeypatch.context() as patch:
        patch.setattr(files, "create", full)
        with pytest.raises(tw.CheckpointError, match=r"No space left on device\. Free about"):
            tw.train(classes(), plan(checkpoint_seconds=0), out=tmp_path / "r")
    assert RunFolder(tmp_path / "r").read_status()["status"] == "failed"
    assert checkpoint.steps(tmp_path / "r" / "checkpoints")
    assert same_bits(tw.resume(tmp_path / "r", classes()).model, whole.model)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting asks for root")
def test_a_disk_that_is_really_full_is_an_error_that_says_so(tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        wide = classes(model=lambda: nn.Sequential(nn.Linear(4, 20000), nn.Linear(20000, 3)))
        with pytest.raises(tw.RunError, match=r"No space|full"):
            tw.train(wide, plan(checkpoint_seconds=0), out=tmp_path / "r")
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(tmp_path / "r", monkeypatch)
    other = classes(model=lambda: nn.Sequential(nn.Linear(4, 7), nn.Linear(7, 3)))
    with pytest.raises(tw.CheckpointError, match="of another model"):
        tw.resume(tmp_path / "r", other)
    whole = tw.train(classes(), plan())
    assert same_bits(tw.resume(tmp_path / "r", classes()).model, whole.model)


def test_lost_best_weights_are_said_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(tmp_path / "r", monkeypatch)
    shutil.rmtree(tmp_path / "r" / "checkpoints" / "best")
    run = tw.resume(tmp_path / "r", classes())
    assert any("best weights" in event.message and event.kind == "note" for event in run.events)
    assert torch.isfinite(torch.tensor(run.metrics["loss"]))
    assert same_bits(tw.Run.open(tmp_path / "r", classes()).model, run.model)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    whole = tw.train(classes(), plan())
    stopped(tmp_path / "r", monkeypatch, made=plan(checkpoint_seconds=0))
    newest = max((tmp_path / "r" / "checkpoints").glob("step-*")) / "model.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "remove":
        newest.unlink()
    else:
        newest.write_bytes(content if damage == "flip" else content[:-5])
    run = tw.resume(tmp_path / "r", classes())
    assert any("passed over" in event.message for event in run.events)
    assert same_bits(run.model, whole.model)


def test_with_no_intact_checkpoint_the_run_stops_and_starts_anew_only_where_they_are_removed(
    tmp_path: Path, monkeypatch: Any
) -> None:
    whole = tw.train(classes(), plan())
    stopped(tmp_path / "r", monkeypatch)
    best = tmp_path / "r" / "checkpoints" / "best" / "MANIFEST.json"
    before = best.read_bytes()
    for manifest in (tmp_path / "r" / "checkpoints").glob("step-*/MANIFEST.json"):
        manifest.unlink()
    for _ in range(2):
        with pytest.raises(tw.CheckpointError, match=r"cannot continue: .*To start it anew, remove .*checkpoints"):
            tw.resume(tmp_path / "r", classes())
    assert best.read_bytes() == before
    shutil.rmtree(tmp_path / "r" / "checkpoints")
    run = tw.resume(tmp_path / "r", classes())
    assert any("starts anew; it had come to step 20" in event.message for event in run.events)
    assert same_bits(run.model, whole.model)
    assert run.history["step"].tolist() == whole.history["step"].tolist()


def test_a_task_that_was_passed_as_an_object_is_asked_for(tmp_path: Path) -> None:
    tw.train(classes(), plan(), out=tmp_path / "r")
    with pytest.raises(tw.RunError, match="task="):
        tw.resume(tmp_path / "r")


def test_a_run_in_a_folder_has_the_bits_of_one_in_memory(tmp_path: Path) -> None:
    kept, memory = tw.train(classes(), plan(), out=tmp_path / "r"), tw.train(classes(), plan())
    assert same_bits(kept.model, memory.model)
    assert kept.metrics == memory.metrics


@pytest.mark.parametrize("keep", ["best", "last"])
def test_an_opened_run_gives_the_weights_the_run_gave(tmp_path: Path, keep: str) -> None:
    made = plan(keep=keep, checkpoint_seconds=0, ema=0.9)
    run = tw.train(classes(), made, out=tmp_path / "r")
    assert same_bits(tw.Run.open(tmp_path / "r", classes()).model, run.model)


def test_what_went_wrong_is_in_the_folder(tmp_path: Path) -> None:
    x = torch.randn(64, 4)
    task = tw.Task(model=lambda: nn.Linear(4, 1), loss=nn.MSELoss(), data=(x, x[:, :1]))
    made = plan(rule="gradient_descent", learning_rate=100.0)
    run = tw.train(task, made, out=tmp_path / "r")
    assert run.diagnoses
    opened = [str(found) for found in tw.diagnose(tmp_path / "r")]
    assert opened[: len(run.diagnoses)] == [str(found) for found in run.diagnoses]
    assert opened == [str(found) for found in tw.diagnose(run)]


def test_a_descent_that_cannot_be_saved_says_so_in_its_folder(tmp_path: Path) -> None:
    x = torch.randn(64, 4)
    task = tw.Task(model=lambda: nn.Linear(4, 1), loss=nn.MSELoss(), data=(x, x[:, :1]))
    made = plan(rule="gradient_descent", learning_rate=1e8, snapshot_every=0)
    with pytest.raises(tw.DivergedError):
        tw.train(task, made, out=tmp_path / "r")
    assert RunFolder(tmp_path / "r").read_status()["status"] == "diverged"
    assert json.loads((tmp_path / "r" / "run.json").read_text())["diagnoses"]


TASK = """
import os, signal, torch, thalweg as tw
from torch import nn
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.calls = nn.Linear(4, 1), 0
    def forward(self, x):
        self.calls += self.training
        if self.training and self.calls == 60 and not os.environ.get("PATIENT"):
            number = getattr(signal, os.environ.get("SENT", "SIGINT"))
            os.kill(os.getpid(), number)
            if os.environ.get("TWICE"):
                os.kill(os.getpid(), number)
        return self.inner(x)
x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
task = tw.Task(model=Model, loss=nn.MSELoss(), data=(x, x[:, :1]), validation=(x, x[:, :1]))
"""


def command(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "thalweg", *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(("sent", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_saves_says_how_to_resume_and_exits_as_usual(
    sent: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "task.py").write_text(TASK)
    words = ("train", "task.py", "--steps", "100", "--set", "learning_rate=0.01", "--quiet")
    found = command(tmp_path, *words, "--out", "r", SENT=sent)
    assert found.returncode == status, found.stderr
    assert (tmp_path / "r" / "report.html").exists()
    assert "thalweg resume r" in found.stderr + found.stdout
    assert "Traceback" not in found.stderr
    assert checkpoint.steps(tmp_path / "r" / "checkpoints") == [60]
    if sent == "SIGTERM":
        return
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATIENT", "1")
    assert cli.main(["resume", "r", "--quiet"]) == 0
    assert cli.main([*words, "--out", "whole"]) == 0
    ours, theirs = (checkpoint.load(tmp_path / name / "checkpoints") for name in ("r", "whole"))
    assert ours.step == theirs.step == 100
    assert all(torch.equal(ours.state["model"][k], theirs.state["model"][k]) for k in theirs.state["model"])


def test_ctrl_c_twice_ends_at_once(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(TASK)
    found = command(tmp_path, "train", "task.py", "--steps", "100", "--quiet", "--out", "r", TWICE="1")
    assert found.returncode == 130, found.stderr
    assert "Traceback" not in found.stderr
    assert RunFolder(tmp_path / "r").read_status()["status"] == "interrupted"


def test_models_of_every_making_survive_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.out, self.head = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 3)
            self.out.weight = nn.Parameter(self.into.weight.t().contiguous())
            self.again = self.into
            self.into.bias.requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.out(self.again(x).tanh()))

    def lazy() -> nn.Module:
        return nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.Tanh(), nn.Linear(8, 3))

    for number, model in enumerate((Tied, lazy, lambda: network().double())):
        whole, folder = tw.train(classes(model=model), plan()), tmp_path / str(number)
        record = Recorder.step

        def recorded(self: Recorder, figures: Any, *rest: Any, record: Any = record) -> None:
            record(self, figures, *rest)
            self.stop_request.received = figures.step == 13

        with monkeypatch.context() as patch:
            patch.setattr(Recorder, "step", recorded)
            with pytest.raises(KeyboardInterrupt):
                tw.train(classes(model=model), plan(), out=folder)
        run = tw.resume(folder, classes(model=model))
        assert same_bits(run.model, whole.model)


def test_a_run_in_another_thread_is_a_run(tmp_path: Path) -> None:
    found = list[tw.Run]()
    walker = threading.Thread(target=lambda: found.append(tw.train(classes(), plan(), out=tmp_path / "r")))
    walker.start()
    walker.join()
    assert same_bits(found[0].model, tw.train(classes(), plan()).model)


def smoothed(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(output, target, label_smoothing=0.1)


@pytest.mark.parametrize(
    ("edited", "told"),
    [
        ({"loss": smoothed}, "`loss` has other code"),
        ({"loss": nn.CrossEntropyLoss(label_smoothing=0.2)}, r"loss was CrossEntropyLoss\(.*label_smoothing=0.2"),
        (
            {"model": lambda: network(nn.Dropout(0.5))},
            r"model\.1 was Dropout\(p=0\.1, inplace=False\) and is Dropout\(p=0\.5, inplace=False\)",
        ),
    ],
)
@pytest.mark.parametrize("ended", ["stopped", "killed"])
def test_a_task_that_was_edited_is_said_when_it_goes_on(
    edited: dict[str, Any], told: str, ended: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begun(**changes: Any) -> tw.Task:
        parts = {"model": lambda: network(nn.Dropout(0.1)), "loss": nn.CrossEntropyLoss()}
        return classes(**{**parts, **changes})

    def stop(model: nn.Module, figures: Any) -> None:
        if figures.step == 20:
            raise KeyboardInterrupt

    with pytest.raises(tw.Interrupted):
        tw.train(begun(), plan(), out=tmp_path / "r", on_step=stop)
    if ended == "killed":  # which leaves the status that was written when the run began
        inputs = RunFolder(tmp_path / "r").read_status()["inputs"]
        RunFolder(tmp_path / "r").write_status(
            {"status": "running", "summary": {"status": "running"}, "inputs": inputs}
        )
    with pytest.warns(UserWarning, match=rf"The task has changed since the run was stopped: .*{told}.*From step 20 on"):
        run = tw.resume(tmp_path / "r", begun(**edited))
    assert [event.step for event in run.events if event.kind == "warning"] == [20]
    assert run.summary["exact"] is False
    assert tw.Run.open(tmp_path / "r").events == run.events


def test_a_task_that_is_the_same_goes_on_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, changes in enumerate(({}, {"loss": lambda o, t: smoothed(o, t)}, {"model": network()})):
        stopped_run = tmp_path / str(number)
        with pytest.raises(tw.Interrupted):
            tw.train(classes(**changes), plan(), out=stopped_run, on_step=interrupt_at(20))
        assert not [event for event in tw.resume(stopped_run, classes(**changes)).events if event.kind == "warning"]


def interrupt_at(step: int) -> Any:
    def interrupt(model: nn.Module, figures: Any) -> None:
        if figures.step == step:
            raise KeyboardInterrupt

    return interrupt


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Any) -> None:
    """Do something after a step, as another process or the user's code might."""
    record = Recorder.step

    def recorded(self: Recorder, figures: Any, *rest: Any) -> None:
        record(self, figures, *rest)
        if figures.step == step:
            act()

    monkeypatch.setattr(Recorder, "step", recorded)


def away(folder: Path) -> None:
    folder.rename(folder.with_name("away"))


def another(folder: Path) -> None:
    away(folder)
    folder.mkdir()


@pytest.mark.parametrize("lose", [shutil.rmtree, away, another])
@pytest.mark.parametrize("interval", [0.0, 1e9])
def test_a_folder_that_is_lost_ends_the_run_which_is_saved_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lose: Any, interval: float
) -> None:
    whole = tw.train(classes(), plan())
    with monkeypatch.context() as patch:
        at_step(patch, 12, lambda: lose(tmp_path / "r"))
        with pytest.raises(tw.RunError, match="was removed or replaced while the run was written to it") as error:
            tw.train(classes(), plan(checkpoint_seconds=interval), out=tmp_path / "r")
    saved = error.value.run.folder
    assert saved.parent == tmp_path
    assert f"is saved in {saved}; go on with: thalweg.resume('{saved}', task)" in str(error.value)
    assert not (tmp_path / "r" / "checkpoints").exists()
    run = tw.resume(saved, classes())
    assert same_bits(run.model, whole.model)
    assert run.history["loss"].tolist()[1:] == whole.history["loss"].tolist()[1:]
    assert run.summary["status"] == "finished"


@pytest.mark.parametrize("put", ["nothing", "file", "link"])
def test_files_of_a_run_that_are_removed_while_it_is_written_are_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, put: str
) -> None:
    def remove() -> None:
        for path in (tmp_path / "r").iterdir():
            if path.is_file():
                path.unlink()
        if put == "file":
            (tmp_path / "r" / "history.sqlite").write_text("mine")
        elif put == "link":
            (tmp_path / "r" / "history.sqlite").symlink_to(tmp_path / "precious")

    at_step(monkeypatch, 12, remove)
    run = tw.train(classes(), plan(), out=tmp_path / "r")
    assert [event.message for event in run.events if "Somebody removed or replaced plan.toml" in event.message]
    opened = tw.Run.open(tmp_path / "r", classes())
    assert opened.history["loss"].tolist()[1:] == run.history["loss"].tolist()[1:]
    assert opened.plan == run.plan
    assert same_bits(opened.model, run.model)
    assert (put == "file") == (tmp_path / "r" / "history.sqlite.set-aside").is_file()
    assert not (tmp_path / "precious").exists()


def test_a_run_stays_in_its_folder_where_the_users_code_changes_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    at_step(monkeypatch, 5, lambda: os.chdir(tmp_path / "there"))
    run = tw.train(classes(), plan(checkpoint_seconds=0), out="r")
    assert run.folder == tmp_path / "here" / "r"
    assert sorted(path.name for path in run.folder.iterdir()) == [
        *(".lock", "checkpoints", "history.sqlite", "plan.toml", "report.html", "run.json")
    ]
    assert list((tmp_path / "there").iterdir()) == []
    assert same_bits(tw.Run.open(run.folder, classes()).model, run.model)


def test_a_disk_that_is_full_for_a_while_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, room, create = tw.train(classes(), plan()), [True], files.create

    def create_where_there_is_room(path: Path, parts: Any) -> Any:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return create(path, parts)

    monkeypatch.setattr(files, "create", create_where_there_is_room)
    at_step(monkeypatch, 5, lambda: room.__setitem__(0, False))
    at_step(monkeypatch, 25, lambda: room.__setitem__(0, True))
    run = tw.train(classes(), plan(checkpoint_seconds=0), out=tmp_path / "r")
    told = [event.message for event in run.events if "sav" in event.message]
    assert len(told) == 2
    assert "could not be saved" in told[0]
    assert "No space left" in told[0]
    assert told[1] == "The run is saved again."
    assert same_bits(run.model, whole.model)
    assert run.history["loss"].tolist()[1:] == whole.history["loss"].tolist()[1:]


def damage(checkpoint: Path) -> None:
    """Flip a bit in a checkpoint's weights."""
    content = bytearray((checkpoint / "model.safetensors").read_bytes())
    content[-3] ^= 4
    (checkpoint / "model.safetensors").write_bytes(content)


@pytest.mark.parametrize("is_changed", [False, True])
def test_best_weights_of_a_step_that_a_changed_run_does_not_come_to_are_not_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_changed: bool
) -> None:
    made = plan(checkpoint_seconds=0, validate_every=1, snapshot_every=0, watch=False)
    whole = tw.train(classes(), made)
    stopped(tmp_path / "r", monkeypatch, made=made)
    checkpoints = tmp_path / "r" / "checkpoints"
    damage(checkpoints / "step-00000020")  # the best weights beside it are of that step too
    changes = {"learning_rate": 3.0} if is_changed else None
    run = tw.resume(tmp_path / "r", classes(), changes=changes)
    kept = run.summary["weights"]["step"]
    told = dict(zip(run.history["step"].astype(int).tolist(), run.history["validation/loss"].tolist(), strict=True))
    assert told[kept] == run.metrics["loss"]  # the figures are those that the history has of this step
    if is_changed:
        assert any("of step 20 of the run as it was before" in event.message for event in run.events)
        assert (checkpoints / "best.set-aside" / "model.safetensors").exists()
    else:
        assert same_bits(run.model, whole.model)


def test_best_weights_that_a_plan_did_not_keep_in_between_are_not_taken_for_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(tmp_path / "r", monkeypatch, at=7, made=plan(checkpoint_seconds=0, validate_every=2))
    record = Recorder.step

    def recorded(self: Recorder, figures: Any, *rest: Any) -> None:
        record(self, figures, *rest)
        self.stop_request.received |= figures.step == 15

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "step", recorded)
        with pytest.raises(KeyboardInterrupt):
            tw.resume(tmp_path / "r", classes(), changes={"keep": "last"})
    run = tw.resume(tmp_path / "r", classes(), changes={"keep": "best", "learning_rate": 1e-9, "weight_decay": 0.0})
    assert run.summary["weights"]["step"] > 15
    assert any("none were kept" in event.message for event in run.events)


def test_knobs_by_which_a_run_that_stopped_early_takes_no_step_are_refused(tmp_path: Path) -> None:
    made = plan(learning_rate=1.0, validate_every=1, patience=2, steps=200)
    first = tw.train(classes(), made, out=tmp_path / "r")
    assert first.summary["stopped_early"]
    for changes in ({"steps": 400}, {"learning_rate": 0.1}):
        with pytest.raises(tw.PlanError, match=r"stopped early, at step \d+, after 2 validations .* Set `patience`"):
            tw.resume(tmp_path / "r", classes(), changes=changes)
    assert tw.Run.open(tmp_path / "r").plan.steps == 200  # nothing was changed
    assert tw.resume(tmp_path / "r", classes(), changes={"patience": 4}).summary["steps"] > first.summary["steps"]


def test_a_resumed_run_has_taken_no_less_time_than_before(tmp_path: Path) -> None:
    def slow(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        return (outputs.argmax(1) == targets).float().mean()

    task = classes(metrics={"slow": slow})
    first = tw.train(task, plan(steps=10, validate_every=1), out=tmp_path / "r")
    again = tw.resume(tmp_path / "r", task, changes={"steps": 11})
    assert again.summary["seconds"] > first.summary["seconds"] > 0.2


@pytest.mark.parametrize("keeps_all", [True, False])
def test_a_run_says_whether_anything_was_found_by_which_it_does_not_resume_exactly(keeps_all: bool) -> None:
    half_read = iter(range(1000))

    def drifting(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, targets) * (1 + 0.001 * next(half_read))

    loss = nn.functional.cross_entropy if keeps_all else drifting
    assert tw.train(classes(loss=loss), plan(steps=3)).summary["exact"] is keeps_all
