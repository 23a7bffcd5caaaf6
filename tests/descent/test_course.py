"""How sharp it was on the way: against the dense Hessian, the rule's own state, and what theory says of full batches."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import blobs, classes, network, plan
from torch import nn
from torch.func import functional_call

import thalweg as tw
from thalweg.descent.course import chosen
from thalweg.descent.second_moments import recursion
from thalweg.records.survey import Course
from thalweg.rules import RULES


def sharpest(point, model):
    """Give the largest eigenvalue of the training loss's Hessian at a flat point, by the dense matrix."""
    inputs, labels = blobs()
    names = dict(model.named_parameters())
    sizes = [p.numel() for p in names.values()]

    def loss(flat):
        parts = zip(names, flat.split(sizes), names.values(), strict=True)
        given = {name: part.view(p.shape) for name, part, p in parts}
        return F.cross_entropy(functional_call(model.double(), given, (inputs.double(),)), labels)

    return float(torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, point.double()))[-1])


def test_sharpness_along_the_run_is_that_of_the_dense_hessian_with_the_rates_and_edges_of_the_schedule():
    made = plan(rule="momentum", learning_rate=0.1, steps=60, schedule="linear", watch=False)
    run = tw.train(classes(), made)
    course = tw.survey(run, slices=False).course
    assert course.steps[0] == 0
    assert course.steps[-1] <= 60
    assert len(course) == 10
    model = network()
    for step, value in zip(course.steps[:-1], course.sharpness, strict=False):
        assert value == pytest.approx(sharpest(run.trail[step], model), rel=0.05)
    rates = run.history["learning_rate"]
    assert course.rates == pytest.approx([rates[max(1, step)] for step in course.steps])
    assert course.edges == pytest.approx([2 * 1.9 / rate for rate in course.rates])
    assert course.temperatures == pytest.approx([10 * rate / 16 for rate in course.rates])
    assert not course.scaled
    assert set(course.preconditioned) == {None}


def test_full_batch_descent_has_no_temperature_and_sharpens_up_to_its_edge():
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 5, generator=draw)
    targets = torch.sin(2 * inputs[:, :1]) + inputs[:, 1:2] * inputs[:, 2:3]
    model = lambda: nn.Sequential(nn.Linear(5, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1))  # noqa: E731
    task = tw.Task(model=model, loss=nn.MSELoss(), data=(inputs, targets), validation=(inputs, targets))
    knobs = {
        "batch_size": 60,
        "weight_decay": 0,
        "clip_norm": None,
        "watch": False,
        "schedule": "constant",
        "keep": "last",
    }
    made = tw.Plan(rule="gradient_descent", learning_rate=0.2, steps=1500, seed=1, **knobs)
    course = tw.survey(tw.train(task, made), slices=False).course
    assert set(course.temperatures) == {0.0}
    assert course.edges == pytest.approx([10.0] * len(course))
    assert course.sharpness[0] < 5
    assert course.sharpness[-1] == pytest.approx(10.0, rel=0.15)


@pytest.mark.parametrize("batch", [16, 96])
def test_the_usual_size_of_gradients_on_the_way_is_near_what_the_rule_carries(tmp_path, batch):
    """By the only state of the optimiser that a run keeps: that of its end."""
    made = plan(steps=80, batch_size=batch, clip_norm=0.5, keep="last", constants={"beta2": 0.98})
    found = tw.survey(tw.train(classes(), made, out=tmp_path / "run"), slices=False)
    assert found.course.scaled
    assert found.course.preconditioned[0] is None
    assert found.course.preconditioned[-1] == pytest.approx(found.along["preconditioned"], rel=0.2)
    assert found.course.edges[-1] == pytest.approx(found.edge)
    assert any("at the end it gives" in note for note in found.notes)


def test_how_a_rule_follows_squared_gradients_is_read_from_its_equation():
    assert recursion("adam", {"beta2": 0.9}) == ("exp_avg_sq", 0.9, pytest.approx(0.1))
    assert recursion("rmsprop", {"alpha": 0.75}) == ("square_avg", 0.75, 0.25)
    for rule in ("momentum", "lion", "muon"):
        assert recursion(rule, {}) is None
    for rule in RULES:
        found = recursion(rule, {})
        assert found is None or (0 < found.kept <= 1 and found.added > 0)


def test_points_without_a_number_are_left_out_and_a_run_without_a_trail_has_no_course():
    run = tw.train(classes(), plan())
    broken = {**run.trail, 3: torch.full_like(run.trail[0], 1e30)}
    course = tw.survey(replace(run, trail=broken), slices=False).course
    assert all(map(math.isfinite, course.losses))
    assert len(tw.survey(replace(run, trail={}), slices=False).course) == 0


def test_batch_normalisation_has_each_points_own_statistics_and_gets_its_own_back():
    run = tw.train(classes(model=lambda: network(nn.BatchNorm1d(12))), plan(steps=60))
    before = [buffer.clone() for buffer in run.model.buffers()]
    found = tw.survey(run, slices=False)
    assert all(torch.equal(one, other) for one, other in zip(before, run.model.buffers(), strict=True))
    assert 0.5 < found.course.losses[0] < 3  # with the end's statistics the start is far off


def test_the_points_are_spread_over_the_trail():
    assert chosen([5]) == [5]
    assert chosen(range(1000))[:2] == [0, 111]
    assert len(chosen(range(11))) == 10


def test_a_course_whose_lists_do_not_fit_each_other_is_refused():
    made = Course().with_point(False, 0, 1.0, 2.0, 0.1, None, None, None, 0.0)
    assert Course.from_dict(made.to_dict()) == made
    assert np.isnan(np.array(made.rates, float)).all()
    with pytest.raises(ValueError, match="another number"):
        Course.from_dict({**made.to_dict(), "rates": []})
