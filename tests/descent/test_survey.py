"""A survey of a run: what it says of real small descents, that it leaves everything as it was, and that it is kept."""

import copy
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import blobs, classes, network, plan, weights
from torch import nn
from torch.func import functional_call

import thalweg as tw
from thalweg import cli
from thalweg.descent.trail import points_of
from thalweg.errors import ArgumentError, Interrupted, RunError, TaskError
from thalweg.records import sealed_json
from thalweg.see.noise import stretches

TASK = """
import torch
import torch.nn.functional as F
from torch import nn
import thalweg as tw

def task() -> tw.Task:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(96, 4, generator=draw)
    model = lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    return tw.Task(model=model, loss=F.cross_entropy, data=(x, x[:, :3].argmax(1)))
"""


@pytest.fixture(scope="module")
def run():
    return tw.train(classes(), plan(steps=60))


@pytest.fixture(scope="module")
def surveyed(run):
    return tw.survey(run)


def test_its_figures_are_those_of_the_dense_hessian_of_the_training_loss(run, surveyed):
    model = copy.deepcopy(run.model).double()
    inputs, labels = blobs()
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    flat = torch.cat([p.detach().flatten() for p in model.parameters()]).double()

    def loss(point):
        parts = point.split([shape.numel() for shape in shapes])
        given = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return F.cross_entropy(functional_call(model, given, (inputs.double(),)), labels)

    hessian = torch.autograd.functional.hessian(loss, flat)
    exact = torch.linalg.eigvalsh(hessian).flip(0)
    gradient = torch.func.grad(loss)(flat)
    assert surveyed.total == surveyed.examples == 96
    assert surveyed.loss == pytest.approx(float(loss(flat)), rel=1e-5)
    assert surveyed.gradient_norm == pytest.approx(float(gradient.norm()), rel=1e-4)
    assert surveyed.gradient_error == 0
    top, bottom = surveyed.eigenvalues[: surveyed.largest], surveyed.eigenvalues[surveyed.largest :]
    assert top == pytest.approx(exact[:5].tolist(), rel=2e-3)
    assert bottom == pytest.approx(exact[-5:].tolist(), abs=2e-4 * float(exact[0]))
    assert abs(surveyed.trace - float(exact.sum())) <= surveyed.trace_error + 1e-4 * float(exact.sum())
    first = hessian[:48, :48]
    assert surveyed.layers["0.weight"] == pytest.approx(float(torch.linalg.eigvalsh(first)[-1]), rel=0.05)
    curvature = float(gradient @ hessian @ gradient / gradient.square().sum())
    assert surveyed.along["gradient"] == pytest.approx(curvature, rel=1e-3)
    assert surveyed.kind == "slope"


