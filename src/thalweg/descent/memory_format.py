"""Memory format: whether convolutions compute with channels last. Names, shapes and values of weights stay what they are."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


class MemoryFormat:
    """Has a model's 2-D convolutions compute in a format, until `undo`.

    Only the convolutions' weights are laid out anew: PyTorch's kernels then give outputs with channels last, and what follows
    keeps that order. The data are left as they are. A model whose own code relies on the order in memory, as `view` does, fails
    with it; `reshape` and `flatten` do not. Pooling layers are called through `PoolingInOrder`.

    Arguments:
        model: whose weights are laid out in place; parameters stay the same objects.
        name: "channels_last"; "contiguous" leaves the model as it was made.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        self._before: list[tuple[nn.Parameter, Tensor]] = []
        self._pooling: list[nn.Module] = []
        if name == "channels_last":
            for weight in convolution_weights(model):
                self._before.append((weight, weight.data))
                weight.data = _channels_last(weight)
            for module in model.modules():
                if isinstance(module, _POOLING) and module._compiled_call_impl is None:
                    module._compiled_call_impl = PoolingInOrder(module)
                    self._pooling.append(module)

    def undo(self, *, keeps_values: bool = True) -> None:
        """Lay the weights out as they were made; without `keeps_values` give them their first tensors back, for weights that
        nobody has changed."""
        for weight, before in self._before:
            weight.data = before.copy_(weight.data) if keeps_values else before
        for module in self._pooling:
            del module._compiled_call_impl
        self._before, self._pooling = [], []


class PoolingInOrder:
    """Calls a pooling layer so that its backward pass is given the gradient with channels last, as its output was.

    After the last pooling there is most often `flatten`, whose gradient has the ordinary order. By that PyTorch would go back
    through the layer on a CPU: it would copy indices and the gradient of the input, which is larger, to it and back. The values
    are the same either way.

    It takes the place that `nn.Module.compile` uses: no attribute of the user's, and no part of a copy of the module.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call the layer."""
        output = self._module._call_impl(*arguments, **keywords)
        if (
            isinstance(output, Tensor)
            and output.requires_grad
            and output.device.type == "cpu"
            and not torch.compiler.is_compiling()  # whose kernels take any order, and whose graphs no such function
            and output.is_contiguous(memory_format=torch.channels_last)
        ):
            output.register_hook(_channels_last_gradient)
        return output


def _channels_last_gradient(gradient: Tensor) -> Tensor:
    # Not `contiguous(memory_format=...)`, which `torch.vmap` does not know.
    return gradient.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


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
