"""A run that is killed and resumed ends with the same bits as one that was left alone.

Every run walks in a process of its own. It is killed by SIGKILL from outside: at random moments, and as soon as a checkpoint
that is being written is seen. `thalweg.resume` goes on in another process.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cases
import numpy as np
import pytest
import torch

import thalweg as tw
from thalweg.records import checkpoint
from thalweg.records.history import History
from thalweg.records.run_folder import RunFolder

HERE = Path(__file__).parent
KILLED = -signal.SIGKILL


class Nursery:
    """Starts runs in processes of their own, and kills them."""

    def __init__(self, cases: str = "cases") -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "nursery.py"), cases], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, verb: str, case: str, folder: Path, killer: Callable[[], bool] | None = None) -> int:
        """Give the exit status; the run is killed as soon as `killer` says so."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{verb} {case} {folder}\n")
        self.process.stdin.flush()
        pid = int(self.process.stdout.readline().split()[1])
        while killer is not None and alive(pid):
            if killer():
                os.kill(pid, signal.SIGKILL)
                break
        return int(self.process.stdout.readline().split()[1])

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    opened = Nursery()
    yield opened
    opened.close()


def killers(folder: Path, kills: int, total: int, seed: int) -> list[Callable[[], bool]]:
    """Give moments to kill at, spread over the run: at or soon after a random step, or inside a checkpoint's writing."""
    draws = random.Random(seed)
    targets = [int(total * (0.05 + 0.8 * (k + draws.random()) / kills)) for k in range(kills)]
    return [moment(folder, target, draws.randrange(3), draws.randrange(2000)) for target in targets]


def moment(folder: Path, step: int, kind: int, patience: int) -> Callable[[], bool]:
    """From the checkpoint of a step on: when one is being written (kind 0, 1), or after some more looks (2)."""
    looks = 0

    def now() -> bool:
        nonlocal looks
        try:
            names = os.listdir(folder / "checkpoints")
        except OSError:
            return False
        if max((int(name[5:]) for name in names if name.startswith("step-")), default=0) < step:
            return False
        looks += 1
        return any(name.startswith(".tmp-") for name in names) if kind < 2 else looks > patience

    return now


def survive(nursery: Nursery, case: str, folder: Path, total: int, kills: int, seed: int) -> None:
    """Walk a case of so many steps to its end through so many kills; a run that is over before its time is walked again."""
    for attempt in range(5):
        shutil.rmtree(folder, ignore_errors=True)
        verb, landed = "train", 0
        for killer in killers(folder, kills, total, seed + 100 * attempt):
            status = nursery.run(verb, case, folder, killer)
            assert status in (0, KILLED), Path(f"{folder}.err").read_text()
            landed += status == KILLED
            verb = "resume"
        if landed == kills:
            assert nursery.run("resume", case, folder) == 0, Path(f"{folder}.err").read_text()
            return
    pytest.fail(f"{case} was over before {kills} kills, five times")


def compare(folder: Path, whole: Path) -> None:
    """Hold a run's digests, figures, best and last weights against another's, bit for bit."""
    with History(folder, readonly=True) as ours, History(whole, readonly=True) as theirs:
        assert ours.first_difference(theirs) is None, f"first differing step: {ours.first_difference(theirs)}"
        assert ours.digests() == theirs.digests()
        mine, other = ours.columns(), theirs.columns()
        for name in sorted(mine.keys() - {"seconds"}):
            assert np.array_equal(mine[name], other[name], equal_nan=True), name
        kept = [
            [(e.step, e.kind, e.message) for e in history.events() if e.kind in ("rollback", "nonfinite", "early_stop")]
            for history in (ours, theirs)
        ]
        assert set(kept[0]) == set(kept[1])
    for name in ("best", None):
        pair = [
            checkpoint.load(place / "checkpoints" / name if name else place / "checkpoints")
            for place in (folder, whole)
        ]
        assert pair[0].step == pair[1].step
        for section in ("model", "optimizer"):
            same_nest(pair[0].state.get(section), pair[1].state.get(section), section)
    assert RunFolder(folder).read_status()["metrics"] == RunFolder(whole).read_status()["metrics"]
    assert RunFolder(folder).read_status()["status"] == "finished"


def same_nest(one: object, other: object, where: str) -> None:
    if isinstance(one, dict) and isinstance(other, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            same_nest(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


def prove(nursery: Nursery, case: str, folder: Path, kills: int, seed: int) -> None:
    whole, killed = folder / "whole", folder / "killed"
    assert nursery.run("train", case, whole) == 0, Path(f"{whole}.err").read_text()
    total = checkpoint.steps(whole / "checkpoints")[-1]
    survive(nursery, case, killed, total, kills, seed)
    compare(killed, whole)
    happened = {event.kind for event in tw.Run.open(whole).events}
    expected = {"goes-back": "rollback", "left-out": "bad-data", "patience": "early_stop"}.get(case)
    assert expected is None or expected in happened


@pytest.mark.parametrize("case", ["everything-adamw", "workers-momentum", "stream", "goes-back"])
def test_resumed_run_is_bitwise_the_uninterrupted_one(nursery: Nursery, folder: Path, case: str) -> None:
    prove(nursery, case, folder, kills=3, seed=1)


@pytest.mark.heavy
@pytest.mark.parametrize("case", cases.PLANS)
def test_resumed_run_is_bitwise_the_uninterrupted_one_through_ten_kills(
    nursery: Nursery, folder: Path, case: str
) -> None:
    prove(nursery, case, folder, kills=10, seed=2)