def test_slices_have_the_loss_of_the_run_at_their_centre_and_the_path_its_points(run, surveyed):
    plane, *lines, path = surveyed.slices
    assert [each.name for each in surveyed.slices] == [
        "random directions", "largest curvature", "smallest curvature", "path of the descent"
    ]  # fmt: skip
    for each in lines:
        assert each.losses[len(each.x) // 2] == pytest.approx(surveyed.loss, rel=1e-5)
    middle = len(plane.x) // 2
    assert plane.losses[middle, middle] == pytest.approx(surveyed.loss, rel=0.02)
    (walk,) = path.walks
    assert walk.steps[0] == 0
    assert walk.steps == tuple(sorted(walk.steps))
    assert len(walk.points) == len(walk.steps) >= 20
    assert 0.5 < sum(path.shares) <= 1
    start = torch.cat(
        [p.detach().flatten() for p in tw.train(classes(), plan(steps=1, learning_rate=1e-30)).model.parameters()]
    )
    end = weights(run.model)
    kept = run.trail[0]
    torch.testing.assert_close(kept, start)
    inside = float(((walk.points[0] ** 2).sum()) ** 0.5)
    assert inside <= float((kept - end).norm()) * (1 + 1e-5)
    assert inside == pytest.approx(float((kept - end).norm()), rel=0.1)


def test_model_gradients_modes_and_process_are_left_as_they_were(run):
    model = run.model
    before, modes = weights(model).clone(), [module.training for module in model.modules()]
    state = torch.get_rng_state()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    first = tw.survey(run, slices=False)
    assert torch.equal(weights(model), before)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    model[0].weight.grad = None
    assert torch.equal(torch.get_rng_state(), state)
    second = tw.survey(run, slices=False)
    assert first.eigenvalues == second.eigenvalues
    assert not first.slices


def test_dropout_and_batch_normalisation_are_measured_in_evaluation_mode():
    found = tw.survey(
        tw.train(classes(model=lambda: network(nn.BatchNorm1d(12), nn.Dropout(0.5))), plan()), slices=False
    )
    assert found.kind
    assert any("Batch normalisation has the statistics" in note for note in found.notes)


def test_full_batch_gradient_descent_ends_at_the_edge_of_stability_and_small_rates_do_not():
    """Cohen et al. 2021: the sharpness rises to 2 / rate and stays there."""
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 5, generator=draw)
    targets = torch.sin(2 * inputs[:, :1]) + inputs[:, 1:2] * inputs[:, 2:3]

    def model():
        return nn.Sequential(nn.Linear(5, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1))

    kinds = {}
    for rate, steps in ((0.2, 1500), (0.01, 300)):
        made = tw.Plan(
            rule="gradient_descent", learning_rate=rate, batch_size=60, steps=steps, weight_decay=0, clip_norm=None, watch=False,
            schedule="constant", keep="last", seed=1,
        )  # fmt: skip
        task = tw.Task(model=model, loss=nn.MSELoss(), data=(inputs, targets), validation=(inputs, targets))
        found = tw.survey(tw.train(task, made), slices=False)
        assert found.edge == pytest.approx(2 / rate)
        kinds[rate] = found.kind, found.eigenvalues[0] * rate / 2
    assert kinds[0.2][0] == "edge of stability"
    assert 0.9 < kinds[0.2][1] < 1.3
    assert kinds[0.01][0] != "edge of stability"
    assert kinds[0.01][1] < 0.5


