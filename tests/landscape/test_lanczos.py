"""Eigenvalues, trace and density from products only, against the dense matrix."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from thalweg.landscape.lanczos import eigenpairs
from thalweg.landscape.spectral_density import spectral_density
from thalweg.landscape.trace import trace


def matrix(values, seed=0):
    draw = torch.Generator().manual_seed(seed)
    vectors, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=draw, dtype=torch.float64))
    return (vectors * torch.tensor(values, dtype=torch.float64)) @ vectors.T


def like_a_networks(size=300, seed=0):
    """A few large eigenvalues, a bulk near zero, some negative ones."""
    draw = np.random.default_rng(seed)
    return [*np.geomspace(10, 1, 8), *draw.normal(0, 0.05, size - 12), -0.4, -0.3, -0.25, -0.2]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(-50, 50).map(lambda n: n / 10), min_size=1, max_size=20),
    st.integers(0, 100),
    st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_of_a_small_matrix_all_eigenvalues_are_right_also_those_that_coincide(values, seed, scale):
    made = matrix([value * scale for value in values], seed)
    found = eigenpairs(lambda v: made @ v, torch.zeros(len(values), dtype=torch.float64), top=3, bottom=3)
    exact = torch.linalg.eigvalsh(made).flip(0)
    assert found.complete
    size = max(1e-300, float(exact.abs().max()))
    assert found.top == pytest.approx(exact[:3].tolist(), abs=1e-9 * size)
    assert found.bottom == pytest.approx(exact.flip(0)[: len(found.bottom)].tolist(), abs=1e-9 * size)
    assert len(found.top) + len(found.bottom) == min(6, len(values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_ends_of_a_spectrum_like_a_networks_are_known_to_the_tolerance(dtype):
    made = matrix(like_a_networks())
    exact = torch.linalg.eigvalsh(made)
    given_matrix = made.to(dtype)
    found = eigenpairs(lambda v: given_matrix @ v, torch.zeros(300, dtype=dtype), top=5, bottom=3)
    assert found.known
    assert not found.complete
    assert found.products < 100
    assert found.top == pytest.approx(exact.flip(0)[:5].tolist(), rel=1e-5)
    assert found.bottom == pytest.approx(exact[:3].tolist(), rel=1e-3)
    for values, vectors, residuals in (
        (found.top, found.top_vectors, found.top_residuals),
        (found.bottom, found.bottom_vectors, found.bottom_residuals),
    ):
        for value, vector, residual in zip(values, vectors.double(), residuals, strict=True):
            assert float(vector.norm()) == pytest.approx(1, abs=1e-4)
            assert float((made @ vector - value * vector).norm()) <= residual + 1e-4 * abs(value) + 1e-5


def test_too_few_products_are_said():
    made = matrix(like_a_networks())
    found = eigenpairs(lambda v: made @ v, torch.zeros(300, dtype=torch.float64), most=8)
    assert not found.known
    assert found.products == 8
    assert max(found.top_residuals) > 1e-3


def test_a_matrix_of_zeros_has_zeros():
    found = eigenpairs(torch.zeros_like, torch.zeros(50))
    assert found.top == [0.0] * 5
    assert found.bottom == [0.0] * 5


def test_the_interval_of_a_trace_holds_it_in_95_of_100():
    made = matrix(like_a_networks(200))
    exact = float(made.diagonal().sum())
    found = [
        trace(lambda v: made @ v, torch.zeros(200, dtype=torch.float64), seed=seed, most=20) for seed in range(100)
    ]
    assert sum(abs(each.value - exact) <= each.error for each in found) >= 90
    assert all(each.products <= 40 for each in found)


def test_a_known_subspace_spares_the_trace_its_error():
    made = matrix([100.0, 50.0, *[0.1] * 98])
    start = torch.zeros(100, dtype=torch.float64)
    pairs = eigenpairs(lambda v: made @ v, start, top=2, bottom=0, most=30)
    found = trace(lambda v: made @ v, start, pairs.top_vectors, sketch=0)
    assert found.value == pytest.approx(159.8, rel=1e-3)


def test_the_density_has_the_shares_of_the_dense_spectrum_within_its_error():
    values = np.array(like_a_networks(400))
    made = matrix(values.tolist())
    inside = total = 0
    at = np.array([-0.1, 0.0, 0.1, 0.9])
    exact = (values[:, None] < at).mean(0)
    for seed in range(20):
        found = spectral_density(
            lambda v: made @ v, torch.zeros(400, dtype=torch.float64), probes=8, steps=40, tolerance=0, seed=seed
        )
        shares, errors = found.share_below(at)
        assert found.weights.sum(1) == pytest.approx(np.ones(8))
        inside += int((np.abs(shares - exact) <= 2.4 * errors + 0.01).sum())  # Student's, of 8 directions
        total += len(at)
    assert inside >= 0.93 * total
    line = np.linspace(-1, 11, 2001)
    density, _ = found.density(line, 0.05)
    assert np.trapezoid(density, line) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("top", "bottom", "vectors"), [(1, 0, 4), (5, 0, 8), (2, 2, 7), (5, 5, 15), (5, 5, 20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_few_vectors_give_the_same_ends_by_more_products(top, bottom, vectors, dtype):
    made = matrix(like_a_networks())
    exact, given_matrix = torch.linalg.eigvalsh(made), made.to(dtype)
    kept = []

    def product(vector):
        kept.append(vector.untyped_storage().nbytes() // vector.element_size() // 300)  # rows of the basis
        return given_matrix @ vector

    found = eigenpairs(product, torch.zeros(300, dtype=dtype), top=top, bottom=bottom, vectors=vectors, most=300)
    assert max(kept) == vectors
    assert found.known
    assert not found.complete
    assert found.products < 200
    assert found.top == pytest.approx(exact.flip(0)[:top].tolist(), rel=1e-5)
    assert found.bottom == pytest.approx(exact[:bottom].tolist(), rel=1e-3)
    values, vectors_found = [*found.top, *found.bottom], torch.cat([found.top_vectors, found.bottom_vectors]).double()
    for value, vector, residual in zip(
        values, vectors_found, [*found.top_residuals, *found.bottom_residuals], strict=True
    ):
        assert float((made @ vector - value * vector).norm()) <= residual + 1e-4 * abs(value) + 1e-5
    assert torch.allclose(vectors_found @ vectors_found.T, torch.eye(top + bottom, dtype=torch.float64), atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(-50, 50).map(lambda n: n / 10), min_size=1, max_size=20),
    st.integers(0, 100),
    st.integers(1, 20),
)
def test_no_number_of_vectors_breaks_it(values, seed, vectors):
    """Also of spectra in which all coincide, and spaces smaller than what is kept: a value found is one of the matrix."""
    made = matrix(values, seed)
    found = eigenpairs(
        lambda v: made @ v, torch.zeros(len(values), dtype=torch.float64), top=2, bottom=1, vectors=vectors, most=60
    )
    exact = torch.linalg.eigvalsh(made)
    size = max(1e-9, float(exact.abs().max()))
    assert found.top[0] == pytest.approx(float(exact[-1]), abs=max(1e-9 * size, found.top_residuals[0]) + 1e-9)
    for value, residual in zip(
        [*found.top, *found.bottom], [*found.top_residuals, *found.bottom_residuals], strict=True
    ):
        assert float((exact - value).abs().min()) <= residual + 1e-8 * size


def test_a_density_stops_when_more_steps_would_not_move_it():
    made, start = matrix(like_a_networks(400)), torch.zeros(400, dtype=torch.float64)
    full, stopped = (
        spectral_density(lambda v: made @ v, start, probes=4, steps=100, tolerance=tolerance, seed=3)
        for tolerance in (0, 0.005)
    )
    assert full.products == 400
    assert stopped.products <= 160
    at = np.linspace(-1, 11, 500)
    one, other = (
        np.array([(ndtr((x - found.values) / 0.03) * found.weights).sum() / 4 for x in at]) for found in (full, stopped)
    )
    assert np.abs(one - other).max() < 0.01
    assert stopped.weights.sum(1) == pytest.approx(np.ones(4))


@pytest.mark.parametrize("rank", [1, 5, 30])
def test_more_steps_than_a_matrix_has_eigenvalues_in_float32_make_no_others(rank):
    made = matrix([*np.geomspace(20, 0.1, rank), *[0.0] * (300 - rank)]).float()
    found = spectral_density(lambda v: made @ v, torch.zeros(300), probes=3, steps=200, tolerance=0)
    assert np.isfinite(found.values).all()
    assert found.values.min() > -0.01
    assert found.values.max() < 20.01
    near_zero = (found.weights * (np.abs(found.values) < 0.05)).sum(1)
    assert near_zero == pytest.approx(np.full(3, 1 - rank / 300), abs=0.1)


@pytest.mark.parametrize("vectors", [None, 6])
def test_a_loose_tolerance_does_not_take_the_second_for_the_first(vectors):
    """The two are near, and a start may lie nearer to the second."""
    made = matrix([1.0, 0.93, *np.linspace(-0.3, 0.3, 198)])
    start = torch.zeros(200, dtype=torch.float64)
    for seed in range(40):
        found = eigenpairs(lambda v: made @ v, start, top=1, bottom=0, tolerance=0.05, vectors=vectors, seed=seed)
        assert found.top == pytest.approx([1.0], rel=0.05)
