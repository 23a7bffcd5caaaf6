"""Slices of a loss surface: the loss along a line, or over a plane, through a point.

A plane is measured on few lines first. Between two neighbouring ones the loss is predicted from the others by cubic splines
and compared with what it is; where it bends more than that, lines are added. So a smooth surface takes a fraction of the
points of its grid.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.interpolate import RectBivariateSpline
from torch import Tensor

from thalweg.landscape.surface import Surface

Array = npt.NDArray[np.float64]
COARSE = 9  # lines of the first picture
TOLERANCE = 0.01  # of the range of the losses: how far a predicted loss may be off
SAFETY = 0.5  # of the tolerance: elsewhere a prediction may be off by more than where it was tried
TRIED = 9  # points of a line between two others at which the prediction is tried


@dataclass(frozen=True)
class Grid:
    """Losses over a plane.

    Attributes:
        x, y: coordinates of the lines, ascending.
        losses: of shape (len(y), len(x)); infinite where the loss is no number.
        is_measured: of the same shape: whether a loss was measured there, rather than predicted from others.
        error: the largest distance of a prediction from a loss that was measured later, relative to the range.
    """

    x: Array
    y: Array
    losses: Array
    is_measured: npt.NDArray[np.bool_]
    error: float


def line(surface: Surface, point: Tensor, direction: Tensor, at: Sequence[float]) -> Array:
    """Give the losses at `point + a * direction` for each a; infinite where the loss is no number."""
    with surface.over(point, (direction,)) as loss_at:
        return _finite(np.array([loss_at(a) for a in at], dtype=np.float64))


def plane(
    surface: Surface,
    point: Tensor,
    directions: tuple[Tensor, Tensor],
    x: Array,
    y: Array,
    *,
    tolerance: float = TOLERANCE,
    grown: Callable[[Grid], None] = lambda grid: None,
) -> Grid:
    """Give the losses at `point + x * directions[0] + y * directions[1]` on a grid.

    Arguments:
        surface, point: the loss and the centre.
        directions: two vectors of shape (size,).
        x, y: coordinates of the grid, ascending, at least two each.
        tolerance: how far predicted losses may be off, relative to the range of the losses; 0 measures all.
        grown: called with the picture so far, first with that of 9 x 9 lines, and after each refinement.
    """
    with surface.over(point, directions) as loss_at:
        return measured_plane(loss_at, x, y, tolerance=tolerance, grown=grown)


def measured_plane(
    loss_at: Callable[[float, float], float],
    x: Array,
    y: Array,
    *,
    tolerance: float = TOLERANCE,
    grown: Callable[[Grid], None] = lambda grid: None,
) -> Grid:
    """Do what `plane` does for any function of two coordinates."""
    known = _Known(loss_at, np.asarray(x, np.float64), np.asarray(y, np.float64))
    if tolerance <= 0:
        columns, rows = list(range(len(x))), list(range(len(y)))
        return known.grid(columns, rows, 0.0)
    columns, rows = _coarse(len(x)), _coarse(len(y))
    done_columns, done_rows = set[tuple[int, int]](), set[tuple[int, int]]()
    error = math.inf
    while True:
        grid = known.grid(columns, rows, error)
        grown(grid)
        error, more_columns, more_rows = 0.0, list[int](), list[int]()
        for axis, lines, others, done, more in (
            (1, columns, rows, done_columns, more_columns),
            (0, rows, columns, done_rows, more_rows),
        ):
            for low, high in itertools.pairwise(lines):
                if high - low < 2 or (low, high) in done:
                    continue
                middle = (low + high) // 2
                off = known.off(grid, axis, middle, _spread(others))
                if off > SAFETY * tolerance:
                    more.append(middle)
                else:
                    done.add((low, high))
                    error = max(error, off)
        if not more_columns and not more_rows:
            return known.grid(columns, rows, error)
        columns, rows = sorted({*columns, *more_columns}), sorted({*rows, *more_rows})
        # A strip that was smooth may bend where lines across it were added.
        done_columns, done_rows = (set() if more_rows else done_columns), (set() if more_columns else done_rows)


class _Known:
    """The losses that were measured."""

    def __init__(self, loss_at: Callable[[float, float], float], x: Array, y: Array) -> None:
        self.loss_at, self.x, self.y = loss_at, x, y
        self.losses = np.full((len(y), len(x)), np.nan)

    def measure(self, row: int, column: int) -> float:
        if np.isnan(self.losses[row, column]):
            loss = self.loss_at(float(self.x[column]), float(self.y[row]))
            self.losses[row, column] = loss if math.isfinite(loss) else math.inf
        return float(self.losses[row, column])

    def grid(self, columns: list[int], rows: list[int], error: float) -> Grid:
        """Give the picture that is predicted from the losses on some lines, and all that were measured besides."""
        for row, column in itertools.product(rows, columns):
            self.measure(row, column)
        lines = self.losses[np.ix_(rows, columns)]
        if len(columns) == len(self.x) and len(rows) == len(self.y):
            predicted = self.losses.copy()
        else:
            finite = lines[np.isfinite(lines)]
            filled = np.where(np.isfinite(lines), lines, finite.max() if len(finite) else 0.0)
            degree = min(3, len(rows) - 1), min(3, len(columns) - 1)
            spline = RectBivariateSpline(self.y[rows], self.x[columns], filled, kx=degree[0], ky=degree[1])
            # A spline swings below what it goes through, and a loss below all that were measured would draw a minimum.
            predicted = np.maximum(np.asarray(spline(self.y, self.x), np.float64), filled.min())
        is_measured = ~np.isnan(self.losses)
        return Grid(self.x, self.y, np.where(is_measured, self.losses, predicted), is_measured, error)

    def off(self, grid: Grid, axis: int, middle: int, others: list[int]) -> float:
        """Give how far the prediction is off on a line between two others, relative to the range of the losses."""
        finite = grid.losses[np.isfinite(grid.losses)]
        span = float(finite.max() - finite.min()) if len(finite) else 0.0
        worst = 0.0
        for other in others:
            row, column = (other, middle) if axis == 1 else (middle, other)
            predicted = grid.losses[row, column] if not grid.is_measured[row, column] else None
            loss = self.measure(row, column)
            if not math.isfinite(loss):
                return math.inf
            if predicted is not None and span > 0:
                worst = max(worst, abs(loss - float(predicted)) / span)
        return worst


def _coarse(count: int) -> list[int]:
    return sorted({round(i * (count - 1) / (COARSE - 1)) for i in range(COARSE)})


def _spread(lines: list[int]) -> list[int]:
    """Give some of the lines, the outermost among them, where a surface bends most."""
    if len(lines) <= TRIED:
        return lines
    return [lines[round(i * (len(lines) - 1) / (TRIED - 1))] for i in range(TRIED)]


def _finite(losses: Array) -> Array:
    return np.where(np.isfinite(losses), losses, np.inf)
