import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import thalweg as tw
from thalweg.errors import CheckpointError, RunError
from thalweg.records import checkpoint
from thalweg.records.history import History
from thalweg.records.run import HistoryColumns, Run

X = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(30) % 3


def task(model=lambda: nn.Linear(4, 3)):
    return tw.Task(model=model, loss=F.cross_entropy, data=(X, Y), validation=(X[:9], Y[:9]), name="small")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return tw.train(task(), tw.Plan(batch_size=10), steps=7, out=tmp_path_factory.mktemp("runs") / "one")


def test_an_opened_run_is_the_run_that_was_written(finished):
    opened = Run.open(finished.folder, task())
    assert opened.plan == finished.plan
    assert opened.metrics == finished.metrics
    assert opened.summary == finished.summary
    assert opened.history.keys() == finished.history.keys()
    for name, column in finished.history.items():
        assert np.array_equal(opened.history[name], column, equal_nan=True)
    assert [event.message for event in opened.events] == [event.message for event in finished.events]
    for name, tensor in finished.model.state_dict().items():
        assert torch.equal(opened.model.state_dict()[name], tensor)
    assert not opened.model.training


def test_a_lazy_model_is_rebuilt_too(tmp_path):
    made = task(lambda: nn.Sequential(nn.LazyLinear(5), nn.ReLU(), nn.LazyLinear(3)))
    run = tw.train(made, tw.Plan(batch_size=10), steps=3, out=tmp_path / "run")
    assert torch.equal(Run.open(run.folder, made).model(X), run.model(X))


def test_the_model_needs_the_task_where_it_was_passed_as_an_object(finished):
    opened = Run.open(finished.folder)
    with pytest.raises(
        RunError, match=r"does not say how to make its task, as it was passed as an object\. Pass it again"
    ):
        _ = opened.model
    with pytest.raises(RunError, match=r"neither a model nor a folder"):
        _ = Run(tw.Plan(), HistoryColumns()).model


def test_the_weights_of_another_model_are_refused(finished):
    with pytest.raises(CheckpointError, match="of another model"):
        _ = Run.open(finished.folder, task(lambda: nn.Linear(4, 5))).model


def test_best_weights_of_another_time_are_refused(finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "run")
    state = {"model": finished.model.state_dict(), "loop": {}}
    checkpoint.save(tmp_path / "run" / "checkpoints", state, step=99, name="best")
    with pytest.raises(
        CheckpointError, match=r"best holds the weights of step 99, but the run ended with those of step \d"
    ):
        _ = Run.open(tmp_path / "run", task()).model


def test_a_history_that_lacks_its_last_steps_or_all_is_told(finished, tmp_path):
    folder = shutil.copytree(finished.folder, tmp_path / "run")
    assert Run.open(folder).events == Run.open(finished.folder).events
    (folder / "history.sqlite").write_bytes(b"")
    assert "The figures before step 7 are lost" in Run.open(folder).events[-1].message
    (folder / "history.sqlite").unlink()
    with History(folder) as history:
        history.append(3, {"loss": 1.0})
    assert "The figures from step 4 to step 7 are lost" in Run.open(folder).events[-1].message


def test_the_history_is_a_frame(finished):
    frame = finished.history.to_pandas()
    assert frame.index.name == "step"
    assert frame["loss"].dropna().shape == (7,)
    assert frame.loc[7, "validation/loss"] == finished.history["validation/loss"][-1]


def test_a_folder_that_is_no_run_is_told(tmp_path):
    with pytest.raises(RunError, match=r"is not the folder of a run: it has no run\.json\. Give the folder that `out`"):
        Run.open(tmp_path)
    with pytest.raises(RunError, match=r"There is no folder .*none\. Give the folder that `out` named"):
        Run.open(tmp_path / "none")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "\x00",
        "[1",
        '{"status": {"~float": "x"}}',
        "null",
        "[]",
        "{}",
        '{"summary": {}, "diagnoses": null}',
        '{"~x": 5}',
        '{"summary": {"seconds": []}}',
        '{"summary": {"start": {"loss": "x"}}}',
        '{"summary": {"weights": {"step": []}}}',
        '{"summary": {"code": 2.5}}',
        '{"summary": {"cures": {"rate_factor": "x"}}}',
        '{"summary": {}, "metrics": {"loss": 1%s}}' % ("0" * 400),
        '{"summary": {}, "diagnoses": [{"symptom": 3, "cause": ""}]}',
        "[" * 9999,
    ],
)
def test_a_damaged_status_is_told(finished, tmp_path, text):
    folder = tmp_path / "copy"
    shutil.copytree(finished.folder, folder)
    (folder / "run.json").write_text(text)
    with pytest.raises(RunError, match=r"run\.json cannot be read \(.*Restore it from a copy, or resume the run"):
        Run.open(folder)


def test_a_damaged_plan_or_history_is_told(finished, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished.folder, folder)
    (folder / "history.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(RunError, match=r"history\.sqlite"):
        Run.open(folder)
