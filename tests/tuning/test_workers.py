"""Workers change nothing but the time it takes; those that are lost are replaced, and none outlives its parent."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from functools import partial
from pathlib import Path

import optuna
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset, IterableDataset
from tuning_tasks import SEARCH, X, Y, same, task

import thalweg as tw
from thalweg.descent.process_state import preserve_process_state, rng_lock
from thalweg.sampling import inherited
from thalweg.sampling.inherited import shares_memory
from thalweg.tuning import workers
from thalweg.tuning.candidate import Candidate
from thalweg.tuning.workers import Workers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked, on Linux only")


@pytest.fixture(autouse=True)
def _memory_that_other_tests_share_is_not_counted(monkeypatch):
    # What `multiprocessing` has once mapped for a shared value, a process keeps.
    kept = {"".join(line.split(maxsplit=5)[5:]) for line in Path("/proc/self/maps").read_text().splitlines()}
    harmless = inherited._is_harmless
    monkeypatch.setattr(inherited, "_is_harmless", lambda path: path in kept or harmless(path))


@pytest.fixture
def two_at_once(monkeypatch):
    monkeypatch.setattr("thalweg.tuning.candidates.WORTHWHILE", 0.0)
    monkeypatch.setattr("thalweg.tuning.workers.usable_cores", lambda: 2)


@pytest.fixture(scope="module")
def alone():
    return tw.fit(task(), **SEARCH)


def is_there(pid):
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def wait_for(what, seconds=60.0):
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)


# Pieces of work


def do(pieces, **patience):
    done, lost = {}, []
    pool = Workers(2, 0.0, lambda number, how, again: lost.append((number, how, again)))
    for name, value in patience.items():
        setattr(pool, name, value)
    pool.do(pieces, done.__setitem__)
    return done, lost, pool


def piece(number, alive):
    alive()
    return {"pid": os.getpid(), "number": number, "figure": float("nan")}


def test_each_piece_is_done_in_a_process_of_its_own():
    done, lost, _ = do([partial(piece, number) for number in range(5)])
    assert [done[number]["number"] for number in range(5)] == [0, 1, 2, 3, 4]
    assert len({one["pid"] for one in done.values()} | {os.getpid()}) == 6
    assert lost == []


def killed(number, alive):
    alive()
    os.kill(os.getpid(), number)


def test_a_worker_that_is_killed_is_replaced_twice_and_then_its_piece_is_left_out():
    done, lost, pool = do([partial(killed, signal.SIGKILL), partial(piece, 1), partial(killed, signal.SIGUSR1)])
    assert [*done] == [1]
    assert [(number, again) for number, _, again in lost if number == 0] == [(0, True), (0, True), (0, False)]
    assert {how for number, how, _ in lost if number == 2} == {"its process was ended by SIGUSR1"}
    assert "SIGKILL, as where memory runs out" in next(how for number, how, _ in lost if number == 0)
    assert pool.serve


def test_a_worker_that_was_lost_is_replaced_alone(tmp_path):
    def first_time_killed(alive):
        if not (tmp_path / "begun").exists():
            (tmp_path / "begun").touch()
            killed(signal.SIGKILL, alive)
        return {"others": sorted(path.name for path in tmp_path.glob("running-*"))}

    def slow(number, alive):
        mark = tmp_path / f"running-{number}"
        mark.touch()
        time.sleep(0.1)
        mark.unlink()
        return {}

    done, lost, _ = do([first_time_killed, *(partial(slow, number) for number in range(4))])
    assert done[0] == {"others": []}
    assert len(lost) == 1


def hanging(alive, *, begins):
    if begins:
        alive()
    time.sleep(1000)


def test_a_worker_that_hangs_is_ended_and_replaced_once():
    done, lost, pool = do([partial(hanging, begins=True), partial(piece, 1)], _patience=0.4)
    assert [*done] == [1]
    assert [is_replaced for _, _, is_replaced in lost] == [True, False]
    assert all("gave no sign of life" in how for _, how, _ in lost)
    assert pool.serve


def test_a_worker_that_works_without_a_sign_of_life_is_let_work():
    def working(alive):
        until = time.process_time() + 1.5
        while time.process_time() < until:
            pass
        return {}

    done, lost, _ = do([working], _patience=1.0)
    assert (done, lost) == ({0: {}}, [])


def test_where_workers_do_not_even_begin_none_are_used():
    done, lost, pool = do([partial(hanging, begins=False)] * 4, _patience=0.4)
    assert (done, lost, pool.serve) == ({}, [], False)


def test_a_worker_that_was_given_up_is_not_taken_for_one_at_work_while_it_ends(monkeypatch):
    asked = []

    def dying_takes_time(worker):  # the system uses some for it, on a loaded machine after a while
        asked.append(worker.number)
        return len(asked) > 1

    monkeypatch.setattr(workers._Worker, "is_at_work", dying_takes_time)
    monkeypatch.setattr(
        workers._Worker, "signal", lambda worker, number: threading.Timer(1.5, os.kill, (worker.pid, number)).start()
    )
    done, lost, pool = do([partial(hanging, begins=False)], _patience=0.4)
    assert (done, lost, pool.serve) == ({}, [], False)


def test_memory_that_runs_out_in_a_worker_counts_as_lost_and_another_error_does_not():
    def empty(alive):
        raise MemoryError

    def wrong(alive):
        raise ValueError("wrong")

    done, lost, _ = do([empty, wrong, partial(piece, 2)])
    assert [*done] == [2]
    assert lost == [(0, "memory ran out in its process", again) for again in (True, True, False)]


def test_whatever_stops_the_work_stops_the_workers_too(tmp_path, monkeypatch):
    def waiting(number, alive):
        (tmp_path / f"begun-{number}").write_text(str(os.getpid()))
        alive()
        if number == 1:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(1000)

    def press():
        wait_for(lambda: len([path for path in tmp_path.glob("begun-*") if path.read_text()]) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    monkeypatch.setattr(workers, "GRACE", 0.2)
    with pytest.raises(KeyboardInterrupt):
        do([partial(waiting, number) for number in range(3)])
    thread.join()
    assert not any(is_there(int(path.read_text())) for path in tmp_path.glob("begun-*"))


ORPHANS = """
import os, sys, time
from functools import partial
from thalweg.tuning.workers import Workers

