"""The loss as a function of a point: one flat vector of all weights that are trained.

What measures a landscape asks a `Surface` for losses, gradients and products of the Hessian with a vector, and for nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
LossAt = Callable[..., float]
"""The loss at multiples of some directions, one number for each."""


class Slope(NamedTuple):
    """A gradient at a point, of shape (size,), the loss there, and the square of the gradient's sampling error: the expected
    squared distance to the gradient over all data, 0 where it is over all of them."""

    loss: float
    gradient: Tensor
    squared_error: float = 0.0


class Surface(Protocol):
    """A twice differentiable function of a flat vector."""

    @property
    def point(self) -> Tensor:
        """Where the descent ended: a vector of shape (size,). A copy."""
        ...

    def loss(self, point: Tensor) -> float:
        """Give the loss at a point of shape (size,)."""
        ...

    def losses(self, points: Sequence[Tensor]) -> list[float]:
        """Give the losses at several points."""
        ...

    def over(self, point: Tensor, directions: Sequence[Tensor]) -> AbstractContextManager[LossAt]:
        """Within, give the loss at a point plus multiples of some directions: as `loss` would, and faster where it can."""
        ...

    def slope(self, point: Tensor) -> Slope:
        """Give the gradient at a point, with the loss."""
        ...

    def hessian(self, point: Tensor) -> Product:
        """Give the function that multiplies the Hessian at a point with a vector of shape (size,)."""
        ...


class FunctionSurface:
    """The surface of a plain function of one tensor.

    Arguments:
        function: takes a vector of shape (size,), gives a scalar tensor; made of PyTorch's operations.
        point: where it is looked at.

    >>> bowl = FunctionSurface(lambda w: (w * w).sum() / 2, torch.tensor([3.0, 4.0]))
    >>> bowl.loss(bowl.point), bowl.slope(bowl.point).gradient, bowl.hessian(bowl.point)(torch.tensor([1.0, 0.0]))
    (12.5, tensor([3., 4.]), tensor([1., 0.]))
    """

    def __init__(self, function: Callable[[Tensor], Tensor], point: Tensor) -> None:
        self._function, self._point = function, point.detach().clone()

    @property
    def point(self) -> Tensor:
        """Where it is looked at. A copy."""
        return self._point.clone()

    def loss(self, point: Tensor) -> float:
        """Give the function's value."""
        with torch.no_grad():
            return float(self._function(point))

    def losses(self, points: Sequence[Tensor]) -> list[float]:
        """Give the values at several points."""
        return [self.loss(point) for point in points]

    @contextmanager
    def over(self, point: Tensor, directions: Sequence[Tensor]) -> Generator[LossAt]:
        """Within, give the value at a point plus multiples of some directions."""
        yield lambda *coordinates: self.loss(along(point, directions, coordinates))

    def slope(self, point: Tensor) -> Slope:
        """Give the gradient, with the value."""
        weights = point.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            loss = self._function(weights)
            (gradient,) = torch.autograd.grad(loss, weights, allow_unused=True)
        return Slope(float(loss.detach()), torch.zeros_like(weights.detach()) if gradient is None else gradient)

    def hessian(self, point: Tensor) -> Product:
        """Give the function that multiplies the Hessian with a vector; zeros of a linear function."""
        weights = point.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(
                self._function(weights), weights, create_graph=True, allow_unused=True, materialize_grads=True
            )

        def product(vector: Tensor) -> Tensor:
            if not gradient.requires_grad:  # of a linear function
                return torch.zeros_like(vector)
            (found,) = torch.autograd.grad(
                gradient, weights, vector, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            return found

        return product


def along(point: Tensor, directions: Sequence[Tensor], coordinates: Sequence[float]) -> Tensor:
    """Give a point plus multiples of some directions."""
    for coordinate, direction in zip(coordinates, directions, strict=True):
        point = torch.add(point, direction, alpha=coordinate)
    return point
