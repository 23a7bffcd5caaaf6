import errno
import json
import os
import stat
import sys

import pytest
import torch
from planted import KINDS, contents, plant

import thalweg as tw
from thalweg.errors import PlanError, RunError, ThalwegError
from thalweg.records import sealed_json
from thalweg.records.plan import Plan
from thalweg.records.request import Request
from thalweg.records.run_folder import RunFolder
from thalweg.records.run_inputs import RunInputs
from thalweg.records.task import Source
from thalweg.sampling.data_sum import DataSum

DATA = {"examples": 30}


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


def created(folder, plan=None):
    plan = plan or tw.Plan(steps=5)
    folder.create(plan, None, {"name": "small", **DATA}, RunInputs(plan.to_dict()))
    return folder


def test_a_status_comes_back_exactly(folder):
    status = {"status": "running", "summary": {"loss": float("inf"), "n": 2**60, "x": None, "deep": [1, {"a": True}]}}
    folder.write_status(status)
    assert folder.read_status() == {**status, "metrics": {}, "diagnoses": []}
    json.loads(folder.status_path.read_text("utf-8"), parse_constant=pytest.fail)  # other programs read it
    assert [p.name for p in folder.path.iterdir()] == ["run.json"]


def test_a_status_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(
        RunError, match=r"run\.json cannot be written: No such file or directory\. Free some space or choose"
    ):
        RunFolder(tmp_path / "none").write_status({})


def test_a_recorded_task_is_made_again(folder):
    with pytest.raises(RunError, match=r"does not say how to make its task"):
        folder.read_task()
    source = Source(module="thalweg.examples.letters")
    folder.create(tw.Plan(steps=5), source, DATA, RunInputs(tw.Plan(steps=5).to_dict()))
    assert folder.read_task().source == source


def test_a_created_folder_holds_a_run_that_is_not_finished(folder):
    assert not folder.holds_run
    created(folder)
    assert folder.holds_run
    assert not folder.is_finished
    assert folder.read_status()["summary"] == {"status": "running", "name": "small", **DATA}
    assert folder.read_plan() == tw.Plan(steps=5)
    folder.write_status({**folder.read_status(), "status": "finished"})
    assert folder.is_finished


@pytest.mark.parametrize("left", [[], ["plan.toml"], ["plan.toml", "task.toml", ".lock", ".run.json.tmp"]])
def test_what_a_process_killed_while_creating_leaves_is_no_run(folder, left):
    for name in left:
        (folder.path / name).write_text("half a")
    if "task.toml" in left:  # which is there as a whole, or not at all
        Source(module="thalweg.examples.letters").save(folder.task_path)
    folder.check_usable()
    assert created(folder).read_plan() == tw.Plan(steps=5)


def test_a_folder_with_a_run_or_other_things_is_refused(folder):
    (folder.path / "thesis.tex").write_text("mine")
    for refused in (folder.check_usable, lambda: created(folder)):
        with pytest.raises(RunError, match=r"holds other things \(thesis\.tex\) and is no run"):
            refused()
    (folder.path / "thesis.tex").unlink()
    created(folder)
    with pytest.raises(RunError, match=r"already holds a run\. Resume it"):
        folder.check_usable()


def test_another_plan_is_refused(folder):
    created(folder)
    assert folder.check_plan(tw.Plan(steps=5)) == tw.Plan(steps=5)
    with pytest.raises(RunError, match=r"another plan: seed is 0 there and 1 here, and 1 more differ\."):
        folder.check_plan(tw.Plan(steps=6, seed=1))


