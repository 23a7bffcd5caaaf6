"""Running statistics of batch normalisation, estimated anew for weights that are not those they were gathered at.

Training gathers means and variances of the activations of the weights that are trained. An average of the weights has other
activations, and validated with the trained weights' statistics it may seem far worse than it is. The cure is some forward passes:
Izmailov et al. 2018, arXiv:1803.05407, for averages; Wu & Johnson 2021, arXiv:2105.07576, in general.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from thalweg.errors import DataError

Forward = Callable[[nn.Module, Any], Any]


def gathers_statistics(model: nn.Module) -> bool:
    """Tell whether a model gathers running statistics of batch normalisation as it trains."""
    return any(isinstance(module, _BatchNorm) and module.track_running_stats for module in model.modules())


@contextmanager
def batch_statistics(model: nn.Module) -> Generator[None]:
    """Within, batch normalisation takes the statistics of each batch, and gathers none; afterwards it is as before, bit for bit.

    So a gradient knows that they depend on the weights.
    """
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    before = [(layer, layer.training, [buffer.clone() for buffer in layer.buffers(recurse=False)]) for layer in layers]
    try:
        for layer in layers:
            layer.training = True
        yield
    finally:
        with torch.no_grad():
            for layer, training, own in before:
                layer.training = training
                for buffer, values in zip(layer.buffers(recurse=False), own, strict=True):
                    buffer.copy_(values)


@contextmanager
def recalibrated(model: nn.Module, batches: Iterable[Any], forward: Forward | None = None) -> Generator[int]:
    """Within, batch normalisation has the statistics of the model's present weights; afterwards its own again, bit for bit.

    Goes through the batches in training mode, without gradients, and averages mean and variance over them; a few dozen batches
    of training data, as large as in training, are enough. Give a list or a short iterator: all of it is gone through. A model
    without batch normalisation is left alone, and so are the batches.

    Layers that are in evaluation mode while the model is in training mode (frozen statistics) keep theirs; where the whole model
    is in evaluation mode, `model.train()` says which layers train. Everything else that forward passes change comes back before
    the body runs: modes, other buffers (spectral normalisation's, say), torch's random state.

    Arguments:
        model: whose weights are those to validate, such as within `optimizer.averaged()`.
        batches: a batch is the model's input, a tuple or list that begins with it, or a mapping of keyword arguments, on the
            model's device.
        forward: `forward(model, batch)` for other batches.

    Gives the number of batches; 0 where there is nothing to estimate. Raises DataError where there is, but no batch.

    >>> model = nn.BatchNorm1d(2)
    >>> with recalibrated(model, [torch.tensor([[0.0, 1.0], [2.0, 5.0]])]):
    ...     model.running_mean, model.running_var
    (tensor([1., 3.]), tensor([2., 8.]))
    >>> model.running_mean, model.training
    (tensor([0., 0.]), True)
    """
    modes = [(module, module.training) for module in model.modules()]
    if not model.training:
        model.train()
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.running_mean is not None]
    own = [(buffer, buffer.clone()) for layer in layers for buffer in layer.buffers(recurse=False)]
    seen = 0
    try:
        try:
            if layers:
                seen = _gather(model, layers, batches, forward or _forward)
        finally:
            for module, mode in modes:
                module.training = mode
        yield seen
    finally:
        _put_back(own)


def _gather(model: nn.Module, layers: list[_BatchNorm], batches: Iterable[Any], forward: Forward) -> int:
    others = _others(model, layers)
    before = [(layer, layer.momentum, [b.clone() for b in layer.buffers(recurse=False)]) for layer in layers]
    seen = 0
    try:
        with torch.no_grad(), torch.random.fork_rng(_devices(model)):
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None  # the plain mean over all batches
            for batch in batches:
                forward(model, batch)
                seen += 1
    finally:
        for layer, momentum, values in before:
            layer.momentum = momentum
            if not layer.num_batches_tracked:  # no forward pass came here
                _put_back(zip(layer.buffers(recurse=False), values, strict=True))
        for holder, name, buffer, value in others:
            holder[name] = buffer
            if value is not None:
                _put_back([(buffer, value)])
    if not seen:
        raise DataError("`batches` gave none, so there is nothing to estimate batch normalisation's statistics from.")
    return seen


def _forward(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**cast("Mapping[str, Any]", batch))
    return model(batch[0] if isinstance(batch, tuple | list) else batch)


def _others(model: nn.Module, layers: list[_BatchNorm]) -> list[tuple[dict[str, Any], str, Tensor, Tensor | None]]:
    """Note the other buffers, where they stand, and their values (None of those that cannot be copied)."""
    ours = {id(layer) for layer in layers}
    return [
        (module._buffers, name, buffer, buffer.clone() if buffer.layout is torch.strided else None)  # pyright: ignore[reportPrivateUsage]
        for module in model.modules()
        if id(module) not in ours
        for name, buffer in module._buffers.items()  # pyright: ignore[reportPrivateUsage]
        if buffer is not None
    ]


def _put_back(kept: Iterable[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for buffer, value in kept:
            buffer.copy_(value)


def _devices(model: nn.Module) -> list[int]:
    """Give the CUDA devices whose random state forward passes may draw from."""
    found = {t.device for t in (*model.parameters(), *model.buffers()) if t.device.type == "cuda"}
    return sorted(device.index for device in found if device.index is not None)
