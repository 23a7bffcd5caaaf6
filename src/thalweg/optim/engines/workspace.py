"""A workspace: buffers that the intermediate tensors of an equation are written into, used again and again.

An equation makes a dozen intermediate tensors. Fresh memory for each costs more than the arithmetic (the system maps and unmaps
its pages at every step), so each operator takes its output buffer from a pool, and the buffer returns there when the last
reference to the result is gone. The equation itself is written as for any tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thalweg.rules import maths


class WorkspaceTensor:
    """A tensor whose operators write into buffers of `pool`, which are of its shape, dtype and device.

    `is_buffer` says that the tensor itself is such a buffer. `__del__` gives it back, which relies on CPython's reference
    counts: they end a result as soon as nothing refers to it. With a collector that runs later the results would be as right,
    but every operator would find the pool empty and allocate. For the same reason whoever needs a result longer must hold the
    `WorkspaceTensor`, not its `tensor` alone, which the next operator would overwrite.
    """

    __slots__ = ("is_buffer", "pool", "tensor")

    def __init__(self, tensor: Tensor, pool: list[Tensor], is_buffer: bool = False) -> None:
        self.tensor, self.pool, self.is_buffer = tensor, pool, is_buffer

    def __del__(self) -> None:
        if self.is_buffer:
            self.pool.append(self.tensor)

    def __neg__(self) -> WorkspaceTensor:
        return _unary(torch.neg, self)

    def __rsub__(self, other: Any) -> WorkspaceTensor:
        negative = _unary(torch.neg, self)
        negative.tensor.add_(other)
        return negative

    def __rtruediv__(self, other: Any) -> WorkspaceTensor:
        # Not `other` times the reciprocal, which rounds twice.
        return WorkspaceTensor(torch.div(other, self.tensor), self.pool, True)  # pyright: ignore[reportArgumentType]

    def __pow__(self, exponent: float) -> WorkspaceTensor:
        return _apply(torch.pow, self, exponent)

    def __lt__(self, other: Any) -> Tensor:
        return self.tensor < unwrap(other)

    def __le__(self, other: Any) -> Tensor:
        return self.tensor <= unwrap(other)

    def __gt__(self, other: Any) -> Tensor:
        return self.tensor > unwrap(other)

    def __ge__(self, other: Any) -> Tensor:
        return self.tensor >= unwrap(other)

    def clip(self, low: float, high: float) -> WorkspaceTensor:
        """Clip each entry."""
        out = self.pool.pop() if self.pool else torch.empty_like(self.tensor)
        torch.clamp(self.tensor, low, high, out=out)
        return WorkspaceTensor(out, self.pool, True)


def unwrap(value: Any) -> Any:
    """Give the tensor of a `WorkspaceTensor`; anything else as it is."""
    return value.tensor if isinstance(value, WorkspaceTensor) else value


def _binary(function: Callable[..., Tensor]) -> Callable[[WorkspaceTensor, Any], WorkspaceTensor]:
    # The pool is used here without a helper function: a step spends most of its Python time in this operator.
    def operator(a: WorkspaceTensor, b: Any) -> WorkspaceTensor:
        pool = a.pool
        out = pool.pop() if pool else torch.empty_like(a.tensor)
        function(a.tensor, b.tensor if type(b) is WorkspaceTensor else b, out=out)
        return WorkspaceTensor(out, pool, True)

    return operator


def _apply(function: Callable[..., Tensor], a: WorkspaceTensor, b: Any) -> WorkspaceTensor:
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
    # between a tensor in a `ChunkedBlock` and the same one in a `FlattenedBlock`, which calculates with NumPy.
    np.sqrt(tensor.numpy(), out=out.numpy())
    return out


def _maximum(x: WorkspaceTensor, y: Any) -> WorkspaceTensor:
    if isinstance(y, WorkspaceTensor):
        return _apply(torch.maximum, x, y)
    out = x.pool.pop() if x.pool else torch.empty_like(x.tensor)
    torch.clamp(x.tensor, min=y, out=out)
    return WorkspaceTensor(out, x.pool, True)


def _where(condition: Tensor, x: Any, y: Any) -> Any:
    chosen = torch.where(condition, unwrap(x), unwrap(y))
    like = next((value for value in (x, y) if isinstance(value, WorkspaceTensor)), None)
    return chosen if like is None else WorkspaceTensor(chosen, like.pool, True)


maths.where.register(Tensor, _where)
maths.sqrt.register(WorkspaceTensor, lambda x: _unary(_sqrt, x))
maths.sign.register(WorkspaceTensor, lambda x: _unary(torch.sign, x))
maths.power.register(WorkspaceTensor, lambda x, exponent: _apply(torch.pow, x, exponent))
maths.maximum.register(WorkspaceTensor, _maximum)
