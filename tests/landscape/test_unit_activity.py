import pytest
import torch
from torch import nn
from torch.nn import functional as F

from thalweg.landscape.unit_activity import unit_activity


def activity(model, *batches):
    with torch.no_grad():
        return unit_activity(model, [lambda x=x: model(x) for x in batches])


def with_dead(layer, units):
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(1.0)
        layer.bias[:units] = -1.0
    return layer


class Block(nn.Module):
    """Two functions in its own forward, told apart."""

    def __init__(self):
        super().__init__()
        self.first, self.second = with_dead(nn.Linear(4, 6), 2), with_dead(nn.Linear(6, 5), 5)

    def forward(self, x):
        return F.relu(self.second(torch.relu(self.first(x))))


def test_functions_and_modules_are_told_apart_and_dead_units_counted():
    model = nn.Sequential(Block(), nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 2))
    first, second, third = activity(model, torch.randn(7, 4))
    assert [(one.name, one.units, one.dead) for one in (first, second)] == [("`0.first`", 6, 2), ("`0.second`", 5, 5)]
    assert (third.kind, third.dead, third.examples) == ("GELU", 0, 7)
    assert not third.is_output


def test_a_unit_is_dead_only_where_it_is_so_on_every_batch():
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
    up, down = torch.ones(4, 1), -torch.ones(4, 1)
    assert activity(model, up)[0].dead == 1
    (both,) = activity(model, up, down)
    assert (both.dead, both.examples) == (0, 8)


def test_channels_are_the_units_of_convolutions():
    model = nn.Sequential(with_dead(nn.Conv2d(1, 5, 3), 3), nn.BatchNorm2d(5), nn.ReLU(inplace=True), nn.Flatten())
    model[1].eval()
    (layer,) = activity(model, torch.randn(2, 1, 8, 8))
    assert (layer.name, layer.units, layer.dead) == ("`1`", 5, 3)


def test_a_cell_that_is_called_again_and_again_is_one_layer():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.Sequential(nn.Linear(3, 3), nn.ReLU())

        def forward(self, x):
            for _ in range(5):
                x = self.cell(x)
            return x

    assert len(activity(Recurrent(), torch.randn(2, 3))) == 1


@pytest.mark.parametrize("function", [nn.Tanh, nn.Sigmoid])
def test_saturated_inputs_are_counted_but_an_output_is_marked(function):
    model = nn.Sequential(nn.Linear(1, 4), function(), nn.Linear(4, 1), function())
    with torch.no_grad():
        model[0].weight.fill_(0.0)
        model[0].bias.copy_(torch.tensor([9.0, -9.0, 0.1, 9.0]))
    hidden, output = activity(model, torch.randn(5, 1))
    assert hidden.saturated == pytest.approx(0.75)
    assert (hidden.dead, hidden.is_output, output.is_output) == (0, False, True)


def test_hooks_are_gone_afterwards_and_an_error_is_the_callers():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with pytest.raises(RuntimeError, match="shapes"):
        activity(model, torch.randn(2, 3))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert activity(model, torch.randn(2, 2))[0].units == 2