def test_a_network_of_zeros_is_on_no_minimum():
    class Zeros(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Parameter(torch.zeros(4, 3)), nn.Parameter(torch.zeros(3, 3))

        def forward(self, x):
            return x @ self.first @ self.second

    task = tw.Task(model=Zeros, loss=nn.MSELoss(), data=(blobs()[0], blobs()[0][:, :3]))
    found = tw.survey(tw.train(task, plan(rule="gradient_descent", steps=5, weight_decay=0)), slices=False)
    assert (found.kind, found.index) == ("saddle point", 9 if found.index_is_exact else found.index)
    assert found.index


def test_a_run_in_a_folder_keeps_its_survey_and_its_report_shows_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(TASK)
    assert cli.main(["train", "mine.py", "--steps", "40", "--out", "run", "--quiet"]) == 0
    assert cli.main(["survey", "run", "--figure", "slice.svg", "--arrays", "slices.npz"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"After step \d+: (slope|minimum|saddle point)", told)
    assert Path("slice.svg").read_text().lstrip().startswith("<?xml")
    arrays = np.load("slices.npz")
    assert arrays["slice0/losses"].shape == (51, 51)
    report = Path("run/report.html").read_text()
    assert "Where it ended" in report
    assert "<polyline" in report
    assert cli.main(["survey", "run", "--json", "--no-slices"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == 67
    found = tw.Survey.load("run/survey.json")
    assert found.slices == ()
    found.save("again.json")
    assert tw.Survey.load("again.json") == found
    Path("run/survey.json").write_text(
        Path("run/survey.json").read_text().replace('"parameters": 67', '"parameters": 68')
    )
    with pytest.raises(RunError, match="cannot be read as a survey"):
        tw.Survey.load("run/survey.json")
    tw.report("run")
    assert "cannot be read as a survey" in Path("run/report.html").read_text()
    with pytest.raises(RunError, match="There is no survey"):
        tw.Survey.load("nothing.json")


def test_a_survey_with_planes_is_the_same_after_it_was_written(surveyed, tmp_path):
    surveyed.save(tmp_path / "survey.json")
    found = tw.Survey.load(tmp_path / "survey.json")
    assert found.to_json() == surveyed.to_json()
    assert np.array_equal(found.slices[-1].walks[0].points, surveyed.slices[-1].walks[0].points)


@pytest.mark.parametrize(
    "changed",
    [
        lambda e: {"density": [[1.0, 2.0], [1.0]]},
        lambda e: {"slices": [{**e["slices"][0], "axes": []}]},
        lambda e: {"slices": [{**e["slices"][0], "x": [], "y": [], "losses": [], "axes": ["a"]}]},
    ],
)
def test_a_survey_with_a_right_sum_and_lists_that_do_not_fit_is_refused_in_a_sentence(surveyed, tmp_path, changed):
    entries = sealed_json.load(surveyed.to_json())
    (tmp_path / "survey.json").write_text(sealed_json.dump({**entries, **changed(entries)}))
    with pytest.raises(RunError, match="cannot be read as a survey"):
        tw.Survey.load(tmp_path / "survey.json")


def test_a_stopped_survey_keeps_what_it_has(tmp_path):
    run = tw.train(classes(), plan(), out=tmp_path / "run")

    def stop(text):
        if text.startswith("Slices"):
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as stopped:
        tw.survey(run, say=stop)
    assert not stopped.value.survey.complete
    kept = tw.Survey.load(tmp_path / "run" / "survey.json")
    assert kept.kind == stopped.value.survey.kind != ""
    assert math.isnan(kept.trace)


def test_the_trail_of_a_resumed_run_is_that_of_the_uninterrupted_one(tmp_path):
    whole = tw.train(classes(), plan())

    def stop(model, figures):
        if figures.step == 13:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        tw.train(classes(), plan(), out=tmp_path / "run", on_step=stop)
    resumed = tw.resume(tmp_path / "run", classes())
    assert sorted(resumed.trail) == sorted(whole.trail)
    assert all(torch.equal(resumed.trail[step], point) for step, point in whole.trail.items())
    opened = tw.Run.open(tmp_path / "run", classes())
    assert tw.survey(opened).slices[-1].walks[0].steps == tuple(sorted(whole.trail))


def test_of_more_examples_than_are_looked_at_the_sampling_error_is_said():
    task = classes(data=blobs(900), validation=None, metrics={})
    run = tw.train(task, plan())
    found = tw.survey(run, examples=128, slices=False)
    assert (found.examples, found.total) == (128, 900)
    assert found.gradient_error > 0
    assert "of 900 training examples" in str(found)


def test_a_task_with_its_own_step_and_one_that_compares_examples_have_surveys():
    def step(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    plain = tw.survey(tw.train(classes(), plan()), slices=False)
    own = tw.survey(tw.train(classes(loss=None, step=step, metrics={}), plan()), slices=False)
    assert own.loss == pytest.approx(plain.loss, rel=1e-4)

    def contrastive(model, batch):
        outputs = F.normalize(model(batch[0]), dim=1)
        return F.cross_entropy(5 * outputs @ outputs.T, torch.arange(len(outputs)))

    found = tw.survey(tw.train(classes(loss=None, step=contrastive, metrics={}), plan()), slices=False)
    assert any("no mean over its examples" in note for note in found.notes)


def test_sparse_embeddings_and_summed_losses_have_the_survey_of_their_dense_and_mean_twins():
    ids = torch.arange(240).reshape(60, 4) * 7 % 20
    found = {}
    for sparse in (False, True):
        torch.manual_seed(2)
        words = nn.Sequential(nn.Embedding(20, 3, sparse=sparse), nn.Flatten(), nn.Linear(12, 2))
        task = tw.Task(model=words, loss=nn.CrossEntropyLoss(), data=(ids, (ids.sum(1) > 38).long()))
        run = tw.train(task, plan(rule="gradient_descent", batch_size=12))
        found[sparse] = tw.survey(run, slices=False)
        assert run.model[0].sparse is sparse
    assert found[True].eigenvalues == pytest.approx(found[False].eigenvalues, rel=1e-3, abs=1e-5)
    summed = classes(loss=nn.CrossEntropyLoss(reduction="sum"), validation=None, metrics={})
    run = tw.train(summed, plan())
    mean = float(F.cross_entropy(run.model(blobs()[0]), blobs()[1]).detach())
    assert tw.survey(run, slices=False).loss == pytest.approx(16 * mean, rel=1e-4)


def test_what_has_no_survey_is_refused_in_a_sentence(run, tmp_path):
    with pytest.raises(tw.ArgumentError, match="at least 1"):
        tw.survey(run, examples=0)
    with pytest.raises(RunError, match="no run"):
        tw.survey(tmp_path)
    broken = tw.train(classes(), plan())
    with torch.no_grad():
        broken.model[0].weight.fill_(math.nan)
    with pytest.raises(RunError, match="not finite"):
        tw.survey(broken)
    assert bool(broken.model[0].weight.isnan().all())

    class Counting(nn.Module):
        calls = 0

        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            Counting.calls += 1
            return self.inner(x) * (1 + Counting.calls / 1000)

    counting = tw.train(classes(model=Counting), plan())
    with pytest.raises(TaskError, match="differs between two calls"):
        tw.survey(counting)


def test_adam_is_judged_by_its_preconditioned_curvature(tmp_path):
    """Cohen et al. 2022: under full-batch Adam it hovers at 38 / rate."""
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 5, generator=draw)
    targets = torch.sin(2 * inputs[:, :1]) + inputs[:, 1:2] * inputs[:, 2:3]

    def model():
        return nn.Sequential(nn.Linear(5, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1))

    made = tw.Plan(
        rule="adam", learning_rate=5e-3, batch_size=60, steps=1500, weight_decay=0, clip_norm=None, watch=False,
        schedule="constant", keep="last", seed=1,
    )  # fmt: skip
    task = tw.Task(model=model, loss=nn.MSELoss(), data=(inputs, targets), validation=(inputs, targets))
    run = tw.train(task, made, out=tmp_path / "run")
    found = tw.survey(run, slices=False)
    assert found.edge == pytest.approx(38 / 5e-3, rel=1e-3)
    assert 0.7 < found.along["preconditioned"] / found.edge < 1.3
    in_memory = tw.survey(tw.train(task, made.replace(steps=20)), slices=False)
    assert any("That is not known here" in note for note in in_memory.notes)


def test_runs_are_compared_on_one_surface(tmp_path, monkeypatch, capsys):
    """One start and two rules end in one basin; another start in another one."""
    monkeypatch.chdir(tmp_path)
    wide = lambda: nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3))  # noqa: E731
    runs = [
        tw.train(classes(model=wide), plan(steps=150, **knobs), out=name)
        for name, knobs in (
            ("adamw", {}),
            ("momentum", {"rule": "momentum", "learning_rate": 0.1}),
            ("other", {"seed": 7}),
        )
    ]
    found = tw.compare(runs)
    assert found.names == ("adamw", "momentum", "other")
    assert found.losses == pytest.approx([tw.survey(run, slices=False).loss for run in runs], rel=1e-5)
    assert found.sharpness[0] == pytest.approx(tw.survey(runs[0], slices=False).eigenvalues[0], rel=0.02)
    barriers = np.array(found.barriers)
    assert np.array_equal(barriers, barriers.T)
    assert barriers[0, 2] > 3 * barriers[0, 1]
    assert found.distances[0][2] > found.distances[0][1] > 0
    plane = next(each for each in found.slices if each.name == "the paths")
    assert [walk.name for walk in plane.walks] == ["adamw", "momentum", "other"]
    assert plane.walks[0].points[-1] == pytest.approx([0, 0], abs=1e-6)
    assert plane.walks[0].points[0] == pytest.approx(plane.walks[1].points[0], abs=1e-6)
    assert plane.walks[0].points[0] != pytest.approx(plane.walks[2].points[0], abs=1e-3)
    assert tw.Comparison.from_json(found.to_json()).to_json() == found.to_json()
    found.figure("two.svg")
    assert Path("two.svg").stat().st_size > 1000


def test_runs_of_different_models_or_too_few_are_refused_in_a_sentence(run):
    other = tw.train(classes(model=lambda: nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3))), plan(steps=2))
    with pytest.raises(RunError, match="runs of different models"):
        tw.compare([run, other])
    for few in ([run], [], run):
        with pytest.raises(tw.ArgumentError, match="two or more"):
            tw.compare(few)


