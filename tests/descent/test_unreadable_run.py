"""A run of which a folder or file does not let this user in is a sentence or a result for every verb, never a traceback."""

import builtins
import errno
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small import classes, plan

import thalweg as tw

VERBS: dict[str, Callable[[Path], Any]] = {
    "open": tw.Run.open,
    "predict": lambda folder: tw.Run.open(folder, classes()).predict([[0.0] * 4]),
    "diagnose": tw.diagnose,
    "report": tw.report,
    "evaluate": lambda folder: tw.evaluate(folder, task=classes()),
    "resume": lambda folder: tw.resume(folder, classes()),
    "change": lambda folder: tw.resume(folder, classes(), changes={"steps": 6}),
    "train": lambda folder: tw.train(classes(), plan(steps=4), out=folder),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "r"
    tw.train(classes(), plan(steps=4, checkpoint_seconds=0), out=folder)
    return folder


def lock_out(patch: pytest.MonkeyPatch, place: Path, names: tuple[str, ...]) -> None:
    """Let these functions refuse what is below a folder, or a file itself, as the system does for those without permission."""
    within = f"{place}{os.sep}" if place.is_dir() else str(place)

    def refusing(call: Callable[..., Any], is_listing: bool) -> Callable[..., Any]:
        def refuse(path: Any, *arguments: Any, **options: Any) -> Any:
            named = "" if isinstance(path, int) else os.fsdecode(path)
            if named.startswith(within) or (is_listing and named == str(place)):
                raise PermissionError(errno.EACCES, "Permission denied", named)
            return call(path, *arguments, **options)

        return refuse

    for name in names:
        patch.setattr(os, name, refusing(getattr(os, name), name in ("listdir", "scandir")))
    for module in (builtins, io) if "open" in names else ():
        patch.setattr(module, "open", refusing(io.open, False))


@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/best"])
def test_a_folder_that_cannot_be_entered_is_a_sentence_for_every_verb(
    place: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "r"
    shutil.copytree(trained, folder)
    with monkeypatch.context() as patch:
        lock_out(patch, folder / place, ("stat", "lstat", "open", "unlink", "rename", "replace", "listdir", "scandir"))
        said = {name: outcome(verb, folder) for name, verb in VERBS.items()}
    assert "Permission denied" in said["predict"]
    assert "Permission denied" in said["evaluate"]


@pytest.mark.parametrize("name", ["run.json", "task.toml"])
def test_a_file_that_cannot_be_read_is_a_sentence_for_every_verb(
    name: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "r"
    shutil.copytree(trained, folder)
    (folder / name).touch()  # the run of a task that was passed as an object has no task.toml
    with monkeypatch.context() as patch:
        lock_out(patch, folder / name, ("open",))
        for verb in ("report", "resume", "change"):
            outcome(VERBS[verb], folder)


def test_a_folder_that_cannot_be_written_is_a_sentence_for_every_verb(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "r"
    shutil.copytree(trained, folder)
    with monkeypatch.context() as patch:
        lock_out(patch, folder, ("unlink", "rename", "replace", "mkdir"))
        said = {name: outcome(VERBS[name], folder) for name in ("report", "resume", "change")}
    assert "cannot be written: Permission denied" in said["report"]
    assert "cannot be written: Permission denied" in said["change"]
    assert said["resume"] == ""  # a finished run has nothing to write


def outcome(verb: Callable[[Path], Any], folder: Path) -> str:
    """Give what a verb says where it refuses; any other error than thalweg's fails."""
    try:
        verb(folder)
    except tw.ThalwegError as error:
        return str(error)
    return ""
