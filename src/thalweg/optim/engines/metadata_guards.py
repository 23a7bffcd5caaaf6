"""Guards: whether tensors still have the type, dtype, device, layout, shape, strides and memory they had, asked at every step.

Where this PyTorch has the guards that `torch.compile` puts before compiled code, those are used: one call that takes 75 ns per
tensor, where reading the same in Python takes 300.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import sub
from typing import Any

import torch
from torch import Tensor

STORAGE, STORAGE_BYTES = Tensor.untyped_storage, torch.UntypedStorage.nbytes
_OFFSET = Tensor.storage_offset


class MetadataGuard:
    """The metadata of some tensors as they are now. The tensors themselves are not kept alive."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.matches: Callable[[Sequence[Tensor]], bool] = _torch_guard(tensors) or _python_guard(tensors)
        """Whether tensors have this metadata. Never true where they do not; it may be false although they do, where a mode of
        torch's (autocast, say) has changed since."""


class ExactGuard:
    """The same, but true wherever tensors have this metadata, whatever modes of torch's have changed."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._expected = [*map(_metadata, tensors)]
        self._guard = MetadataGuard(tensors)

    def matches(self, tensors: Sequence[Tensor]) -> bool:
        """Tell whether tensors have this metadata."""
        if self._guard.matches(tensors):
            return True
        if [*map(_metadata, tensors)] != self._expected:
            return False
        self._guard = MetadataGuard(tensors)
        return True


class MemoryGuard:
    """The metadata of some tensors as it is now, and how far their storages reach.

    A storage can be made shorter under its tensors (`untyped_storage().resize_`), which then look as they did, while what lies
    behind the storage's end belongs to others.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._has_metadata = MetadataGuard(tensors).matches
        self._bytes = [*map(STORAGE_BYTES, map(STORAGE, tensors))]
        self._offsets = [*map(_OFFSET, tensors)]

    def matches(self, tensors: Sequence[Tensor]) -> bool:
        """Tell whether tensors have this metadata, at the same places of storages of the same sizes."""
        return (
            self._has_metadata(tensors)
            and [*map(STORAGE_BYTES, map(STORAGE, tensors))] == self._bytes
            and [*map(_OFFSET, tensors)] == self._offsets
        )


class GradientsApart:
    """Whether gradients lie in storages of their own; in that of weights or state they change while they are read.

    Asked of gradients that begin as far into their storages as those that this is made with, so that an address tells where its
    storage begins.
    """

    def __init__(self, gradients: Sequence[Tensor], others: Sequence[Tensor]) -> None:
        self._bytes_before = [g.storage_offset() * g.itemsize for g in gradients]
        self._others = frozenset(STORAGE(other).data_ptr() for other in others)
        self._last: Sequence[int] = ()

    def __call__(self, addresses: Sequence[int]) -> bool:
        """Tell whether the gradients at these addresses do."""
        if addresses != self._last:
            if not self._others.isdisjoint(map(sub, addresses, self._bytes_before)):
                return False
            self._last = addresses
        return True


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
