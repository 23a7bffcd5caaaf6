"""A run whose files were damaged is the same run, or says what is wrong: whatever byte of whatever file it is."""

import shutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, Phase, example, given, seed, settings
from hypothesis import strategies as st
from small import classes, plan, same_bits

import thalweg as tw
from thalweg.descent.recorder import Recorder
from thalweg.records.history import History
from thalweg.records.request import Request
from thalweg.records.run_folder import RunFolder
from thalweg.records.task import Source

pytestmark = pytest.mark.heavy

STEPS, STOPPED_AT = 24, 13
FILES = [
    *(
        "plan.toml",
        "task.toml",
        "request.json",
        "run.json",
        "history.sqlite",
        "history.sqlite-wal",
        "history.sqlite-shm",
    ),
    *(".lock", "report.html"),
    *(f"checkpoints/{name}" for name in ("newest", "older", "best")),
    *(
        f"checkpoints/{name}/{file}"
        for name in ("newest", "older", "best")
        for file in ("MANIFEST.json", "loop.json", "model.safetensors", "optimizer.safetensors", "snapshot.safetensors")
    ),
]


def task() -> tw.Task:
    source = Source(module="thalweg.examples.letters", arguments={"held_out": 0.2})
    return classes(source=source, name="damaged")


def made() -> tw.Plan:
    return plan(steps=STEPS, snapshot_every=5, digest_every=4, checkpoint_seconds=0)


class Made(NamedTuple):
    """A run to damage, and what it is undamaged."""

    folder: Path
    whole: tw.Run
    opened: tw.Run


@pytest.fixture(scope="module")
def whole() -> tw.Run:
    return tw.train(task(), made())


def train_until_stopped(folder: Path, act: Any) -> None:
    record, patch = Recorder.step, pytest.MonkeyPatch()

    def recorded(self: Recorder, figures: Any, *rest: Any) -> None:
        record(self, figures, *rest)
        if figures.step == STOPPED_AT:
            act(self)

    with patch.context() as context:
        context.setattr(Recorder, "step", recorded)
        with pytest.raises(KeyboardInterrupt):
            tw.train(task(), made(), out=folder)


@pytest.fixture(scope="module", params=["finished", "stopped", "killed", "in its search"])
def base(request: Any, tmp_path_factory: Any, whole: tw.Run) -> Made:
    folder = tmp_path_factory.mktemp("runs") / "r"
    if request.param == "finished":
        tw.train(task(), made(), out=folder)
    elif request.param == "stopped":
        train_until_stopped(folder, lambda recorder: setattr(recorder.stop_request, "received", True))
    elif request.param == "killed":

        def copy(recorder: Recorder) -> None:
            recorder.history.flush()
            shutil.copytree(folder, folder.with_name("copy"))
            recorder.stop_request.received = True

        train_until_stopped(folder, copy)
        folder = folder.with_name("copy")
    else:
        folder.mkdir()
        RunFolder(folder).record_request(Request(steps=STEPS, effort=1, fixed={"batch_size": 16}), task().source)
        return Made(folder, tw.fit(task(), steps=STEPS, effort=1, fixed={"batch_size": 16}), whole)
    return Made(folder, whole, tw.Run.open(folder, task()))


def place(folder: Path, name: str) -> Path:
    """Give the path of one of `FILES`; checkpoints are named by their age."""
    steps = sorted(folder.glob("checkpoints/step-*"), reverse=True)
    for age, path in zip(("newest", "older"), steps, strict=False):
        name = name.replace(f"checkpoints/{age}", f"checkpoints/{path.name}")
    return folder / name


Damage = tuple[str, str, str, float, int]
DAMAGES = st.tuples(
    st.sampled_from(["truncate", "flip", "zero", "replace", "append", "remove", "swap", "repeat", "cut a line"]),
    st.sampled_from(FILES),
    st.sampled_from(FILES),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 255),
)


