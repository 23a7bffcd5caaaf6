"""When checkpoints are written, and what is written once only."""

from pathlib import Path
from typing import Any

import pytest
from small import classes, plan, started

import thalweg as tw
from thalweg.descent.checkpoint_writer import CheckpointWriter
from thalweg.descent.recorder import Recorder
from thalweg.descent.state import BestWeights
from thalweg.records import checkpoint
from thalweg.records.run_folder import RunFolder


def test_checkpoints_are_written_when_due_at_snapshots_and_soon_where_overdue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, written = [0.0], list[int]()
    monkeypatch.setattr("thalweg.descent.checkpoint_writer.time.monotonic", lambda: clock[0])
    record, save = Recorder.step, CheckpointWriter.write

    def tick(self: Recorder, *rest: Any) -> None:
        clock[0] += 1
        record(self, *rest)

    def kept(self: CheckpointWriter, state: dict[str, Any], *rest: Any) -> None:
        written.append(state["loop"]["step"])
        save(self, state, *rest)

    monkeypatch.setattr(Recorder, "step", tick)
    monkeypatch.setattr(CheckpointWriter, "write", kept)
    tw.train(classes(), plan(steps=60, snapshot_every=20, checkpoint_seconds=15), out=tmp_path / "a")
    assert written == [20, 40, 60]
    written.clear()
    tw.train(classes(), plan(steps=60, snapshot_every=50, checkpoint_seconds=10), out=tmp_path / "b")
    assert written == [21, 41, 60]  # due at 11, overdue at 21


def test_a_state_or_weights_that_are_on_the_disk_are_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = list[str | None]()
    save = checkpoint.save

    def counted(*rest: Any, name: str | None = None, **options: Any) -> Path:
        saved.append(name)
        return save(*rest, name=name, **options)

    monkeypatch.setattr(checkpoint, "save", counted)
    descent, _ = started(classes(), plan())
    writer, state = CheckpointWriter(RunFolder(tmp_path)), descent.state_dict()
    best = BestWeights(0.5, 3, {"loss": 0.5}, averaged=False, model=state["model"])
    writer.write(state, best, 4)
    writer.write(state, best, 4)
    assert saved == ["best", None]
    writer.write(state, best, 5)
    assert saved == ["best", None, None]
    writer.written_step = None
    writer.write(state, None, 5)
    assert saved == ["best", None, None, None]
    again = CheckpointWriter(RunFolder(tmp_path))
    assert again.load_best().figures == {"loss": 0.5}
    again.write(state, best, 5)
    assert saved == ["best", None, None, None, None]
