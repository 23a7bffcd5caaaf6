"""However long a series, its extremes stay."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thalweg.see.downsampling import COLUMNS, downsample, smooth


@given(st.integers(1, 5000), st.integers(0, 2**32 - 1), st.integers(1, 900))
def test_extremes_and_mean_survive_any_reduction(length, seed, count):
    random = np.random.default_rng(seed)
    x = np.sort(random.uniform(0, 1e5, length))
    y = random.standard_cauchy(length)
    columns = downsample(x, y, count)
    assert len(columns.x) <= max(count, 1)
    assert columns.low.min() == y.min()
    assert columns.high.max() == y.max()
    assert (columns.low <= columns.mean + 1e-9 * abs(columns.mean)).all()
    assert (np.diff(columns.x) >= 0).all()


def test_a_spike_of_one_step_keeps_its_place():
    y = np.ones(200_000)
    y[123_456] = 50.0
    columns = downsample(np.arange(200_000.0), y)
    assert len(columns.x) == COLUMNS
    assert abs(columns.x[int(columns.high.argmax())] - 123_456) <= 200_000 / COLUMNS


def test_a_gap_leaves_its_columns_out():
    x = np.r_[np.arange(1000.0), np.arange(9000.0, 10_000.0)]
    columns = downsample(x, np.ones(2000))
    assert not ((columns.x > 1010) & (columns.x < 8990)).any()


def test_short_series_are_kept_as_they_are():
    x, y = np.arange(5.0), np.array([3.0, 1.0, 4.0, 1.0, 5.0])
    columns = downsample(x, y)
    assert columns.low is columns.high is columns.mean is y


def test_a_straight_line_stays_one_but_for_its_ends():
    line = np.linspace(0, 1, 600)
    np.testing.assert_allclose(smooth(line)[100:-100], line[100:-100], atol=1e-4)


def test_smoothing_takes_noise_away():
    noise = np.random.default_rng(0).standard_normal(3000)
    assert smooth(noise).std() < 0.15


@pytest.mark.parametrize("length", [1, 2, 3, 10])
def test_few_values_can_be_smoothed(length):
    assert np.isfinite(smooth(np.arange(float(length)))).all()


def test_smoothing_is_the_symmetric_weighted_mean_it_says_it_is():
    values = np.random.default_rng(1).standard_normal(200)
    keep = np.exp(-1 / (200 / 60))
    weights = keep ** np.abs(np.subtract.outer(np.arange(200), np.arange(200)))
    np.testing.assert_allclose(smooth(values), weights @ values / weights.sum(1), rtol=1e-9)
