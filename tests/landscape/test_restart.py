"""Starting layers anew."""

import pytest
import torch
from torch import nn

from thalweg.landscape.restart import forget, restart_layers


def restarted(model, x, names):
    return restart_layers(model, lambda: model(x), names, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_each_unit_of_each_layer_has_mean_zero_and_variance_one(scale):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.Sigmoid(), nn.Linear(16, 16), nn.Sigmoid(), nn.Linear(16, 2))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(scale)
    last, x = model[4].weight.clone(), torch.randn(200, 5)
    assert restarted(model, x, ["0", "2"]) == ("0", "2")
    for end in (1, 3):
        given = model[:end](x)
        assert given.mean(0).abs().max() < 1e-4
        assert torch.allclose(given.var(0, correction=0), torch.ones(16), atol=1e-3)
    assert torch.equal(model[4].weight, last)


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_a_convolution_is_standardised_channel_by_channel(kind):
    torch.manual_seed(0)
    model, dimensions = kind(3, 4, 3, padding=1), int(kind.__name__[4])
    x = torch.randn(8, 3, *[5] * dimensions)
    model_ = nn.Sequential(model)
    restarted(model_, x, ["0"])
    given = model_(x).transpose(0, 1).flatten(1)
    assert torch.allclose(given.var(1, correction=0), torch.ones(4), atol=1e-3)


def test_units_that_are_off_come_back_and_the_directions_of_the_others_stay():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU())
    with torch.no_grad():
        model[0].weight[:3] = 0.0
        model[0].bias[:3] = -10.0
    before, x = model[0].weight.clone(), torch.randn(100, 5)
    restarted(model, x, ["0"])
    assert (model(x) > 0).float().mean(0).min() > 0.2
    assert torch.allclose(nn.functional.cosine_similarity(model[0].weight[3:], before[3:]), torch.ones(5))


def test_a_normalisation_is_started_at_one_and_zero_and_frozen_layers_stay():
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 8))
    nn.init.constant_(model[1].bias, -10.0)
    model[2].requires_grad_(False)
    before = model[2].weight.clone()
    assert restarted(model, torch.randn(50, 5), ["1", "2", "no such layer"]) == ("1",)
    assert torch.equal(model[1].bias, torch.zeros(8))
    assert torch.equal(model[1].weight, torch.ones(8))
    assert torch.equal(model[2].weight, before)


@pytest.mark.parametrize("bias", [True, False])
def test_inputs_that_are_all_alike_give_finite_weights(bias):
    model = nn.Sequential(nn.Linear(5, 8, bias=bias), nn.ReLU())
    restarted(model, torch.ones(20, 5), ["0"])
    assert all(weight.isfinite().all() for weight in model.parameters())


def test_a_layer_that_is_called_twice_or_by_keyword_is_restarted_once_and_no_hook_stays():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x):
            return self.layer(input=self.layer(input=x).tanh())

    model, x = Twice(), torch.randn(100, 6)
    assert restarted(model, x, ["layer"]) == ("layer",)
    assert torch.allclose(model.layer(x).var(0, correction=0), torch.ones(6), atol=1e-3)
    assert not model.layer._forward_hooks


def test_shared_weights_and_those_that_are_zero_on_purpose_stay():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight = model[0].weight
    nn.init.zeros_(model[2].weight)
    assert restarted(model, torch.randn(100, 6), ["0", "1", "2"]) == ()
    assert not model[2].weight.any()


def test_the_optimiser_forgets_these_weights_and_no_others():
    model = nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(10, 5)).sum().backward()
    optimizer.step()
    forget(optimizer, [model[0]])
    assert model[0].weight not in optimizer.state
    assert optimizer.state[model[1].weight]["exp_avg"].any()


def test_recurrent_layers_begin_as_pytorch_begins_them():
    torch.manual_seed(0)
    model = nn.ModuleDict({"gru": nn.GRU(5, 16), "head": nn.Linear(16, 2)})
    with torch.no_grad():
        model["gru"].weight_hh_l0.mul_(50)
    x = torch.randn(7, 10, 5)

    def call():
        return model["head"](model["gru"](x)[0])

    head = model["head"].weight.clone()
    assert restart_layers(model, call, ["gru"], torch.Generator().manual_seed(0)) == ("gru",)
    assert all(0.2 < p.abs().max() <= 0.25 for p in model["gru"].parameters())
    assert torch.equal(model["head"].weight, head)
    model["gru"].weight_hh_l0.requires_grad_(False)
    assert restart_layers(model, call, ["gru"], torch.Generator().manual_seed(0)) == ()


def test_another_variance_may_be_asked_for():
    model, x = nn.Sequential(nn.Linear(6, 8), nn.Tanh()), torch.randn(200, 6)
    restart_layers(model, lambda: model(x), ["0"], torch.Generator().manual_seed(0), variance=0.25)
    assert torch.allclose(model[0](x).var(0, correction=0), torch.full((8,), 0.25), atol=1e-3)


def test_a_batch_that_is_not_finite_changes_no_layer():
    model, x = nn.Sequential(nn.Linear(6, 8), nn.Tanh()), torch.randn(200, 6)
    before = model[0].weight.clone()
    x[3, 2] = float("nan")
    restart_layers(model, lambda: model(x), ["0"], torch.Generator().manual_seed(0))
    assert torch.equal(model[0].weight, before)
    assert model[0].bias.isfinite().all()