def damage(folder: Path, kind: str, name: str, other: str, where: float, value: int) -> None:
    path, second = place(folder, name), place(folder, other)
    if not path.exists():
        return
    if kind == "remove":
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    elif kind == "swap" and second.exists() and not second.is_relative_to(path) and not path.is_relative_to(second):
        aside = folder.parent / "aside"
        path.rename(aside)
        second.rename(path)
        aside.rename(second)
    elif path.is_file():
        path.write_bytes(damaged(path.read_bytes(), kind, where, value))


def damaged(data: bytes, kind: str, where: float, value: int) -> bytes:
    at = int(where * len(data))
    match kind:
        case "truncate":
            return data[:at]
        case "flip" if data:
            return data[:at] + bytes([data[at] ^ (1 << value % 8)]) + data[at + 1 :]
        case "zero":
            return data[:at] + bytes(len(data[at : at + 64])) + data[at + 64 :]
        case "replace":
            return bytes([value]) * at
        case "append":
            return data + bytes([value]) * 9
        case "repeat":
            return data + data
        case "cut a line":
            lines = data.splitlines(keepends=True)
            return b"".join(lines[: int(where * len(lines))] + lines[int(where * len(lines)) + 1 :])
    return data


def is_same(run: tw.Run, other: tw.Run) -> bool:
    """Whether a run says the same of itself as another.

    One that was killed may lack rows at its end, where its log was damaged: it is the run as it was a moment earlier.
    """
    said = all(repr(getattr(run, name)) == repr(getattr(other, name)) for name in ("plan", "metrics", "diagnoses"))
    rows, killed = len(run.history["step"]), other.summary["status"] == "running"
    columns = all(column.tobytes() == other.history[name][:rows].tobytes() for name, column in run.history.items())
    return said and columns and (killed or (rows, *run.history) == (len(other.history["step"]), *other.history))


def outcome(act: Any, *arguments: Any) -> tuple[Any, list[str]]:
    """Give what comes back, or None where it is refused in a sentence; and what was said."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            return act(*arguments), [str(warning.message) for warning in said]
        except tw.ThalwegError as error:
            return None, [str(error)]


def told(run: tw.Run, before: tw.Run | None) -> list[str]:
    known = set() if before is None else {event.message for event in before.events}
    return [e.message for e in run.events if e.kind in ("note", "warning") and e.message not in known]


@seed(0)
@settings(
    max_examples=60,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    deadline=None,
    database=None,
)
@given(st.lists(DAMAGES, min_size=1, max_size=2))
@example([("cut a line", "plan.toml", "plan.toml", 0.5, 0)])
@example([("swap", "checkpoints/newest", "checkpoints/best", 0.0, 0)])
@example([("swap", "checkpoints/newest/model.safetensors", "checkpoints/older/model.safetensors", 0.0, 0)])
@example([("remove", "history.sqlite", "plan.toml", 0.0, 0)])
@example([("remove", "run.json", "plan.toml", 0.0, 0)])
@example([("remove", "checkpoints/best", "plan.toml", 0.0, 0)])
def test_a_damaged_run_is_the_same_run_or_says_what_is_wrong(base: Made, done: list[Damage]) -> None:
    folder = base.folder.with_name("damaged")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base.folder, folder)
    for entries in done:
        damage(folder, *entries)
    run, said = outcome(tw.Run.open, folder, task())
    if run is not None:
        assert is_same(run, base.opened) or said or told(run, base.opened), "opened as another run, and nothing said"
        outcome(tw.report, folder, folder.with_name("report.html"))
        model, _ = outcome(lambda: run.model)
        assert model is None or same_bits(model, base.opened.model)
        outcome(lambda: [History(folder, readonly=True).digests(), tw.diagnose(folder)])
    again, said = outcome(tw.resume, folder, task())
    model, _ = outcome(lambda: again and again.model)
    if model is not None:
        loss = again.history.get("loss")
        same = same_bits(model, base.whole.model) and loss is not None
        same = same and loss.tobytes() == base.whole.history["loss"].tobytes()
        assert same or said or told(again, base.opened), "resumed to another run, and nothing said"
        assert torch.isfinite(torch.tensor(again.metrics["loss"]))