def test_a_plan_that_was_edited_is_refused_by_its_knobs_and_one_that_is_gone_is_known(folder):
    plan = tw.Plan(steps=5, schedule="cosine", constants={"beta1": 0.8}, evidence={"ema": {"source": "derived"}})
    created(folder, plan)
    text = folder.plan_path.read_text()
    edits = {
        "learning_rate = 0.001": ("learning_rate = 0.1", r"learning_rate was 0\.001 and is 0\.1"),
        'rule = "adamw"': ('rule = "nadam"', "rule was adamw and is nadam"),
        "beta1 = 0.8": ("beta1 = 0.9", r"constants\.beta1 was 0\.8 and is 0\.9"),
        'source = "derived"': ('source = "measured"', r"evidence\.ema was .*derived"),
        "seed = 0\n": ("seed = 1\n", "seed was 0 and is 1"),
    }
    for before, (after, told) in edits.items():
        assert before in text
        folder.plan_path.write_text(text.replace(before, after))
        with pytest.raises(PlanError, match=rf"was edited since the run began: {told}.*--set KNOB=VALUE"):
            folder.read_plan()
    folder.plan_path.write_text(text[: text.index("[evidence.seed]")])
    with pytest.raises(PlanError, match=r"the plan is cut off\. .*Remove the file: it is written anew"):
        folder.read_plan()
    folder.plan_path.unlink()
    assert folder.read_plan() == plan


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("task", "data", {**DataSum(5).to_dict(), "read": "many"}),
        ("task", "data", {**DataSum(5).to_dict(), "count": -1}),
        ("task", "data", {**DataSum(5).to_dict(), "drawn": ["a"]}),
        ("task", "validation", [1]),
        ("task", "criterion", {"select": 3}),
        ("task", "code", "none"),
        ("plan", "rule", "x" * 100_000),
    ],
)
def test_what_a_run_is_made_from_is_told_in_a_sentence_where_it_is_of_another_kind(part, name, value, folder):
    created(folder)
    entries = sealed_json.load(folder.status_path.read_text())
    entries["inputs"][part][name] = value
    folder.status_path.write_text(sealed_json.dump(entries))
    with pytest.raises(RunError, match=r"run\.json cannot be read") as refused:
        folder.read_status()
    assert len(str(refused.value)) < 1000


def test_kept_weights_without_a_step_are_told(folder):
    folder.write_status({"status": "finished", "summary": {"weights": {"averaged": True}}})
    with pytest.raises(RunError, match=r"run\.json cannot be read .*`weights` is"):
        folder.read_status()


def test_a_status_that_was_changed_is_told_and_an_old_one_without_a_sum_is_read(folder):
    created(folder)
    text = folder.status_path.read_text()
    folder.status_path.write_text(text.replace('"examples": 30', '"examples": 31'))
    with pytest.raises(RunError, match=r"cannot be read .*its own sum does not agree.*resume the run"):
        folder.read_status()
    folder.status_path.write_text('{"status": "finished", "summary": {"examples": 30, "select": "loss"}}')
    assert folder.read_status()["summary"]["examples"] == 30
    inputs = folder.read_inputs()
    assert (inputs.task.data, inputs.task.criterion) == (DataSum(30), {"select": "loss"})
    assert inputs.plan == tw.Plan(steps=5).to_dict()


def test_one_writer_at_a_time(tmp_path):
    folder = RunFolder(tmp_path / "made" / "here")
    with folder.locked():
        with pytest.raises(RunError, match="Another process is writing"), folder.locked():
            pass
    with pytest.raises(BlockingIOError, match="of the body"), folder.locked():
        raise BlockingIOError("of the body")
    with folder.locked():
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="folders are not locked there")
def test_whoever_removes_or_replaces_the_file_of_the_lock_lets_no_other_writer_in(folder):
    path = folder.path / ".lock"
    with folder.locked():
        for replaced in (lambda: None, path.mkdir, path.touch, lambda: path.symlink_to(folder.path)):
            path.rmdir() if path.is_dir() else path.unlink()
            replaced()
            with pytest.raises(RunError, match="Another process is writing"), folder.locked():
                pass
            path.touch() if not os.path.lexists(path) else None
    with folder.locked():
        pass


def test_a_file_system_that_locks_files_and_no_folders_has_one_writer_too(folder, monkeypatch):
    import fcntl

    lock = fcntl.flock

    def lock_files(descriptor, operation):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EBADF, "Bad file descriptor")
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", lock_files)
    with folder.locked(), pytest.raises(RunError, match="Another process is writing"), folder.locked():
        pass
    with folder.locked():
        pass


