"""What normalisations and attentions are given."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from thalweg.landscape.normalisation import normalisations


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.BatchNorm1d, nn.RMSNorm, lambda n: nn.GroupNorm(1, n)])
def test_the_layer_before_is_named_and_the_least_variance_is_that_of_its_outputs(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), kind(8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(16, 3)
    (found,) = normalisations(model, lambda: model(x))
    given = model[0](x).detach()
    expected = {
        "LayerNorm": given.var(-1, correction=0).min(),
        "GroupNorm": given.var(-1, correction=0).min(),
        "RMSNorm": given.square().mean(-1).min(),
        "BatchNorm1d": given.var(0, correction=0).min(),
    }[found.kind]
    assert (found.name, found.before) == ("1", "0")
    assert found.variance == pytest.approx(float(expected), rel=1e-5)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_what_lies_between_a_layer_and_a_normalisation_hides_it():
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.LayerNorm(8))
    (found,) = normalisations(model, lambda: model(torch.randn(4, 3)))
    assert found.before == ""


@pytest.mark.parametrize(("sharpness", "certain"), [(1.0, 0.0), (1e4, 1.0)])
@pytest.mark.parametrize("mask", [None, "causal", "bool", "float"])
def test_attention_that_looks_at_one_key_only_is_told_by_its_probabilities(sharpness, certain, mask):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 1, 12, 8)
    lower = torch.ones(12, 12).tril().bool()
    options = {
        None: {},
        "causal": {"is_causal": True},
        "bool": {"attn_mask": lower},
        "float": {"attn_mask": torch.zeros(12, 12).masked_fill(~lower, -math.inf)},
    }[mask]
    (found,) = normalisations(nn.Identity(), lambda: F.scaled_dot_product_attention(sharpness * q, k, v, **options))
    assert found.kind == "attention"
    assert found.certain == pytest.approx(certain, abs=0.1)


def test_a_model_that_fails_keeps_no_hook():
    model = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(7))
    with pytest.raises(RuntimeError):
        normalisations(model, lambda: model(torch.randn(4, 3)))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
