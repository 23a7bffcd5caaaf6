"""Processes that die by SIGKILL while they write, in a process of their own: `python mortal.py <what> <folder>`.

`checkpoint` and `checkpoint-aside` kill a save before its first file operation, then before its second, and so on until one
gets through, and look after each death at what is left. `history` kills a writer somewhere in its flushes.
"""

import os
import signal
import sqlite3
import sys
from pathlib import Path

import torch

from thalweg.errors import RunError
from thalweg.records import checkpoint
from thalweg.records.history import History

DEATHS = 15


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(operation: int) -> None:
    """Die before the so-maniest opening, syncing, renaming, making or removing of a file from here on."""
    left = operation

    def count(event: str, arguments: object) -> None:
        nonlocal left
        if event.split(".")[0] in ("open", "os", "shutil", "fsync") and event != "os.listdir":
            left -= 1
            if left == -1:
                die()

    sync = os.fsync
    os.fsync = lambda descriptor: (count("fsync", ()), sync(descriptor))[1]
    sys.addaudithook(count)


def state(step: int) -> checkpoint.CheckpointState:
    return {"model": {"w": torch.full((50,), float(step))}, "loop": {"step": step}}


def in_child(work) -> bool:
    """Whether the work got through, rather than being killed."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL, status
    return status == 0


def look(folder: Path, steps: set[int]) -> int:
    loaded = checkpoint.load(folder)
    assert loaded.step in steps, (loaded.step, steps)
    assert loaded.state["loop"]["step"] == loaded.step
    assert torch.equal(loaded.state["model"]["w"], state(loaded.step)["model"]["w"])
    return loaded.step


def kill_checkpoints(folder: Path) -> None:
    operation, seen = 0, set()
    while True:
        place = folder / str(operation)
        checkpoint.save(place, state(1), step=1)
        checkpoint.save(place, state(1), step=1, name="best")

        def save_all(place: Path = place, operation: int = operation) -> None:
            die_at(operation)
            checkpoint.save(place, state(2), step=2, keep=1)
            checkpoint.save(place, state(2), step=2, name="best")

        through = in_child(save_all)
        seen.add((look(place, {1, 2}), look(place / "best", {1, 2})))
        checkpoint.save(place, state(3), step=3, keep=1)
        assert sorted(os.listdir(place)) == ["best", "step-00000003"], os.listdir(place)
        if through:
            break
        operation += 1
    assert seen == {(1, 1), (2, 1), (2, 2)}, seen
    print(operation, "deaths survived")


def write_history(folder: Path, talk: int) -> None:
    with History(folder, flush_rows=7) as history:
        begin = 0
        for step in range(begin, 10**9):
            history.append(step, {"loss": 1.0 / (step + 1), "rate": 0.5})
            if step % 7 == 6:
                os.write(talk, b".")


def kill_history(folder: Path) -> None:
    torn = 0
    for death in range(DEATHS):
        place = folder / str(death)
        hear, talk = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(hear)
            write_history(place, talk)
        os.close(talk)
        flushed = 0
        while flushed < 40 + death:
            flushed += len(os.read(hear, 1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while more := os.read(hear, 4096):
            flushed += len(more)
        os.close(hear)
        torn += look_at_history(place, flushed)
    print("all", DEATHS, "opened again,", torn, "with a log")


def look_at_history(place: Path, flushed: int) -> bool:
    log = (place / "history.sqlite-wal").exists()
    with History(place, readonly=True) as history:
        columns = history.columns()
    rows = len(columns["step"])
    assert rows % 7 == 0
    assert rows >= 7 * flushed, (rows, flushed)
    assert (columns["step"] == range(rows)).all()
    assert (columns["loss"] == 1.0 / (columns["step"] + 1.0)).all()
    with History(place) as history:
        history.supersede(5)
        history.append(5, {"loss": 7.0})
        assert history.columns()["loss"].tolist() == [1.0, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 7.0]
    with sqlite3.connect(place / "history.sqlite") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
    return log


def refusal(work) -> str:
    try:
        work()
    except RunError as error:
        return str(error)
    return ""


def follow(folder: Path) -> None:
    """Another process reads what this one has flushed so far."""
    with History(folder) as history:
        for step in range(3):
            history.append(step, {"loss": float(step)})
            history.flush()
            seen = step + 1

            def count(seen: int = seen) -> None:
                with History(folder, readonly=True) as reader:
                    assert len(reader.columns()["step"]) == seen

            assert in_child(count)

        def write() -> None:
            assert "opened by the parent" in refusal(history.flush)
            history.close()

        assert in_child(write)
        history.append(3, {"loss": 3.0})
        assert len(history.columns()["step"]) == 4
    print("followed")


def without_rights(folder: Path) -> None:
    """Where nothing may be written, reading works and leaves nothing, and writing says why not."""
    for kind in ("closed", "killed"):
        place = folder / kind

        def write(place: Path = place, kind: str = kind) -> None:
            history = History(place)
            history.append(1, {"loss": 1.0})
            history.flush()
            checkpoint.save(place / "checkpoints", state(1), step=1)
            if kind == "killed":
                die()
            history.close()

        in_child(write)
        if kind == "killed":
            (place / "history.sqlite-shm").unlink()
        for path in (place, *place.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        if os.geteuid() == 0:
            os.seteuid(65534)
        before = sorted(str(path) for path in place.rglob("*"))
        with History(place, readonly=True) as history:
            assert history.columns()["loss"].tolist() == [1.0]
        assert look(place / "checkpoints", {1}) == 1
        assert "permission" in refusal(lambda place=place: History(place))
        assert "permission" in refusal(lambda place=place: checkpoint.save(place / "checkpoints", state(2), step=2))
        assert sorted(str(path) for path in place.rglob("*")) == before
        if os.getuid() == 0:
            os.seteuid(0)
        for path in (place, *place.rglob("*")):
            path.chmod(0o777)
    print("read without rights")


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what == "checkpoint-aside":
        checkpoint._swap_names = lambda one, other: False
    work = {"history": kill_history, "follow": follow, "without-rights": without_rights}
    work.get(what, kill_checkpoints)(folder)
