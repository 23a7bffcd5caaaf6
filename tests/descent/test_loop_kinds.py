"""A checkpoint whose sums agree and that holds other things is told in a sentence."""

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
    before = holder[rest[-1]]
    holder[rest[-1]] = value
    checkpoint.save(stopped / "checkpoints", state, step=6)
    with pytest.raises(CheckpointError):
        tw.resume(stopped, classes())
    holder[rest[-1]] = before
    checkpoint.save(stopped / "checkpoints", state, step=6)


def test_best_weights_that_are_none_are_lost_and_not_a_traceback(stopped: Any) -> None:
    state = checkpoint.load(stopped / "checkpoints" / "best").state
    for section, value in (("loop", {"value": "x"}), ("model", 3)):
        checkpoint.save(stopped / "checkpoints", {**state, section: value}, step=6, name="best")
        if section == "model":
            with pytest.raises(CheckpointError, match="holds no weights"):
                _ = tw.Run.open(stopped, classes()).model
    run = tw.resume(stopped, classes())
    assert any("are lost (the best weights are not what was written there" in event.message for event in run.events)
