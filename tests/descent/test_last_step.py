"""Curvature along the momentum and along the next update, against the dense Hessian and a step by PyTorch's own optimiser."""

import copy

import pytest
import torch
import torch.nn.functional as F
from small import blobs, classes, plan, weights
from torch.func import functional_call

import thalweg as tw
from thalweg import schedule
from thalweg.records import checkpoint

RULES = {
    "momentum": (lambda p: torch.optim.SGD(p, 0.05, momentum=0.9), {"momentum": 0.9}, "momentum_buffer"),
    "adam": (lambda p: torch.optim.Adam(p, 0.05), {}, "exp_avg"),
    "gradient_descent": (lambda p: torch.optim.SGD(p, 0.05), {}, None),
}


def hessian_of(model):
    model = copy.deepcopy(model).double()
    inputs, labels = blobs()
    names, shapes = zip(*[(name, p.shape) for name, p in model.named_parameters()], strict=True)

    def loss(point):
        parts = point.split([shape.numel() for shape in shapes])
        given = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return F.cross_entropy(functional_call(model, given, (inputs.double(),)), labels)

    point = weights(model).double()
    return torch.autograd.functional.hessian(loss, point), torch.func.grad(loss)(point)


def along(hessian, vector):
    vector = vector.double()
    return float(vector @ hessian @ vector / vector.square().sum())


@pytest.mark.parametrize("rule", RULES)
def test_they_are_those_of_the_optimisers_state_and_of_its_next_step(tmp_path, rule):
    make, constants, key = RULES[rule]
    how = plan(
        rule=rule, constants=constants, learning_rate=0.05, steps=20, batch_size=96, weight_decay=0, keep="last",
        schedule=schedule.constant(), watch=False,
    )  # fmt: skip
    run = tw.train(classes(), how, out=tmp_path / "run", progress=False)
    before = weights(run.model).clone()
    found = tw.survey(run, slices=False)
    assert torch.equal(weights(run.model), before)
    assert all(p.grad is None for p in run.model.parameters())
    hessian, gradient = hessian_of(run.model)
    states = checkpoint.load(tmp_path / "run" / "checkpoints").state["optimizer"]
    model = copy.deepcopy(run.model)
    optimizer = make(list(model.parameters()))
    inputs, labels = blobs()
    F.cross_entropy(model(inputs), labels).backward()
    for name, parameter in model.named_parameters():
        own = {name: value for name, value in states.get(name, {}).items() if name != "step"}
        if own:
            optimizer.state[parameter] = {
                **{name: value.clone() for name, value in own.items()},
                **({"step": torch.tensor(20.0)} if rule == "adam" else {}),
            }
    optimizer.step()
    update = weights(model) - before
    assert found.along["update"] == pytest.approx(along(hessian, update), rel=1e-3)
    assert found.along["gradient"] == pytest.approx(along(hessian, gradient), rel=1e-3)
    if key is None:
        assert "momentum" not in found.along
        assert found.along["update"] == pytest.approx(found.along["gradient"], rel=1e-4)
    else:
        momentum = torch.cat([states[name][key].flatten() for name, _ in run.model.named_parameters()])
        assert found.along["momentum"] == pytest.approx(along(hessian, momentum), rel=1e-3)
    assert "curvature along the gradient" in str(found)


def test_without_a_checkpoint_of_that_step_they_are_not_told():
    found = tw.survey(tw.train(classes(), plan(steps=20), progress=False), slices=False)
    assert "gradient" in found.along
    assert not {"momentum", "update"} & set(found.along)