def test_a_place_that_the_system_does_not_let_look_at_is_a_sentence(folder, monkeypatch):
    with pytest.raises(RunError, match=r"cannot be read: File name too long\. Check its path"):
        RunFolder(folder.path / ("x" * 256)).check_holds_run()
    look = os.stat

    def refuse(path, *arguments, **options):
        if str(path).startswith(str(folder.path)):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return look(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", refuse)
    for verb in (tw.resume, tw.diagnose, tw.report, tw.evaluate, tw.Run.open):
        with pytest.raises(RunError, match=r"cannot be read"):
            verb(folder.path)


def test_what_cannot_be_a_folder_is_refused():
    for given in (3, "a\0b"):
        with pytest.raises(RunError, match="cannot be a run's folder"):
            RunFolder.at(given)


def test_a_request_is_recorded_and_read_back_until_the_run_begins(folder):
    request = Request(epochs=3, effort=2.5, seed=4, fixed={"batch_size": None, "schedule": "cosine"}, device="cpu")
    source = Source(module="thalweg.examples.letters")
    folder.record_request(request, source)
    assert folder.holds_request
    assert not folder.holds_run
    assert folder.read_request() == request
    assert folder.read_task().source == source
    with pytest.raises(RunError, match="has not begun: its plan was still searched"):
        folder.read_status()
    folder.record_request(Request(steps=3), None)  # of another task, whose source is not known
    assert folder.read_request().steps == 3
    assert not folder.task_path.exists()
    created(folder)
    assert not folder.holds_request
    with pytest.raises(RunError, match="already holds a run"):
        folder.record_request(request, source)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"epochs": -3, "fixed": {}}', '{"fixed": {"lr": 1}}', '{"fixed": 3}'])
def test_a_damaged_request_is_told(folder, text):
    folder.request_path.write_text(text)
    with pytest.raises(RunError, match=r"request\.json cannot be read .*Start again in another folder"):
        folder.read_request()


def test_a_plan_that_lies_in_the_folder_of_a_new_run_is_kept_and_said(tmp_path):
    task = tw.Task(
        lambda: torch.nn.Linear(3, 2), torch.nn.functional.cross_entropy, (torch.zeros(9, 3), torch.arange(9) % 2)
    )
    for number, name in enumerate(("plan.toml.set-aside", "plan.toml.set-aside-2")):
        folder = tmp_path / str(number)
        tuned = tw.tune(task, steps=3, effort=1, out=folder)
        if number:
            (folder / "plan.toml.set-aside").touch()  # as a process left it that was killed before its run began
        run = tw.train(task, tuned.replace(learning_rate=0.25), out=folder)
        assert Plan.load(folder / name) == tuned
        assert run.plan.learning_rate == Plan.load(folder / "plan.toml").learning_rate == 0.25
        assert f"it is kept as {name}." in run.events[0].message
    folder = tmp_path / "same"
    assert tw.fit(task, steps=3, effort=1, out=folder).events == ()
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "plan.toml").write_bytes((folder / "plan.toml").read_bytes())
    assert not tw.train(task, Plan.load(folder / "plan.toml"), out=tmp_path / "again").events
    assert not list(tmp_path.glob("*/plan.toml.set-aside-3")) + list((tmp_path / "again").glob("*.set-aside"))


@pytest.mark.parametrize("name", ["request.json", "task.toml"])
@pytest.mark.parametrize("text", ['{"mine": 1}', "mine = 1"])
def test_files_of_another_program_under_a_runs_names_are_neither_overwritten_nor_removed(folder, name, text):
    (folder.path / name).write_text(text)
    for begin in (lambda: created(folder), lambda: folder.record_request(Request(steps=3), None), folder.check_usable):
        with pytest.raises(RunError, match=f"holds other things .*{name}"):
            begin()
    assert (folder.path / name).read_text() == text


