"""A lane: a tensor whose arithmetic writes into borrowed buffers instead of fresh memory.

An equation makes a dozen intermediate tensors. Fresh memory for each costs more than the arithmetic (the pages come from the
system and go back every step), so results go into buffers of a pool; a buffer returns to it when its lane is no longer
named. The equation does not notice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thalweg.rules import maths


class WorkspaceTensor:
    """A tensor on its way through an equation; `pool` holds buffers of its shape, dtype and device."""

    __slots__ = ("borrowed", "pool", "tensor")

    def __init__(self, tensor: Tensor, pool: list[Tensor], borrowed: bool = False) -> None:
        self.tensor, self.pool, self.borrowed = tensor, pool, borrowed

    def __del__(self) -> None:
        if self.borrowed:
            self.pool.append(self.tensor)

    def __neg__(self) -> WorkspaceTensor:
        return _unary(torch.neg, self)

    def __rsub__(self, other: Any) -> WorkspaceTensor:
        negative = _unary(torch.neg, self)
        negative.tensor.add_(other)
        return negative

    def __rtruediv__(self, other: Any) -> WorkspaceTensor:
        # Not the reciprocal times `other`, which rounds twice.
        return WorkspaceTensor(torch.div(other, self.tensor), self.pool, True)  # pyright: ignore[reportArgumentType]

    def __pow__(self, exponent: float) -> WorkspaceTensor:
        return _binary_on(torch.pow, self, exponent)

    def __lt__(self, other: Any) -> Tensor:
        return self.tensor < bare(other)

    def __le__(self, other: Any) -> Tensor:
        return self.tensor <= bare(other)

    def __gt__(self, other: Any) -> Tensor:
        return self.tensor > bare(other)

    def __ge__(self, other: Any) -> Tensor:
        return self.tensor >= bare(other)

    def clip(self, low: float, high: float) -> WorkspaceTensor:
        """Clip each entry."""
        out = self.pool.pop() if self.pool else torch.empty_like(self.tensor)
        torch.clamp(self.tensor, low, high, out=out)
        return WorkspaceTensor(out, self.pool, True)


def bare(value: Any) -> Any:
    """Give the tensor of a lane; anything else as it is."""
    return value.tensor if isinstance(value, WorkspaceTensor) else value


def _binary(function: Callable[..., Tensor]) -> Callable[[WorkspaceTensor, Any], WorkspaceTensor]:
    # Written out without a helper's call: this is the innermost Python of a step.
    def operator(a: WorkspaceTensor, b: Any) -> WorkspaceTensor:
        pool = a.pool
        out = pool.pop() if pool else torch.empty_like(a.tensor)
        function(a.tensor, b.tensor if type(b) is WorkspaceTensor else b, out=out)
        return WorkspaceTensor(out, pool, True)

    return operator


def _binary_on(function: Callable[..., Tensor], a: WorkspaceTensor, b: Any) -> WorkspaceTensor:
    return _binary(function)(a, b)


def _unary(function: Callable[..., Tensor], a: WorkspaceTensor) -> WorkspaceTensor:
    out = a.pool.pop() if a.pool else torch.empty_like(a.tensor)
    function(a.tensor, out=out)
    return WorkspaceTensor(out, a.pool, True)


for _name, _function in {"add": torch.add, "mul": torch.mul, "sub": torch.sub, "truediv": torch.div}.items():
    setattr(WorkspaceTensor, f"__{_name}__", _binary(_function))
for _name, _function in {"add": torch.add, "mul": torch.mul}.items():
    setattr(WorkspaceTensor, f"__r{_name}__", _binary(_function))


def _sqrt(tensor: Tensor, *, out: Tensor) -> Tensor:
    # NumPy's root is rounded correctly; torch's is not (MKL: 20 % of float32 results are an ulp off), and bits would differ
    # between a tensor worked on alone and one gathered with others.
    np.sqrt(tensor.numpy(), out=out.numpy())
    return out


def _maximum(x: WorkspaceTensor, y: Any) -> WorkspaceTensor:
    if isinstance(y, WorkspaceTensor):
        return _binary_on(torch.maximum, x, y)
    out = x.pool.pop() if x.pool else torch.empty_like(x.tensor)
    torch.clamp(x.tensor, min=y, out=out)
    return WorkspaceTensor(out, x.pool, True)


def _where(condition: Tensor, x: Any, y: Any) -> Any:
    kept = torch.where(condition, bare(x), bare(y))
    like = next((value for value in (x, y) if isinstance(value, WorkspaceTensor)), None)
    return kept if like is None else WorkspaceTensor(kept, like.pool, True)


maths.where.register(Tensor, _where)
maths.sqrt.register(WorkspaceTensor, lambda x: _unary(_sqrt, x))
maths.sign.register(WorkspaceTensor, lambda x: _unary(torch.sign, x))
maths.power.register(WorkspaceTensor, lambda x, exponent: _binary_on(torch.pow, x, exponent))
maths.maximum.register(WorkspaceTensor, _maximum)