@pytest.mark.parametrize("where", ["frozen", "buffer", "attribute"])
def test_runs_whose_models_differ_in_what_is_not_trained_are_refused(where):
    class Features(nn.Module):
        """Random features, and a trained layer upon them."""

        def __init__(self):
            super().__init__()
            drawn = torch.randn(4, 12)
            if where == "frozen":
                self.features = nn.Parameter(drawn, requires_grad=False)
            elif where == "buffer":
                self.register_buffer("features", drawn)
            else:
                self.features = drawn
            self.last = nn.Linear(12, 3)

        def forward(self, x):
            return self.last(torch.tanh(x @ self.features))

    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        models.append(Features())
    runs = [tw.train(classes(model=model), plan(steps=30)) for model in models]
    with pytest.raises(RunError, match="differ in more than their trained weights"):
        tw.compare(runs)
    again = tw.train(classes(model=models[0]), plan(steps=30, seed=5))
    found = tw.compare([runs[0], again])
    assert found.losses == pytest.approx([tw.survey(run, slices=False).loss for run in (runs[0], again)], rel=1e-5)


class Counting(nn.Module):
    """Counts its calls in attributes."""

    def __init__(self):
        super().__init__()
        self.inner, self.calls, self.seen = network(), 0, []

    def forward(self, x):
        self.calls += 1
        self.seen.append(len(x))
        return self.inner(x)


