"""Whether weights look trained or drawn."""

import pytest
import torch
from torch import nn

from thalweg.examples import faults
from thalweg.landscape.trained_weights import look_trained, stands_out


@pytest.mark.parametrize(
    "start", [nn.init.kaiming_normal_, nn.init.xavier_uniform_, nn.init.orthogonal_, nn.init.trunc_normal_]
)
@pytest.mark.parametrize("shape", [(64, 64), (256, 32), (32, 16, 3, 3)])
def test_no_usual_start_stands_out(start, shape):
    torch.manual_seed(0)
    assert stands_out(start(torch.empty(shape))) < 1.15


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_it_is_the_largest_singular_value_whatever_the_scale(scale):
    torch.manual_seed(0)
    weight = torch.randn(40, 20) + 0.5
    expected = torch.linalg.matrix_norm(weight, 2) / (weight.square().mean().sqrt() * (40**0.5 + 20**0.5))
    assert stands_out(scale * weight) == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("weight", [torch.zeros(9, 9), torch.ones(4, 100), torch.full((9, 9), torch.nan)])
def test_of_what_cannot_tell_nothing_is_said(weight):
    assert stands_out(weight) is None


@pytest.mark.parametrize("name", ["digits/mlp/adamw/healthy", "digits/cnn/adam/healthy"])
def test_a_network_looks_trained_once_it_is(name):
    loop = faults.find(name).loop()
    assert not look_trained(loop.model)
    for batch in loop.batches():
        loop.loss(batch).backward()
        loop.optimizer.step()
        loop.optimizer.zero_grad()
    assert look_trained(loop.model)
