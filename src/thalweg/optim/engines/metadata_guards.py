"""Metadata guards: whether tensors still have the type, dtype, device, layout, shape and strides they had, asked at every step.

Where this PyTorch has the guards that `torch.compile` puts before compiled code, those are used: one call that takes 75 ns per
tensor, where reading the same in Python takes 300.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor


class MetadataGuard:
    """The metadata of some tensors as they are now. The tensors themselves are not kept alive."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.matches: Callable[[Sequence[Tensor]], bool] = _torch_guard(tensors) or _python_guard(tensors)
        """Whether tensors have this metadata. Never true where they do not; it may be false although they do, where a mode of
        torch's (autocast, say) has changed since."""


def _torch_guard(tensors: Sequence[Tensor]) -> Callable[[Sequence[Tensor]], bool] | None:
    """Make a guard of `torch._C._dynamo`; None where this version of PyTorch has none, or one with other arguments.

    It is private API, so it is tried once on these very tensors, and an error of any kind means that it cannot be used.
    """
    try:
        from torch._C._dynamo import guards

        made: Any = guards.TensorGuards
        check: Any = made(
            *tensors,
            dynamic_dims_sizes=[[*t.shape] for t in tensors],
            dynamic_dims_strides=[[*t.stride()] for t in tensors],
        ).check
        check(*tensors)
    except (ImportError, AttributeError, TypeError, RuntimeError, SystemError):
        return None
    count = len(tensors)
    return lambda others: len(others) == count and check(*others)


def _python_guard(tensors: Sequence[Tensor]) -> Callable[[Sequence[Tensor]], bool]:
    expected = [*map(_metadata, tensors)]
    return lambda others: [*map(_metadata, others)] == expected


def _metadata(tensor: Tensor) -> tuple[Any, ...]:
    kind = (type(tensor), tensor.dtype, tensor.device, tensor.layout, tensor.is_conj(), tensor.is_neg())
    return *kind, tensor.shape, tensor.stride()