def test_what_a_model_counts_in_its_attributes_is_left_as_it_was():
    runs = [tw.train(classes(model=Counting), plan(steps=4, seed=seed)) for seed in (0, 1)]
    before = [(run.model.calls, [*run.model.seen]) for run in runs]
    tw.survey(runs[0], slices=False)
    tw.compare(runs)
    assert [(run.model.calls, run.model.seen) for run in runs] == before


def test_complex_weights_are_said_and_a_lazy_module_that_was_handed_over_has_a_survey():
    class Phases(nn.Module):
        def __init__(self):
            super().__init__()
            self.turned, self.last = nn.Parameter(torch.randn(4, 5, dtype=torch.complex64)), nn.Linear(5, 3)

        def forward(self, x):
            return self.last((x.to(torch.complex64) @ self.turned).abs())

    notes = tw.survey(tw.train(classes(model=Phases), plan(steps=4)), slices=False).notes
    assert any("turned" in note and "real ones only" in note for note in notes)
    lazy = nn.Sequential(nn.LazyLinear(5), nn.Tanh(), nn.LazyLinear(3))
    assert math.isfinite(tw.survey(tw.train(classes(model=lazy), plan(steps=4)), slices=False).loss)


def test_batch_normalisation_has_statistics_of_its_own_at_every_point_between_runs():
    model = lambda: network(nn.BatchNorm1d(12))  # noqa: E731
    runs = [tw.train(classes(model=model), plan(seed=seed, steps=60)) for seed in (0, 3)]
    before = [runs[0].model[1].running_mean.clone(), runs[0].model[1].running_var.clone()]
    found = tw.compare(runs)
    assert any("estimated anew at every point" in note for note in found.notes)
    assert torch.equal(before[0], runs[0].model[1].running_mean)
    assert torch.equal(before[1], runs[0].model[1].running_var)
    assert found.losses[1] == pytest.approx(tw.survey(runs[1], slices=False).loss, rel=0.1)


