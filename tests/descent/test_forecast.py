"""A forecast: the copy that cools down is the one that the search would judge by, and the run stays as it is."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small import accuracy, blobs, classes, plan
from torch.utils.data import IterableDataset

import thalweg as tw
from thalweg.descent.problem import open_task
from thalweg.descent.validation import standard_error
from thalweg.records.run_folder import RunFolder


def stopped(folder: Path, at: int = 20, task: Any = None, **knobs: Any) -> Path:
    """Train a run that is interrupted after a step."""

    def stop(model: Any, figures: Any) -> None:
        if figures.step == at:
            raise KeyboardInterrupt

    with pytest.raises(tw.Interrupted):
        tw.train(task or classes(), plan(**{"steps": 60, "validate_every": 4, **knobs}), out=folder, on_step=stop)
    return folder


def bytes_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_was_stopped_is_forecast_read_only_and_the_same_each_time(tmp_path):
    folder = stopped(tmp_path / "run")
    before, state = bytes_of(folder), torch.random.get_rng_state()
    found = tw.forecast(folder, classes())
    assert (found.step, found.steps, found.is_over, found.validated) == (20, 60, False, True)
    assert tw.forecast(tw.Run.open(folder, classes())) == found
    assert bytes_of(folder) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert set(found.now) == {"loss", "accuracy"}
    assert set(found.end) == {"loss"}
    assert 0 < found.now["loss"].error < 0.5
    assert math.isnan(found.now["accuracy"].error)
    assert found.end["loss"].value < found.now["loss"].value
    assert found.end["loss"].error > 0
    tw.resume(folder, classes())
    whole = tw.train(classes(), plan(steps=60, validate_every=4), out=tmp_path / "whole")
    resumed = tw.Run.open(folder, classes())
    assert resumed.metrics == whole.metrics
    known = tw.forecast(folder)
    assert known.is_over
    assert known.end == {name: (value, 0.0) for name, value in whole.metrics.items()}
    assert str(known).startswith("Over, after step 60 of 60: ")


@pytest.mark.parametrize("decay", [{}, {"weight_decay": 1.0, "weight_decay_schedule": "inverse_time", "keep": "last"}])
def test_next_to_the_end_the_copy_is_the_run_itself(decay, tmp_path):
    folder = stopped(tmp_path / "run", at=59, schedule=tw.schedule.linear(), **decay)
    found = tw.forecast(folder, classes())
    ended = tw.resume(folder, classes())
    assert found.now["loss"].value == pytest.approx(ended.metrics["loss"], rel=1e-6)
    assert found.end["loss"].value == pytest.approx(found.now["loss"].value, rel=1e-2)


def test_the_copy_is_a_twentieth_of_the_run_at_a_rate_that_falls_to_zero(tmp_path, monkeypatch):
    from thalweg.descent import forecast

    seen = list[Any]()
    descend = forecast.descend

    def spy(descent: Any, recorder: Any) -> None:
        descend(descent, recorder)
        seen.append([(row, values) for row, values in recorder.history.rows.items()])

    monkeypatch.setattr(forecast, "descend", spy)
    tw.forecast(stopped(tmp_path / "run"), classes())
    [rows] = seen
    assert [step for step, _ in rows] == [21, 22, 23]
    rates = [values["learning_rate"] for _, values in rows]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(rates[0] / 3)


def test_the_error_is_that_of_the_mean_over_the_examples(tmp_path):
    problem = open_task(classes())
    model = problem.task.make_model().eval()
    x, y = blobs(60, seed=1)
    with torch.no_grad():
        losses = F.cross_entropy(model(x), y, reduction="none").double()
    assert standard_error(problem, model) == pytest.approx(float(losses.std() / math.sqrt(60)), rel=1e-5)
    x, y = blobs(6000, seed=1)
    x, y = x[y.argsort()], y.sort().values  # of one class after the other
    with torch.no_grad():
        losses = F.cross_entropy(model(x), y, reduction="none").double()
    found = standard_error(open_task(classes(validation=(x, y))), model)
    assert found == pytest.approx(float(losses.std() / math.sqrt(6000)), rel=0.3)
    assert math.isnan(standard_error(open_task(classes(validation=None, metrics={})), model))


def spread_of_batch(outputs: Any, targets: Any) -> Any:
    return F.cross_entropy(outputs, targets) + 0.01 * outputs.var()


def test_a_loss_that_compares_examples_gets_its_error_from_two_orders_of_the_batches(tmp_path):
    task = classes(loss=spread_of_batch)
    found = tw.forecast(stopped(tmp_path / "run", task=task), task)
    assert 0 < found.now["loss"].error < 0.5


def test_what_cannot_be_projected_is_said(tmp_path):
    without = classes(validation=None, metrics={})
    found = tw.forecast(stopped(tmp_path / "without", task=without), without)
    assert not found.end
    assert not found.validated
    assert "no validation data" in str(found)
    assert "cooled down now: training loss" in str(found)
    by_accuracy = classes(select="accuracy", mode="max")
    found = tw.forecast(stopped(tmp_path / "accuracy", task=by_accuracy), by_accuracy)
    assert "`accuracy` is not projected" in str(found)
    below = classes(loss=lambda outputs, targets: F.cross_entropy(outputs, targets) - 9, metrics={})
    found = tw.forecast(stopped(tmp_path / "below", task=below), below)
    assert not found.end
    assert "not above zero" in str(found)
    constant = stopped(tmp_path / "constant", schedule=tw.schedule.constant())
    assert "does not fall to zero" in str(tw.forecast(constant, classes()))
    assert "It is early" in str(tw.forecast(stopped(tmp_path / "early", at=4), classes()))


def test_a_run_that_keeps_its_best_ends_no_worse(tmp_path):
    x, _ = blobs(24)
    task = classes(data=(x, torch.randint(3, (24,), generator=torch.Generator().manual_seed(5))), metrics={})
    folder = stopped(tmp_path / "run", at=50, task=task, learning_rate=0.1, keep="best")
    best = min(value for value in tw.Run.open(folder).history["validation/loss"] if not math.isnan(value))
    found = tw.forecast(folder, task)
    assert found.end["loss"].value <= best
    assert "is kept" in str(found)


@pytest.mark.parametrize(
    "knobs", [{"rule": "schedule_free_adamw", "schedule": tw.schedule.constant()}, {"ema": 0.9}, {"keep": "best"}]
)
def test_averages_and_other_rules_are_measured_as_the_run_would(tmp_path, knobs):
    found = tw.forecast(stopped(tmp_path / "run", **knobs), classes())
    assert math.isfinite(found.now["loss"].value)
    assert 0 < found.now["loss"].error < 0.5


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        x, y = blobs()
        return iter(list(zip(x, y, strict=True)))


def test_a_stream_is_read_from_where_the_run_stood(tmp_path):
    task = classes(data=Stream())
    folder = stopped(tmp_path / "run", task=task)
    found = tw.forecast(folder, task)
    assert found == tw.forecast(folder, task)
    assert found.now["loss"].error > 0


def test_the_report_of_an_unfinished_run_says_where_it_would_end(tmp_path):
    from thalweg.see import run_text

    knobs = {"schedule": tw.schedule.linear(), "learning_rate": 3e-3}
    run = tw.Run.open(stopped(tmp_path / "run", at=40, **knobs))
    said = run_text.outlook(run)
    assert said.startswith("By the validations so far, the validation loss would be about ")
    assert said.endswith("at step 60.")
    assert said in (tmp_path / "run" / "report.html").read_text("utf-8")
    assert not run_text.outlook(tw.Run.open(stopped(tmp_path / "early", at=8, **knobs)))
    assert not run_text.outlook(tw.resume(tmp_path / "run", classes()))


def test_what_has_no_forecast_is_refused_in_words(tmp_path, monkeypatch):
    folder = stopped(tmp_path / "run")
    with pytest.raises(tw.RunError, match="other data"):
        tw.forecast(folder, classes(data=blobs(seed=3)))
    with pytest.raises(tw.RunError, match="There is no folder"):
        tw.forecast(tmp_path / "nothing")
    edited = tw.forecast(folder, classes(metrics={"accuracy": accuracy, "again": accuracy}))
    assert "The task has changed" in str(edited)
    for path in sorted(RunFolder(folder).checkpoints_path.glob("step-*/*"), reverse=True):
        path.unlink()
        if not any(path.parent.iterdir()):
            path.parent.rmdir()
    with pytest.raises(tw.RunError, match="no checkpoint yet"):
        tw.forecast(folder, classes())
    with pytest.raises(tw.Interrupted) as interrupted:
        tw.train(classes(), plan(), on_step=lambda model, figures: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(tw.RunError, match="in memory"):
        tw.forecast(interrupted.value.run)


def test_a_checkpoint_that_a_live_run_takes_away_is_looked_for_again(tmp_path, monkeypatch):
    from thalweg.records import checkpoint

    folder, load, tries = stopped(tmp_path / "run"), checkpoint.load, list[Any]()

    def gone(path: Any) -> Any:
        tries.append(path)
        if len(tries) == 1:
            raise tw.CheckpointError("it was replaced meanwhile")
        return load(path)

    monkeypatch.setattr(checkpoint, "load", gone)
    assert tw.forecast(folder, classes()).step == 20
    assert len(tries) == 2
    monkeypatch.setattr(checkpoint, "load", lambda path: (_ for _ in ()).throw(tw.CheckpointError("damaged")))
    with pytest.raises(tw.CheckpointError, match="damaged"):
        tw.forecast(folder, classes())