def waiting(number, alive):
    with open(os.path.join(sys.argv[1], f"begun-{number}"), "w") as file:
        file.write(str(os.getpid()))
    time.sleep(1000)

Workers(2, 0.0, print).do([partial(waiting, number) for number in range(2)], print)
"""


def test_no_worker_outlives_a_parent_that_is_killed(tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", ORPHANS, str(tmp_path)])
    marks = [tmp_path / "begun-0", tmp_path / "begun-1"]
    wait_for(lambda: all(mark.exists() and mark.read_text() for mark in marks))
    parent.kill()
    parent.wait()
    wait_for(lambda: not any(is_there(int(mark.read_text())) for mark in marks))


# Searches


def trials_of(folder):
    return optuna.load_study(study_name=None, storage=f"sqlite:///{folder}/study.sqlite").trials


@pytest.mark.parametrize("in_folder", [True, False])
def test_a_search_with_workers_is_the_search_without(in_folder, alone, two_at_once, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    said = []
    run = tw.fit(task(), **SEARCH, out=tmp_path / "run" if in_folder else None, say=said.append)
    assert "Up to 2 candidates are trained at once, each in a process of its own." in said
    same(run, alone)
    assert not list((tmp_path / "temporary").glob("thalweg-search-*"))


class Rows(Dataset):
    """Reads each example from a file that it holds open, without a buffer: the place in it is the system's."""

    def __init__(self, path):
        path.write_bytes(torch.cat([X, Y[:, None].float()], 1).numpy().tobytes())
        self.file = open(path, "rb", buffering=0)  # noqa: SIM115
        weakref.finalize(self, self.file.close)

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        self.file.seek(24 * index)
        time.sleep(1e-5)  # another process that has the same place moves it now
        row = torch.frombuffer(bytearray(self.file.read(24)), dtype=torch.float32)
        return row[:5], row[5].long()


