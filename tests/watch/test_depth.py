import math

import pytest
import torch
from torch import nn

from thalweg.records.step_figures import StepFigures
from thalweg.watch.depth import gradient_over_depth
from thalweg.watch.window import Place, Window


def with_gradients(per_weight, shapes=None):
    """A window whose layers, the last first as a group may list them, have gradients of so much per weight."""
    window = Window()
    shapes = shapes or [(8, 8)] * len(per_weight)
    window.places = tuple(Place(f"layer{k}", shape, k) for k, shape in enumerate(shapes))[::-1]
    norms = [size * math.sqrt(math.prod(shape)) for size, shape in zip(per_weight, shapes, strict=True)][::-1]
    for step in range(1, 9):
        window.push(StepFigures(step, 1.0, 0.1, 1.0, gradient_norms=norms))
    return window


@pytest.mark.parametrize("factor", [0.1, 1.0, 3.0])
def test_the_ratio_of_first_to_last_is_found_whatever_the_shapes(factor):
    shapes = [(8, 4), (16, 8), (3, 3, 3, 16), (2, 3), (5, 5)]
    found = gradient_over_depth(with_gradients([factor**k for k in range(5)], shapes))
    assert found.ratio == pytest.approx(factor**-4)
    assert list(found.layers) == [f"layer{k}" for k in range(5)]
    assert found.is_line == (factor != 1.0)


def test_a_gradient_of_zero_vanished():
    found = gradient_over_depth(with_gradients([0.0, 0.0, 1e-20, 1e-10, 1.0]))
    assert found.ratio < 1e-20


def test_vectors_do_not_count_and_nothing_is_said_without_figures():
    assert gradient_over_depth(Window()) is None
    assert gradient_over_depth(with_gradients([1.0, 2.0], [(8,), (8,)])) is None


def test_sigmoids_over_ten_layers_vanish_and_residual_ones_do_not():
    torch.manual_seed(0)
    layers = [nn.Linear(16, 16) for _ in range(10)]
    for residual in (False, True):
        h = torch.randn(32, 16)
        for layer in layers:
            layer.zero_grad()
            h = torch.sigmoid(layer(h)) + (h if residual else 0)
        h.square().mean().backward()
        window = with_gradients([float(layer.weight.grad.norm()) / 16 for layer in layers], [(16, 16)] * 10)
        found = gradient_over_depth(window)
        assert (found.is_line and found.ratio < 1e-3) == (not residual)
