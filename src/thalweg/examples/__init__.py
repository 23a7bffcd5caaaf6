"""Tasks on real data, each in a file such as a user would write; `thalweg examples` lists them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from thalweg.errors import TaskError, nearest
from thalweg.records.task import Source, Task

EXAMPLES: Mapping[str, str] = {
    "digits": "handwritten digits, 8 x 8 pixels: a small perceptron",
    "mnist": "handwritten digits, 28 x 28 pixels: a small convolutional network",
    "letters": "capital letters from 16 measurements, a table of 20,000 rows: a perceptron",
    "chars": "a character language model of the documentation of Python: a recurrent network",
}


@dataclass(frozen=True)
class Info:
    """Facts about an example: data source and licence, budget, expected figures (lowest, highest) and seconds."""

    title: str
    source: str
    licence: str
    epochs: float
    seconds: float
    expected: Mapping[str, tuple[float, float]]


def info(name: str) -> Info:
    """Give the facts about an example. Raises TaskError for one that does not exist, with the nearest name."""
    module = _module(name)
    return Info(EXAMPLES[name], module.SOURCE, module.LICENCE, module.EPOCHS, module.SECONDS, module.EXPECTED)


def load(name: str, **arguments: Any) -> Task:
    """Make an example's task. Raises TaskError for an unknown example or argument."""
    _module(name)
    return Source(module=f"thalweg.examples.{name}", arguments=arguments).load()


def _module(name: str) -> Any:
    if name not in EXAMPLES:
        raise TaskError(f"There is no example '{name}'.{nearest(name, EXAMPLES)} There are {', '.join(EXAMPLES)}.")
    return importlib.import_module(f"thalweg.examples.{name}")
