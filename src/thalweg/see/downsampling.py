"""Downsampling of long series to few columns that decay their lowest and highest value, so no one-step spike vanishes."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from thalweg.see.axes import Values

COLUMNS = 800


class Columns(NamedTuple):
    """A series in columns: the mean position of each, and its lowest, mean and highest value."""

    x: Values
    low: Values
    mean: Values
    high: Values


def downsample(x: Values, y: Values, count: int = COLUMNS) -> Columns:
    """Gather a series, sorted by x and finite, into at most `count` columns of equal width; empty ones are left out.

    >>> downsample(np.arange(6.0), np.array([1.0, 1, 1, 1, 9, 1]), 2).high.tolist()
    [1.0, 9.0]
    """
    if len(x) <= count:
        return Columns(x, y, y, y)
    width = (x[-1] - x[0]) / count or 1.0
    column = np.minimum(((x - x[0]) / width).astype(np.int64), count - 1)
    first = np.flatnonzero(np.r_[True, np.diff(column) != 0])
    sizes = np.diff(np.r_[first, len(x)])
    means = (np.add.reduceat(values, first) / sizes for values in (x, y))
    x_mean, y_mean = means
    return Columns(x_mean, np.minimum.reduceat(y, first), y_mean, np.maximum.reduceat(y, first))


def smooth(values: Values, share: float = 1 / 60) -> Values:
    """Average exponentially in both directions, so that the line does not lag behind what it follows.

    A value d entries away has a weight in proportion to decay^d; the weights sum to one, at the ends of the series too.

    `share`: distance, as a share of the series, at which a weight has fallen to 1/e.

    >>> smooth(np.full(5, 3.0)).round(12).tolist()
    [3.0, 3.0, 3.0, 3.0, 3.0]
    """
    decay = math.exp(-1 / max(1.0, share * len(values)))
    weights = (1 - decay ** np.arange(1, len(values) + 1)) / (1 - decay)
    both = _decaying_sums(values, decay) + _decaying_sums(values[::-1], decay)[::-1] - values
    return both / (weights + weights[::-1] - 1)


def _decaying_sums(values: Values, decay: float) -> Values:
    return np.fromiter(accumulate(values.tolist(), lambda total, v: decay * total + v), np.float64, len(values))
