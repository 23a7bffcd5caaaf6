import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import thalweg as tw
from thalweg.descent.drift import drift_from
from thalweg.see import run_text

X = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def test_it_is_the_distance_as_a_share_of_the_length():
    start = network()
    model = copy.deepcopy(start)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25)
        model[2].weight.mul_(1.6)  # twice its start
    before = torch.cat([p.flatten() for p in start.parameters()]).detach()
    after = torch.cat([p.flatten() for p in model.parameters()]).detach()
    told = drift_from(start, model)
    assert told["all"] == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-2)
    assert told["farthest"] == ["2.weight", pytest.approx(1.0, rel=1e-2)]


def test_frozen_weights_do_not_count_and_a_factory_has_no_start():
    start = network()
    start[0].requires_grad_(False)
    model = copy.deepcopy(start)
    with torch.no_grad():
        model[2].weight.mul_(3.0)
    assert drift_from(start, model)["farthest"][0] == "2.weight"
    assert drift_from(start, model)["all"] > 1.0
    assert drift_from(network, model) == {}
    assert drift_from(start, copy.deepcopy(start)) == {"all": 0.0}
    assert drift_from(start.requires_grad_(False), copy.deepcopy(start)) == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.complex64])
def test_any_kind_of_weights_can_be_compared(dtype):
    start = nn.ParameterDict({"w": nn.Parameter(torch.ones(300, 300, dtype=dtype))})
    model = copy.deepcopy(start)
    with torch.no_grad():
        model["w"].mul_(1.5)
    assert drift_from(start, model) == {"all": 0.5, "farthest": ["w", 0.5]}


def test_a_run_from_a_module_says_how_far_it_went_and_from_a_factory_does_not():
    given = network()
    plan = tw.Plan(learning_rate=0.01, batch_size=32, steps=20)
    runs = [
        tw.train(tw.Task(model=model, loss=F.cross_entropy, data=(X, Y), validation=(X, Y)), plan, progress=False)
        for model in (given, network)
    ]
    assert 0 < runs[0].summary["drift"]["all"] < 2
    assert runs[0].summary["drift"] == drift_from(given, runs[0].model)
    assert "of their length from those that you gave" in run_text.drift(runs[0])
    assert "drift" not in runs[1].summary