def test_candidates_that_are_trained_at_once_do_not_read_each_others_rows(alone, two_at_once, tmp_path):
    fixed = {**SEARCH["fixed"], "workers": 0}
    rows = Rows(tmp_path / "rows")
    with rows.file:
        run = tw.fit(task(data=rows), **{**SEARCH, "fixed": fixed})
    assert run.metrics == alone.metrics
    for weight, other in zip(run.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(weight, other)


def test_where_the_persons_code_shares_memory_candidates_are_trained_one_after_the_other(two_at_once):
    teacher, said = nn.Linear(5, 3).requires_grad_(False).share_memory(), []

    def step(model, batch):
        with torch.no_grad():
            teacher.bias.mul_(0.9).add_(0.1 * model[3].bias)
        return F.cross_entropy(model(batch[0]) + teacher(batch[0]), batch[1])

    tw.tune(task(loss=None, step=step), **{**SEARCH, "effort": 2.0}, say=said.append)
    for parameter in teacher.parameters():
        parameter.data = parameter.data.clone()  # this process has no such memory any more
    assert any("some memory here would be shared" in text for text in said)
    assert not shares_memory()


def test_a_search_is_not_held_up_by_a_lock_that_another_thread_holds(alone, two_at_once):
    """Forked while another thread draws random numbers, a worker would wait forever for the lock on these."""
    ends, said = threading.Event(), []

    def draws():
        while not ends.is_set():
            with rng_lock:
                time.sleep(0.02)

    drawing = threading.Thread(target=draws)
    drawing.start()
    try:
        run = tw.fit(task(), **SEARCH, say=said.append)
    finally:
        ends.set()
        drawing.join()
    assert any("at once" in text for text in said)
    assert not any("do not serve" in text for text in said)
    same(run, alone)


def test_a_candidate_whose_worker_is_killed_is_trained_again_and_marked(alone, two_at_once, tmp_path):
    parent, where = os.getpid(), str(tmp_path / "killed")

    def loss(output, target):
        if os.getpid() != parent and not os.path.exists(where):
            open(where, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return F.cross_entropy(output, target)

    said = []
    run = tw.fit(task(loss=loss), **SEARCH, out=tmp_path / "run", say=said.append)
    assert sum("its process was ended by SIGKILL" in text and "trained again" in text for text in said) == 1
    same(run, alone)
    assert sum(len(trial.user_attrs.get("lost_workers", [])) for trial in trials_of(tmp_path / "run")) == 1


def test_candidates_whose_workers_are_always_lost_are_infeasible(two_at_once, tmp_path):
    parent = os.getpid()

    def loss(output, target):
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return F.cross_entropy(output, target)

    tw.fit(task(loss=loss), **{**SEARCH, "effort": 2.0, "steps": 20}, out=tmp_path / "run")
    lost = [trial for trial in trials_of(tmp_path / "run") if trial.user_attrs.get("lost_workers")]
    assert len(lost) >= 3
    for trial in lost:
        assert len(trial.user_attrs["lost_workers"]) == 3
        assert trial.user_attrs["infeasible"] == trial.user_attrs["lost_workers"][-1]
        assert trial.constraints == {"trains": 1.0}


def test_an_error_in_a_worker_is_the_error_that_it_is_without(two_at_once, tmp_path):
    parent, where = os.getpid(), str(tmp_path / "failed")

    def loss(output, target):
        if os.getpid() != parent:
            open(where, "w").close()
        if os.path.exists(where):
            raise RuntimeError("mine")
        return F.cross_entropy(output, target)

    with pytest.raises(tw.TaskError, match="mine"):
        tw.fit(task(loss=loss), **SEARCH)


def test_a_search_that_is_stopped_while_workers_train_goes_on_where_they_stood(alone, two_at_once, tmp_path):
    parent, where = os.getpid(), tmp_path / "begun"

    def loss(output, target):
        if os.getpid() != parent and output.requires_grad:
            with where.open("a") as file:
                file.write(".")
            time.sleep(0.05 * (where.stat().st_size > 8))
        return F.cross_entropy(output, target)

    def press():
        wait_for(lambda: where.exists() and where.stat().st_size > 8)
        os.kill(parent, signal.SIGTERM)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(tw.Interrupted, match="what was found is kept"):
        tw.fit(task(loss=loss), **SEARCH, out=tmp_path / "run")
    thread.join()
    assert list((tmp_path / "run" / "candidates").glob("*/state/MANIFEST.json"))
    same(tw.resume(tmp_path / "run", task()), alone)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


def test_where_workers_do_not_serve_that_is_said(two_at_once):
    said = []
    tw.tune(task(data=Stream()), **{**SEARCH, "effort": 2.0}, say=said.append)
    assert any(
        text.startswith("Candidates are trained one after the other, in this process: they read a st") for text in said
    )
    said.clear()
    with preserve_process_state():  # as another run does in another thread
        tw.tune(task(), **{**SEARCH, "effort": 2.0}, say=said.append)
    assert any("another run is under way in this process" in text for text in said)


SCRIPT = """
import torch, torch.nn.functional as F, thalweg as tw
import thalweg.tuning.candidates, thalweg.tuning.workers

open("ran", "a").write(".")
torch.set_num_threads(2)
a = torch.randn(500, 500)
a @ a  # torch's threads are there
thalweg.tuning.candidates.WORTHWHILE = 0.0
thalweg.tuning.workers.usable_cores = lambda: 2
x = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
task = tw.Task(model=lambda: torch.nn.Linear(5, 1), loss=F.mse_loss, data=(x, x[:, :1]), validation=(x[:50], x[:50, :1]))
said = []
plan = tw.tune(task, steps=60, effort=2.0, fixed={"batch_size": 16, "threads": 1}, say=said.append)
assert any("at once" in text for text in said), said
print(plan.learning_rate)
"""


def test_a_script_without_a_main_guard_is_run_once(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ran").read_text() == "."
    assert len(done.stdout.split()) == 1


def test_workers_go_on_from_what_was_trained_without_them(two_at_once, monkeypatch, alone):
    begun = []

    class AtOnce(Workers):
        """Does the work here, and notes where it begins."""

        def do(self, pieces, done):
            for number, one in enumerate(pieces):
                done(number, one(lambda: None))

    def judged(self, step):
        begun.append((self.step, step))
        return judge(self, step)

    judge = Candidate.judge
    monkeypatch.setattr(Candidate, "judge", judged)
    monkeypatch.setattr("thalweg.tuning.candidates.Workers", AtOnce)
    monkeypatch.setattr("thalweg.tuning.candidates.WORTHWHILE", 10.0)
    # Only the last stage is worth processes of their own, and candidates are in memory alone before it.
    monkeypatch.setattr("thalweg.tuning.candidates.Candidates._seconds", lambda self, plan, share: 20.0 * share)
    same(tw.fit(task(), **SEARCH), alone)
    assert {start for start, step in begun if step == 60} == {12}
