"""How the ends of several runs are connected."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import thalweg as tw
from thalweg.cli import main
from thalweg.landscape.hidden_units import hidden_units, permuted


def task(model=lambda: nn.Sequential(nn.Linear(4, 24), nn.Tanh(), nn.Linear(24, 3)), **fields):
    random = np.random.default_rng(0)
    x = random.normal(size=(256, 4)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] > 0).astype(np.int64) + (x[:, 2] > 0.8)
    return tw.Task(model=model, loss=nn.functional.cross_entropy, data=(x, y), **fields)


def plan(**fields):
    return tw.Plan(**{"steps": 300, "batch_size": 64, "learning_rate": 1e-2, **fields})


def permuted_copy(run, x, seed=0):
    """Give the run with its hidden units in another order."""
    model = run.find_task().model()
    model.load_state_dict(run.model.state_dict())
    groups = hidden_units(model, lambda: model(x)).groups
    assert groups
    random = np.random.default_rng(seed)
    moved = permuted(dict(model.state_dict()), groups, [random.permutation(group.units) for group in groups])
    model.load_state_dict(moved)
    return dataclasses.replace(run, trained=model)


def test_a_run_and_its_copy_with_permuted_hidden_units_are_one_basin_after_matching():
    run = tw.train(task(), plan())
    copy = permuted_copy(run, torch.randn(8, 4))
    found = tw.compare([run, copy], run.find_task())
    assert found.losses[0] == pytest.approx(found.losses[1], rel=1e-4)
    assert not found.same_basin(0, 1)
    assert found.connection(0, 1) == found.connection(1, 0) == "one basin after matching"
    way = found.way(1, 0, "matched")
    assert (way.height, way.length) == pytest.approx((0, 0), abs=1e-5)
    assert (found.matched_units, found.left) == (24, ())
    assert found.way(0, 1, "curved") is None, "nothing dear is done where it is known"
    assert "one basin after matching: a barrier of" in str(found)


def test_batch_normalisation_is_matched_too():
    made = lambda: nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))  # noqa: E731
    run = tw.train(task(made), plan(steps=60))
    copy = permuted_copy(run, torch.randn(8, 4))
    before = {name: value.clone() for name, value in copy.model.state_dict().items()}
    found = tw.compare([run, copy], run.find_task())
    assert found.connection(0, 1) == "one basin after matching"
    assert all(torch.equal(value, before[name]) for name, value in copy.model.state_dict().items())


def test_two_seeds_have_a_barrier_and_a_curve_without_one(monkeypatch):
    runs = [tw.train(task(), plan(seed=seed)) for seed in (0, 1)]
    weights = [{n: p.clone() for n, p in run.model.named_parameters()} for run in runs]
    heard = []
    found = tw.compare(runs, say=heard.append)
    straight, matched, curved = (found.way(0, 1, kind) for kind in ("straight", "matched", "curved"))
    assert straight.height == found.barriers[0][1] > 0.1 * max(found.losses)
    assert matched.length < straight.length < curved.length
    assert curved.height < 0.1 * straight.height
    for way in found.ways:
        assert way.losses[[0, -1]] == pytest.approx(found.losses, rel=1e-4)
        assert way.shares[0] == 0
        assert way.shares[-1] == 1
    assert any("about" in text and "left" in text for text in heard)
    assert all(torch.equal(p, weights[k][n]) for k in (0, 1) for n, p in runs[k].model.named_parameters())
    again = tw.Comparison.from_json(found.to_json())
    assert again.to_json() == found.to_json()
    assert again.connection(0, 1) == found.connection(0, 1)
    few = tw.compare(runs, curves=False)
    assert few.way(0, 1, "curved") is None
    assert few.way(0, 1, "matched").height == matched.height


def test_the_page_and_the_figure_have_all_ways_and_paths(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    knobs = {
        "adamw": {},
        "<other>": {"seed": 3},
        "momentum": {"rule": "momentum", "learning_rate": 0.1},
    }
    made = task()
    runs = [tw.train(made, plan(steps=120, **fields), out=name) for name, fields in knobs.items()]
    found = tw.compare(runs, made)
    paths, *curves = found.slices
    assert paths.shares[0] >= paths.shares[1]
    for each in found.slices:  # of one scale on both axes
        assert np.ptp(each.x) == pytest.approx(np.ptp(each.y))
        assert np.isfinite(each.losses).all()
        for walk in each.walks:
            assert each.x[0] < walk.points[:, 0].min()
            assert walk.points[:, 0].max() < each.x[-1]
    assert paths.walks[0].points[-1] == pytest.approx([0, 0], abs=1e-5)
    assert paths.walks[0].points[0] == pytest.approx(paths.walks[2].points[0], abs=1e-4)
    assert len(curves) == len([way for way in found.ways if way.kind == "curved"]) > 0
    for each in curves:
        straight, curve = each.walks
        assert straight.points[[0, -1]] == pytest.approx(curve.points[[0, -1]], abs=1e-5)
    for course, run in zip(found.courses, runs, strict=True):
        assert course.steps[0] == 0
        assert course.steps[-1] == run.summary["weights"]["step"]
        assert course.sharpness[-1] == pytest.approx(found.sharpness[runs.index(run)], rel=0.1)
    page = found.report("compared.html").read_text()
    assert page.count("<figure") == len(found.slices) + len([way for way in found.ways if way.kind == "straight"]) + 2
    assert "<other>" not in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    assert found.report("compared.html").exists(), "an old page is replaced"
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(tw.RunError, match="not overwritten"):
        found.report("mine.html")
    found.figure("compared.svg")
    assert Path("compared.svg").stat().st_size > 10_000
    again = tw.Comparison.from_json(found.to_json())
    assert again.to_json() == found.to_json()
    assert len(again.courses) == 3


def test_the_command_writes_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        made = ["train", "digits", "--set", "steps=20", "--set", "learning_rate=0.003", "--set", f"seed={seed}"]
        assert main([*made, "--out", f"{seed}"]) == 0
    capsys.readouterr()
    assert main(["survey", "0", "1", "--examples", "256", "--no-curves", "--report", "compared.html"]) == 0
    said = capsys.readouterr().out
    assert "0 and 1: " in said
    assert "along a curve" not in said
    assert "2 runs on one surface" in Path("compared.html").read_text()
    assert main(["survey", "0", "--report", "one.html"]) != 0
    assert "several runs" in capsys.readouterr().err


def test_the_command_prints_what_an_interrupted_comparison_has(monkeypatch, capsys):
    known = tw.Comparison(("a", "b"), (1.0, 2.0), (3.0, 4.0), ((0.0, 1.0),) * 2, ((0.0, 0.0),) * 2, complete=False)

    def stopped(*given, **options):
        raise tw.Interrupted("Interrupted: the comparison has what was measured until then.", comparison=known)

    monkeypatch.setattr("thalweg.verbs.compare", stopped)
    assert main(["survey", "a", "b"]) == 130
    said = capsys.readouterr()
    assert "a  loss 1, largest curvature 3" in said.out
    assert "until then" in said.err


def test_an_interrupted_comparison_keeps_what_was_measured():
    runs = [tw.train(task(), plan(seed=seed)) for seed in (0, 1)]

    def stop(text):
        if "curve" in text:
            raise KeyboardInterrupt

    with pytest.raises(tw.Interrupted) as stopped:
        tw.compare(runs, say=stop)
    kept = stopped.value.comparison
    assert (kept.complete, [way.kind for way in kept.ways]) == (False, ["straight", "matched"])
    assert "apart, as far as was looked" in str(kept)
    assert tw.Comparison.from_json(kept.to_json()).complete is False

    def stop_at_once(text):
        raise KeyboardInterrupt

    with pytest.raises(tw.Interrupted) as stopped:
        tw.compare(runs, say=stop_at_once)
    kept = stopped.value.comparison
    assert math.isnan(kept.barriers[0][1])
    assert kept.connection(0, 1) == ""
    assert "loss" in str(kept)


def test_a_planted_comparison_is_refused():
    found = tw.Comparison(("a", "b"), (1.0, 1.0), (1.0, 1.0), ((0.0, 1.0),) * 2, ((0.0, 0.0),) * 2)
    text = found.to_json()
    assert tw.Comparison.from_json(text) == found
    with pytest.raises(ValueError, match="sum"):
        tw.Comparison.from_json(text.replace('"a"', '"c"'))
