"""Leaving the place where a run ended: saddle points, shallow minima, and places that are none the worse for it."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from small import classes, plan, weights
from torch import nn

import thalweg as tw
from thalweg import cli, schedule
from thalweg.errors import ArgumentError, RunError
from thalweg.landscape.line_search import lowest_along
from thalweg.landscape.surface import FunctionSurface
from thalweg.records.escape import STAY, Escape


class Alike(nn.Module):
    """All hidden units start with the same weights, so gradients of all examples keep them alike: a saddle point lies there."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 1)
        with torch.no_grad():
            self.first.weight[:] = self.first.weight[:1]
            self.first.bias[:] = self.first.bias[:1]
            self.last.weight[:] = self.last.weight[:, :1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.first(x)))


class Point(nn.Module):
    """One weight, which is the output for every example."""

    def __init__(self, at: float = 4.19) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.tensor([at]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.at.expand(len(x), 1)


def rippled(outputs: torch.Tensor, pull: torch.Tensor) -> torch.Tensor:
    """A bowl with ripples, on which each example pulls to one side: the pulls cancel over all of them."""
    return (0.025 * outputs**2 + 0.3 * (1 - torch.cos(3 * outputs)) + pull * outputs).mean()


def pulls() -> tuple[torch.Tensor, torch.Tensor]:
    pull = torch.randn(256, 1, generator=torch.Generator().manual_seed(0))
    return torch.zeros(256, 1), 2 * (pull - pull.mean())


def xor() -> tw.Task:
    x = torch.randn(128, 3, generator=torch.Generator().manual_seed(1))
    return tw.Task(model=Alike, loss=F.mse_loss, data=(x, torch.sign(x[:, :1] * x[:, 1:2])))


def full_batch(steps: int, rate: float = 0.1) -> tw.Plan:
    return tw.Plan(
        rule="sgd", learning_rate=rate, steps=steps, batch_size=128, watch=False, schedule=schedule.constant()
    )


def test_it_leaves_a_saddle_point_along_negative_curvature_with_every_seed():
    run = tw.train(xor(), full_batch(3000, 0.3), progress=False)
    before = weights(run.model).clone()
    found = tw.escape(run, steps=800)
    assert found.kind == "saddle point"
    assert found.found
    assert found.way == "along negative curvature"
    assert found.run is not None
    assert found.mean(found.way) < 0.95 * found.value
    assert found.mean(STAY) > 0.99 * found.value
    assert torch.equal(weights(run.model), before)
    assert len({each.seed for each in found.attempts if each.way == found.way}) == 3
    assert Escape.from_json(found.to_json()) == found


def test_noise_at_a_higher_temperature_leaves_a_shallow_minimum():
    task = tw.Task(model=Point, loss=rippled, data=pulls())
    run = tw.train(task, tw.Plan(rule="sgd", learning_rate=0.02, batch_size=8, steps=200, keep="last"), progress=False)
    assert float(run.model.at.detach()) == pytest.approx(4.1, abs=0.3)  # it stays in the ripple in which it began
    found = tw.escape(run, steps=400)
    assert found.found
    assert found.way.startswith("heated")
    assert abs(float(found.run.model.at.detach())) < 3
    assert found.barrier > 0.05
    assert found.is_other_basin
    assert "another basin" in found.verdict


def test_from_the_bottom_of_a_bowl_nothing_better_is_found():
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(2))
    y = x @ torch.tensor([[1.0], [-2.0]]) + 0.1 * torch.randn(64, 1, generator=torch.Generator().manual_seed(3))
    task = tw.Task(model=lambda: nn.Linear(2, 1), loss=F.mse_loss, data=(x, y))
    run = tw.train(task, full_batch(500, 0.2).replace(batch_size=64), progress=False)
    found = tw.escape(run)
    assert found.kind == "minimum"
    assert not found.found
    assert "No better place" in found.verdict
    assert math.isnan(found.barrier)


def test_attempts_are_kept_as_runs_and_not_made_twice(tmp_path):
    run = tw.train(classes(), plan(steps=40), progress=False)
    first = tw.escape(run, steps=20, out=tmp_path / "tried")
    folders = sorted(each.name for each in (tmp_path / "tried").iterdir())
    assert len(folders) == len(first.attempts) >= 4
    assert all(tw.Run.open(tmp_path / "tried" / name).summary["status"] == "finished" for name in folders)
    stamps = {name: (tmp_path / "tried" / name / "run.json").stat().st_mtime_ns for name in folders}
    again = tw.escape(run, steps=20, out=tmp_path / "tried")
    assert again == first
    assert stamps == {name: (tmp_path / "tried" / name / "run.json").stat().st_mtime_ns for name in folders}


