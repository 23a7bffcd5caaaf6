"""Gradients of any magnitude: what is finite moves no weight to NaN, and all engines do what PyTorch's class does or better."""

import math

import pytest
import torch

from thalweg.optim import Optimizer
from thalweg.rules import RULES
from thalweg.testing.rules import variants

MAGNITUDES = [1e-44, 1e-38, 1e-30, 1e-19, 1e-10, 1e10, 1e18, 2e19, 1e25, 1e32, 1e37]
"""Float32 reaches from 1e-45 to 3.4e38; squares are infinite from 1.8e19 on, where a weight whose step is divided by their root
stays where it is, and 0 below 3e-23. Above 1.7e38 the difference of two gradients is infinite, and so are running means, here as
in PyTorch."""

WITHOUT_SQUARES = ("gradient_descent", "momentum", "nesterov", "lion", "adamax", "muon", "schedule_free_sgd")

COUNT = 48
CASES = [pytest.param(n, c, id=f"{n}-{i}") for n, rule in RULES.items() for i, c in enumerate(variants(rule))]


def all_alike(signs, magnitude, step):
    return signs * magnitude


def a_spike(signs, magnitude, step):
    return torch.where(torch.arange(COUNT) == 5, signs * magnitude, signs)


def mixed(signs, magnitude, step):
    return signs * 10 ** torch.linspace(-38, math.log10(magnitude), COUNT, dtype=torch.float64)


def in_turn(signs, magnitude, step):
    return signs * (1.0 if step % 2 else magnitude)


def spike_once(signs, magnitude, step):
    return a_spike(signs, magnitude, step) if step == 1 else signs


PATTERNS = [all_alike, a_spike, mixed, in_turn, spike_once]


def descended(make, pattern, magnitude, dtype=torch.float32, steps=5):
    """Give weights after each step, and the optimiser."""
    generator = torch.Generator().manual_seed(4)
    w = torch.nn.Parameter(torch.randn(8, 6, generator=generator).to(dtype))
    optimizer, places = make(w), []
    for step in range(steps):
        values = torch.randn(COUNT, generator=generator, dtype=torch.float64).clamp(-1, 1)
        gradient = pattern(values, magnitude, step).view(8, 6).float()
        w.grad = gradient.to(dtype)
        optimizer.step()
        places.append(w.detach().double().clone())
    return places, optimizer


def assert_finite_and_alike(rule, constants, pattern, magnitude, **options):
    def ours(engine):
        return lambda w: Optimizer([w], rule, engine=engine, **{"lr": 0.01} | constants | options)

    compiled, _ = descended(ours("cpu"), pattern, magnitude)
    tensors, _ = descended(ours("tensors"), pattern, magnitude)
    exact, _ = descended(ours("tensors"), pattern, magnitude, torch.float64)
    squares_fit = 1e-19 <= magnitude < 1.8e19 or (rule in WITHOUT_SQUARES and magnitude > 1e-40)
    for a, b, c in zip(compiled, tensors, exact, strict=True):
        assert c.isfinite().all()
        assert a.isfinite().all()
        assert b.isfinite().all()
        size = c.abs().max().clamp(min=1.0)
        assert (a - b).abs().max() <= 1e-4 * size
        if squares_fit:
            assert (a - c).abs().max() <= 1e-4 * size


@pytest.mark.parametrize("magnitude", [1e-30, 2e19, 1e32])
@pytest.mark.parametrize(("rule", "constants"), CASES)
def test_a_finite_gradient_moves_no_weight_to_nan(rule, constants, magnitude):
    assert_finite_and_alike(rule, constants, spike_once, magnitude)


@pytest.mark.heavy
@pytest.mark.parametrize("magnitude", MAGNITUDES)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("rule", "constants"), CASES)
def test_engines_agree_at_any_magnitude_and_go_where_float64_goes(rule, constants, pattern, magnitude):
    assert_finite_and_alike(rule, constants, pattern, magnitude)


@pytest.mark.parametrize("engine", ["cpu", "tensors"])
@pytest.mark.parametrize("magnitude", [1e-38, 1e-25, 2e19, 1e30, 3e38])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_clipping_by_norm_is_right_at_any_magnitude(pattern, magnitude, engine):
    """Squares of norms over- and underflow in float32 long before the norms do."""
    w = torch.nn.Parameter(torch.zeros(8, 6))
    optimizer = Optimizer([w], "gradient_descent", lr=1.0, clip_norm=1.0, engine=engine)
    signs = torch.randn(COUNT, generator=torch.Generator().manual_seed(4), dtype=torch.float64).clamp(-1, 1)
    w.grad = pattern(signs, magnitude, 0).view(8, 6).float()
    exact = w.grad.double()
    norm = float(torch.linalg.vector_norm(exact / exact.abs().max()) * exact.abs().max())
    optimizer.step()
    assert not optimizer.last.skipped
    assert optimizer.last.gradient_norm == pytest.approx(norm, rel=1e-5)
    torch.testing.assert_close(-w.detach().double(), exact * min(1.0, 1.0 / (norm + 1e-6)), rtol=1e-4, atol=1e-44)