def test_of_a_planted_trail_only_points_are_taken():
    good = torch.ones(3)
    planted = {"7": good, "²": good, "9" * 5000: good, "-1": good, "8": good / 0}
    planted |= {"9": good.to(torch.complex64), "10": good[None], "11": 3}
    assert list(points_of({"trail": planted})) == [7]
    assert points_of({"trail": [1]}) == points_of({}) == {}


def test_the_noise_scale_is_the_one_that_the_report_draws():
    run = tw.train(classes(data=blobs(960), validation=None, metrics={}), plan(steps=500, snapshot_every=0))
    last = stretches(run)[-1].scale
    found = tw.survey(run, slices=False, examples=64).noise
    assert found["low"] == last.low
    assert ("scale" in found) == last.is_known


def test_what_is_known_is_kept_while_it_is_measured(tmp_path, monkeypatch):
    """So that a survey that is killed leaves it."""
    import thalweg.descent.survey as module

    monkeypatch.setattr(module, "KEEP_EVERY", 0.0)
    run = tw.train(classes(), plan(steps=30), out=tmp_path / "run", progress=False)
    seen = list[tw.Survey]()

    def say(text: str) -> None:
        path = tmp_path / "run" / "survey.json"
        if path.exists():
            seen.append(tw.Survey.load(path))

    found = tw.survey(run, say=say)
    assert seen
    assert not any(each.complete for each in seen)
    assert seen[0].kind == found.kind
    assert len(seen[0].slices) < len(found.slices)
    assert tw.Survey.load(tmp_path / "run" / "survey.json").complete


def test_processes_that_are_not_joined_are_refused(run):
    with pytest.raises(ArgumentError, match="init_process_group"):
        tw.survey(run, parallel=True)


@pytest.mark.heavy
def test_two_processes_survey_a_run_together(tmp_path):
    (tmp_path / "task.py").write_text(TASK)
    folder = tmp_path / "run"
    assert cli.main(["train", str(tmp_path / "task.py"), "--steps", "30", "--out", str(folder), "--quiet"]) == 0
    alone = tw.survey(folder)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "thalweg"]
    done = subprocess.run([*command, "survey", str(folder), "--parallel"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("After step") == 1
    found = tw.Survey.load(folder / "survey.json")
    assert found.kind == alone.kind
    assert found.eigenvalues == pytest.approx(alone.eigenvalues, rel=1e-2, abs=1e-4)


def test_where_gradient_and_curvature_have_vanished_and_the_loss_has_not_it_is_a_plateau():
    """Beside the curvature where the run began, which its trail has."""
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    task = tw.Task(
        model=lambda: nn.Sequential(nn.Linear(3, 1), nn.Sigmoid()), loss=F.mse_loss, data=(x, torch.ones(64, 1))
    )
    run = tw.train(task, plan(steps=2, learning_rate=1e-3, keep="last", watch=False), progress=False)
    with torch.no_grad():
        run.model[0].bias.fill_(-16.0)
    found = tw.survey(run, slices=False)
    assert found.kind == "plateau"
    assert found.figures["largest curvature"] < 1e-3 * found.course.sharpness[0]
    with torch.no_grad():
        run.model[0].bias.fill_(-1.0)
    assert tw.survey(run, slices=False).kind == "slope"
