"""Weights that the forward pass itself changes: of a momentum encoder within the model, or prototypes that it normalises."""

from __future__ import annotations

from collections.abc import Collection, Generator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from thalweg.records.weights import model_state

SAMPLE = 16  # elements of each weight, as what follows an average changes all of them


class Marks(NamedTuple):
    """What differs once a weight has changed: by name its address and PyTorch's count of changes, and some of its elements."""

    places: dict[str, tuple[int, int]]
    samples: dict[str, bytes]


def mark_weights(model: nn.Module) -> Marks:
    """Give the marks of a model's parameters, from one transfer to the host."""
    weights = {name: w.detach() for name, w in model_state(model).items() if _is_plain(w)}
    places = {name: (weight.data_ptr(), weight._version) for name, weight in weights.items()}
    drawn = {name: _flat(weight)[:: max(1, weight.numel() // SAMPLE)] for name, weight in weights.items()}
    whole = [sample.contiguous().view(torch.uint8) for sample in drawn.values()]
    data = torch.cat(whole).cpu().numpy().tobytes() if whole else b""
    samples, start = dict[str, bytes](), 0
    for name, part in zip(drawn, whole, strict=True):
        samples[name] = data[start : start + part.numel()]
        start += part.numel()
    return Marks(places, samples)


def moved_since(before: Marks, model: nn.Module) -> set[str]:
    """Give the names of the parameters that have changed."""
    now = mark_weights(model)
    return {
        name
        for name in before.places.keys() & now.places.keys()
        if before.places[name] != now.places[name] or before.samples[name] != now.samples[name]
    }


@contextmanager
def put_back(model: nn.Module, names: Collection[str]) -> Generator[None]:
    """Within, a model may be called; afterwards its parameters of these names are as before."""
    weights = {name: w for name, w in model_state(model).items() if name in names}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(before[name])


@contextmanager
def all_put_back(model: nn.Module) -> Generator[None]:
    """Within, a model may be called; afterwards its parameters are as before, also those that it moves at some calls only."""
    before = [(weight, weight.detach().clone()) for weight in model.parameters() if _is_plain(weight)]
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, values in before:
                if not torch.equal(weight, values):
                    weight.copy_(values)


def _is_plain(weight: Tensor) -> bool:
    return type(weight) is nn.Parameter and weight.layout is torch.strided and weight.numel() > 0


def _flat(weight: Tensor) -> Tensor:
    """Give all elements in some order, without a copy where they lie densely."""
    weight = weight.resolve_conj().resolve_neg()
    if weight.is_contiguous() or (weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)):
        return weight.as_strided((weight.numel(),), (1,))
    return weight.reshape(-1)
