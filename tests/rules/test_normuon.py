"""NorMuon: the paper's algorithm step by step, and what it does to the rows of a matrix."""

import pytest
import torch

from thalweg.optim import NorMuon
from thalweg.rules.muon import orthogonal

SHAPES = [(7, 5), (5, 7), (1, 9), (6, 3, 2, 2)]
JORDAN = (3.4445, -4.7750, 2.0315)


def drawn(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference(w, gradients, lr, decay, nesterov, momentum=0.95, beta2=0.95, eps=1e-7):
    """Take the paper's steps (algorithm 1), with Muon's place of Nesterov's momentum, on a matrix in float64."""
    shape, w = w.shape, w.flatten(1)
    m, v = torch.zeros_like(w), torch.zeros(w.shape[0], 1, dtype=w.dtype)
    for g in gradients:
        g = g.flatten(1)
        m = momentum * m + (1 - momentum) * g
        o = orthogonal(momentum * m + (1 - momentum) * g if nesterov else m, JORDAN, 5, eps)
        v = beta2 * v + (1 - beta2) * o.pow(2).mean(1, keepdim=True)
        d = o / (v.sqrt() + eps)
        w = (1 - lr * decay) * w - 0.2 * lr * d.numel() ** 0.5 / d.norm() * d
    return w.reshape(shape)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_takes_the_papers_steps(shape, nesterov):
    w = torch.nn.Parameter(drawn(shape, 0))
    gradients = [drawn(shape, seed) for seed in range(1, 9)]
    wanted = reference(w.detach().clone(), gradients, 0.02, 0.1, nesterov)
    optimizer = NorMuon([w], lr=0.02, weight_decay=0.1, nesterov=nesterov)
    for g in gradients:
        w.grad = g.clone()
        optimizer.step()
    assert torch.allclose(w.detach(), wanted, rtol=1e-12, atol=1e-12)


def test_the_first_step_is_as_long_for_every_row_whatever_its_gradient():
    w = torch.nn.Parameter(drawn((4, 16), 0))
    before = w.detach().clone()
    w.grad = drawn((4, 16), 1) * torch.tensor([1e-3, 1.0, 10.0, 0.1], dtype=torch.float64)[:, None]
    NorMuon([w], lr=0.05, weight_decay=0.0).step()
    lengths = (w.detach() - before).pow(2).mean(1).sqrt()
    assert torch.allclose(lengths, torch.full((4,), 0.2 * 0.05, dtype=torch.float64), rtol=1e-4)


def test_a_gradient_of_zeros_moves_nothing_but_the_decay():
    w = torch.nn.Parameter(drawn((3, 5), 0))
    before = w.detach().clone()
    w.grad = torch.zeros_like(w)
    NorMuon([w], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(w.detach(), (1 - 0.1 * 0.5) * before)
