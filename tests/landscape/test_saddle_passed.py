"""Momentum on its way past a saddle point: faster at an equal rate, and not at an equal rate of the sum of its steps."""

import math

import pytest
import torch

import thalweg as tw

CURVATURE, START, AWAY = 0.05, 1e-6, 1e-2


def steps_to_leave(momentum, rate):
    """Count the steps from near a saddle point, across which the loss rises and along which it falls."""
    point = torch.tensor([0.5, START], dtype=torch.float64, requires_grad=True)
    optimizer = tw.optim.SGD([point], lr=rate, momentum=momentum)
    for step in range(1, 100_000):
        optimizer.zero_grad()
        (point[0] ** 2 / 2 - CURVATURE * point[1] ** 2 / 2).backward()
        optimizer.step()
        if abs(float(point[1].detach())) > AWAY:
            return step
    raise AssertionError("it never left")


def test_gradient_descent_takes_as_many_steps_as_its_growth_says():
    assert steps_to_leave(0.0, 0.1) == math.ceil(math.log(AWAY / START) / math.log1p(0.1 * CURVATURE))


def test_momentum_leaves_in_fewer_steps_at_an_equal_rate_and_about_as_many_at_an_equal_sum_of_steps():
    plain, with_momentum = steps_to_leave(0.0, 0.01), steps_to_leave(0.9, 0.01)
    assert plain / with_momentum == pytest.approx(10, rel=0.15)
    assert steps_to_leave(0.0, 0.1) / with_momentum == pytest.approx(1, rel=0.15)
