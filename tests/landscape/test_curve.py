"""Curved ways, where they are known."""

import math

import pytest
import torch

from thalweg.landscape.barrier import barrier
from thalweg.landscape.curve import curve_length, on_curve, trained_bend
from thalweg.landscape.surface import FunctionSurface


def ring(w):
    """A valley along a circle."""
    return (w[:2].norm() - 1) ** 2 + 0.1 * w[2:].square().sum()


@pytest.mark.parametrize("angle", [1.0, 2.0, 2.6])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_valley_that_bends_has_a_barrier_on_the_straight_way_and_none_along_the_curve(angle, scale):
    first = scale * torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    second = scale * torch.tensor([math.cos(angle), math.sin(angle), 0, 0], dtype=torch.float64)
    surface = FunctionSurface(lambda w: ring(w / scale), first)
    straight = barrier(surface, first, second).height
    assert straight == pytest.approx((1 - math.cos(angle / 2)) ** 2, rel=0.02)
    bend = trained_bend(surface, first, second)
    curved = barrier(surface, first, second, lambda share: on_curve(first, bend, second, share))
    assert curved.height < 0.03 * straight
    assert curved.losses[[0, -1]] == pytest.approx(0, abs=1e-12)
    assert curve_length(first, bend, second) > float((second - first).norm())


def test_a_bowl_keeps_its_straight_way_and_gradients_are_counted():
    calls = []
    bowl = FunctionSurface(lambda w: w.square().sum(), torch.zeros(2))
    first, second = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 0.0])

    def slope(point):
        calls.append(point)
        return bowl.slope(point)

    bend = trained_bend(bowl, first, second, gradients=40, slope=slope)
    assert len(calls) == 40
    assert barrier(bowl, first, second, lambda share: on_curve(first, bend, second, share)).height == 0


def test_a_gradient_that_is_no_number_ends_the_search_with_what_was_best():
    wall = FunctionSurface(lambda w: torch.sqrt(w.abs().sum() - 0.5), torch.zeros(2))
    bend = trained_bend(wall, torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 0.0]))
    assert bend.tolist() == [0, 0]
