"""A run goes on, or is opened, only as the run that it is: by its own plan, data, criterion, loss and model, or with a word."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import blobs, classes, network, plan, same_bits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import thalweg as tw
from thalweg.records import checkpoint


def interrupted(folder: Path, task: tw.Task, made: tw.Plan, at: int = 5) -> None:
    def stop(model: nn.Module, figures: Any) -> None:
        if figures.step == at:
            raise KeyboardInterrupt

    with pytest.raises(tw.Interrupted):
        tw.train(task, made, out=folder, on_step=stop)


def short(**knobs: Any) -> tw.Plan:
    return plan(**{"steps": 10, "snapshot_every": 5, "validate_every": 5, **knobs})


def wrong(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) != targets).float().mean()


def doubled(outputs: Tensor, targets: Tensor) -> Tensor:
    return 2 * F.cross_entropy(outputs, targets)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: Any) -> Path:
    """A finished run and one that was interrupted, to be copied."""
    folder = tmp_path_factory.mktemp("runs")
    tw.train(classes(), short(), out=folder / "finished")
    interrupted(folder / "stopped", classes(), short())
    return folder


@pytest.fixture
def runs(kept: Path, tmp_path: Path) -> Path:
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    return tmp_path


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "data": ({"data": blobs(96, seed=7)}, "The training data have other values"),
    "validation": ({"validation": blobs(60, seed=7)}, "The validation data have other values"),
    "no validation": ({"validation": None, "metrics": {}}, "The validation data are gone"),
    "loss": ({"loss": doubled}, "of another task: `loss` has other code"),
    "metric": ({"metrics": {"accuracy": wrong}}, "of another task: metric 'accuracy' has other code"),
    "criterion": ({"select": "accuracy"}, "of another task: `select` was 'loss' and is 'accuracy'"),
    "model": ({"model": lambda: network(nn.Dropout(0.5))}, r"of another task: `model` has other code.*Dropout"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_finished_run_is_opened_for_the_same_request_only(other: str, runs: Path) -> None:
    changes, told = OTHERS[other]
    with pytest.raises(tw.RunError, match=told):
        tw.train(classes(**changes), short(), out=runs / "finished")
    with pytest.raises(tw.RunError, match=told):
        tw.resume(runs / "finished", classes(**changes))
    with pytest.raises(tw.RunError, match=told):
        tw.train(classes(**changes), short(), out=runs / "stopped")


def test_a_module_with_other_weights_is_another_request(tmp_path: Path) -> None:
    torch.manual_seed(0)
    one, other = network(), network()
    tw.train(classes(model=one), short(), out=tmp_path / "r")
    assert tw.train(classes(model=one), short(), out=tmp_path / "r").trained is None
    with pytest.raises(tw.RunError, match="finished run of another task: the model starts from other weights"):
        tw.train(classes(model=other), short(), out=tmp_path / "r")


def test_a_status_that_is_gone_gives_back_no_old_figures(runs: Path) -> None:
    metrics = tw.Run.open(runs / "finished").metrics
    (runs / "finished" / "run.json").unlink()
    with pytest.raises(tw.RunError, match=r"holds a run whose run\.json is gone\. Resume it"):
        tw.Run.open(runs / "finished")
    with pytest.raises(tw.RunError, match="The training data have other values"):
        tw.train(classes(data=blobs(96, seed=7)), short(), out=runs / "finished")
    with pytest.raises(tw.RunError, match="another plan: learning_rate"):
        tw.train(classes(), short(learning_rate=0.5), out=runs / "finished")
    with pytest.raises(tw.RunError, match="already holds a run"):
        tw.fit(classes(), steps=5, effort=1, out=runs / "finished")
    assert tw.resume(runs / "finished", classes()).metrics == metrics
    assert tw.Run.open(runs / "finished").metrics == metrics
    shutil.rmtree(runs / "finished" / "checkpoints")
    (runs / "finished" / "run.json").unlink()
    with pytest.raises(tw.RunError, match=r"history of a run whose run\.json and checkpoints are gone"):
        tw.train(classes(), short(), out=runs / "finished")


def test_an_edited_or_cut_plan_is_refused_and_a_lost_one_restored(runs: Path) -> None:
    file, whole = runs / "stopped" / "plan.toml", tw.train(classes(), short())
    text = file.read_text()
    file.write_text(text.replace('rule = "adamw"', 'rule = "sgd"').replace("seed = 0\n", "seed = 3\n"))
    for opening in (lambda: tw.resume(runs / "stopped", classes()), lambda: tw.Run.open(runs / "stopped")):
        with pytest.raises(
            tw.PlanError, match=r"edited since the run began: rule was adamw and is sgd; seed was 0 and is 3"
        ):
            opening()
    (runs / "stopped" / "run.json").unlink()  # the checkpoint knows the plan too
    with pytest.raises(tw.PlanError, match="rule was adamw and is sgd"):
        tw.resume(runs / "stopped", classes())
    file.write_text(text[: text.index("[constants]")])
    with pytest.raises(tw.PlanError, match=r"cut off.*Remove the file"):
        tw.resume(runs / "stopped", classes())
    file.unlink()
    assert same_bits(tw.resume(runs / "stopped", classes()).model, whole.model)
    assert file.read_text() == text


def test_a_checkpoint_of_another_plan_is_not_gone_on_from(runs: Path, tmp_path: Path) -> None:
    interrupted(tmp_path / "other", classes(), short(learning_rate=0.5))
    shutil.rmtree(runs / "stopped" / "checkpoints")
    shutil.move(tmp_path / "other" / "checkpoints", runs / "stopped" / "checkpoints")
    with pytest.raises(tw.RunError, match=r"checkpoint of another plan .*learning_rate was 0\.5 and is 0\.01"):
        tw.resume(runs / "stopped", classes())


def test_knobs_are_changed_where_that_is_asked_for_and_the_run_says_so(runs: Path) -> None:
    changes = {"learning_rate": 0.001, "steps": 20, "clip_norm": 0.5}
    run = tw.resume(runs / "stopped", classes(), changes=changes)
    assert (run.summary["steps"], run.plan.learning_rate) == (20, 0.001)
    assert run.history["learning_rate"][1:].tolist() == [0.01] * 5 + [0.001] * 15
    assert run.history["clip_scale"][6:].min() < 1
    event = next(event for event in run.events if event.kind == "change")
    assert event.step == 5
    assert "learning_rate was 0.01 and is 0.001; steps was 10 and is 20" in event.message
    assert run.plan.why("steps").reason == "changed when the run was resumed"
    assert tw.Run.open(runs / "stopped").plan == run.plan
    assert tw.resume(runs / "stopped", classes()).metrics == run.metrics
    longer = tw.resume(runs / "finished", classes(), changes={"steps": 15})
    assert (longer.summary["steps"], longer.history["step"].tolist()) == (15, list(range(16)))


def test_a_changed_run_goes_on_to_the_bits_of_the_changed_run(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "stopped", tmp_path / "again")
    whole = tw.resume(runs / "stopped", classes(), changes={"learning_rate": 0.001})

    def stop(model: nn.Module, figures: Any) -> None:
        if figures.step == 7:
            raise KeyboardInterrupt

    with pytest.raises(tw.Interrupted):
        tw.resume(tmp_path / "again", classes(), changes={"learning_rate": 0.001}, on_step=stop)
    assert same_bits(tw.resume(tmp_path / "again", classes()).model, whole.model)
    newest = max((tmp_path / "again" / "checkpoints").glob("step-*"))
    shutil.rmtree(newest)  # an older one, of the plan as it was, is gone on from by the plan as it is
    assert any(
        event.kind == "change" for event in tw.resume(tmp_path / "again", classes(), changes={"steps": 12}).events
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rule": "sgd"}, "`rule` cannot be changed within a run.*What can be changed: checkpoint_seconds, "),
        ({"batch_size": 8}, "`batch_size` cannot be changed within a run"),
        ({"seed": 8}, "`seed` cannot be changed"),
        ({"learning_rat": 8}, "Did you mean 'learning_rate'"),
        ({"learning_rate": -8}, "must be above zero"),
        ({"steps": 5}, "is at step 5 already, and `steps` is 5: nothing remains"),
    ],
)
def test_knobs_that_cannot_change_are_refused_and_nothing_is_touched(
    changes: dict[str, Any], told: str, runs: Path
) -> None:
    before = (runs / "stopped" / "plan.toml").read_text(), (runs / "stopped" / "run.json").read_text()
    with pytest.raises(tw.PlanError, match=told):
        tw.resume(runs / "stopped", classes(), changes=changes)
    assert ((runs / "stopped" / "plan.toml").read_text(), (runs / "stopped" / "run.json").read_text()) == before


def test_what_was_best_by_another_criterion_is_measured_anew(tmp_path: Path) -> None:
    for number, changes in enumerate(({"select": "accuracy"}, {"loss": doubled}, {"metrics": {"accuracy": wrong}})):
        folder = tmp_path / str(number)
        interrupted(folder, classes(), short(learning_rate=0.5, validate_every=1), at=4)
        kept = checkpoint.load(folder / "checkpoints" / "best").state["loop"]
        task = classes(**changes)
        with pytest.warns(UserWarning, match=rf"best weights so far, of step {kept['step']}, were measured anew"):
            run = tw.resume(folder, task, changes={"learning_rate": 1e-12})
        steps, figures = run.history["step"], run.history[f"validation/{task.select}"]
        now = figures[steps > 4]
        best = now.max() if task.mode == "max" else now.min()
        anew = tw.evaluate(run)[task.select]
        assert run.metrics[task.select] == pytest.approx(anew)
        assert anew >= best if task.mode == "max" else anew <= best


class Items(Dataset[Any]):
    """Examples read one by one: plain, or with random numbers in the inputs."""

    def __init__(self, kind: str = "plain", seed: int = 0, count: int = 48) -> None:
        self.x, self.y = blobs(count, seed)
        self.kind, self.own = kind, np.random.default_rng(int.from_bytes(os.urandom(2), "little"))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        drawn = {"seeded": float(torch.rand(())), "own": float(self.own.random()), "unseeded": os.urandom(1)[0] / 256}
        noise = drawn.get(self.kind, 0.0)
        return self.x[index] + noise, self.y[index]


def relabelled(items: Items) -> Items:
    items.y = (items.y + 1) % 3
    return items


@pytest.mark.parametrize("kind", ["plain", "seeded", "own", "unseeded", "loader", "stream"])
def test_data_that_are_read_one_by_one_are_known_again_and_others_are_refused(kind: str, tmp_path: Path) -> None:
    def data(change: Any = lambda items: items) -> Any:
        items = change(Items(kind if kind in ("seeded", "own", "unseeded") else "plain"))
        if kind == "loader":
            return DataLoader(items, batch_size=16, shuffle=True)
        return DataLoader(items, batch_sampler=[[0, 1, 2, 3], [4, 5, 6, 7]]) if kind == "stream" else items

    size = {"batch_size": 4} if kind == "stream" else {}
    interrupted(tmp_path / "r", classes(data=data(), validation=data()), short(**size))
    notes = [event.message for event in tw.Run.open(tmp_path / "r").events if "nobody can seed" in event.message]
    assert len(notes) == (2 if kind == "unseeded" else 0)
    for changed in ({"data": data(relabelled), "validation": data()}, {"data": data(), "validation": data(relabelled)}):
        with pytest.raises(tw.RunError, match="data have other values"):
            tw.resume(tmp_path / "r", classes(**changed))
    assert tw.resume(tmp_path / "r", classes(data=data(), validation=data())).summary["status"] == "finished"


def test_sampling_weights_belong_to_the_data(tmp_path: Path) -> None:
    interrupted(tmp_path / "r", classes(weights=torch.ones(96)), short(replacement=True))
    with pytest.raises(tw.RunError, match="The sampling weights have other values"):
        tw.resume(tmp_path / "r", classes(weights=torch.arange(96.0)))


def test_a_run_of_an_earlier_version_goes_on(runs: Path) -> None:
    folder = runs / "stopped"
    status = json.loads((folder / "run.json").read_text())
    del status["inputs"], status["sum"]
    status["summary"] |= {"data": "0123", "held_out": "4567", "code": {}}
    (folder / "run.json").write_text(json.dumps(status))
    path = folder / "plan.toml"
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if line[0] != "#"))
    state = checkpoint.load(folder / "checkpoints").state
    del state["loop"]["inputs"]
    checkpoint.save(folder / "checkpoints", state, step=5)
    run = tw.resume(folder, classes())
    assert same_bits(run.model, tw.train(classes(), short()).model)
    assert any("only their number was compared" in event.message for event in run.events)
    assert tw.Run.open(folder).metrics
