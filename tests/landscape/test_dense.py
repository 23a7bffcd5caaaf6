"""Curvature of small trained networks, from products only, against the dense Hessian and all of its eigenvalues."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from thalweg.landscape.lanczos import eigenpairs
from thalweg.landscape.model_surface import ModelSurface, Part
from thalweg.landscape.objective import Objective
from thalweg.landscape.spectral_density import spectral_density
from thalweg.landscape.trace import trace
from thalweg.records.task import Task


class Last(nn.Module):
    """A recurrent layer's last output."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.out = nn.GRU(4, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.cells(x.view(len(x), 4, 4))[0][:, -1])


NETWORKS = {
    "tanh": lambda: nn.Sequential(nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, 3)),
    "relu": lambda: nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(), nn.Linear(16, 3)
    ),
    "gru": Last,
}


@pytest.fixture(scope="module", params=NETWORKS)
def dense(request):
    """A surface, its point and its dense Hessian."""
    torch.manual_seed(0)
    x, y = torch.randn(48, 16, dtype=torch.float64), torch.randint(0, 3, (48,))
    model, loss = NETWORKS[request.param]().double(), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(100):
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    model.eval()
    parts = [Part(batch, len(batch[0]) / 48) for batch in zip(x.split(20), y.split(20), strict=True)]
    surface = ModelSurface(model, Objective(Task(model=model, loss=loss, data=(x, y))), parts)

    def whole(point):
        return loss(functional_call(model, dict(zip(surface.names, surface.shaped(point), strict=True)), (x,)), y)

    point = surface.point
    return surface, point, torch.autograd.functional.hessian(whole, point)


def test_five_eigenvalues_of_each_end_are_right_to_a_ten_thousandth(dense):
    surface, point, hessian = dense
    exact, vectors = torch.linalg.eigh(hessian)
    found = eigenpairs(surface.hessian(point), point, tolerance=1e-4, most=300)
    assert found.known
    assert found.top == pytest.approx(exact.flip(0)[:5].tolist(), rel=1e-4)
    assert found.bottom == pytest.approx(exact[:5].tolist(), rel=1e-4)
    assert abs(float(found.top_vectors[0] @ vectors[:, -1])) == pytest.approx(1, abs=1e-4)
    for values, residuals in ((found.top, found.top_residuals), (found.bottom, found.bottom_residuals)):
        for value, residual in zip(values, residuals, strict=True):
            assert float((exact - value).abs().min()) <= residual + 1e-10


def test_the_sum_is_within_its_error_95_times_in_100(dense):
    _, point, hessian = dense
    exact, inside = float(hessian.diagonal().sum()), 0
    for seed in range(100):
        found = trace(lambda vector: hessian @ vector, point, seed=seed)
        inside += abs(found.value - exact) <= found.error + 1e-9 * abs(exact)
    assert inside >= 90  # of 95 expected: fewer come up once in 50 times


def test_shares_are_within_their_error_95_times_in_100(dense):
    """By Student's quantile of ten directions; a share is known to the weight of one value of the quadrature."""
    _, point, hessian = dense
    exact = torch.linalg.eigvalsh(hessian).numpy()
    at = np.array([0.02, 0.2, 0.5, 0.9]) * exact[-1]
    inside = 0
    for seed in range(25):
        found = spectral_density(lambda vector: hessian @ vector, point, probes=10, seed=seed)
        shares, errors = found.share_below(at)
        inside += int((np.abs(shares - (exact[:, None] < at).mean(0)) <= 2.26 * errors + 1e-3).sum())
    assert inside >= 90
