"""Lion against the paper's own program (algorithm 2), written out; PyTorch has none."""

import pytest
import torch

from thalweg import optim


@pytest.mark.parametrize("engine", ["cpu", "tensors"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.95, 0.98), (0.0, 0.5)])
def test_two_hundred_steps_are_the_papers(betas, decay, engine):
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    theirs, momentum = w.clone(), torch.zeros_like(w)
    optimizer = optim.Lion([w], lr=0.01, betas=betas, weight_decay=decay, engine=engine)
    for _ in range(200):
        gradient = torch.sin(3 * theirs) + theirs + 0.1 * torch.randn(w.shape, generator=generator, dtype=w.dtype)
        w.grad = gradient.clone()
        optimizer.step()
        update = momentum.mul(betas[0]).add(gradient, alpha=1 - betas[0]).sign()
        theirs = theirs - 0.01 * (update + decay * theirs)
        momentum = momentum.mul(betas[1]).add(gradient, alpha=1 - betas[1])
        torch.testing.assert_close(w, theirs, rtol=1e-12, atol=1e-12)


def test_a_step_is_as_long_as_the_rate_whatever_the_gradient():
    w = torch.zeros(3)
    optimizer = optim.Lion([w], lr=0.5)
    w.grad = torch.tensor([1e-20, -3.0, 0.0])
    optimizer.step()
    assert w.tolist() == [-0.5, 0.5, 0.0]
