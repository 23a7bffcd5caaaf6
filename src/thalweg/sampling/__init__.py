"""Drawing batches: the order is a function of (seed, epoch), the position two integers, so a resumed run draws the same ones."""

from thalweg.sampling.batches import (
    Batches,
    Draw,
    check_weights,
    count_examples,
    hold,
    iterate_once,
    joined,
    smallest_part,
)
from thalweg.sampling.order import mix, order
from thalweg.sampling.sources import ItemSource, Source, StreamSource, TensorSource, open_source

__all__ = [
    "Batches",
    "Draw",
    "ItemSource",
    "Source",
    "StreamSource",
    "TensorSource",
    "check_weights",
    "count_examples",
    "hold",
    "iterate_once",
    "joined",
    "mix",
    "open_source",
    "order",
    "smallest_part",
]
