"""Calling a model without leaving a trace in its tensors, and in which it has."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from thalweg.objects.modules import Structure


@contextmanager
def buffers_put_back(model: nn.Module, more: Iterable[Tensor] = ()) -> Generator[None]:
    """Within, a model may be called; afterwards its buffers are the same tensors with the same values, and so are `more`; and its
    modules have the parameters, buffers, submodules and hooks that they had."""
    tensors = [(tensor, tensor.detach().clone()) for tensor in (*model.buffers(), *more)]
    structure = Structure(model.modules())  # a model may give itself another tensor in place of one, or a further one
    try:
        yield
    finally:
        structure.give_again()
        with torch.no_grad():
            for tensor, before in tensors:
                tensor.copy_(before)
