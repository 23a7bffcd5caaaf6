"""Barriers between two points, against hills that are known."""

import math

import numpy as np
import pytest
import torch

from thalweg.landscape.barrier import barrier
from thalweg.landscape.surface import FunctionSurface


def way(function, first=-1.0, second=1.0):
    surface = FunctionSurface(function, torch.zeros(1, dtype=torch.float64))
    return barrier(surface, torch.tensor([first], dtype=torch.float64), torch.tensor([second], dtype=torch.float64))


def test_a_double_well_has_the_height_of_its_hill():
    assert way(lambda w: ((w * w - 1) ** 2).sum()).height == pytest.approx(1, rel=1e-4)


def test_a_narrow_hill_between_the_first_points_is_found_by_looking_closer():
    found = way(lambda w: torch.exp(-300 * (w - 0.33) ** 2).sum())
    assert found.height == pytest.approx(1, rel=5e-3)
    assert np.all(np.diff(found.shares) > 0)


def test_the_line_between_unequal_ends_is_no_barrier():
    assert way(lambda w: (3 * w).sum()).height == pytest.approx(0, abs=1e-12)
    assert way(lambda w: (w * w + 3 * w).sum()).height == 0


def test_a_way_that_falls_slowly_first_has_no_barrier_and_a_hill_counts_from_the_higher_end():
    assert way(lambda w: -((w + 1) ** 2).sum()).height == 0
    hill = way(lambda w: (torch.exp(-8 * w * w) - w).sum())
    line = np.linspace(-1, 1, 100_001)
    assert hill.height == pytest.approx((np.exp(-8 * line**2) - line).max() - (math.exp(-8) + 1), rel=5e-3)
    assert hill.height > 0


def test_a_loss_that_is_no_number_on_the_way_is_a_barrier_without_end():
    assert math.isinf(way(lambda w: torch.sqrt(w.abs() - 0.2).sum()).height)
