"""Memory format: whether convolutions compute with channels last. Names, shapes and values of weights stay what they are."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


class MemoryFormat:
    """Has a model's 2-D convolutions compute in a format, until `undo`.

    Only the convolutions' weights are laid out anew: PyTorch's kernels then give outputs with channels last, and what follows
    keeps that order. The data are left as they are. A model whose own code relies on the order in memory, as `view` does, fails
    with it; `reshape` and `flatten` do not.

    Arguments:
        model: whose weights are laid out in place; parameters stay the same objects.
        name: "channels_last"; "contiguous" leaves the model as it was made.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        self._before: list[tuple[nn.Parameter, Tensor]] = []
        if name == "channels_last":
            for weight in convolution_weights(model):
                self._before.append((weight, weight.data))
                weight.data = _channels_last(weight)

    def undo(self, *, keeps_values: bool = True) -> None:
        """Lay the weights out as they were made; without `keeps_values` give them their first tensors back, for weights that
        nobody has changed."""
        for weight, before in self._before:
            weight.data = before.copy_(weight.data) if keeps_values else before
        self._before = []


def convolution_weights(model: nn.Module) -> list[nn.Parameter]:
    """Give the weights of 2-D convolutions that can be laid out with channels last, each once.

    Left out are those that are so already, and those that share memory with others, which would be torn apart.
    """
    found: dict[int, nn.Parameter] = {}
    for module in model.modules():
        weight = module._parameters.get("weight") if isinstance(module, _CONVOLUTIONS) else None  # pyright: ignore[reportPrivateUsage]
        if weight is not None and _can_change(weight):
            found[id(weight)] = weight
    shared = _shared_storages(model)
    return [weight for weight in found.values() if weight.untyped_storage().data_ptr() not in shared]


def _can_change(weight: Tensor) -> bool:
    is_plain = type(weight) is nn.Parameter and weight.layout is torch.strided and weight.dim() == 4
    if not is_plain or not weight.is_contiguous() or weight.untyped_storage().nbytes() != weight.nbytes:
        return False
    return _channels_last(weight).stride() != weight.stride()


def _channels_last(weight: Tensor) -> Tensor:
    """Give a weight's values with channels last. That of one channel lies in memory as it did, but its strides say the other
    order: by them a convolution chooses that of its output."""
    return weight.data.to(memory_format=torch.channels_last, copy=True)


def _shared_storages(model: nn.Module) -> set[int]:
    """Give the addresses of memory that several of a model's tensors lie in."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    seen, shared = set[int](), set[int]()
    for tensor in tensors.values():
        if tensor.layout is torch.strided:
            address = tensor.untyped_storage().data_ptr()
            (shared if address in seen else seen).add(address)
    return shared


@contextmanager
def in_memory_format(model: nn.Module, name: str) -> Generator[None]:
    """Within, a trained model computes in a format; its weights must not be changed meanwhile, and are untouched afterwards."""
    changed = MemoryFormat(model, name)
    try:
        yield
    finally:
        changed.undo(keeps_values=False)