def test_a_request_that_another_verb_has_no_use_for_is_removed(folder):
    folder.record_request(Request(steps=3), None)
    folder.discard_request()
    assert not folder.holds_request
    folder.record_request(Request(steps=3), None)
    created(folder)
    folder.discard_request()
    assert folder.request_path.exists()  # it belongs to the run


NOT_FILES = [kind for kind in KINDS if kind != "file"]
OLD_DRAFTS = [".run.json.tmp", ".request.json.tmp", ".probe"]
linux = pytest.mark.skipif(sys.platform != "linux", reason="pipes and sockets as they are on Linux")


@linux
@pytest.mark.parametrize("kind", NOT_FILES)
def test_a_new_run_is_refused_where_its_names_are_taken_by_something_else(tmp_path, kind):
    for name in ("plan.toml", "task.toml", "request.json", "history.sqlite", "checkpoints", ".probe"):
        folder = RunFolder(tmp_path / name)
        folder.path.mkdir()
        plant(folder.path / name, kind, tmp_path / "elsewhere")
        if (kind, name) == ("folder", "checkpoints"):
            continue
        with pytest.raises(RunError, match="holds other things"), folder.locked():
            created(folder)
        assert [path.name for path in folder.path.iterdir() if path.name != ".lock"] == [name]
    assert contents(tmp_path / "elsewhere") == {(tmp_path / "precious").relative_to(tmp_path): b"mine"}


@linux
@pytest.mark.parametrize("kind", NOT_FILES)
def test_what_lies_under_a_runs_names_is_not_followed_nor_waited_for_and_its_files_are_written(tmp_path, kind):
    folder, elsewhere = RunFolder(tmp_path / "run"), tmp_path / "elsewhere"
    folder.path.mkdir()
    created(folder)
    for name in (*OLD_DRAFTS, ".lock", "task.toml", "request.json"):
        plant(folder.path / name, kind, elsewhere)
    for path in (folder.status_path, folder.plan_path):
        path.unlink()
        plant(path, kind, elsewhere)
    for read in (folder.read_status, folder.read_plan, folder.read_task, folder.read_request):
        with pytest.raises(ThalwegError, match=r"cannot be (read|used)|is not the folder of a run|there is no plan"):
            read()
    assert not folder.is_finished
    with folder.locked():
        folder.write_status({"status": "finished", "summary": {}})
    assert folder.is_finished
    assert contents(elsewhere) == {(tmp_path / "precious").relative_to(tmp_path): b"mine"}


def test_a_file_system_without_locks_is_said_and_used(folder, monkeypatch):
    import errno
    import fcntl

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="file system without locks"), folder.locked():
        created(folder)


def test_what_killed_processes_did_not_complete_is_removed_once_nobody_can_be_writing_it(folder):
    old, young, other = (
        folder.path / name for name in (f".thalweg-{'a' * 16}.tmp", f".thalweg-{'b' * 16}.tmp", ".thalweg.tmp")
    )
    link = folder.path / f".thalweg-{'c' * 16}.tmp"
    for path in (old, young, other):
        path.write_text("half")
    link.symlink_to(other)
    for path in (old, other):
        os.utime(path, (0, 0))
    with folder.locked():
        assert {path.name for path in folder.path.iterdir()} == {".lock", young.name, other.name, link.name}


def test_a_status_without_permission_to_read_it_is_not_said_to_be_damaged(folder, monkeypatch):
    created(folder)
    monkeypatch.setattr("thalweg.records.files.open", _denied, raising=False)
    with pytest.raises(RunError, match=r"run\.json cannot be read: Permission denied\. Check its permissions\."):
        folder.read_status()


def _denied(*_, **__):
    raise PermissionError(errno.EACCES, "Permission denied")


def test_a_path_that_sqlite_does_not_take_is_refused_before_anything_is_written(tmp_path):
    deep = tmp_path.joinpath(*["x" * 200] * 3)
    with pytest.raises(
        RunError, match=r"too long for its databases: 6\d\d bytes with a file's name, where SQLite takes 500"
    ):
        RunFolder(deep).check_vacant()