def test_a_folder_of_other_attempts_or_of_something_else_is_refused_and_left(tmp_path):
    run = tw.train(classes(), plan(steps=40), progress=False)
    tw.escape(run, steps=20, out=tmp_path / "tried")
    before = {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file() and each.name != ".lock"}
    for changed in ({"steps": 24}, {"seed": 3}):
        with pytest.raises(RunError, match="out="):
            tw.escape(run, **{"steps": 20, **changed}, out=tmp_path / "tried")
    with pytest.raises(RunError, match="other weights"):
        tw.escape(tw.train(classes(), plan(steps=44), progress=False), steps=20, out=tmp_path / "tried")
    assert all(each.read_bytes() == text for each, text in before.items())
    (tmp_path / "a file").write_text("mine")
    with pytest.raises(RunError, match="a file"):
        tw.escape(run, steps=20, out=tmp_path / "a file")
    assert (tmp_path / "a file").read_text() == "mine"


def test_an_attempt_that_runs_away_is_said_and_not_taken():
    def steep(outputs: torch.Tensor, pull: torch.Tensor) -> torch.Tensor:
        return (10 * (outputs - 1) ** 4 + pull * outputs).mean()

    task = tw.Task(model=lambda: Point(1.5), loss=steep, data=pulls())
    how = tw.Plan(rule="sgd", learning_rate=0.1, batch_size=8, steps=60, watch=False)
    found = tw.escape(tw.train(task, how, progress=False), steps=60)
    failed = {each.way for each in found.attempts if each.failure}
    assert failed
    assert found.way not in failed
    assert all(each.failure or math.isfinite(each.value) for each in found.attempts)


def test_interrupted_it_says_so(monkeypatch):
    run = tw.train(classes(), plan(steps=40), progress=False)
    import thalweg.descent.escape as module

    def stopped(*_args, **_given):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train_plan", stopped)
    with pytest.raises(KeyboardInterrupt):
        tw.escape(run)


@pytest.mark.parametrize("given", [{"steps": 0}, {"steps": True}, {"examples": 1.5}])
def test_numbers_that_are_none_are_refused(given):
    with pytest.raises(ArgumentError, match="whole number"):
        tw.escape(tw.train(classes(), plan(steps=5), progress=False), **given)


def test_the_command_keeps_the_attempts_beside_the_run(tmp_path, capsys):
    (tmp_path / "task.py").write_text(
        "import torch, thalweg as tw\nimport torch.nn.functional as F\nfrom torch import nn\n\n"
        "def task() -> tw.Task:\n"
        "    x = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))\n"
        "    return tw.Task(model=lambda: nn.Linear(4, 3), loss=F.cross_entropy, data=(x, x[:, :3].argmax(1)))\n"
    )
    folder = tmp_path / "run"
    assert cli.main(["train", str(tmp_path / "task.py"), "--steps", "30", "--out", str(folder), "--quiet"]) == 0
    assert cli.main(["escape", str(folder), "--steps", "20"]) == 0
    assert "as before" in capsys.readouterr().out
    assert (tmp_path / "run-escape" / "as-before-0" / "run.json").exists()
    assert cli.main(["escape", str(folder), "--steps", "20", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 20


def test_a_run_whose_loss_is_not_finite_is_refused():
    run = tw.train(classes(), plan(steps=5), progress=False)
    with torch.no_grad():
        next(run.model.parameters()).fill_(math.nan)
    with pytest.raises(RunError, match="not finite"):
        tw.escape(run)


@pytest.mark.parametrize("bottom", [1e-4, 3.0, 1e3])
def test_the_line_search_finds_the_bottom_at_any_distance(bottom):
    valley = FunctionSurface(lambda w: ((w / bottom - 1) ** 2).sum(), torch.tensor([0.0], dtype=torch.float64))
    distance, loss = lowest_along(valley, valley.point, torch.tensor([1.0], dtype=torch.float64))
    assert distance == pytest.approx(bottom, rel=0.25) or bottom < 1e-3
    assert loss < 0.1


def test_the_line_search_stays_where_it_rises():
    bowl = FunctionSurface(lambda w: (w**2).sum(), torch.tensor([0.0], dtype=torch.float64))
    assert lowest_along(bowl, bowl.point, torch.tensor([1.0], dtype=torch.float64)) == (0.0, 0.0)
