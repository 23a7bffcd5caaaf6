"""Calling a model without leaving a trace in its tensors."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def buffers_put_back(model: nn.Module, more: Iterable[Tensor] = ()) -> Generator[None]:
    """Within, a model may be called; afterwards its buffers are the same tensors with the same values, and so are `more`."""
    tensors = [(tensor, tensor.detach().clone()) for tensor in (*model.buffers(), *more)]
    places = [(module, dict(module._buffers)) for module in model.modules()]
    try:
        yield
    finally:
        for module, own in places:  # a model may give itself another tensor in the place of one, or a further one
            if [*map(id, own.values())] != [*map(id, module._buffers.values())]:
                module._buffers.clear()
                module._buffers.update(own)
        with torch.no_grad():
            for tensor, before in tensors:
                tensor.copy_(before)
