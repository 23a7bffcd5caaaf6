"""What the examples share: optional packages, and a split into training and validation."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import numpy.typing as npt

from thalweg.errors import TaskError

Indices = npt.NDArray[np.intp]


def import_data_package(module: str) -> Any:
    """Import a module of a package that brings data. Raises TaskError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise TaskError(f'This example needs {module.split(".")[0]}: pip install "thalweg[examples]"') from error


def split(count: int, held_out: float, labels: Any = None, seed: int = 0) -> tuple[Indices, Indices]:
    """Split 0 … count - 1 at random into training and validation, both in rising order.

    With `labels`, one per example, each label is held out in the same proportion, at least once and never wholly. The same
    seed gives the same split.

    Raises TaskError where `held_out` is no share between 0 and 1, or a part would be empty.

    >>> train, validation = split(10, 0.2)
    >>> len(train), len(validation), len(set(train) & set(validation))
    (8, 2, 0)
    """
    if not 0 < held_out < 1:
        raise TaskError(f"held_out is {held_out}, but it is a share between 0 and 1, such as 0.2.")
    strata = np.zeros(count, dtype=int) if labels is None else np.asarray(labels)
    random = np.random.default_rng(seed)
    held = np.zeros(count, dtype=bool)
    for value in np.unique(strata):
        members = random.permutation(np.flatnonzero(strata == value))
        if len(members) < 2:
            raise TaskError(f"One example cannot be split in two: label {value} has {len(members)} of {count}.")
        held[members[: min(max(1, round(held_out * len(members))), len(members) - 1)]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)
