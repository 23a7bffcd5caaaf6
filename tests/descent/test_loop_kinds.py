"""A checkpoint whose sums agree and that holds other things is told in a sentence."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from small import classes, plan

import thalweg as tw
from thalweg.descent.loop_kinds import LOOP_KINDS
from thalweg.errors import CheckpointError
from thalweg.records import checkpoint
from thalweg.records.kinds import check
from thalweg.watch.monitor import Monitor

PLACES: dict[str, tuple[str, Any]] = {
    "no section": ("loop", None),
    "another section": ("loop", [1]),
    "a step that is none": ("loop/step", "x"),
    "a step beyond all": ("loop/step", 10**30),
    "figures that are none": ("loop/start", {"loss": "x"}),
    "a best value that is none": ("loop/leading/value", {}),
    "no epoch": ("loop/batches/epoch", None),
    "causes that are none": ("loop/monitor/causes", None),
    "diagnoses that are none": ("loop/diagnoses", 2.5),
    "an optimiser that is none": ("optimizer", 2.5),
    "weights that are none": ("model", 3),
    "objects that are none": ("objects", [1]),
    "objects of callbacks that are none": ("callbacks", 3),
    "a snapshot that is none": ("snapshot", {"model": {}}),
    "a snapshot of another kind": ("snapshot", {"model": {}, "optimizer": {}, "loop": {"step": "x"}}),
}


def stop_at_6(model: Any, figures: Any) -> None:
    if figures.step == 6:
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: Any) -> Any:
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.raises(tw.Interrupted):
        tw.train(classes(), plan(steps=12), out=folder, on_step=stop_at_6)
    return folder


def test_what_a_new_monitor_says_of_itself_is_taken() -> None:
    check({"monitor": Monitor().state_dict()}, LOOP_KINDS)


@pytest.mark.parametrize("name", PLACES)
def test_a_checkpoint_with_right_sums_and_wrong_contents_is_told(stopped: Any, name: str) -> None:
    path, value = PLACES[name]
    state = checkpoint.load(stopped / "checkpoints").state
    at, *rest = state, *path.split("/")
    holder = at
    for key in rest[:-1]:
        holder = holder[key]
    before = holder.get(rest[-1])
    holder[rest[-1]] = value
    checkpoint.save(stopped / "checkpoints", state, step=6)
    with pytest.raises(CheckpointError):
        tw.resume(stopped, classes())
    holder[rest[-1]] = before
    if before is None:
        del holder[rest[-1]]
    checkpoint.save(stopped / "checkpoints", state, step=6)


@pytest.mark.parametrize(
    ("objects", "said"),
    [
        ([1], "no table"),
        ({"model.0.forward": {"value": "rm", "same": False}, "os:system": {}}, "could not be put back"),
    ],
)
def test_an_opened_model_takes_nothing_that_is_not_its_own(
    stopped: Any, tmp_path: Path, objects: Any, said: str
) -> None:
    folder = shutil.copytree(stopped, tmp_path / "run")
    state = checkpoint.load(folder / "checkpoints" / "best").state
    checkpoint.save(folder / "checkpoints", {**state, "objects": objects}, step=6, name="best")
    with (
        pytest.warns(UserWarning, match=said)
        if isinstance(objects, dict)
        else pytest.raises(CheckpointError, match=said)
    ):
        assert tw.Run.open(folder, classes()).model


def test_best_weights_that_are_none_are_lost_and_not_a_traceback(stopped: Any) -> None:
    state = checkpoint.load(stopped / "checkpoints" / "best").state
    for section, value in (("loop", {"value": "x"}), ("model", 3)):
        checkpoint.save(stopped / "checkpoints", {**state, section: value}, step=6, name="best")
        if section == "model":
            with pytest.raises(CheckpointError, match="holds no weights"):
                _ = tw.Run.open(stopped, classes()).model
    run = tw.resume(stopped, classes())
    assert any("are lost (the best weights are not what was written there" in event.message for event in run.events)
