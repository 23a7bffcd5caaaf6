import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from thalweg.landscape.constant_output import constant_output_loss, zero_output_loss


def test_for_a_distance_it_is_the_variance_of_what_is_said_around_its_mean():
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    model = nn.Identity()
    found = constant_output_loss(model, lambda: float(F.mse_loss(model(x), x)))
    assert found == pytest.approx(float(x.var(0, unbiased=False).mean()), rel=1e-5)


def test_for_class_scores_of_a_balanced_batch_it_is_that_of_equal_chances():
    model = nn.Linear(4, 5)
    x, y = torch.randn(500, 4), torch.arange(500) % 5
    with torch.no_grad():
        model.weight.zero_(), model.bias.zero_()
        found = constant_output_loss(model, lambda: float(F.cross_entropy(model(x), y)))
    assert found == pytest.approx(math.log(5), rel=1e-5)


def test_an_output_of_another_kind_has_none_and_no_hook_is_left():
    class Two(nn.Module):
        def forward(self, x):
            return {"a": x}

    model = Two()
    assert constant_output_loss(model, lambda: float(model(torch.ones(2))["a"].sum())) is None
    assert not model._forward_hooks

    def fails():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        constant_output_loss(model, fails)
    assert not model._forward_hooks


def test_zeros_as_the_output_keep_its_gradient_and_hide_what_is_not_finite():
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, float("inf"))
    seen = []

    def call():
        output = model(torch.ones(4, 1))
        seen.append(output.requires_grad)
        return float((output - 2.0).square().mean().detach())

    assert zero_output_loss(model, call) == 4.0
    assert seen == [True]
