"""Slices: random directions that do not see how a network's weights are scaled, and surfaces that are measured where they
bend."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from thalweg.landscape.directions import random_directions
from thalweg.landscape.slices import line, measured_plane, plane
from thalweg.landscape.surface import FunctionSurface

GRID = np.linspace(-1, 1, 51)


def bowl(x, y):
    return (x - 0.2) ** 2 + 3 * y**2


def cliff(x, y):
    return math.tanh(8 * (x + y)) + 0.3 * x


def hill(x, y):
    return 1 - math.exp(-6 * ((x - 0.37) ** 2 + (y + 0.41) ** 2)) + 0.1 * y


def ripples(x, y):
    return math.sin(9 * x) * math.cos(7 * y)


@pytest.mark.parametrize(("function", "most"), [(bowl, 0.1), (hill, 0.4), (cliff, 1), (ripples, 1)])
def test_a_surface_that_is_measured_where_it_bends_is_that_of_the_full_grid(function, most):
    calls, grown = [], []

    def counted(x, y):
        calls.append((x, y))
        return function(x, y)

    found = measured_plane(counted, GRID, GRID, grown=grown.append)
    full = np.array([[function(x, y) for x in GRID] for y in GRID])
    assert np.abs(found.losses - full).max() <= 0.015 * (full.max() - full.min())
    assert len(calls) == len(set(calls)) == found.is_measured.sum()
    assert len(calls) <= most * 51 * 51
    assert int(grown[0].is_measured.sum()) == 81
    assert np.array_equal(found.losses[found.is_measured], full[found.is_measured])


def test_a_loss_that_is_no_number_is_infinite_and_does_not_spoil_the_rest():
    found = measured_plane(lambda x, y: math.nan if x > 0.5 else x * x + y * y, GRID, GRID)
    assert np.isinf(found.losses[found.is_measured]).any()
    smooth = GRID < 0.2
    full = GRID[None, :] ** 2 + GRID[:, None] ** 2
    assert np.abs(found.losses - full)[:, smooth].max() < 0.05


def test_a_grid_that_is_asked_for_whole_is_measured_whole():
    found = measured_plane(bowl, GRID[::5], GRID[::10], tolerance=0)
    assert found.losses.shape == (6, 11)
    assert found.is_measured.all()


def test_slices_do_not_see_how_a_network_is_scaled():
    torch.manual_seed(0)
    inputs, targets = torch.randn(40, 3).double(), torch.randn(40, 1).double()
    model = nn.Sequential(nn.Linear(3, 6, bias=False), nn.ReLU(), nn.Linear(6, 1, bias=False)).double()

    def slices(factor):
        weights = [model[0].weight.detach() * factor, model[2].weight.detach() / factor]

        def loss(w):
            hidden = torch.relu(inputs @ w[:18].view(6, 3).T)
            return (hidden @ w[18:].view(1, 6).T - targets).square().mean()

        surface = FunctionSurface(loss, torch.cat([weight.flatten() for weight in weights]))
        first, second = random_directions(weights, 2, seed=1)
        flat = plane(surface, surface.point, (first, second), GRID[::5], GRID[::5], tolerance=0).losses
        return line(surface, surface.point, first, GRID.tolist()), flat

    for one, other in zip(slices(1.0), slices(50.0), strict=True):
        assert one == pytest.approx(other, rel=1e-9)


def test_directions_have_the_lengths_of_the_filters_and_leave_biases():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4))
    weights = list(model.parameters())
    (direction,) = random_directions(weights, 1)
    parts = direction.split([w.numel() for w in weights])
    for part, weight in zip(parts, weights, strict=True):
        if weight.dim() < 2:
            assert not part.any()
        else:
            assert part.view(len(weight), -1).norm(dim=1).tolist() == pytest.approx(
                weight.flatten(1).norm(dim=1).tolist()
            )
    assert torch.equal(direction, random_directions(weights, 1)[0])
    assert not torch.equal(direction, random_directions(weights, 1, seed=1)[0])
