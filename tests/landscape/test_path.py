"""The principal plane of a path, against singular values of its points."""

import numpy as np
import pytest
import torch

from thalweg.landscape.path import principal_plane


def test_the_plane_is_that_of_the_singular_values():
    draw = torch.Generator().manual_seed(0)
    points = list(torch.randn(12, 300, generator=draw, dtype=torch.float64) * torch.linspace(3, 1, 12)[:, None])
    end = points[-1]
    found = principal_plane(points, end)
    away = torch.stack(points) - end
    _, values, right = torch.linalg.svd(away, full_matrices=False)
    shares = (values**2 / (values**2).sum())[:2].tolist()
    assert list(found.shares) == pytest.approx(shares)
    for direction, exact in zip(found.directions, right, strict=False):
        assert abs(float(direction @ exact)) == pytest.approx(1)
    inside = away @ torch.stack(found.directions).T
    assert found.coordinates == pytest.approx(inside.numpy())
    rest = away - inside @ torch.stack(found.directions)
    assert found.distances == pytest.approx(rest.norm(dim=1).numpy(), abs=1e-7)
    assert np.allclose(found.coordinates[-1], 0)


def test_a_path_in_a_plane_is_explained_by_it():
    draw = torch.Generator().manual_seed(1)
    plane = torch.linalg.qr(torch.randn(50, 2, generator=draw, dtype=torch.float64))[0].T
    turns = torch.linspace(0, 6, 30, dtype=torch.float64)
    points = list(torch.stack([turns.cos(), turns.sin()], 1) * torch.linspace(1, 0, 30)[:, None].double() @ plane)
    assert sum(principal_plane(points, points[-1]).shares) == pytest.approx(1)


@pytest.mark.parametrize("points", [[torch.ones(3)], [torch.ones(3) * k for k in range(5)], [torch.ones(3)] * 4])
def test_points_without_a_plane_are_refused(points):
    with pytest.raises(ValueError, match=r"line|plane"):
        principal_plane(points, points[-1])
